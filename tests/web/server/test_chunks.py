"""Chunked bodies: decoded whatever the reads are, at a cost that grows with the bytes alone."""

from __future__ import annotations

import tracemalloc
from collections.abc import Callable
from typing import Any

import pytest
import pytest_twisted
from hypothesis import given
from hypothesis import strategies as st

from httpnas.storage import content, upload
from httpnas.transfer.budget import Budget
from httpnas.transfer.sink import Sink
from httpnas.web.multipart import Parts
from httpnas.web.server.body import Body
from httpnas.web.server.channel import READ_OF_TINY
from httpnas.web.server.chunks import SIZE_LINE, Chunks
from httpnas.web.server.head import HEADER_BLOCK, HeadRefused
from tests.harness import Client, Nas

SIZE = 128 << 10
LITTLE = 32 << 10
#: A body as chunks of one byte each.
TINY = b"1\r\nx\r\n" * SIZE + b"0\r\n\r\n"


def decode(*reads: bytes) -> tuple[bytes, bytes | None, int]:
    """Return the content, what came behind it (None: no end), and in how many pieces it came."""
    pieces: list[bytes] = []
    behind: list[bytes] = []
    chunks = Chunks(pieces.append, behind.append)
    for read in reads:
        chunks.dataReceived(read)
    return b"".join(pieces), behind[0] if behind else None, len(pieces)


@given(st.data())
def test_a_body_is_the_same_however_it_is_cut_into_chunks_and_reads(data: st.DataObject) -> None:
    pieces = data.draw(st.lists(st.binary(min_size=1, max_size=300)))
    encoded = b""
    for piece in pieces:
        form = data.draw(st.sampled_from([b"%x", b"%X", b"%04x"]))
        extension = data.draw(st.sampled_from([b"", b";", b";a", b';a="b c";d']))
        encoded += form % len(piece) + extension + b"\r\n" + piece + b"\r\n"
    trailer = data.draw(st.sampled_from([b"", b"A: b\r\n", b"A: b\r\nC:\r\n"]))
    encoded += b"00\r\n" + trailer + b"\r\n" + b"behind"
    cuts = sorted(data.draw(st.lists(st.integers(0, len(encoded)))))
    reads = [encoded[a:b] for a, b in zip([0, *cuts], [*cuts, len(encoded)], strict=True) if a < b]
    ended = next(n for n in range(len(reads) + 1) if decode(*reads[:n])[1] is not None)
    whole, behind, _ = decode(*reads[:ended])
    assert whole == b"".join(pieces)
    assert behind is not None and (behind + b"".join(reads[ended:])).endswith(b"behind")


@pytest.mark.parametrize(
    "encoded",
    [
        b"1;" + b"a" * SIZE_LINE,
        b"1;" + b"a" * SIZE_LINE + b"\r\nx\r\n",
        b"1;\x80\r\nx\r\n",
        b"1;a\x00b\r\nx\r\n",
        b"1 \r\nx\r\n",
        b"11112222333344445\r\n",
        b"1\r\nx\n\r\n",
        b"1\r\nxy\r\n",
        b"2\r\nx\r\n0\r\n\r\n",
        b"0\r\nno colon\r\n\r\n",
        b"0\r\n: no name\r\n\r\n",
        b"0\r\nA : b\r\n\r\n",
        b"0\r\n folded: b\r\n\r\n",
        b"0\r\n" + b"A: b\r\n" * (HEADER_BLOCK // 6 + 1),
        b"0\r\n" + b"A" * (HEADER_BLOCK + 1),
    ],
)
def test_what_is_no_chunk_is_refused_however_it_comes(encoded: bytes) -> None:
    with pytest.raises(HeadRefused):
        decode(encoded)
    with pytest.raises(HeadRefused):
        decode(*(encoded[at : at + 7] for at in range(0, len(encoded), 7)))


def test_what_one_read_brings_is_passed_on_at_once() -> None:
    whole, _, pieces = decode(TINY[: 6 * 1000], TINY[6 * 1000 :])
    assert (whole, pieces) == (b"x" * SIZE, 2)


def test_tiny_pieces_cost_no_more_memory_than_their_bytes() -> None:
    sink: Any = Sink(None, lambda slab: None, Budget())  # type: ignore[arg-type]
    body = Body(None, sink, lambda: None)
    for take in (sink.write, body._hold):
        assert _memory_of(take) < 3 * LITTLE


def _memory_of(take: Callable[[bytes], object]) -> int:
    """Return how much memory is used when *take* has taken :data:`LITTLE` in pieces of 2 bytes."""
    tracemalloc.start()
    for n in range(LITTLE // 2):
        take(b"%02d" % (n % 100))
    used = tracemalloc.get_traced_memory()[0]
    tracemalloc.stop()
    return used


FORM = (
    b'--b\r\nContent-Disposition: form-data; name="file"; filename="f"\r\n\r\n'
    + b"x" * SIZE
    + b"\r\n--b--\r\n"
)


@pytest.mark.parametrize(
    ("head", "body", "consumer"),
    [
        (b"POST /file/f HTTP/1.1\r\nHost: nas\r\n", b"x" * SIZE, Sink),
        (
            b"POST /files/ HTTP/1.1\r\nHost: nas\r\n"
            b"Content-Type: multipart/form-data; boundary=b\r\n",
            FORM,
            Parts,
        ),
    ],
)
@pytest_twisted.ensureDeferred
async def test_an_upload_in_chunks_of_one_byte_is_joined_before_anybody_takes_it(
    nas: Nas, monkeypatch: pytest.MonkeyPatch, head: bytes, body: bytes, consumer: Any
) -> None:
    taken: list[int] = []
    written: list[int] = []
    take, write_all = consumer.write, content.write_all

    def counted(self: Any, data: bytes) -> None:
        taken.append(len(data))
        take(self, data)

    def counted_write(fd: int, chunks: Any, *more: Any) -> None:
        written.append(len(chunks))
        write_all(fd, chunks, *more)

    monkeypatch.setattr(consumer, "write", counted)
    monkeypatch.setattr(upload, "write_all", counted_write)
    encoded = b"".join(b"1\r\n%c\r\n" % byte for byte in body) + b"0\r\n\r\n"

    def send() -> None:
        with Client(nas.port) as client:
            client.send(head + b"Transfer-Encoding: chunked\r\n\r\n" + encoded)
            assert client.answer()[0] in (200, 202)

    await nas.in_thread(send)
    assert (nas.root / "f").read_bytes() == b"x" * SIZE
    assert sum(taken) == len(body)
    assert max(taken[10:]) <= READ_OF_TINY, "others have their turn soon"
    assert len(taken) < 10 + 2 * len(encoded) / READ_OF_TINY
    assert sum(written) < 20
