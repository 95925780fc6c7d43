from __future__ import annotations

import json
import os
import socket
import tempfile
import threading
from html.parser import HTMLParser
from pathlib import Path
from typing import Any
from urllib.parse import quote, unquote, urljoin, urlsplit

import pytest
import pytest_twisted
from hypothesis import given, settings
from hypothesis import strategies as st
from twisted.internet import reactor
from twisted.internet.defer import Deferred
from twisted.internet.task import deferLater
from twisted.python.threadable import isInIOThread

from httpnas.storage.listing import Folder
from httpnas.storage.records import XattrRecords
from httpnas.web import listings
from tests.harness import Client, Nas

HTML = {"Accept": "text/html,application/xhtml+xml,*/*;q=0.8"}
JSON = {"Accept": "application/json"}
AWKWARD = [
    "<img src=x onerror=1>",
    "&amp;",
    "a b#?%.txt",
    "%2e%2e",
    "a:b",
    "http:",
    "javascript:alert(1)",
    "气",
    '"quoted"',
    "'single'",
    "back\\slash",
    "-",
    "...",
    "~",
    "wc",
    "mv",
    "e\u0301",
    "\u202egpj.exe",
    "\u2028",
    "n" * 255,
]


class Links(HTMLParser):
    """Collects the targets and the texts of links, and the names of all elements."""

    def __init__(self, page: bytes) -> None:
        super().__init__()
        self.links: list[tuple[str, str]] = []
        self.elements: set[str] = set()
        self._target: str | None = None
        self.feed(page.decode())

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.elements.add(tag)
        if tag == "a":
            assert [name for name, _ in attrs] == ["href"]
            self._target = attrs[0][1] or ""

    def handle_data(self, data: str) -> None:
        if self._target is not None:
            self.links.append((self._target, data))
            self._target = None


async def listed(nas: Nas, path: str) -> dict[str, Any]:
    status, body, headers = await nas.fetch("GET", path, headers=JSON)
    assert status == 200, body
    assert headers.getRawHeaders("Content-Type") == ["application/json"]
    found: dict[str, Any] = json.loads(body)
    assert list(found) == ["path", "entries", "next"]
    return found


def names(page: dict[str, Any]) -> list[str]:
    return [entry["name"] for entry in page["entries"]]


def fill(folder: Path) -> None:
    """Make three files and two folders, out of order."""
    for name in ("b.txt", "a.txt", "Z"):
        (folder / name).write_bytes(name.encode())
    for name in ("y", "c"):
        (folder / name).mkdir()
        (folder / name / "in").touch()


ORDER = ["Z", "a.txt", "b.txt", "c", "y"]


@pytest.mark.parametrize("path", ["/file/d/", "/file/d", "/file/"])
@pytest.mark.parametrize("accept", [None, "text/plain", "*/*", "image/png", "nonsense"])
@pytest_twisted.ensureDeferred
async def test_a_folder_is_listed_as_bare_sorted_names(
    nas: Nas, path: str, accept: str | None
) -> None:
    (nas.root / "d").mkdir()
    fill(nas.root if path == "/file/" else nas.root / "d")
    status, body, headers = await nas.fetch(
        "GET", path, headers={} if accept is None else {"Accept": accept}
    )
    expected = sorted([*ORDER, "d"]) if path == "/file/" else ORDER
    assert (status, body.decode()) == (200, "".join(f"{name}\n" for name in expected))
    assert headers.getRawHeaders("Content-Type") == ["text/plain; charset=utf-8"]
    assert headers.getRawHeaders("Vary") == ["Accept"]
    assert headers.getRawHeaders("X-Content-Type-Options") == ["nosniff"]
    status, body, same = await nas.fetch("HEAD", path, headers={"Accept": accept or "*/*"})
    assert (status, body) == (200, b"")
    assert same.getRawHeaders("Content-Type") == ["text/plain; charset=utf-8"]


