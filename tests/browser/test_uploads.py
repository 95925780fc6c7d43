"""Uploads with the page: choosing, dropping, progress, cancel, replacing, refusals."""

from __future__ import annotations

import os
from pathlib import Path
from typing import TYPE_CHECKING
from urllib.request import Request, urlopen

import pytest

from tests.harness import twistd
from tests.private import runs_of

if TYPE_CHECKING:
    from tests.browser.page import Page

pytestmark = pytest.mark.browser

MB = 1 << 20


def make(folder: Path, **files: bytes) -> list[Path]:
    """Make files in *folder*; an underscore in a name stands for a dot."""
    folder.mkdir(parents=True, exist_ok=True)
    made = []
    for name, content in files.items():
        path = folder / name.replace("_", ".")
        path.write_bytes(content)
        made.append(path)
    return made


def leftovers(root: Path) -> list[Path]:
    """Return what transfers keep, and what they have stored."""
    runs = [f for f in runs_of(root).glob("*/*") if f.name != "lease"]
    return runs + [f for f in root.iterdir() if f.name != ".httpnas"]


def test_chosen_files_are_stored_and_listed(page: Page, tmp_path: Path) -> None:
    page.open("a/b/").choose(*make(tmp_path / "src", one_txt=b"1\n", two_txt=b"22\n"))
    page.wait_for_upload("a/b/one.txt", "done")
    page.wait_for_names("one.txt", "two.txt")
    assert (page.root / "a/b/one.txt").read_bytes() == b"1\n"
    assert (page.root / "a/b/two.txt").read_bytes() == b"22\n"


def test_a_chosen_folder_arrives_with_its_structure(page: Page, tmp_path: Path) -> None:
    make(tmp_path / "src/deep/er", x=b"x")
    make(tmp_path / "src", y=b"y")
    page.open("in/").choose_folder(tmp_path / "src")
    page.wait_for_upload("in/src/deep/er/x", "done")
    page.wait_for_upload("in/src/y", "done")
    page.wait_for_names("src/")
    assert (page.root / "in/src/deep/er/x").read_bytes() == b"x"
    assert (page.root / "in/src/y").read_bytes() == b"y"


def test_files_that_a_page_drops_are_stored(page: Page) -> None:
    page.open("in/").run(
        """
        const dataTransfer = new DataTransfer();
        for (const name of ["a", "b"]) dataTransfer.items.add(new File([name], name));
        const init = { dataTransfer, bubbles: true, cancelable: true };
        document.body.dispatchEvent(new DragEvent("dragover", init));
        document.body.dispatchEvent(new DragEvent("drop", init));
        """
    )
    page.wait_for_names("a", "b")
    assert (page.root / "in/b").read_bytes() == b"b"


def test_dropped_folders_arrive_whole_and_empty_ones_stay_out(page: Page, tmp_path: Path) -> None:
    # Browsers give the entries of a folder in batches of 100.
    make(tmp_path / "src/many", **{f"f{n}": b"%d" % n for n in range(130)})
    make(tmp_path / "src/deep/er", x=b"x")
    (tmp_path / "src/empty").mkdir()
    (single,) = make(tmp_path, single=b"s")
    page.open()
    page.drop(tmp_path / "src", single)
    page.wait(lambda: " 132 done" in page.find("#queue").text, "132 uploads")
    assert {p.name for p in (page.root / "src/many").iterdir()} == {f"f{n}" for n in range(130)}
    assert (page.root / "src/deep/er/x").read_bytes() == b"x"
    assert (page.root / "single").read_bytes() == b"s"
    assert not (page.root / "src/empty").exists()


def test_rows_stay_few_while_many_files_come_in(page: Page, tmp_path: Path) -> None:
    make(tmp_path / "src", **{f"f{n}": b"%d" % n for n in range(150)})
    page.open().run(
        """
        const rows = document.getElementById("upload-rows");
        window.most = 0;
        new MutationObserver(() => { most = Math.max(most, rows.childElementCount); })
            .observe(rows, { childList: true });
        """
    )
    page.choose_folder(tmp_path / "src")
    page.wait(lambda: " 150 done" in page.find("#queue").text, "150 uploads")
    assert 20 < page.run("return most") <= 103
    assert len(page.uploads()) == 20
    assert len(list((page.root / "src").iterdir())) == 150


