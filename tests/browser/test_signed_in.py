"""The page where rules say who may do what: signing in, and what is shown of what may be done."""

from __future__ import annotations

import re
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest

from tests.access import files
from tests.access.files import link_key, rule, token, token_of
from tests.harness import twistd

if TYPE_CHECKING:
    from tests.browser.page import Page

pytestmark = pytest.mark.browser

ASKED = re.compile(r'"verb": "rights", "name": "/", "status": 401')
EVERYTHING = ["list", "read", "create", "append", "replace", "delete"]


@pytest.fixture
def guarded(browser: Any, tmp_path: Path) -> Iterator[Page]:
    """The page of a daemon with rules."""
    from tests.browser.page import Page  # noqa: PLC0415

    auth = files.write(
        tmp_path,
        link_key("k"),
        token("editor"),
        token("reader"),
        token("signer"),
        token("dropper"),
        rule("alice", "/", ["list", "read"]),
        rule("editor", "/", [*EVERYTHING, "see-transfers", "see-metrics"]),
        rule("reader", "/", ["list", "read"]),
        rule("signer", "/", ["list", "read", "sign"]),
        rule("dropper", "/inbox", ["create"]),
        rule("anonymous", "/public", ["list", "read"]),
        rule("reader", "/public/keep", deny=["delete"]),
        rule("reader", "/public", ["delete"]),
    )
    root = tmp_path / "root"
    for name in ("a.txt", "public/b.txt", "public/keep"):
        (root / name).parent.mkdir(parents=True, exist_ok=True)
        (root / name).write_text(f"content of {name}")
    with twistd(root, "--durability=none", f"--auth={auth}") as daemon:
        page = Page(browser, daemon)
        page.emulate()
        page.console()
        yield page
        complaints = page.console()
        browser.get("about:blank")
        assert complaints == []


def sign_in(page: Page, name: str) -> None:
    page.find("#sign-in").click()
    page.fill(token=token_of(name))
    page.answer("Sign in")
    page.wait_until_closed()
    page.wait(lambda: page.find("#who").text == name, "the name of who is signed in")


def controls(page: Page, row: str) -> set[str]:
    """Return what can be done with the entry *row*."""
    said = page.rows()[row]
    return {word for word in ("Download", "Details", "Rename/move", "Delete") if word in said}


@contextmanager
def downloads(page: Page) -> Iterator[Path]:
    with tempfile.TemporaryDirectory() as folder:
        page.cdp("Browser.setDownloadBehavior", behavior="allow", downloadPath=folder)
        yield Path(folder)


def test_who_is_not_signed_in_is_told_to_and_sees_what_is_for_everybody(guarded: Page) -> None:
    page = guarded.open("public")
    page.wait_for_names("b.txt", "keep")
    assert controls(page, "b.txt") == {"Download", "Details"}
    assert not page.find("#upload-form").is_displayed()
    assert not page.find("#transfers").is_displayed()
    assert not page.find("[href=metrics]").is_displayed()
    assert page.find("#sign-in").is_displayed() and not page.find("#sign-out").is_displayed()
    page.open("team")
    page.wait(lambda: "sign in first" in page.notice(), "the notice")
    assert page.violations() == []


def test_a_token_is_kept_for_the_tab_and_forgotten_when_signed_out(guarded: Page) -> None:
    page = guarded.open()
    page.wait(lambda: page.names() == ["public/"], "what anonymous sees")
    sign_in(page, "editor")
    page.wait_for_names("a.txt", "public/")
    assert controls(page, "a.txt") == {"Download", "Details", "Rename/move", "Delete"}
    assert page.find("#upload-form").is_displayed() and page.find("#transfers").is_displayed()
    assert page.violations() == []
    page.browser.refresh()
    page.wait(lambda: page.find("#who").text == "editor", "the token to be there still")
    assert page.run("return Object.keys(localStorage).length + document.cookie.length") == 0
    page.find("#sign-out").click()
    page.wait(lambda: page.names() == ["public/"], "what anonymous sees")
    assert page.run("return sessionStorage.length") == 0


def test_a_wrong_token_is_refused_in_the_dialog(guarded: Page) -> None:
    page = guarded.open()
    page.find("#sign-in").click()
    for wrong, said in (("nobody", "not known"), ("with space", "no token"), ("ü", "no token")):
        page.fill(token=wrong)
        page.answer("Sign in")
        page.wait(lambda said=said: said in page.refusal(), said)  # type: ignore[misc]
    assert page.violations() == []
    page.answer("Cancel")
    page.wait_until_closed()
    assert page.run("return sessionStorage.length") == 0


def test_a_token_that_counts_no_longer_signs_out_in_words(guarded: Page) -> None:
    page = guarded.open()
    sign_in(page, "editor")
    page.run("sessionStorage.setItem('httpnas-token', 'expired')")
    page.find("#refresh").click()
    page.wait(lambda: "signed out: The token" in page.find("#problem p").text, "the words")
    page.wait(lambda: page.names() == ["public/"], "what anonymous sees")
    assert page.find("#sign-in").is_displayed()