@pytest.mark.parametrize("accept", [{}, JSON, HTML])
@pytest_twisted.ensureDeferred
async def test_an_empty_folder_is_listed(nas: Nas, accept: dict[str, str]) -> None:
    (nas.root / "d").mkdir()
    status, body, _ = await nas.fetch("GET", "/file/d/", headers=accept)
    assert status == 200
    if accept is JSON:
        assert json.loads(body) == {"path": "d", "entries": [], "next": None}
    elif accept is HTML:
        assert Links(body).links == [("../", "../")]
    else:
        assert body == b""
    assert names(await listed(nas, "/file/")) == ["d"]


@pytest_twisted.ensureDeferred
async def test_json_describes_every_entry(nas: Nas) -> None:
    (nas.root / "d").mkdir()
    fill(nas.root / "d")
    os.utime(nas.root / "d/a.txt", (1, 1_000_000_000.5))
    page = await listed(nas, "/file/d")
    assert page["path"] == "d"
    assert names(page) == ORDER
    for entry in page["entries"]:
        assert set(entry) == {"name", "type", "size", "mtime", "etag"}
        folder = entry["name"] in "cy"
        assert entry["type"] == ("folder" if folder else "file")
        assert entry["size"] == (None if folder else len(entry["name"]))
        if not folder:
            _, _, headers = await nas.fetch("HEAD", f"/file/d/{entry['name']}")
            assert [entry["etag"]] == headers.getRawHeaders("ETag")
    assert page["entries"][1]["mtime"] == 1_000_000_000.5


@pytest.mark.parametrize("path", ["/file/d", "/file/d%2Fe", "/file/%E6%B0%94", "/file/a%20b%3F"])
@pytest.mark.parametrize("query", ["", "?limit=2&after=a%26b", "?"])
@pytest.mark.parametrize("method", ["GET", "HEAD"])
@pytest_twisted.ensureDeferred
async def test_html_is_sent_from_behind_the_slash_only(
    nas: Nas, path: str, query: str, method: str
) -> None:
    for name in ("d/e", "气", "a b?"):
        (nas.root / name).mkdir(parents=True)
    status, _, headers = await nas.fetch(method, path + query, headers=HTML, allow_redirects=False)
    assert status == 301
    leaf = path.removeprefix("/file/")
    assert headers.getRawHeaders("Location") == [f"./{leaf}/{query.rstrip('?')}"]
    assert (await nas.fetch(method, path + "/" + query, headers=HTML))[0] == 200
    # The other forms have no links, and no need of that.
    assert (await nas.fetch(method, path, headers=JSON, allow_redirects=False))[0] == 200


# Pages


@pytest.mark.parametrize("limit", [1, 2, 3, 7, 36, 37, 1000])
@pytest_twisted.ensureDeferred
async def test_paging_meets_every_name_exactly_once(nas: Nas, limit: int) -> None:
    expected = [*AWKWARD, *(f"n{number}" for number in range(16)), "a+b&limit=1"]
    for name in expected:
        (nas.root / name).touch()
    expected.sort(key=os.fsencode)
    for accept in (JSON, {}):
        met: list[str] = []
        while True:
            after = quote(met[-1], safe="") if met else ""
            path = f"/file/?limit={limit}&after={after}"
            if accept:
                page = names(await listed(nas, path))
            else:
                page = (await nas.fetch("GET", path))[1].decode().split("\n")[:-1]
            if not page:
                break
            assert len(page) == min(limit, len(expected) - len(met))
            met += page
        assert met == expected


@pytest_twisted.ensureDeferred
async def test_a_page_begins_behind_a_name_that_is_gone(nas: Nas) -> None:
    for name in ("a", "b", "d"):
        (nas.root / name).touch()
    assert names(await listed(nas, "/file/?after=c")) == ["d"]
    assert names(await listed(nas, "/file/?limit=1&after=a")) == ["b"]
    assert names(await listed(nas, "/file/?after=zzz")) == []
    assert names(await listed(nas, "/file/?limit=999999999")) == ["a", "b", "d"]