def test_an_upload_shows_how_far_how_fast_and_how_long(page: Page, tmp_path: Path) -> None:
    files = make(tmp_path / "src", big=os.urandom(4 * MB))
    page.open()
    page.throttle(MB)
    page.choose(*files)
    page.wait(lambda: "s left" in page.wait_for_upload("big", "running"), "the time left")
    said = page.wait_for_upload("big", "running")
    assert "B of 4.2 MB, " in said
    assert "B/s, " in said
    bar = page.find("#upload-rows progress")
    assert bar.accessible_name == "Upload of big"
    first = page.run("return arguments[0].position", bar)
    assert 0 < first < 1
    page.wait(lambda: page.run("return arguments[0].position", bar) > first, "progress")
    page.throttle(-1)
    page.wait_for_upload("big", "done")
    assert (page.root / "big").read_bytes() == files[0].read_bytes()


def test_a_cancelled_upload_leaves_nothing_and_can_be_retried(page: Page, tmp_path: Path) -> None:
    files = make(tmp_path / "src", big=os.urandom(2 * MB))
    page.open()
    page.throttle(MB // 4)
    page.choose(*files)
    page.wait(lambda: "left" in page.wait_for_upload("big", "running"), "progress")
    assert leftovers(page.root) != []
    page.labelled("Cancel big").click()
    page.wait_for_upload("big", "cancelled")
    page.wait(lambda: leftovers(page.root) == [], "nothing to be left")
    page.throttle(-1)
    page.labelled("Retry big").click()
    page.wait_for_upload("big", "done")
    assert (page.root / "big").read_bytes() == files[0].read_bytes()


def test_three_uploads_run_at_once_and_the_rest_wait(page: Page, tmp_path: Path) -> None:
    files = make(tmp_path / "src", **{name: os.urandom(MB) for name in "abcde"})
    page.open()
    page.throttle(MB // 4)
    page.choose(*files)
    page.wait(
        lambda: sum("left" in said for said in page.uploads().values()) == 3, "three under way"
    )
    assert page.uploads()["d"] == page.uploads()["e"] == "waiting: waiting"
    page.labelled("Cancel e").click()
    page.throttle(-1)
    page.wait_for_upload("d", "done")
    page.wait(lambda: page.find("#queue").text == "0 running, 0 waiting, 4 done", "the end")
    assert sorted(p.name for p in leftovers(page.root)) == ["a", "b", "c", "d"]


def test_all_uploads_can_be_cancelled(page: Page, tmp_path: Path) -> None:
    files = make(tmp_path / "src", **{name: os.urandom(MB) for name in "abcde"})
    page.open()
    page.throttle(MB // 4)
    page.choose(*files)
    page.wait(lambda: "left" in page.uploads().get("a", ""), "progress")
    page.find("#cancel-all").click()
    for name in "abcde":
        page.wait_for_upload(name, "cancelled")
    page.wait(lambda: leftovers(page.root) == [], "nothing to be left")


@pytest.mark.parametrize("button, left", [("Keep the old file", b"old"), ("Replace", b"new")])
def test_a_replacement_is_asked_for_first(
    page: Page, tmp_path: Path, button: str, left: bytes
) -> None:
    make(page.root, x_txt=b"old")
    page.open().choose(*make(tmp_path / "src", x_txt=b"new"))
    assert "Replace x.txt?" in page.dialog().text
    assert page.focused() == "Keep the old file"
    page.answer(button)
    page.wait_for_upload("x.txt", "kept" if left == b"old" else "done")
    assert (page.root / "x.txt").read_bytes() == left


@pytest.mark.parametrize("button, left", [("Keep the old file", b"old"), ("Replace", b"new")])
def test_one_answer_can_stand_for_all_that_follow(
    page: Page, tmp_path: Path, button: str, left: bytes
) -> None:
    names = "abcdef"
    make(page.root, **dict.fromkeys(names, b"old"))
    page.open().choose(*make(tmp_path / "src", **dict.fromkeys(names, b"new")))
    page.dialog().find_element("css selector", "[name=all]").click()
    page.answer(button)
    for name in names:
        page.wait_for_upload(name, "kept" if left == b"old" else "done")
    assert {(page.root / name).read_bytes() for name in names} == {left}
    # What was said was about those; the next are asked about again.
    page.choose(*make(tmp_path / "src", a=b"newer"))
    page.answer("Keep the old file")


def test_a_replacement_does_not_touch_what_nobody_was_asked_about(
    page: Page, tmp_path: Path
) -> None:
    make(page.root, x=b"old")
    page.open().choose(*make(tmp_path / "src", x=b"mine"))
    page.dialog()
    urlopen(Request(f"{page.daemon.url}/file/x", data=b"theirs", method="POST")).close()
    page.answer("Replace")
    said = page.wait_for_upload("x", "failed")
    assert "somebody else changed it first. The file is not the version" in said
    assert (page.root / "x").read_bytes() == b"theirs"


@pytest.mark.parametrize(
    "folder, said",
    [
        (".httpnas/", "This name belongs to the server and cannot be changed."),
        ("x/", "A part of this path is a file, not a folder."),
        ("../", "A name must not have '..' as one of its components."),
        ("folder", "This name is a folder, not a file."),
    ],
)
def test_a_refused_upload_says_why_in_the_servers_words(
    page: Page, tmp_path: Path, folder: str, said: str
) -> None:
    make(page.root, x=b"old")
    (page.root / "folder/f").mkdir(parents=True)
    page.open(folder).choose(*make(tmp_path / "src", f=b"new"))
    where = folder.rstrip("/") + "/f"
    assert page.wait_for_upload(where, "failed") == f"failed: not uploaded: {said}"
    assert said in page.status()
    assert page.labelled(f"Retry {where}").is_displayed()


def test_a_large_upload_that_is_refused_at_once_says_why_too(page: Page, tmp_path: Path) -> None:
    (page.root / "big").mkdir()
    page.open().choose(*make(tmp_path / "src", big=os.urandom(20 * MB)))
    assert "This name is a folder" in page.wait_for_upload("big", "failed")


def test_a_lost_server_pauses_uploads_until_it_is_back(page: Page, tmp_path: Path) -> None:
    files = make(tmp_path / "src", **{name: os.urandom(MB) for name in "abcdef"})
    page.open()
    page.throttle(MB // 4)
    page.choose(*files)
    page.wait(lambda: "left" in page.uploads().get("a", ""), "progress")
    page.daemon.process.kill()
    page.daemon.process.wait()
    for name in "abc":
        said = page.wait_for_upload(name, "failed")
        assert "the server cannot be reached" in said
    assert "3 waiting, 0 done; paused" in page.find("#queue").text
    page.throttle(-1)
    again = f"tcp:{page.daemon.port}:interface=127.0.0.1"
    with twistd(page.root, "--durability=none", listen=again):
        page.find("#go-on").click()
        page.wait_for_upload("f", "done")
        page.labelled("Retry a").click()
        page.wait_for_upload("a", "done")
    assert (page.root / "a").read_bytes() == files[0].read_bytes()


def test_a_file_that_is_gone_from_the_machine_is_told_from_a_lost_server(
    page: Page, tmp_path: Path
) -> None:
    files = make(tmp_path / "src", gone=b"x", there=b"y")
    page.open()
    # The question holds the upload up until the file is gone.
    make(page.root, gone=b"old", there=b"old")
    page.choose(*files)
    page.dialog()
    files[0].unlink()
    page.answer("Replace")
    page.answer("Replace")
    assert "the file cannot be read" in page.wait_for_upload("gone", "failed")
    page.wait_for_upload("there", "done")


def test_without_javascript_the_form_uploads(page: Page, tmp_path: Path) -> None:
    files = make(tmp_path / "src", one=b"1", two=b"2")
    page.cdp("Emulation.setScriptExecutionDisabled", value=True)
    try:
        page.browser.get(f"{page.daemon.url}/")
        assert page.find("noscript a").is_displayed()
        assert not page.find("#new-folder").is_displayed()
        page.choose(*files)
        page.find("#send").click()
        page.wait((page.root / "two").exists, "the upload")
    finally:
        page.cdp("Emulation.setScriptExecutionDisabled", value=False)
    assert (page.root / "one").read_bytes() == b"1"
