"""Stored content that is opened in the browser: it is shown and played, and never run."""

from __future__ import annotations

import os
import struct
import zlib
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

from tests.harness import twistd

if TYPE_CHECKING:
    from tests.browser.page import Page

pytestmark = pytest.mark.browser

#: Changes what a test can see, if it runs.
CODE = "document.documentElement.setAttribute('lang', 'ran')"
BLOCKED = ("Blocked script", "Security Policy", "Refused to refresh")
XHTML = '<html xmlns="http://www.w3.org/1999/xhtml"><head><script>%s</script></head><body/></html>'
HOSTILE = {
    "inline.html": "<script>%s</script>",
    "handler.html": '<img src=x onerror="%s"><svg onload="%s"></svg><body onload="%s">',
    "stored.html": "<script src=code.js></script>",
    "module.html": "<script type=module src=code.js></script>",
    "data.html": "<script src='data:text/javascript,%s'></script>",
    "frame.html": '<iframe srcdoc="<script>parent.%s</script>"></iframe>',
    "object.html": "<object data=inline.svg></object><embed src=inline.svg>",
    "refresh.html": '<meta http-equiv=refresh content="0;url=javascript:%s">',
    "base.html": "<base href=http://127.0.0.1:1/><script src=code.js></script>",
    "inline.svg": '<svg xmlns="http://www.w3.org/2000/svg"><script>%s</script></svg>',
    "handler.svg": '<svg xmlns="http://www.w3.org/2000/svg" onload="%s"/>',
    "x.xhtml": XHTML,
    "x.xml": XHTML,
    "x.mp4": "<script>%s</script>",
    "x.txt": "<script>%s</script>",
    "x.png": "<script>%s</script>",
}


def png(colour: bytes) -> bytes:
    """Return a picture of two by two pixels."""

    def chunk(kind: bytes, data: bytes) -> bytes:
        checked = kind + data
        return struct.pack(">I", len(data)) + checked + struct.pack(">I", zlib.crc32(checked))

    head = struct.pack(">IIBBBBB", 2, 2, 8, 2, 0, 0, 0)
    rows = zlib.compress((b"\0" + colour * 2) * 2)
    signature = b"\x89PNG\r\n\x1a\n"
    return signature + chunk(b"IHDR", head) + chunk(b"IDAT", rows) + chunk(b"IEND", b"")


def wav(seconds: float) -> bytes:
    """Return silence."""
    samples = bytes([128]) * int(8000 * seconds)
    form = struct.pack("<HHIIHH", 1, 1, 8000, 8000, 1, 8)
    body = b"WAVEfmt " + struct.pack("<I", len(form)) + form
    body += b"data" + struct.pack("<I", len(samples)) + samples
    return b"RIFF" + struct.pack("<I", len(body)) + body


@pytest.mark.parametrize("name", HOSTILE)
def test_no_stored_content_runs_a_script(page: Page, name: str) -> None:
    (page.root / "code.js").write_text(CODE)
    for other, content in HOSTILE.items():
        (page.root / other).write_text(content.replace("%s", CODE))
    page.browser.get(f"{page.daemon.url}/file/{name}")
    assert page.find(":root").get_attribute("lang") != "ran"
    told = page.console()
    if name.endswith(("l", "svg")) and "object" not in name:
        # The browser says that it has blocked something, rather than that there was nothing.
        assert any(word in each for word in BLOCKED for each in told), told


def test_a_stored_page_shows_its_styles_and_pictures(page: Page) -> None:
    (page.root / "red.png").write_bytes(png(b"\xff\0\0"))
    (page.root / "style.css").write_text("p { color: rgb(1, 2, 3) } i { font-size: 40px }")
    (page.root / "page.html").write_text(
        "<link rel=stylesheet href=style.css><style>b { color: rgb(4, 5, 6) }</style>"
        "<p>p</p><b>b</b><i style='color: rgb(7, 8, 9)'>i</i><img src=red.png>"
    )
    page.browser.get(f"{page.daemon.url}/file/page.html")

    def colour(element: str) -> str:
        return page.find(element).value_of_css_property("color")

    assert [colour(each) for each in "pbi"] == [
        f"rgba({n}, 1)" for n in ("1, 2, 3", "4, 5, 6", "7, 8, 9")
    ]
    assert page.find("img").get_property("naturalWidth") == 2


def test_a_stored_page_has_no_pictures_of_others_and_sends_no_form(
    page: Page, tmp_path: Path
) -> None:
    with twistd(tmp_path / "other") as other:
        (other.root / "red.png").write_bytes(png(b"\xff\0\0"))
        (page.root / "page.html").write_text(
            f"<img src={other.url}/file/red.png>"
            "<form action=/files/ method=post><input name=x><button>Send</button></form>"
        )
        page.browser.get(f"{page.daemon.url}/file/page.html")
        page.find("button").click()
        assert page.browser.current_url.endswith("/page.html")
        assert page.find("img").get_property("naturalWidth") == 0
        page.console()


def test_a_stored_drawing_shows_its_styles(page: Page) -> None:
    (page.root / "x.svg").write_text(
        '<svg xmlns="http://www.w3.org/2000/svg"><style>text { fill: rgb(1, 2, 3) }</style>'
        "<text y='20'>x</text></svg>"
    )
    page.browser.get(f"{page.daemon.url}/file/x.svg")
    assert page.find("text").value_of_css_property("fill") == "rgb(1, 2, 3)"


def test_stored_sound_plays(page: Page) -> None:
    (page.root / "x.wav").write_bytes(wav(1))
    page.browser.get(f"{page.daemon.url}/file/x.wav")
    page.wait(lambda: page.find("video").get_property("readyState") in (3, 4), "the player")
    assert page.find("video").get_property("duration") == pytest.approx(1, abs=0.1)
    assert page.find("video").get_property("error") is None


def test_a_page_of_another_site_can_not_use_what_is_stored(page: Page, tmp_path: Path) -> None:
    """Another port is another origin; a name of its own makes it another site too."""
    (page.root / "red.png").write_bytes(png(b"\xff\0\0"))
    (page.root / "f.css").write_text("p { color: rgb(1, 2, 3) }")
    with twistd(tmp_path / "other", "--hosts=localhost") as other:
        (other.root / "page.html").write_text(
            f"<link rel=stylesheet href={page.daemon.url}/file/f.css><p>p</p>"
            f"<img src={page.daemon.url}/file/red.png>"
        )
        page.browser.get(f"http://localhost:{other.port}/file/page.html")
        assert page.find("img").get_property("naturalWidth") == 0
        assert page.find("p").value_of_css_property("color") != "rgba(1, 2, 3, 1)"
        page.console()


def test_a_file_that_was_replaced_is_shown_as_it_is_now(page: Page) -> None:
    stored = page.root / "f.txt"
    for content in ("old", "new"):
        stored.write_text(content)
        os.utime(stored, (1e9, 1e9))  # so old that a browser would keep it for long
        page.browser.get(f"{page.daemon.url}/file/f.txt")
        assert page.find("body").text == content
        page.browser.get("about:blank")


def test_no_stored_script_runs_in_the_page(page: Page) -> None:
    (page.root / "code.js").write_text(CODE)
    page.open()
    page.run(
        "const s = document.createElement('script'); s.src = 'file/code.js';"
        "const done = new Promise((f) => { s.onload = s.onerror = f; });"
        "document.body.append(s); return done;"
    )
    assert page.find(":root").get_attribute("lang") == "en"
    assert any("Security Policy" in each for each in page.console())