@pytest.mark.parametrize(
    "query",
    [
        "limit=0",
        "limit=-1",
        "limit=x",
        "limit=1.5",
        "limit=1e3",
        "limit=%D9%A3",
        "limit=+5",
        "limit=" + "9" * 5000,
        "limit=1&limit=x",
        "after=%FF",
        "limit=%FF",
        "after=a/b",
        "after=5/b",
        "sort=Size",
        "sort=etag",
        "sort=name&sort=x",
        "order=ascending",
        "order=-1",
        "sort=size&order=x&limit=1",
        "sort=size&limit=10001",
        "sort=mtime&limit=999999999",
        "sort=mtime&limit=0",
        "sort=size&limit=1&after=a",
        "sort=size&limit=1&after=5",
        "sort=size&limit=1&after=5/",
        "sort=size&limit=1&after=/a",
        "sort=size&limit=1&after=5/a/b",
        "sort=size&limit=1&after=5//b",
        "sort=size&limit=1&after=--5/a",
        "sort=size&limit=1&after=%2B5/a",
        "sort=size&limit=1&after=5.0/a",
        "sort=size&limit=1&after=%D9%A3/a",
        "sort=size&limit=1&after=%205/a",
        "sort=mtime&limit=1&after=1e9/a",
        "sort=mtime&limit=1&after=" + "9" * 5000 + "/a",
        "&".join(f"x{number}=1" for number in range(17)),
    ],
)
@pytest.mark.parametrize("accept", [{}, JSON, HTML])
@pytest_twisted.ensureDeferred
async def test_a_query_that_makes_no_sense_is_refused(
    nas: Nas, query: str, accept: dict[str, str]
) -> None:
    status, body, headers = await nas.fetch("GET", f"/file/?{query}", headers=accept)
    assert status == 400
    assert headers.getRawHeaders("Content-Type") == ["application/problem+json"]
    assert len(json.loads(body)["detail"]) > 10


@pytest_twisted.ensureDeferred
async def test_a_page_in_descending_order_begins_before_a_name(nas: Nas) -> None:
    for name in ("a", "b", "d"):
        (nas.root / name).touch()
    for query, expected in {
        "order=desc": ["d", "b", "a"],
        "order=desc&after=c": ["b", "a"],
        "order=desc&after=b&limit=1": ["a"],
        "sort=name&order=desc&after=": ["d", "b", "a"],
        "order=desc&after=a": [],
    }.items():
        page = await listed(nas, f"/file/?{query}")
        assert (names(page), page["next"]) == (expected, None)
        assert (await nas.fetch("GET", f"/file/?{query}"))[1].decode().split() == expected


# Sorted


ORDERS = [(by, order) for by in ("name", "size", "mtime") for order in ("asc", "desc")]


def key(root: Path, by: str, name: str) -> tuple[int, bytes]:
    """Return what decides where *name* stands."""
    status = os.stat(root / name)
    size = -1 if (root / name).is_dir() else status.st_size
    return {"name": 0, "size": size, "mtime": status.st_mtime_ns}[by], name.encode()


def fill_with_ties(root: Path) -> list[str]:
    """Make files and folders of few sizes and times; return their names."""
    for number, name in enumerate(AWKWARD):
        (root / name).write_bytes(b"x" * (number % 3))
        os.utime(root / name, ns=(0, (number % 4 - 1) * 10**18 + number % 2))
    for name in ("folder", "<d>", "z z"):
        (root / name).mkdir()
        os.utime(root / name, ns=(0, 10**18))
    return [*AWKWARD, "folder", "<d>", "z z"]


