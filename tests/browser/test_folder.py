"""Folders with the page: order, pages, what is done with their entries, what else is shown."""

from __future__ import annotations

import hashlib
import os
import tempfile
from pathlib import Path
from typing import TYPE_CHECKING
from urllib.request import Request, urlopen

import pytest

from tests.harness import twistd

if TYPE_CHECKING:
    from tests.browser.page import Page

pytestmark = pytest.mark.browser


def make(root: Path, name: str, content: bytes = b"x", mtime: int = 1_700_000_000) -> Path:
    path = root / name
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(content)
    os.utime(path, (mtime, mtime))
    return path


def sort_by(page: Page, column: str) -> None:
    header = page.find(f"[data-sort={column}]")
    before = header.get_attribute("aria-sort")
    header.find_element("css selector", "button").click()
    page.wait(lambda: header.get_attribute("aria-sort") != before, "another order")


def test_entries_are_sorted_by_name_size_and_time(page: Page) -> None:
    make(page.root, "a", b"333", 1_700_000_002)
    make(page.root, "b", b"1", 1_700_000_003)
    make(page.root, "c", b"22", 1_700_000_001)
    page.open().wait_for_names("a", "b", "c")
    for column, names in (("name", "cba"), ("size", "bca"), ("size", "acb"), ("mtime", "cab")):
        sort_by(page, column)
        page.wait_for_names(*names)
    assert page.find("[data-sort=mtime]").get_attribute("aria-sort") == "ascending"
    assert page.find("[data-sort=name]").get_attribute("aria-sort") == "none"
    sort_by(page, "mtime")
    page.wait_for_names("b", "a", "c")


@pytest.mark.parametrize("column", ["name", "size", "mtime"])
def test_pages_show_each_entry_once_in_the_order_asked_for(page: Page, column: str) -> None:
    names = [f"f{n:03}" for n in range(450)]
    for n, name in enumerate(names):
        make(page.root, name, b"x" * (1 if column != "size" else n), 1_700_000_000 + n)
    page.open()
    if column != "name":
        sort_by(page, column)
    pages = [names[:200], names[200:400], names[400:]]
    page.wait_for_names(*pages[0])
    assert not page.find("#previous").is_enabled()
    page.find("#next").click()
    page.wait_for_names(*pages[1])
    page.find("#next").click()
    page.wait_for_names(*pages[2])
    assert not page.find("#next").is_enabled()
    assert page.find("#pages span").text == "Page 3"
    assert page.status() == "Page 3, 50 entries."
    page.find("#previous").click()
    page.wait_for_names(*pages[1])
    sort_by(page, column)
    page.wait_for_names(*reversed(names[250:]))


def test_a_page_that_has_become_empty_is_not_taken_for_an_empty_folder(page: Page) -> None:
    for n in range(201):
        make(page.root, f"f{n:03}")
    page.open().find("#next").click()
    page.labelled("Delete f200").click()
    page.answer("Delete")
    page.wait(lambda: page.notice() == "There is nothing left on this page.", "the explanation")
    page.find("#previous").click()
    page.wait(lambda: len(page.names()) == 200, "the page before")


def test_a_file_is_renamed(page: Page) -> None:
    make(page.root, "d/old name.txt")
    page.open("d/").labelled("Rename/move old name.txt").click()
    page.fill(name="new #name?.txt")
    page.answer("Rename or move")
    page.wait_for_names("new #name?.txt")
    assert os.listdir(page.root / "d") == ["new #name?.txt"]
    assert page.status().endswith("to “\u2068/d/new #name?.txt\u2069”.")


def test_a_file_moves_into_a_folder_that_does_not_exist(page: Page) -> None:
    make(page.root, "d/x", b"moved")
    page.open("d/").labelled("Rename/move x").click()
    page.fill(folder="/new folder/100%")
    page.answer("Rename or move")
    page.wait_until_closed()
    page.wait(lambda: page.notice() == "This folder is empty.", "the file to be gone")
    assert (page.root / "new folder/100%/x").read_bytes() == b"moved"


def test_a_folder_moves(page: Page) -> None:
    make(page.root, "d/x", b"moved")
    page.open().labelled("Rename/move d").click()
    page.fill(name="e", folder="/in")
    page.answer("Rename or move")
    page.wait_for_names("in/")
    assert (page.root / "in/e/x").read_bytes() == b"moved"


