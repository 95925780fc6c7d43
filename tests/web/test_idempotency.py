"""``Idempotency-Key``: an append that is sent again is not appended again."""

from __future__ import annotations

import threading
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import pytest
import pytest_twisted
from twisted.internet.defer import ensureDeferred, gatherResults

from httpnas.storage.append import IN_MEMORY
from tests.harness import Client, Nas
from tests.storage.steps import KINDS, choose

HOST = b"Host: nas\r\n"


@pytest.fixture(params=KINDS)
def kind(request: pytest.FixtureRequest, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> str:
    chosen: str = request.param
    choose(chosen, monkeypatch, tmp_path)
    return chosen


@pytest_twisted.async_yield_fixture
async def two(kind: str, tmp_path: Path) -> AsyncIterator[tuple[Nas, Nas]]:
    """Two daemons on one root."""
    daemons = Nas(tmp_path / "root"), Nas(tmp_path / "root")
    yield daemons
    for nas in daemons:
        await nas.stop()


@pytest_twisted.async_yield_fixture
async def nas(kind: str, tmp_path: Path) -> AsyncIterator[Nas]:
    nas = Nas(tmp_path / "root")
    yield nas
    await nas.stop()


def one(headers: Any, name: str) -> str | None:
    values = headers.getRawHeaders(name, [None])
    assert len(values) == 1
    value: str | None = values[0]
    return value


async def put(nas: Nas, body: bytes, key: str | None, **fields: str) -> tuple[int, Any, Any]:
    """Append *body* to ``f``; return status, ``Upload-Offset`` and ``ETag`` of the answer."""
    headers = {name.replace("_", "-"): value for name, value in fields.items()}
    if key is not None:
        headers["Idempotency-Key"] = key
    status, _, answered = await nas.fetch("PUT", "/file/f", data=body, headers=headers)
    return status, one(answered, "Upload-Offset"), one(answered, "ETag")


async def tag_of(nas: Nas) -> str | None:
    _, _, headers = await nas.fetch("HEAD", "/file/f")
    return one(headers, "ETag")


@pytest_twisted.ensureDeferred
async def test_a_repeat_is_answered_like_the_first_and_appends_nothing(nas: Nas) -> None:
    (nas.root / "f").write_bytes(b"old ")
    first = await put(nas, b"new ", "key")
    assert first[:2] == (200, "8")
    assert first[2] == await tag_of(nas)
    assert await put(nas, b"new ", "key") == first
    later = await put(nas, b"more ", "other")
    assert later[:2] == (200, "13")
    assert await put(nas, b"new ", "key") == first
    assert await put(nas, b"more ", "other") == later
    assert await put(nas, b"last", None) == (200, "17", await tag_of(nas))
    assert (nas.root / "f").read_bytes() == b"old new more last"


@pytest.mark.parametrize("body", [b"", b"x" * (IN_MEMORY + 1)], ids=["empty", "large"])
@pytest_twisted.ensureDeferred
async def test_a_repeat_of_any_size_appends_nothing(nas: Nas, body: bytes) -> None:
    (nas.root / "f").write_bytes(b"old")
    first = await put(nas, body, "key")
    assert first == (200, str(3 + len(body)), await tag_of(nas))
    assert await put(nas, body, "key") == first
    assert (nas.root / "f").stat().st_size == 3 + len(body)
    assert nas.leftovers() == []


@pytest_twisted.ensureDeferred
async def test_a_repeat_is_not_refused_for_what_the_first_has_changed(nas: Nas) -> None:
    (nas.root / "f").write_bytes(b"old")
    tag = str(await tag_of(nas))
    first = await put(nas, b"new", "key", Upload_Offset="3", If_Match=tag)
    assert first[:2] == (200, "6")
    assert await put(nas, b"new", "key", Upload_Offset="3", If_Match=tag) == first
    assert (await put(nas, b"new", "other", Upload_Offset="3"))[:2] == (409, "6")
    assert (await put(nas, b"new", "other", If_Match=tag))[0] == 412
    assert (await put(nas, b"new", "other", Upload_Offset="6"))[:2] == (200, "9")
    assert (nas.root / "f").read_bytes() == b"oldnewnew"


@pytest.mark.parametrize("key", ["", "k" * 256, "k" * 4000])
@pytest_twisted.ensureDeferred
async def test_a_key_of_no_or_too_many_bytes_is_refused(nas: Nas, key: str) -> None:
    (nas.root / "f").write_bytes(b"old")
    assert (await put(nas, b"new", key))[0] == 400
    assert (nas.root / "f").read_bytes() == b"old"


@pytest.mark.parametrize("key", ["k", "k" * 255, '"8e03978e-40d5-43dd-bc93-6894a57f9324"'])
@pytest_twisted.ensureDeferred
async def test_a_key_of_1_to_255_bytes_is_taken(nas: Nas, key: str) -> None:
    (nas.root / "f").write_bytes(b"")
    for _ in range(2):
        assert (await put(nas, b"x", key))[:2] == (200, "1")
    assert (await put(nas, b"x", key[:-1] + "#"))[:2] == (200, "2")


@pytest_twisted.ensureDeferred
async def test_what_was_refused_or_cut_off_was_not_done(nas: Nas) -> None:
    (nas.root / "f").write_bytes(b"old")
    bad = {"Content-MD5": "AAAAAAAAAAAAAAAAAAAAAA=="}
    status, _, _ = await nas.fetch(
        "PUT", "/file/f", data=b"new", headers={"Idempotency-Key": "key", **bad}
    )
    assert status == 400
    head = b"PUT /file/f HTTP/1.1\r\n" + HOST + b"Idempotency-Key: key\r\nContent-Length: 9\r\n\r\n"
    await nas.talk(head + b"part", close=True)
    await nas.at_rest()
    assert (nas.root / "f").read_bytes() == b"old"
    assert (await put(nas, b"new", "key"))[:2] == (200, "6")


@pytest_twisted.ensureDeferred
async def test_a_replaced_file_has_taken_nothing_and_a_moved_one_what_it_took(nas: Nas) -> None:
    (nas.root / "f").write_bytes(b"")
    first = await put(nas, b"x", "key")
    await nas.fetch("PUT", "/file/f/mv", json={"path": "g"})
    await nas.fetch("POST", "/file/f", data=b"replaced ")
    assert (await put(nas, b"x", "key"))[:2] == (200, "10")
    await nas.fetch("PUT", "/file/g/mv", json={"path": "f"})
    assert await put(nas, b"x", "key") == first
    assert (nas.root / "f").read_bytes() == b"x"


@pytest_twisted.ensureDeferred
async def test_a_repeat_for_what_is_gone_is_404(nas: Nas) -> None:
    (nas.root / "f").write_bytes(b"")
    await put(nas, b"x", "key")
    await nas.fetch("DELETE", "/file/f")
    assert (await put(nas, b"x", "key"))[0] == 404


@pytest_twisted.ensureDeferred
async def test_the_body_of_a_known_key_is_asked_for_as_it_may_be_another_one(nas: Nas) -> None:
    (nas.root / "f").write_bytes(b"old")
    first = await put(nas, b"new", "key")
    head = b"PUT /file/f HTTP/1.1\r\n" + HOST + b"Content-Length: 3\r\nExpect: 100-continue\r\n"

    def talk() -> None:
        with Client(nas.port) as client:
            for body, expected in ((b"new", first), (b"old", (422, None, None))):
                client.send(head + b"Idempotency-Key: key\r\n\r\n")
                assert client.answer()[0] == 100
                client.send(body)
                status, headers, _ = client.answer()
                assert (status, headers.get("upload-offset"), headers.get("etag")) == expected
        with Client(nas.port) as client:
            client.send(head + b"Idempotency-Key: unknown\r\n\r\n")
            assert client.answer()[0] == 100
            client.send(b"new")
            assert client.answer()[0] == 200

    await nas.in_thread(talk)
    assert (nas.root / "f").read_bytes() == b"oldnewnew"


@pytest_twisted.ensureDeferred
async def test_a_connection_lives_on_after_a_repeat_with_its_body(nas: Nas) -> None:
    (nas.root / "f").write_bytes(b"")
    request = (
        b"PUT /file/f HTTP/1.1\r\n"
        + HOST
        + b"Idempotency-Key: key\r\nContent-Length: 4\r\n\r\nnew\n"
    )

    def talk() -> None:
        with Client(nas.port) as client:
            for _ in range(4):
                client.send(request)
                status, headers, body = client.answer()
                assert (status, headers["upload-offset"], body) == (200, "4", b"OK")

    await nas.in_thread(talk)
    assert (nas.root / "f").read_bytes() == b"new\n"


# At once


@pytest_twisted.ensureDeferred
async def test_of_repeats_at_once_through_two_daemons_one_lands(two: tuple[Nas, Nas]) -> None:
    (two[0].root / "f").write_bytes(b"")
    wanted = b""
    for round_ in range(10):
        body = b"x" * (IN_MEMORY * (round_ == 5)) + b"%d\n" % round_
        wanted += body
        answers = await gatherResults(
            [ensureDeferred(put(nas, body, f"key {round_}")) for nas in two * 3]
        )
        assert set(answers) == {(200, str(len(wanted)), await tag_of(two[0]))}
    assert (two[0].root / "f").read_bytes() == wanted
    assert two[0].leftovers() == []


@pytest_twisted.ensureDeferred
async def test_of_repeats_whose_bodies_end_together_one_lands(two: tuple[Nas, Nas]) -> None:
    """All are asked for their bodies before any of them has come whole."""
    (two[0].root / "f").write_bytes(b"")
    head = b"PUT /file/f HTTP/1.1\r\n" + HOST + b"Idempotency-Key: key\r\nContent-Length: 4\r\n"
    clients = [Client(nas.port) for nas in two * 4]
    answers: list[Any] = []

    def end(client: Client) -> None:
        client.send(b"new\n")
        status, headers, _ = client.answer()
        answers.append((status, headers["upload-offset"], headers["etag"]))

    def talk() -> None:
        for client in clients:
            client.send(head + b"Expect: 100-continue\r\n\r\n")
        for client in clients:
            assert client.answer()[0] == 100
        threads = [threading.Thread(target=end, args=[client]) for client in clients]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        for client in clients:
            client.socket.close()

    await two[0].in_thread(talk)
    assert len(answers) == len(clients)
    assert set(answers) == {(200, "4", await tag_of(two[0]))}
    assert (two[0].root / "f").read_bytes() == b"new\n"


@pytest.mark.parametrize("size", [5, IN_MEMORY + 5])
@pytest.mark.parametrize("chunked", [False, True])
@pytest_twisted.ensureDeferred
async def test_a_key_that_comes_again_with_another_body_is_refused(
    nas: Nas, size: int, chunked: bool
) -> None:
    """As draft-ietf-httpapi-idempotency-key-header section 2.7 has it."""
    (nas.root / "f").write_bytes(b"")
    body = bytes(range(256)) * (size // 256 + 1)
    body = body[:size]

    def send(client: Client, content: bytes) -> tuple[int, bytes]:
        if chunked:
            length = b"Transfer-Encoding: chunked\r\n\r\n"
            content = (
                b"%x\r\n%b\r\n0\r\n\r\n" % (len(content), content) if content else b"0\r\n\r\n"
            )
        else:
            length = b"Content-Length: %d\r\n\r\n" % len(content)
        head = b"PUT /file/f HTTP/1.1\r\n" + HOST + b"Idempotency-Key: key\r\n"
        client.socket.sendall(head + length + content)
        status, _, answered = client.answer()
        return status, answered

    def act() -> None:
        with Client(nas.port) as client:
            assert send(client, body)[0] == 200
            for other in (
                body[::-1],
                body[:-1] + b"x",
                b"x" + body[1:],
                body[:-1],
                body + b"x",
                b"",
            ):
                status, answered = send(client, other)
                assert status == 422 and b"key-reused" in answered
            assert send(client, body)[0] == 200

    await nas.in_thread(act)
    assert (nas.root / "f").read_bytes() == body


@pytest_twisted.ensureDeferred
async def test_of_two_bodies_with_one_key_at_once_one_is_appended(nas: Nas) -> None:
    (nas.root / "f").write_bytes(b"")
    bodies = [b"%d" % number for number in range(8)]
    answers = await gatherResults([ensureDeferred(put(nas, body, "key")) for body in bodies])
    assert sorted(status for status, *_ in answers) == [200] + [422] * 7
    (won,) = [body for body, answer in zip(bodies, answers, strict=True) if answer[0] == 200]
    assert (nas.root / "f").read_bytes() == won


@pytest_twisted.ensureDeferred
async def test_a_body_of_another_length_is_refused_before_it_comes(nas: Nas) -> None:
    (nas.root / "f").write_bytes(b"")
    await put(nas, b"new", "key")
    head = b"PUT /file/f HTTP/1.1\r\n" + HOST + b"Idempotency-Key: key\r\nExpect: 100-continue\r\n"
    answer = await nas.talk(head + b"Content-Length: 4\r\n\r\n")
    assert answer.startswith(b"HTTP/1.1 422 ")


@pytest_twisted.ensureDeferred
async def test_two_keys_are_refused_and_nothing_is_appended(nas: Nas) -> None:
    (nas.root / "f").write_bytes(b"old")
    head = b"PUT /file/f HTTP/1.1\r\n" + HOST + b"Content-Length: 3\r\nIdempotency-Key: a\r\n"
    for second in (b"a", b"b"):
        answer = await nas.talk(head + b"Idempotency-Key: %b\r\n\r\nnew" % second, close=True)
        assert answer.startswith(b"HTTP/1.1 400 ")
        assert b"/docs/problems#bad-field" in answer
    assert (nas.root / "f").read_bytes() == b"old"
