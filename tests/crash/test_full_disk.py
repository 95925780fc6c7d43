"""A real daemon on file systems that are full, read-only, or keep no user xattrs."""

from __future__ import annotations

import errno
import http.client
import json
import os
import threading
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path

import pytest

from tests.crash import images
from tests.harness import PATIENCE, Client, Twistd, twistd, wait_until
from tests.private import runs_of

pytestmark = pytest.mark.crash

MIB = 1 << 20
#: Room on the file systems here, as far as bytes go.
SIZE = 16 * MIB

#: One of each change, in an order in which all of them can be made.
CHANGES = (
    ("POST", "/file/old", b"new"),
    ("POST", "/file/new/in/folders", b"new"),
    ("PUT", "/file/old", b"new"),
    ("PUT", "/file/folder/file/mv", b'{"path": "moved"}'),
    ("DELETE", "/file/old", None),
    ("DELETE", "/file/folder", None),
)

Answer = tuple[int, dict[str, str], bytes]


@pytest.fixture
def place() -> Iterator[Path]:
    """A folder for file systems."""
    if os.geteuid() != 0:
        pytest.skip("only root may mount file systems")
    with images.folder() as path:
        yield path


def mounted(place: Path, kind: str, options: str = "defaults") -> Iterator[Path]:
    if reason := images.why_not(kind):
        pytest.skip(reason)
    with images.in_memory(place, kind, options) as path:
        yield path


@pytest.fixture(params=["tmpfs", "ext4"])
def small(request: pytest.FixtureRequest, place: Path) -> Iterator[Path]:
    """A file system that a few uploads fill."""
    if request.param == "tmpfs":
        yield from mounted(place, "tmpfs", f"size={SIZE}")
    else:
        yield from ext4(place, SIZE)


@pytest.fixture(params=["tmpfs", "ext4"])
def few_inodes(request: pytest.FixtureRequest, place: Path) -> Iterator[Path]:
    """A file system on which a few hundred files can be made, with room for more."""
    if request.param == "tmpfs":
        yield from mounted(place, "tmpfs", f"size={SIZE},nr_inodes=700")
    else:
        yield from ext4(place, SIZE, "-N", "700")


def ext4(place: Path, size: int, *options: str) -> Iterator[Path]:
    if reason := images.why_not("ext4"):
        pytest.skip(reason)
    with images.image(place, "ext4", size, "-m", "0", *options) as image:
        yield image.mount_point


def ask(
    daemon: Twistd, method: str, path: str, body: bytes | None = None, **headers: str
) -> Answer:
    """Send a request on a connection of its own; return status, headers and body."""
    connection = http.client.HTTPConnection("127.0.0.1", daemon.port, timeout=PATIENCE)
    try:
        connection.request(
            method, path, body, {name.replace("_", "-"): value for name, value in headers.items()}
        )
        response = connection.getresponse()
        fields = {name.lower(): value for name, value in response.getheaders()}
        return response.status, fields, response.read()
    finally:
        connection.close()


def stream(daemon: Twistd, method: str, path: str, chunks: Sequence[bytes]) -> Answer:
    """Send a chunked body, as far as the daemon takes it; return the answer."""
    with Client(daemon.port) as client:
        client.send(
            f"{method} {path} HTTP/1.1\r\nHost: h\r\nTransfer-Encoding: chunked\r\n\r\n".encode()
        )
        try:
            for chunk in chunks:
                client.send(b"%x\r\n%b\r\n" % (len(chunk), chunk))
            client.send(b"0\r\n\r\n")
        except ConnectionError:
            pass  # it was answered early, and the answer can still be read
        return client.answer()


def is_full(answer: Answer) -> bool:
    """Tell a 507 with its problem document from a 200; anything else is wrong."""
    status, headers, body = answer
    if status == 200:
        return False
    assert status == 507, answer
    assert headers["content-type"] == "application/problem+json"
    assert json.loads(body)["status"] == 507
    return True


def free(root: Path) -> int:
    status = os.statvfs(root)
    return status.f_bavail * status.f_frsize


