"""The page behind a proxy that serves it below a path of its own."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

import pytest

from tests.prefix import below_a_prefix

if TYPE_CHECKING:
    from tests.browser.page import Page

pytestmark = pytest.mark.browser


def test_everything_works_below_a_prefix(page: Page, tmp_path: Path) -> None:
    source, target = tmp_path / "f.txt", tmp_path / "downloads"
    source.write_bytes(b"one\n")
    (page.root / "d").mkdir()
    with below_a_prefix(page.daemon.port) as root:
        page.daemon.url = root.rstrip("/")
        page.open("d/").choose(source)
        page.wait_for_upload("d/f.txt", "done")
        page.wait_for_names("f.txt")
        page.labelled("Details f.txt").click()
        page.answer("Count lines")
        page.wait(lambda: page.dialog().find_element("css selector", ".lines").text == "1", "lines")
        page.answer("Close")
        page.wait_until_closed()
        page.cdp("Browser.setDownloadBehavior", behavior="allow", downloadPath=str(target))
        page.labelled("Download f.txt").click()
        page.wait_for_download(target, b"one\n")
        page.labelled("Rename/move f.txt").click()
        page.fill(name="g.txt")
        page.answer("Rename or move")
        page.wait_for_names("g.txt")
        page.find("#transfers summary").click()
        page.wait(lambda: "upload" in page.find("#ended").text, "the transfers")
        page.labelled("Delete g.txt").click()
        page.answer("Delete")
        page.wait(lambda: page.notice() == "This folder is empty.", "the file to be gone")

        page.browser.get(f"{root}docs")
        shown = page.browser.find_elements
        page.wait(lambda: shown("css selector", ".opblock"), "the operations")
        page.find("#operations-operations-health .opblock-summary-control").click()
        page.wait(lambda: shown("css selector", ".try-out__btn"), "the operation").pop().click()
        page.wait(lambda: shown("css selector", ".execute"), "the form").pop().click()
        page.wait(
            lambda: shown("css selector", ".live-responses-table .response-col_status"), "an answer"
        )
        answer = page.find(".live-responses-table").text
        assert '"alive"' in answer
        assert page.find(".request-url pre").text == f"{root}health"
        page.console()  # Swagger UI complains about styles
        page.browser.get("about:blank")
