"""Names are text, whatever they hold."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

import pytest

if TYPE_CHECKING:
    from tests.browser.page import Page

pytestmark = pytest.mark.browser

HOSTILE = [
    "<img src=x onerror=alert(1)>",
    "a b#?%.txt",
    "气",
    "\"quoted\" & 'quoted'",
    "-rf",
    "\u202egpj.שלום",
    "wc",
    "mv",
    " back\\slash ",
    "🐚" * 60,
]


@pytest.mark.parametrize("name", HOSTILE)
def test_a_name_survives_everything_the_page_does(page: Page, tmp_path: Path, name: str) -> None:
    (tmp_path / "src").mkdir()
    source = tmp_path / "src" / name.replace("/", "_")
    source.write_bytes(b"one\n")
    target = tmp_path / "downloads"
    page.open()
    # A drop, as the form of WebDriver for choosing files trims names.
    page.drop(source)
    page.wait_for_upload(name, "done")
    page.wait_for_names(name)
    assert (page.root / name).read_bytes() == b"one\n"

    page.cdp("Browser.setDownloadBehavior", behavior="allow", downloadPath=str(target))
    page.labelled(f"Download {name}").click()
    page.wait_for_download(target, b"one\n")

    page.labelled(f"Details {name}").click()
    page.answer("Count lines")
    page.wait(lambda: page.dialog().find_element("css selector", ".lines").text == "1", "a count")
    page.answer("Close")
    page.wait_until_closed()

    # Into a folder of that name, under that name.
    page.labelled(f"Rename/move {name}").click()
    page.fill(folder=f"/in/{name}")
    page.answer("Rename or move")
    page.wait_for_names("in/")
    page.find("#entries .name").click()
    page.wait_for_names(f"{name}/")
    page.find("#entries .name").click()
    page.wait_for_names(name)
    assert page.find("#trail").text.split("\n") == ["All files", "in", name.strip()]
    assert (page.root / "in" / name / name).read_bytes() == b"one\n"

    page.labelled(f"Rename/move {name}").click()
    page.fill(name=f"{name}{name[:1]}")
    page.answer("Rename or move")
    page.wait_for_names(f"{name}{name[:1]}")

    page.labelled(f"Delete {name}{name[:1]}").click()
    page.answer("Delete")
    page.wait(lambda: page.notice() == "This folder is empty.", "the file to be gone")
    assert not list((page.root / "in" / name).iterdir())
    # An open alert would have failed what came before; nothing of a name became an element.
    assert page.run("return document.querySelectorAll('main img, main script').length") == 0