@pytest.mark.parametrize(("by", "order"), ORDERS)
@pytest.mark.parametrize("limit", [1, 2, 7, 22, 23, 24, 10_000, None])
@pytest_twisted.ensureDeferred
async def test_following_next_meets_every_entry_once_in_the_order_asked_for(
    nas: Nas, monkeypatch: pytest.MonkeyPatch, by: str, order: str, limit: int | None
) -> None:
    monkeypatch.setattr(listings, "_SOME", 5)
    expected = fill_with_ties(nas.root)
    assert len(expected) == 23
    expected.sort(key=lambda name: key(nas.root, by, name), reverse=order == "desc")
    size = limit or (23 if by == "name" else 5)
    met: list[str] = []
    query = f"sort={by}&order={order}" + (f"&limit={limit}" if limit else "")
    after = ""
    while True:
        page = await listed(nas, f"/file/?{query}{after}")
        met += names(page)
        assert len(page["entries"]) == min(size, 23 - len(met) + len(page["entries"]))
        if page["next"] is None:
            break
        assert page["entries"]
        after = "&after=" + quote(page["next"], safe="")
    assert met == expected


@pytest_twisted.ensureDeferred
async def test_next_in_the_order_of_names_is_the_last_name(nas: Nas) -> None:
    fill(nas.root)
    for query, following in {
        "limit=1": "Z",
        "limit=4": "c",
        "limit=5": None,
        "limit=6": None,
        "": None,
        "limit=2&order=desc": "c",
        "limit=2&after=b.txt": None,
        "limit=1&after=b.txt": "c",
        "after=z": None,
    }.items():
        assert (await listed(nas, f"/file/?{query}"))["next"] == following


@pytest_twisted.ensureDeferred
async def test_next_goes_on_behind_what_is_gone_or_was_changed(nas: Nas) -> None:
    for number, name in enumerate("abcdef"):
        (nas.root / name).write_bytes(b"x" * number)
    page = await listed(nas, "/file/?sort=size&limit=3")
    assert names(page) == ["a", "b", "c"]
    (nas.root / "c").unlink()
    (nas.root / "d").unlink()
    (nas.root / "0").write_bytes(b"xx")  # as large as c was, and before it
    (nas.root / "cc").write_bytes(b"xx")  # behind it
    after = quote(page["next"], safe="")
    assert names(await listed(nas, f"/file/?sort=size&limit=3&after={after}")) == ["cc", "e", "f"]


@pytest.mark.parametrize("by", ["name", "size"])
@pytest_twisted.ensureDeferred
async def test_what_vanishes_before_its_page_is_made_does_not_end_the_listing(
    nas: Nas, monkeypatch: pytest.MonkeyPatch, by: str
) -> None:
    monkeypatch.setattr(listings, "_SOME", 1)
    for name in "abcdef":
        (nas.root / name).touch()
    look = Folder.entry

    def racing(folder: Folder, name: bytes) -> Any:
        if name in (b"b", b"c", b"d"):
            (nas.root / name.decode()).unlink(missing_ok=True)
        return look(folder, name)

    monkeypatch.setattr(Folder, "entry", racing)
    page = await listed(nas, f"/file/?sort={by}&limit=2")
    assert names(page) == ["a", "e"]
    after = quote(page["next"], safe="")
    page = await listed(nas, f"/file/?sort={by}&limit=2&after={after}")
    assert (names(page), page["next"]) == (["f"], None)


def document(folder: Folder, query: str) -> dict[str, Any]:
    """Return the JSON that a client gets for *query*."""
    page = listings._page(query.encode(), "json")
    pieces = listings._pieces("json", b"", folder, page)
    found: dict[str, Any] = json.loads(b"".join(pieces))
    return found