def fill(daemon: Twistd) -> list[str]:
    """Upload until nothing more goes in; return the names that did."""
    names: list[str] = []
    for size in (MIB, 64 << 10, 4096):
        # Chunked: a length that is known would be refused before the last block is taken.
        while not is_full(stream(daemon, "POST", f"/file/filler/{len(names)}", [b"f" * size])):
            names.append(f"filler/{len(names)}")
    return names


def exhaust(root: Path, size: int) -> list[str]:
    """Take all that is left with files of *size* bytes made beside the daemon; return their names.

    :param size: 0 takes inodes only.
    """
    names: list[str] = []
    try:
        while True:
            path = root / f"beside-{len(names)}"
            path.touch()
            names.append(path.name)
            path.write_bytes(b"b" * size)
    except OSError as error:
        assert error.errno == errno.ENOSPC
    return names


def at_rest(root: Path) -> bool:
    """Tell whether nothing is left of any transfer."""
    return not [f for f in runs_of(root).glob("*/*") if f.name != "lease"]


def serves_reads_and_deletes(daemon: Twistd, names: list[str]) -> None:
    """See that a daemon on a full disk does what takes no room."""
    assert ask(daemon, "GET", "/file/old")[2] == b"old content\n"
    assert ask(daemon, "GET", "/file/old/wc")[2] == b"1"
    listed = ask(daemon, "GET", "/file/filler/")[2].decode().split()
    assert {f"filler/{name}" for name in listed} == set(names)
    for name in names:
        assert ask(daemon, "DELETE", f"/file/{name}")[::2] == (200, b"OK")


def test_what_will_not_fit_is_refused_before_it_is_sent(small: Path) -> None:
    with twistd(small, cwd=small.parent) as daemon:
        assert ask(daemon, "POST", "/file/old", b"old content\n")[0] == 200
        for method, name in [("POST", "new"), ("POST", "old"), ("PUT", "old")]:
            with Client(daemon.port) as client:
                client.send(
                    f"{method} /file/{name} HTTP/1.1\r\nHost: h\r\nExpect: 100-continue\r\n"
                    f"Content-Length: {free(small) + 1}\r\n\r\n".encode()
                )
                assert is_full(client.answer())  # and not 100
        assert ask(daemon, "GET", "/file/old")[2] == b"old content\n"
        assert ask(daemon, "GET", "/file/new")[0] == 404
        wait_until(lambda: at_rest(small), "no leftovers")