@pytest.mark.parametrize(
    "name, to, said",
    [
        (
            "x",
            {"name": "taken"},
            "“\u2068taken\u2069” is taken. A file or folder with the new name exists already.",
        ),
        ("d", {"folder": "/d"}, "A folder cannot be moved into itself."),
        ("x", {"folder": "/taken"}, "A part of this path is a file, not a folder."),
        ("x", {"folder": "/.httpnas"}, "This name belongs to the server and cannot be changed."),
        ("x", {"name": ".."}, "A name cannot be . or .."),
        ("x", {"name": "a/b"}, "A name cannot contain a slash; open the folder, or name it below."),
    ],
)
def test_a_refused_move_says_why_and_can_be_mended(
    page: Page, name: str, to: dict[str, str], said: str
) -> None:
    make(page.root, "x", b"mine")
    make(page.root, "d/y")
    make(page.root, "taken", b"theirs")
    page.open().labelled(f"Rename/move {name}").click()
    page.fill(**to)
    page.answer("Rename or move")
    assert page.refusal() == said
    assert (page.root / "taken").read_bytes() == b"theirs"
    page.fill(name="mended", folder="/")
    page.answer("Rename or move")
    page.wait(lambda: any(n.startswith("mended") for n in page.names()), "the new name")


def test_deleting_asks_first_and_cancel_deletes_nothing(page: Page) -> None:
    make(page.root, "x")
    page.open().labelled("Delete x").click()
    assert "Delete x?" in page.dialog().text
    assert page.focused() == "Cancel"
    page.answer("Cancel")
    page.wait_until_closed()
    assert (page.root / "x").exists()
    page.labelled("Delete x").click()
    page.answer("Delete")
    page.wait(lambda: page.notice() == "This folder is empty.", "the file to be gone")
    assert not (page.root / "x").exists()


def test_deleting_a_folder_says_that_all_in_it_goes(page: Page) -> None:
    make(page.root, "d/e/x")
    page.open().labelled("Delete d").click()
    assert "everything in it" in page.dialog().text
    page.answer("Delete")
    page.wait(lambda: page.notice() == "This folder is empty.", "the folder to be gone")
    assert not (page.root / "d").exists()


def test_a_file_that_has_changed_since_is_not_deleted(page: Page) -> None:
    make(page.root, "x")
    page.open().labelled("Delete x").click()
    urlopen(Request(f"{page.daemon.url}/file/x", data=b"theirs", method="POST")).close()
    page.answer("Delete")
    assert page.refusal().startswith("The file has changed since it was listed.")
    assert (page.root / "x").read_bytes() == b"theirs"
    page.answer("Cancel")
    page.wait_until_closed()
    page.wait(lambda: "6 B" in page.rows()["x"], "the new size")
    page.labelled("Delete x").click()
    page.answer("Delete")
    page.wait(lambda: page.notice() == "This folder is empty.", "the file to be gone")


def test_without_a_server_the_page_says_so(page: Page) -> None:
    make(page.root, "x")
    page.open().labelled("Delete x").click()
    page.daemon.process.kill()
    page.daemon.process.wait()
    page.answer("Delete")
    assert "the server cannot be reached" in page.refusal()
    page.answer("Cancel")
    page.wait_until_closed()
    page.find("#refresh").click()
    page.wait(lambda: "the server cannot be reached" in page.notice(), "the reason")


def test_a_new_folder_is_made_by_the_first_upload_into_it(page: Page, tmp_path: Path) -> None:
    make(page.root, "d/x")
    page.open("d/").find("#new-folder").click()
    page.fill(name="new & shiny")
    page.answer("Go there")
    page.wait(lambda: "the first upload creates it" in page.notice(), "the explanation")
    assert not (page.root / "d/new & shiny").exists()
    page.choose(make(tmp_path, "y"))
    page.wait_for_names("y")
    assert (page.root / "d/new & shiny/y").read_bytes() == b"x"
    page.browser.back()
    page.wait_for_names("new & shiny/", "x")


def test_back_and_forward_go_through_the_folders(page: Page) -> None:
    make(page.root, "a/b c/x")
    page.open().wait_for_names("a/")
    page.find("#entries .name").click()
    page.wait_for_names("b c/")
    page.find("#entries .name").click()
    page.wait_for_names("x")
    assert page.browser.title == "b c · httpnas"
    page.browser.back()
    page.wait_for_names("b c/")
    page.browser.back()
    page.wait_for_names("a/")
    page.browser.forward()
    page.wait_for_names("b c/")
    page.find("#trail a").click()
    page.wait_for_names("a/")


