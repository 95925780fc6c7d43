"""The page for keyboards, screen readers, dark rooms and phones."""

from __future__ import annotations

import os
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

if TYPE_CHECKING:
    from tests.browser.page import Page

pytestmark = pytest.mark.browser

ENTER, ESCAPE, SPACE = "\ue007", "\ue00c", " "
LOOKS = [(1280, 800, "light"), (1280, 800, "dark"), (390, 844, "light"), (390, 844, "dark")]


def furnish(root: Path) -> None:
    (root / "folder").mkdir()
    for name in ("a file of some length, to see where it breaks.sql.gz", "b.txt", "l" * 250):
        (root / name).write_bytes(b"x\n")


def violations(page: Page) -> dict[tuple[int, int, str], list[list[str]]]:
    """Return what axe finds wrong with the page as it is, in each of the looks."""
    found = {}
    for look in LOOKS:
        page.emulate(*look)
        if wrong := page.violations():
            found[look] = wrong
    return found


def test_axe_finds_nothing_wrong_with_a_folder_and_its_dialogs(page: Page) -> None:
    furnish(page.root)
    page.open()
    page.wait(page.names, "the entries")
    assert violations(page) == {}
    page.find("#transfers summary").click()
    page.wait(lambda: page.find("#ended").text, "the transfers")
    assert violations(page) == {}
    for control, close in (
        ("Rename/move b.txt", "Cancel"),
        ("Delete b.txt", "Cancel"),
        ("Details b.txt", "Close"),
    ):
        page.labelled(control).click()
        page.dialog()
        assert violations(page) == {}
        page.answer(close)
        page.wait_until_closed()


def test_axe_finds_nothing_wrong_with_uploads(page: Page, tmp_path: Path) -> None:
    furnish(page.root)
    sources = tmp_path / "src"
    sources.mkdir()
    for name in ("b.txt", "big", "bigger", "failing", "small"):
        (sources / name).write_bytes(os.urandom(1 << 20 if "big" in name else 10))
    (page.root / "failing").mkdir()
    page.open()
    page.throttle(1 << 15)
    page.choose(*sorted(sources.iterdir()))
    page.dialog()
    assert violations(page) == {}
    page.answer("Keep the old file")
    page.wait_for_upload("small", "done")
    page.wait_for_upload("failing", "failed")
    page.wait(lambda: "left" in page.uploads()["big"], "the time left")
    assert violations(page) == {}
    page.find("#cancel-all").click()
    page.wait_for_upload("big", "cancelled")
    assert violations(page) == {}


@pytest.mark.parametrize("state", ["plain", "dialog", "uploads"])
def test_nothing_overflows_on_a_phone(page: Page, tmp_path: Path, state: str) -> None:
    furnish(page.root)
    page.emulate(390, 844)
    page.open()
    page.wait(page.names, "the entries")
    if state == "dialog":
        page.labelled(f"Delete {'l' * 250}").click()
    if state == "uploads":
        source = tmp_path / ("u" * 250)
        source.write_bytes(b"x")
        page.choose(source)
        page.wait_for_upload("u" * 250, "done")
    wide = """
        return [...document.querySelectorAll("body *")]
            .filter((e) => e.checkVisibility() && !e.closest(".visually-hidden, [type=file]"))
            .filter((e) => e.getBoundingClientRect().right > 390.5).map((e) => e.outerHTML);
    """
    assert page.run(wide) == []
    assert page.run("return document.documentElement.scrollWidth") == 390


def test_the_keyboard_reaches_everything(page: Page, tmp_path: Path) -> None:
    furnish(page.root)
    page.open()
    page.wait(page.names, "the entries")
    for control in ("Upload files", "Upload a folder", "New folder", "Refresh", "Size"):
        page.tab_to(control)
    page.press(ENTER)
    page.wait(
        lambda: page.find("[data-sort=size]").get_attribute("aria-sort") == "ascending", "sorting"
    )
    assert page.focused() == "Size"

    page.tab_to("Rename/move b.txt")
    page.press(ENTER)
    page.dialog()
    assert page.focused() == "Name"
    page.press(ESCAPE)
    page.wait_until_closed()
    assert page.focused() == "Rename/move b.txt"
    page.press(ENTER)
    page.dialog()
    page.press("c.txt", ENTER)
    page.labelled("Delete c.txt")
    page.wait_until_closed()
    assert (page.root / "c.txt").exists()

    page.tab_to("Delete c.txt")
    page.press(ENTER)
    page.dialog()
    assert page.focused() == "Cancel"
    page.press(ESCAPE)
    page.wait_until_closed()
    assert (page.root / "c.txt").exists()
    assert page.focused() == "Delete c.txt"
    page.press(ENTER)
    page.dialog()
    page.tab_to("Delete")
    page.press(SPACE)
    page.wait(lambda: "c.txt" not in page.names(), "the file to be gone")
    page.wait(lambda: page.focused() == "Folder", "the focus to be near where it was")


def test_the_keyboard_answers_the_question_of_an_upload(page: Page, tmp_path: Path) -> None:
    source = tmp_path / "b.txt"
    source.write_bytes(b"new")
    furnish(page.root)
    page.open().choose(source)
    page.dialog()
    page.press(ESCAPE)
    page.wait_for_upload("b.txt", "kept")
    assert (page.root / "b.txt").read_bytes() == b"x\n"
    page.choose(source)
    page.dialog()
    page.tab_to("Do the same for all other files")
    page.press(SPACE)
    page.tab_to("Replace")
    page.press(ENTER)
    page.wait(lambda: (page.root / "b.txt").read_bytes() == b"new", "the replacement")


def test_the_focus_stays_where_it_is_when_the_folder_is_looked_at_again(
    page: Page, tmp_path: Path
) -> None:
    furnish(page.root)
    page.open()
    page.tab_to("Details b.txt")
    source = tmp_path / "aa"
    source.write_bytes(b"new")
    page.drop(source)
    page.wait(lambda: "aa" in page.names(), "the new entry")
    assert page.focused() == "Details b.txt"


def test_a_dialog_gives_the_focus_back_though_files_came_in_meanwhile(
    page: Page, tmp_path: Path
) -> None:
    furnish(page.root)
    page.open()
    page.tab_to("Details b.txt")
    page.press(ENTER)
    page.dialog()
    source = tmp_path / "aa"
    source.write_bytes(b"new")
    page.drop(source)
    page.wait_for_upload("aa", "done")
    # Longer than the page lets pass between two looks at a folder.
    page.browser.execute_async_script("setTimeout(arguments[0], 1200)")
    page.press(ESCAPE)
    page.wait_until_closed()
    assert page.focused() == "Details b.txt"
    page.wait(lambda: "aa" in page.names(), "the new entry")
    assert page.focused() == "Details b.txt"


def test_what_happens_is_said_to_screen_readers(page: Page, tmp_path: Path) -> None:
    furnish(page.root)
    source = tmp_path / "aa"
    source.write_bytes(b"new")
    page.open()
    assert page.find("#status").aria_role == "status"
    assert page.status() == "4 entries."
    page.choose(source)
    page.wait(lambda: page.status() == "Uploaded “\u2068aa\u2069”.", "the message")