@pytest.mark.parametrize("method", ["POST", "PUT"])
@pytest.mark.parametrize("chunk", [700, 100_000, MIB])
def test_a_body_that_fills_the_disk_changes_nothing(small: Path, method: str, chunk: int) -> None:
    with twistd(small, cwd=small.parent) as daemon:
        assert ask(daemon, "POST", "/file/old", b"old content\n")[0] == 200
        etag = ask(daemon, "GET", "/file/old")[1]["etag"]
        before = free(small)
        chunks = [b"n" * chunk] * (2 * SIZE // chunk)
        assert is_full(stream(daemon, method, "/file/old", chunks))
        if method == "POST":
            assert is_full(stream(daemon, method, "/file/new/in/folders", chunks))
        _, headers, body = ask(daemon, "GET", "/file/old")
        assert (body, headers["etag"]) == (b"old content\n", etag)
        assert ask(daemon, "GET", "/file/")[2].split() in ([b"old"], [b"lost+found", b"old"])
        wait_until(lambda: at_rest(small), "no leftovers")
        # A folder of locks or of the workspace may have grown by a few blocks.
        wait_until(lambda: before - free(small) <= 16 << 10, "the space to be given back")
        assert not is_full(stream(daemon, method, "/file/old", [b"n" * MIB]))


def test_a_small_append_to_a_full_disk_changes_nothing(small: Path) -> None:
    with twistd(small, cwd=small.parent) as daemon:
        assert ask(daemon, "POST", "/file/old", b"x" * 4096)[0] == 200
        fill(daemon)
        # Staged in memory, it meets the full disk only when it is committed.
        whole = b"x" * 4096
        while not is_full(stream(daemon, "PUT", "/file/old", [b"y" * 30_000])):
            whole += b"y" * 30_000
        _, headers, body = ask(daemon, "GET", "/file/old")
        assert body == whole
        assert headers["content-length"] == str(len(whole))
        refused = ask(daemon, "PUT", "/file/old", b"z" * 30_000, Upload_Offset=str(len(whole)))
        assert is_full(refused)
        assert (small / "old").stat().st_size == len(whole)


def test_a_full_disk_can_be_read_and_emptied_and_then_works_again(small: Path) -> None:
    with twistd(small, cwd=small.parent) as daemon:
        assert ask(daemon, "POST", "/file/old", b"old content\n")[0] == 200
        for _ in range(2):
            names = fill(daemon)
            assert names
            serves_reads_and_deletes(daemon, names)
            assert not is_full(ask(daemon, "POST", "/file/new", b"n" * 8 * MIB))
            assert not is_full(ask(daemon, "PUT", "/file/new", b"n" * 2 * MIB))
            assert ask(daemon, "DELETE", "/file/new")[0] == 200
        assert ask(daemon, "GET", "/file")[0] == 200


def test_a_folder_can_be_deleted_from_a_full_disk(small: Path) -> None:
    with twistd(small, cwd=small.parent) as daemon:
        before = free(small)
        fill(daemon)
        assert ask(daemon, "DELETE", "/file/filler")[::2] == (200, b"OK")
        wait_until(lambda: before - free(small) <= 64 << 10, "the space to be given back")
        assert not is_full(ask(daemon, "POST", "/file/new", b"n" * 8 * MIB))


@pytest.mark.parametrize("small", ["tmpfs", pytest.param("ext4")], indirect=True)
def test_a_daemon_that_starts_on_a_full_disk_lets_it_be_emptied(small: Path) -> None:
    with twistd(small, cwd=small.parent) as daemon:
        assert ask(daemon, "POST", "/file/old", b"old content\n")[0] == 200
        names = fill(daemon)
    exhaust(small, 1)
    with twistd(small, cwd=small.parent) as daemon:
        serves_reads_and_deletes(daemon, names)
        assert not is_full(ask(daemon, "POST", "/file/new", b"n" * 8 * MIB))


@pytest.mark.parametrize("chunked", [False, True])
def test_of_many_uploads_at_once_each_is_whole_or_refused(small: Path, chunked: bool) -> None:
    with twistd(small, cwd=small.parent) as daemon:
        for _ in range(3):
            answers: dict[int, Answer] = {}

            def upload(number: int, answers: dict[int, Answer] = answers) -> None:
                content = [b"%04d" % number * (MIB // 16)] * 12
                path = f"/file/part-{number % 3}/{number}"
                if chunked:
                    answers[number] = stream(daemon, "POST", path, content)
                else:
                    answers[number] = ask(daemon, "POST", path, b"".join(content))

            in_parallel([lambda n=n: upload(n) for n in range(24)])  # type: ignore[misc]
            outcome = Counter(is_full(answer) for answer in answers.values())
            assert sum(outcome.values()) == 24
            assert outcome[True], "they all went in"
            for number, answer in answers.items():
                path = f"/file/part-{number % 3}/{number}"
                if is_full(answer):
                    assert ask(daemon, "GET", path)[0] == 404
                else:
                    assert ask(daemon, "GET", path)[2] == b"%04d" % number * (MIB // 16) * 12
                    assert ask(daemon, "DELETE", path)[0] == 200
            wait_until(lambda: at_rest(small), "no leftovers")
        assert not is_full(ask(daemon, "POST", "/file/new", b"n" * 8 * MIB))


def in_parallel(calls: Sequence[Callable[[], object]]) -> None:
    threads = [threading.Thread(target=call) for call in calls]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()


def test_without_inodes_uploads_are_refused_and_deletes_make_room(few_inodes: Path) -> None:
    with twistd(few_inodes, cwd=few_inodes.parent) as daemon:
        assert ask(daemon, "POST", "/file/old", b"old content\n")[0] == 200
        names: list[str] = []
        while not is_full(ask(daemon, "POST", f"/file/filler/{len(names)}", b"f")):
            names.append(f"filler/{len(names)}")
            assert len(names) < 1000
        exhaust(few_inodes, 0)
        assert is_full(ask(daemon, "POST", "/file/old", b"new content\n"))
        assert is_full(ask(daemon, "POST", "/file/new/folder/file", b"f"))
        serves_reads_and_deletes(daemon, names)
        assert ask(daemon, "POST", "/file/old", b"new content\n")[0] == 200
        wait_until(lambda: at_rest(few_inodes), "no leftovers")


def test_without_inodes_what_others_have_made_can_be_deleted(few_inodes: Path) -> None:
    (few_inodes / "folder").mkdir()
    (few_inodes / "folder" / "file").touch()
    with twistd(few_inodes, cwd=few_inodes.parent) as daemon:
        names = exhaust(few_inodes, 0)
        assert ask(daemon, "DELETE", "/file/folder")[::2] == (200, b"OK")
        wait_until(lambda: os.statvfs(few_inodes).f_ffree >= 1, "an inode to be given back")
        exhaust(few_inodes, 0)
        assert ask(daemon, "DELETE", f"/file/{names[0]}")[::2] == (200, b"OK")


def test_a_daemon_that_starts_without_inodes_lets_them_be_freed(few_inodes: Path) -> None:
    with twistd(few_inodes, cwd=few_inodes.parent) as daemon:
        assert ask(daemon, "POST", "/file/old", b"old content\n")[0] == 200
    exhaust(few_inodes, 0)
    with twistd(few_inodes, cwd=few_inodes.parent) as daemon:
        assert ask(daemon, "GET", "/file/old")[2] == b"old content\n"
        assert ask(daemon, "DELETE", "/file/old")[::2] == (200, b"OK")


def test_a_read_only_storage_is_read_and_not_changed(place: Path) -> None:
    """As after an error on ext4 that is mounted with errors=remount-ro, which is the default."""
    if reason := images.why_not("ext4"):
        pytest.skip(reason)
    with images.image(place, "ext4", SIZE) as image:
        root = image.mount_point
        with twistd(root, cwd=root.parent) as daemon:
            assert ask(daemon, "POST", "/file/old", b"old content\n")[0] == 200
            assert ask(daemon, "POST", "/file/folder/file", b"f")[0] == 200
            # Nobody can remount as "ro" what a daemon writes to, the kernel itself aside.
            image.remount("abort")
            for method, path, body in CHANGES:
                status, headers, told = ask(daemon, method, path, body)
                assert status == 403, (method, path)
                assert headers["content-type"] == "application/problem+json"
                assert json.loads(told)["status"] == 403
            assert ask(daemon, "GET", "/file/old")[2] == b"old content\n"
            assert ask(daemon, "GET", "/file/folder/")[2].split() == [b"file"]
            assert ask(daemon, "GET", "/file")[0] == 503
        image.unmount()
        image.mount()
        with twistd(root, cwd=root.parent) as daemon:
            assert ask(daemon, "GET", "/file")[0] == 200
            for method, path, body in CHANGES:
                assert ask(daemon, method, path, body)[0] == 200, (method, path)


def test_a_file_system_without_user_xattrs_will_do(place: Path) -> None:
    for root in mounted(place, "ramfs"):
        with pytest.raises(OSError):
            os.setxattr(root, "user.test", b"")
        with twistd(root, cwd=root.parent) as daemon:
            content = b"line\n" * MIB
            assert ask(daemon, "POST", "/file/folder/file", content)[0] == 200
            assert stream(daemon, "POST", "/file/streamed", [content])[0] == 200
            for added in (b"small\n", b"large\n" * MIB):
                content += added
                status, headers, _ = ask(daemon, "PUT", "/file/folder/file", added)
                assert (status, headers["upload-offset"]) == (200, str(len(content)))
            assert ask(daemon, "GET", "/file/folder/file")[2] == content
            assert ask(daemon, "GET", "/file/folder/file/wc")[2] == b"%d" % content.count(b"\n")
            assert ask(daemon, "PUT", "/file/folder/file/mv", b'{"path": "moved"}')[0] == 200
            assert ask(daemon, "DELETE", "/file/moved")[0] == 200
