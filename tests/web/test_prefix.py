"""Behind a proxy that strips a prefix, no link and no redirect leads out of it."""

from __future__ import annotations

import json
from html.parser import HTMLParser
from urllib.error import HTTPError
from urllib.parse import urljoin
from urllib.request import Request, urlopen

import pytest
import pytest_twisted

from tests.harness import Nas
from tests.prefix import below_a_prefix

HTML = {"Accept": "text/html"}


class References(HTMLParser):
    """Collects all that a page refers to."""

    def __init__(self, page: bytes) -> None:
        super().__init__()
        self.found: set[str] = set()
        self.feed(page.decode())

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.found |= {value or "" for name, value in attrs if name in ("href", "src", "action")}


def get(url: str, **headers: str) -> tuple[str, bytes]:
    """Follow redirects from *url*; return where they lead, and what is there."""
    with urlopen(Request(url, headers=headers), timeout=20) as answer:
        return answer.url, answer.read()


def crawl(root: str) -> set[str]:
    """Follow all references from *root*; return their paths below it."""
    met, waiting = set(), [root]
    while waiting:
        url = waiting.pop().partition("#")[0]
        if url in met:
            continue
        met.add(url)
        assert url.startswith(root), url
        try:
            at, page = get(url, **HTML)
        except HTTPError as error:
            assert error.code == 409, url  # where the form goes to is a folder
            continue
        assert at.startswith(root), at
        if page.startswith(b"<!DOCTYPE html>"):
            waiting += [urljoin(at, found) for found in References(page).found]
    return {url.removeprefix(root) for url in met}


@pytest_twisted.ensureDeferred
async def test_every_link_of_every_page_stays_below_the_prefix(nas: Nas) -> None:
    (nas.root / "d/a:b").mkdir(parents=True)
    (nas.root / "d/a:b/f").write_bytes(b"x")
    with below_a_prefix(nas.port) as root:
        met = await nas.in_thread(crawl, root)
        assert {"", "docs", "metrics", "transfers", "file/", "files/", "openapi.json"} <= met
        assert {"page/app.js", "page/style.css", "docs/swagger-ui.css", "file/d/a%3Ab/f"} <= met
        at, _ = await nas.in_thread(get, f"{root}docs/problems")
        assert at == f"{root}docs/problems"
        assert "docs/problems" in await nas.in_thread(crawl_from, root, "docs/problems")


def crawl_from(root: str, path: str) -> set[str]:
    at, page = get(root + path)
    links = {urljoin(at, found).partition("#")[0] for found in References(page).found}
    for link in links:
        assert link.startswith(root), link
        get(link)
    return {link.removeprefix(root) for link in links}


@pytest.mark.parametrize("path", ["file/d", "file/d/a:b", "file//d", "file/d%2Fa%3Ab", "file/d/."])
@pytest_twisted.ensureDeferred
async def test_the_redirect_into_a_folder_stays_below_the_prefix(nas: Nas, path: str) -> None:
    (nas.root / "d/a:b").mkdir(parents=True)
    with below_a_prefix(nas.port) as root:
        at, _ = await nas.in_thread(lambda: get(f"{root}{path}?limit=9", **HTML))
        assert at == urljoin(root, f"{path.removesuffix('.')}/?limit=9".replace("//?", "/?"))


@pytest_twisted.ensureDeferred
async def test_a_redirect_leads_to_no_other_host(nas: Nas) -> None:
    """A reference that begins with two slashes names a host: RFC 3986 section 4.2."""
    (nas.root / "d").mkdir()
    for path in (b"//file/d", b"///file/d", b"//file//d"):
        answer = await nas.talk(
            b"GET %s HTTP/1.1\r\nHost: x\r\nAccept: text/html\r\nConnection: close\r\n\r\n" % path
        )
        assert answer.startswith(b"HTTP/1.1 301 ")
        assert b"\r\nLocation: ./d/\r\n" in answer


@pytest.mark.parametrize("path", ["files/", "files", "files/in/box", "files/in/"])
@pytest_twisted.ensureDeferred
async def test_the_way_back_from_a_form_stays_below_the_prefix(nas: Nas, path: str) -> None:
    form = b'--b\r\nContent-Disposition: form-data; name="f"; filename="x"\r\n\r\nnew\r\n--b--'
    headers = {**HTML, "Content-Type": "multipart/form-data; boundary=b"}
    with below_a_prefix(nas.port) as root:
        request = Request(root + path, form, headers)
        page = await nas.in_thread(lambda: urlopen(request, timeout=20).read())
        assert {urljoin(root + path, link) for link in References(page).found} == {root}


@pytest.mark.parametrize("path", ["docs/", "docs/problems/", "docs//"])
@pytest_twisted.ensureDeferred
async def test_a_slash_behind_a_page_does_not_break_its_links(nas: Nas, path: str) -> None:
    with below_a_prefix(nas.port) as root:
        try:
            at, _ = await nas.in_thread(get, root + path)
        except HTTPError as error:
            assert error.code == 404
        else:
            assert at == root + path.rstrip("/")


@pytest_twisted.ensureDeferred
async def test_the_description_of_the_api_is_of_what_is_below_the_prefix(nas: Nas) -> None:
    with below_a_prefix(nas.port) as root:
        at, document = await nas.in_thread(get, f"{root}openapi.json")
        (server,) = json.loads(document)["servers"]
        assert urljoin(at, server["url"]) == root