@settings(max_examples=150, deadline=None, database=None)
@given(
    st.dictionaries(
        st.one_of(
            st.text("a0/-% +&=?#;é", min_size=1, max_size=4),
            st.text(st.characters(exclude_categories=["Cc", "Cs"]), min_size=1, max_size=60),
            st.just(".httpnas"),
        )
        .map(lambda name: name.replace("/", "-"))
        .filter(lambda name: name not in (".", "..")),
        st.tuples(st.one_of(st.none(), st.integers(0, 3)), st.integers(-(2**62), 2**62)),
        max_size=9,
    ),
    st.sampled_from(ORDERS),
    st.integers(1, 10),
)
def test_every_cursor_can_be_sent_back(
    entries: dict[str, tuple[int | None, int]], order: tuple[str, str], limit: int
) -> None:
    with tempfile.TemporaryDirectory() as made:
        root = Path(made)
        for name, (size, mtime_ns) in entries.items():
            (root / name).mkdir() if size is None else (root / name).write_bytes(bytes(size))
            os.utime(root / name, ns=(0, mtime_ns))
        folder = Folder(os.open(root, os.O_RDONLY), is_root=True, records=XattrRecords())
        try:
            query = f"sort={order[0]}&order={order[1]}&limit={limit}"
            page = document(folder, query)
            met = names(page)
            while page["next"] is not None:
                assert len(page["entries"]) == limit
                page = document(folder, f"{query}&after={quote(page['next'], safe='')}")
                met += names(page)
        finally:
            folder.close()
        expected = [name for name in entries if name != ".httpnas"]
        expected.sort(key=lambda name: key(root, order[0], name), reverse=order[1] == "desc")
        assert met == expected


@pytest.mark.parametrize("form", ["text", "html"])
@pytest.mark.parametrize(("by", "order"), ORDERS)
@pytest_twisted.ensureDeferred
async def test_text_and_html_are_sorted_too(nas: Nas, form: str, by: str, order: str) -> None:
    expected = sorted(
        fill_with_ties(nas.root),
        key=lambda name: key(nas.root, by, name),
        reverse=order == "desc",
    )
    path = f"/file/?sort={by}&order={order}&limit=20"
    if form == "text":
        assert (await nas.fetch("GET", path))[1].decode().split("\n")[:-1] == expected[:20]
    else:
        links = Links((await nas.fetch("GET", path, headers=HTML))[1]).links
        assert [text.rstrip("/") for _, text in links] == expected[:20]


@pytest.mark.parametrize("accept", [{}, HTML])
@pytest_twisted.ensureDeferred
async def test_what_does_not_tell_of_a_next_page_is_sorted_with_a_limit_only(
    nas: Nas, accept: dict[str, str]
) -> None:
    (nas.root / "f").touch()
    for by in ("size", "mtime"):
        assert (await nas.fetch("GET", f"/file/?sort={by}", headers=accept))[0] == 400
        assert (await nas.fetch("GET", f"/file/?sort={by}&limit=1", headers=accept))[0] == 200
    assert (await nas.fetch("GET", "/file/?sort=name&order=desc", headers=accept))[0] == 200


@pytest.mark.parametrize(("by", "order"), ORDERS)
@pytest_twisted.ensureDeferred
async def test_in_no_order_the_daemons_own_folder_is_shown(nas: Nas, by: str, order: str) -> None:
    (nas.root / "d/.httpnas").mkdir(parents=True)
    query = f"?sort={by}&order={order}"
    assert names(await listed(nas, f"/file/{query}")) == ["d"]
    assert names(await listed(nas, f"/file/d{query}")) == [".httpnas"]