def test_a_link_into_a_folder_shows_it(page: Page) -> None:
    make(page.root, "a/b#c%/x")
    page.open("a/b#c%/").wait_for_names("x")
    assert page.find("#trail").text.split("\n") == ["All files", "a", "b#c%"]


def test_a_file_that_looks_like_a_listing_is_not_shown_as_a_folder(page: Page) -> None:
    entry = b'{"name": "planted", "type": "file", "size": 1, "mtime": 1, "etag": "x"}'
    make(page.root, "x.json", b'{"path": "", "entries": [' + entry + b'], "next": null}')
    page.open("x.json/")
    assert "This name is a file, not a folder." in page.notice()
    assert page.names() == []


def test_lines_and_digest_are_told_on_demand(page: Page) -> None:
    content = b"a line\n" * 1234
    make(page.root, "x.txt", content)
    page.open().labelled("Details x.txt").click()
    page.answer("Count lines")
    page.answer("Compute SHA-256")
    said = page.dialog().find_element("css selector", "dl")
    page.wait(lambda: "1,234" in said.text, "the number of lines")
    page.wait(lambda: hashlib.sha256(content).hexdigest() in said.text, "the digest")
    page.answer("Close")
    page.wait_until_closed()
    # What was found out about one file does not stay for the next.
    make(page.root, "y.txt", b"")
    page.find("#refresh").click()
    page.labelled("Details y.txt").click()
    assert "1,234" not in page.dialog().text


def test_a_refused_count_says_why(page: Page) -> None:
    path = make(page.root, "x")
    page.open().labelled("Details x").click()
    path.unlink()
    page.answer("Count lines")
    assert page.refusal() == "There is no such file or folder."


def test_downloads_have_the_bytes_and_the_name(page: Page, tmp_path: Path) -> None:
    content = os.urandom(300_000)
    make(page.root, "d/wc", content)
    target = tmp_path / "downloads"
    page.cdp("Browser.setDownloadBehavior", behavior="allow", downloadPath=str(target))
    page.open("d/").labelled("Download wc").click()
    page.wait_for_download(target, content)
    assert [path.stem for path in target.iterdir()] == ["wc"]


def test_a_file_of_any_time_is_shown(page: Page) -> None:
    with tempfile.TemporaryDirectory(dir="/dev/shm") as made:  # ext4 cuts times off
        root = Path(made) / "root"
        root.mkdir()
        for name, mtime in (("early", -(2**62)), ("late", 2**62), ("now", 1e9)):
            (root / name).write_bytes(b"x")
            os.utime(root / name, (mtime, mtime))
        with twistd(root, cwd=page.root.parent) as daemon:
            from tests.browser.page import Page  # noqa: PLC0415  (needs selenium)

            Page(page.browser, daemon).open().wait_for_names("early", "late", "now")
            assert "275760" in page.rows()["late"]
            page.labelled("Details late").click()
            assert "275760" in page.dialog().text
            page.browser.get("about:blank")


def test_running_and_ended_transfers_are_shown_live(page: Page, tmp_path: Path) -> None:
    page.open()
    page.throttle(1 << 18)
    page.choose(make(tmp_path, "big", os.urandom(1 << 20)))
    page.find("#transfers summary").click()
    page.wait(lambda: "/big" in page.find("#running").text, "the running upload")
    assert "B/s" in page.find("#running").text
    page.throttle(-1)
    page.wait(lambda: "/big" in page.find("#ended").text, "the ended upload")
    assert " done · 1.0 MB in " in page.find("#ended").text
    assert page.find("#running").text == "none"


def test_closed_transfers_are_not_asked_for(page: Page) -> None:
    asked = """
        return performance.getEntriesByType("resource")
            .filter((entry) => entry.name.includes("/transfers?")).length;
    """
    page.open()
    assert page.run(asked) == 0
    page.find("#transfers summary").click()
    page.wait(lambda: page.run(asked) > 1, "polling")
    page.find("#transfers summary").click()
    closed = page.run(asked)
    # Twice as long as between two questions.
    page.browser.execute_async_script("setTimeout(arguments[0], 2000)")
    assert page.run(asked) <= closed + 1