def test_uploads_and_changes_carry_the_token(guarded: Page, tmp_path: Path) -> None:
    page = guarded.open()
    sign_in(page, "editor")
    source = tmp_path / "new.txt"
    source.write_text("new")
    page.choose(source)
    page.wait_for_upload("new.txt", "done")
    page.wait_for_names("a.txt", "new.txt", "public/")
    page.labelled("Delete new.txt").click()
    page.answer("Delete")
    page.wait_until_closed()
    page.wait_for_names("a.txt", "public/")
    page.find("#transfers summary").click()
    page.wait(lambda: "delete" in page.find("#ended").text, "the transfers")


def test_what_may_not_be_done_is_hidden_and_a_refusal_is_in_words(guarded: Page) -> None:
    page = guarded.open()
    sign_in(page, "reader")
    page.open("public").wait_for_names("b.txt", "keep")
    # A rule for one name: the page learns of it when it is refused.
    assert controls(page, "keep") == {"Download", "Details", "Rename/move", "Delete"}
    page.labelled("Delete keep").click()
    page.answer("Delete")
    assert page.refusal() == (
        "you may not do this here: it takes the right to delete. Whoever runs the server can give "
        "it."
    )
    page.answer("Cancel")
    page.wait_until_closed()
    page.open().wait_for_names("a.txt", "public/")
    assert not page.find("#upload-form").is_displayed()


def test_who_may_only_leave_files_can_and_is_told_that_he_sees_nothing(
    guarded: Page, tmp_path: Path
) -> None:
    page = guarded.open()
    sign_in(page, "dropper")
    page.open("inbox")
    page.wait(lambda: "you may not list it" in page.notice(), "the notice")
    source = tmp_path / "letter"
    source.write_text("letter")
    page.choose(source)
    page.wait_for_upload("inbox/letter", "done")
    assert (page.root / "inbox" / "letter").read_text() == "letter"


@pytest.mark.parametrize("who", ["signer", "reader"])
def test_a_download_needs_no_more_than_the_token(guarded: Page, who: str) -> None:
    """By a link of its own if that may be made, else by way of the memory."""
    page = guarded.open()
    sign_in(page, who)
    page.wait_for_names("a.txt", "public/")
    for control in ("#entries .download", "#entries a.name"):
        with downloads(page) as folder:
            page.find(control).click()
            page.wait_for_download(folder, b"content of a.txt")
    log = page.daemon.log()
    assert ('"method": "POST", "verb": "sign"' in log) is (who == "signer")


def test_what_is_too_large_for_the_memory_is_refused_in_words(guarded: Page) -> None:
    with (guarded.root / "a.txt").open("wb") as large:
        large.truncate(65_000_000)
    page = guarded.open()
    sign_in(page, "reader")
    page.wait_for_names("a.txt", "public/")
    page.find("#entries .download").click()
    page.wait(lambda: "the right to make links" in page.find("#problem p").text, "the words")


def test_the_browser_asks_for_a_password(guarded: Page) -> None:
    """It does so by itself when it gets the 401, and no test can type into its window."""
    page = guarded.open()
    page.find("#sign-in").click()
    page.answer("Use a password")
    page.wait(lambda: ASKED.search(page.daemon.log()), "the question")
    assert not page.find("#sign-in-dialog .error").is_displayed(), "the browser waits"
    # What it sends once it knows the password: all of the page's requests carry it.
    page.browser.get(page.daemon.url.replace("//", "//alice:secret@") + "/rights?anonymous=no")
    page.open()
    page.wait(lambda: page.find("#who").text == "alice", "the name of who is signed in")
    page.wait_for_names("a.txt", "public/")
    assert not page.find("#sign-in").is_displayed() and not page.find("#sign-out").is_displayed()
    with downloads(page) as folder:
        page.find("#entries .download").click()
        page.wait_for_download(folder, b"content of a.txt")


def test_authorize_makes_the_page_of_the_api_send_a_token(guarded: Page) -> None:
    page = guarded
    page.browser.get(f"{page.daemon.url}/docs")
    find = page.browser.find_elements
    page.wait(lambda: find("css selector", ".btn.authorize"), "the button Authorize")
    page.find(".btn.authorize").click()
    field = page.wait(
        lambda: find("css selector", "[aria-label=auth-bearer-value], #auth-bearer-value"),
        "the field for a token",
    )[0]
    field.send_keys(token_of("editor"))
    field.find_element("xpath", "ancestor::form").find_element(
        "css selector", "button.authorize"
    ).click()
    page.find(".btn-done").click()
    page.find("#operations-links-rights .opblock-summary-control").click()
    page.wait(lambda: find("css selector", "#operations-links-rights .try-out__btn"), "Try it out")
    page.find("#operations-links-rights .try-out__btn").click()
    page.find("#operations-links-rights .execute").click()
    page.wait(
        lambda: '"name": "editor"' in page.find("#operations-links-rights .responses-wrapper").text,
        "the answer",
    )
    # Swagger UI sets styles, and has a form for passwords that Chromium would like to fill.
    theirs = ("style", "autocomplete")
    assert [m for m in page.console() if not any(word in m for word in theirs)] == []