@pytest_twisted.ensureDeferred
async def test_by_size_a_folder_is_read_once_and_only_a_page_is_opened_in_pool_threads(
    nas: Nas, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(listings, "_SOME", 5)
    for number in range(50):
        (nas.root / f"f{number:02}").touch()
    looked: list[bytes] = []
    threads = []
    look, stat, scandir = Folder.entry, os.stat, os.scandir

    def scanning(fd: int) -> Any:
        threads.append(threading.current_thread())
        return scandir(fd)

    def looking(folder: Folder, name: bytes) -> Any:
        looked.append(name)
        return look(folder, name)

    def statting(path: Any, **kwargs: Any) -> os.stat_result:
        if path in (b"f00", b"f49"):
            threads.append(threading.current_thread())
        return stat(path, **kwargs)

    monkeypatch.setattr(Folder, "entry", looking)
    monkeypatch.setattr(os, "stat", statting)
    monkeypatch.setattr(os, "scandir", scanning)
    page = await listed(nas, "/file/?sort=size&limit=3")
    monkeypatch.undo()
    assert names(page) == ["f00", "f01", "f02"]
    assert looked == [b"f00", b"f01", b"f02", b"f03"]
    # Read once, each stat'ed once; look stats what is on the page once more.
    assert len(threads) == 1 + 2 + 1
    assert threading.main_thread() not in threads


@pytest_twisted.ensureDeferred
async def test_a_sorted_page_on_the_wire(nas: Nas) -> None:
    (nas.root / "d").mkdir()
    for size, name in enumerate(("b", "a", "c")):
        (nas.root / "d" / name).write_bytes(b"x" * size)

    def ask(query: str) -> tuple[int, bytes]:
        with Client(nas.port) as client:
            client.send(
                f"GET /file/d/?{query} HTTP/1.0\r\nHost: x\r\n"
                "Accept: application/json\r\n\r\n".encode()
            )
            head, _, body = client.rest().partition(b"\r\n\r\n")
            return int(head.split()[1]), body

    query = "sort=size&order=desc&limit=2"
    status, body = await nas.in_thread(ask, query)
    assert status == 200
    assert body.endswith(b'}\n], "next": "1/a"}\n')
    assert names(json.loads(body)) == ["c", "a"]
    status, body = await nas.in_thread(ask, f"{query}&after=1/a")
    assert body.endswith(b'}\n], "next": null}\n')
    assert names(json.loads(body)) == ["b"]
    status, body = await nas.in_thread(ask, f"{query}&after=b")
    assert status == 400
    assert json.loads(body)["status"] == 400


# Names


@pytest.mark.parametrize("folder", ["", "d", "a b#?%.txt/<d>"])
@pytest_twisted.ensureDeferred
async def test_every_name_can_be_told_and_followed(nas: Nas, folder: str) -> None:
    at = nas.root / folder
    at.mkdir(parents=True, exist_ok=True)
    for name in AWKWARD:
        (at / name).write_text(name)
    expected = sorted(AWKWARD, key=os.fsencode)
    path = f"/file/{quote(folder)}/" if folder else "/file/"
    assert names(await listed(nas, path)) == expected
    assert (await listed(nas, path))["path"] == folder
    text = (await nas.fetch("GET", path))[1].decode()
    assert text == "".join(f"{name}\n" for name in expected)
    _, page, headers = await nas.fetch("GET", path, headers=HTML)
    policy = ["default-src 'none'; frame-ancestors 'none'"]
    assert headers.getRawHeaders("Content-Security-Policy") == policy
    html = Links(page)
    assert html.elements == {"html", "head", "meta", "title", "body", "h1", "pre", "a"}
    links = html.links[1:] if folder else html.links
    assert [text for _, text in links] == expected
    for href, text in links:
        # As it is resolved, and as rclone and fsspec put addresses together again from names.
        resolved = urljoin(nas.url + path, href).removeprefix(nas.url)
        for target in (resolved, path + href, rebuilt(path, text)):
            status, content, _ = await nas.fetch("GET", target)
            assert (status, content.decode()) == (200, text)
        assert resolved.startswith(path) and "/" not in unquote(resolved.removeprefix(path))


def rebuilt(path: str, name: str) -> str:
    """Return an address as Go writes it, which has a dot before what looks like a scheme."""
    return f"{path}./{quote(name)}" if ":" in name else path + quote(name)


@pytest_twisted.ensureDeferred
async def test_a_folder_with_the_name_of_a_verb_can_be_followed(nas: Nas) -> None:
    for verb in ("wc", "mv"):
        (nas.root / "d" / verb).mkdir(parents=True)
        (nas.root / "d" / verb / "f").write_bytes(b"x")
        assert names(await listed(nas, f"/file/d/{verb}/")) == ["f"]
        assert names(await listed(nas, f"/file/d/{verb}")) == ["f"]


@pytest_twisted.ensureDeferred
async def test_a_verb_means_what_it_did_where_no_file_has_its_name(nas: Nas) -> None:
    (nas.root / "d/e").mkdir(parents=True)
    (nas.root / "d/f").write_bytes(b"1\n2\n")
    assert (await nas.fetch("GET", "/file/d/f/wc"))[:2] == (200, b"2")
    for path, status in (("d/wc", 409), ("d/mv", 405), ("d/f/mv", 405), ("none/mv", 404)):
        assert (await nas.fetch("GET", f"/file/{path}"))[0] == status, path
    (nas.root / "d/wc").write_bytes(b"a file\n")
    assert (await nas.fetch("GET", "/file/d/wc/wc"))[:2] == (200, b"1")
    assert (await nas.fetch("DELETE", "/file/d/wc"))[0] == 405
    assert (await nas.fetch("PUT", "/file/d/mv", data=b'{"path": "g"}'))[0] == 200
    assert (nas.root / "g/f").exists()


@pytest_twisted.ensureDeferred
async def test_what_no_request_can_name_is_not_listed(nas: Nas) -> None:
    for at in (nas.root, nas.root / "d"):
        at.mkdir(exist_ok=True)
        (at / "file").touch()
        (at / "link").symlink_to("file")
        (at / "link-to-folder").symlink_to("/etc")
        (at / "dangling").symlink_to("missing")
        os.mkfifo(at / "fifo")
        with socket.socket(socket.AF_UNIX) as unix:
            unix.bind(os.path.relpath(at / "socket"))
        for unnameable in (b"\xff", b"a\nb", b"a\rb", b"\x1b[2J", b"\x7f"):
            (at / os.fsdecode(unnameable)).touch()
    for path, expected in (("/file/", ["d", "file"]), ("/file/d/", ["file"])):
        assert names(await listed(nas, path)) == expected
        assert (await nas.fetch("GET", path))[1].decode().split() == expected
        links = Links((await nas.fetch("GET", path, headers=HTML))[1]).links
        assert [text.rstrip("/") for _, text in links if text != "../"] == expected


@pytest_twisted.ensureDeferred
async def test_only_at_the_root_the_daemons_own_folder_is_hidden(nas: Nas) -> None:
    (nas.root / "d/.httpnas").mkdir(parents=True)
    (nas.root / "d/.httpnas/f").write_bytes(b"x")
    (nas.root / ".httpnas2").touch()
    assert names(await listed(nas, "/file/")) == [".httpnas2", "d"]
    assert names(await listed(nas, "/file/d")) == [".httpnas"]
    assert (await nas.fetch("GET", "/file/d/.httpnas/f"))[1] == b"x"


@pytest_twisted.ensureDeferred
async def test_a_crawl_finds_every_file_exactly_once(nas: Nas) -> None:
    expected = {}
    folders = ("", "a", "a/b c", "a/b c/<d>", "wc", "e/wc", "e/mv", "气")
    for folder in folders:
        (nas.root / folder).mkdir(parents=True, exist_ok=True)
    for folder in folders:
        for name in ("f", "wc", "x?y#z", "a:b"):
            if not (nas.root / folder / name).exists():
                (nas.root / folder / name).write_text(f"{folder}/{name}")
                expected[f"{folder}/{name}"] = 1
    (nas.root / "empty").mkdir()
    (nas.root / "loop").symlink_to(".")
    start = f"{nas.url}/file/"
    met: dict[str, int] = {}
    pending, seen = [start], {start}
    while pending:
        url = pending.pop()
        status, body, headers = await nas.fetch("GET", url.removeprefix(nas.url), headers=HTML)
        assert status == 200, url
        if not (headers.getRawHeaders("Content-Type") or [""])[0].startswith("text/html"):
            met[body.decode()] = met.get(body.decode(), 0) + 1
            continue
        for href, _ in Links(body).links:
            target = urljoin(url, href)
            assert not urlsplit(target).query
            # As wget --no-parent: nothing above where it began.
            if target.startswith(start) and target not in seen:
                seen.add(target)
                pending.append(target)
    assert met == expected


# Large folders


@pytest_twisted.ensureDeferred
async def test_a_large_folder_is_listed_while_others_are_served(
    nas: Nas, monkeypatch: pytest.MonkeyPatch
) -> None:
    expected = [f"file-{number:05}" for number in range(5_000)]
    stat, looked_up_by_the_reactor = os.stat, set()

    def watched(path: Any, **kwargs: Any) -> os.stat_result:
        if isinstance(path, bytes) and path.startswith(b"file-"):
            looked_up_by_the_reactor.add(isInIOThread())
        return stat(path, **kwargs)

    (nas.root / "large").mkdir()
    (nas.root / "f").write_bytes(b"x")

    def fill_large() -> None:
        folder = os.open(nas.root / "large", os.O_RDONLY)
        for name in expected:
            os.close(os.open(name, os.O_CREAT | os.O_WRONLY, dir_fd=folder))
        os.close(folder)

    await nas.in_thread(fill_large)
    monkeypatch.setattr(os, "stat", watched)
    for accept in ({}, JSON, HTML):
        listing = Deferred.fromCoroutine(nas.fetch("GET", "/file/large/", headers=accept))
        served = 0
        while not listing.called:
            assert (await nas.fetch("GET", "/file/f"))[1] == b"x"
            served += 1
            await deferLater(reactor, 0.01)  # without a pause the listing hardly gets the GIL
        status, body, _ = await listing
        assert status == 200
        if accept is JSON:
            assert names(json.loads(body)) == expected
        elif accept is HTML:
            assert [text for _, text in Links(body).links[1:]] == expected
        else:
            assert body.decode().split() == expected
        assert served > (3 if accept else 0)
    assert looked_up_by_the_reactor == {False}


@pytest_twisted.ensureDeferred
async def test_what_vanishes_during_a_listing_is_left_out(
    nas: Nas, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name in ("a", "b", "c"):
        (nas.root / name).touch()
    stat = os.stat

    def racing(path: Any, **kwargs: Any) -> os.stat_result:
        if path == b"b":
            (nas.root / "b").unlink()
        return stat(path, **kwargs)

    monkeypatch.setattr(os, "stat", racing)
    page = await listed(nas, "/file/")
    monkeypatch.undo()
    assert names(page) == ["a", "c"]


#: The edges of what formats can say (years 1, 9999, 275760), and of what a file system can.
FAR = [-(2**63), -(2**40), -62135596801, 253402300800, 8640000000001, 2**63 - 1]


@pytest.mark.parametrize("mtime", FAR)
@pytest_twisted.ensureDeferred
async def test_a_file_of_any_time_is_listed_sent_and_changed(mtime: int) -> None:
    with tempfile.TemporaryDirectory(dir="/dev/shm") as made:  # ext4 cuts times off
        nas = Nas(Path(made) / "root")
        try:
            for name in ("f", "g"):
                (nas.root / name).write_bytes(b"x")
                os.utime(nas.root / name, (mtime, mtime))
            for by in ("name", "size", "mtime"):
                page = await listed(nas, f"/file/?sort={by}&limit=1")
                rest = await listed(nas, f"/file/?sort={by}&after={quote(page['next'], safe='')}")
                assert names(page) + names(rest) == ["f", "g"]
                assert page["entries"][0]["mtime"] == float(mtime)
            assert len(Links((await nas.fetch("GET", "/file/", headers=HTML))[1]).links) == 2
            for method, path, body in (
                ("GET", "/file/f", None),
                ("GET", "/files/f", None),
                ("GET", "/file/f/wc", None),
                ("PUT", "/file/f", b"x"),
                ("PUT", "/file/g/mv", b'{"path": "h"}'),
                ("GET", "/file/h", None),
                ("POST", "/file/h", b"x"),
                ("DELETE", "/file/h", None),
            ):
                status, said, _ = await nas.fetch(method, path, data=body)
                assert status == 200, (method, path, said)
        finally:
            await nas.stop()
