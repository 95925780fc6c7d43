"""The page at ``/`` in a real browser, as tests use it."""

from __future__ import annotations

import time
from collections.abc import Callable
from pathlib import Path
from typing import Any
from urllib.parse import quote

import pytest
from selenium.webdriver import Chrome
from selenium.webdriver.common.action_chains import ActionChains
from selenium.webdriver.remote.webelement import WebElement

from tests.harness import ROOT, Twistd, wait_until

AXE = ROOT / "node_modules" / "axe-core" / "axe.min.js"
LABELLED = """
    return [...document.querySelectorAll("[aria-label]")]
        .find((element) => element.getAttribute("aria-label") === arguments[0]);
"""
ROWS = """
    return [...document.querySelectorAll("#entries:not([hidden]) tbody tr")]
        .map((row) => [row.querySelector("bdi").textContent, row.innerText]);
"""
UPLOADS = """
    return [...document.querySelectorAll("#upload-rows li")].map((row) =>
        [row.querySelector(".name").textContent,
         row.dataset.state + ": " + row.querySelector(".state").textContent]);
"""
VIOLATIONS = """
    const done = arguments[0];
    axe.run(document).then((result) => done(result.violations.map((violation) =>
        [violation.id, ...violation.nodes.map((node) => `${node.html}: ${node.failureSummary}`)])));
"""


class Page:
    """What a person can do at the page, and see there.

    :ivar root: the folder that the daemon serves.
    """

    def __init__(self, browser: Chrome, daemon: Twistd) -> None:
        self.browser = browser
        self.daemon = daemon
        self.root = daemon.root

    def open(self, folder: str = "") -> Page:
        """Open the page at *folder*."""
        self.browser.get(f"{self.daemon.url}/#/{quote(folder)}")
        self.wait(lambda: self.status() or self.notice(), "the folder")
        return self

    def run(self, script: str, *arguments: Any) -> Any:
        return self.browser.execute_script(script, *arguments)

    def cdp(self, command: str, **arguments: Any) -> Any:
        return self.browser.execute_cdp_cmd(command, arguments)

    def wait(self, condition: Callable[[], Any], what: str) -> Any:
        """Poll *condition* until it holds, and leave the browser time for itself in between."""

        def held() -> Any:
            if not (result := condition()):
                time.sleep(0.02)
            return result

        return wait_until(held, what)

    def find(self, selector: str) -> WebElement:
        return self.browser.find_element("css selector", selector)

    def labelled(self, label: str) -> WebElement:
        """Return the control that is called *label*, once there is one."""
        found: WebElement = self.wait(
            lambda: self.run(LABELLED, label), f"a control called {label}"
        )
        return found

    def press(self, *keys: str) -> None:
        """Press keys on the keyboard, wherever the focus is."""
        ActionChains(self.browser).send_keys(*keys).perform()

    def focused(self) -> str:
        """Return what the control that has the focus is called."""
        label: str = self.run(
            "const a = document.activeElement;"
            "return a.getAttribute('aria-label') ?? a.labels?.[0]?.innerText ?? a.innerText;"
        )
        return label.strip()

    def tab_to(self, label: str) -> None:
        """Press Tab until the focus is on the control that is called *label*."""
        for _ in range(60):
            if self.focused() == label:
                return
            self.press("\ue004")
        raise AssertionError(f"Tab does not lead to {label}")

    def status(self) -> str:
        return self.find("#status").text

    def notice(self) -> str:
        return self.find("#notice").text

    def rows(self) -> dict[str, str]:
        """Return the names in the order of the table, and all that their rows say."""
        return dict(self.run(ROWS))

    def names(self) -> list[str]:
        return list(self.rows())

    def wait_for_names(self, *names: str) -> None:
        self.wait(lambda: self.names() == list(names), f"the names {names}")

    def choose(self, *paths: Path) -> None:
        """Choose files to upload."""
        self.find("#files").send_keys("\n".join(map(str, paths)))

    def choose_folder(self, path: Path) -> None:
        self.find("#directory").send_keys(str(path))

    def drop(self, *paths: Path) -> None:
        """Drop files and folders of the machine on the page."""
        data = {"items": [], "files": list(map(str, paths)), "dragOperationsMask": 1}
        for kind in ("dragEnter", "dragOver", "drop"):
            self.cdp("Input.dispatchDragEvent", type=kind, x=200, y=300, data=data)

    def wait_for_download(self, folder: Path, content: bytes) -> None:
        """Wait until *content*, and nothing else, has come down into *folder*."""

        def here() -> bool:
            paths = list(folder.glob("*"))
            under_way = any(path.suffix == ".crdownload" for path in paths)
            return not under_way and [path.read_bytes() for path in paths] == [content]

        self.wait(here, "the download")

    def uploads(self) -> dict[str, str]:
        """Return the names in the rows of uploads, and their states with what they say."""
        return dict(self.run(UPLOADS))

    def wait_for_upload(self, name: str, state: str) -> str:
        """Wait until the row of *name* is in *state*, and return what it says."""

        def said() -> str | None:
            now: str = self.uploads().get(name, "")
            return now if now.startswith(state) else None

        said_then: str = self.wait(said, f"the upload of {name} to be {state}")
        return said_then

    def throttle(self, upload: int) -> None:
        """Let no more than *upload* bytes a second out of the browser; -1 for any number."""
        self.cdp("Network.enable")
        self.cdp(
            "Network.emulateNetworkConditions",
            offline=False,
            latency=0,
            downloadThroughput=-1,
            uploadThroughput=upload,
        )

    def dialog(self) -> WebElement:
        """Return the dialog, once one is open."""
        found: WebElement = self.wait(
            lambda: self.run("return document.querySelector('dialog[open]')"), "a dialog"
        )
        return found

    def answer(self, button: str) -> None:
        """Press the button of the open dialog that reads *button*."""
        buttons = self.dialog().find_elements("css selector", "button")
        next(found for found in buttons if found.text == button).click()

    def fill(self, **fields: str) -> None:
        """Write into the fields of the open dialog."""
        for name, text in fields.items():
            # Typing drops what the keyboard of the driver does not have.
            self.run(
                "arguments[0].querySelector(`[name=${arguments[1]}]`).value = arguments[2]",
                self.dialog(),
                name,
                text,
            )

    def wait_until_closed(self) -> None:
        self.wait(
            lambda: not self.run("return document.querySelector('dialog[open]')"),
            "the dialog to close",
        )

    def refusal(self) -> str:
        """Return why the open dialog says that it failed."""
        said: str = self.wait(
            lambda: self.dialog().find_element("css selector", ".error").text, "a refusal"
        )
        return said

    def emulate(self, width: int = 1280, height: int = 800, scheme: str = "light") -> None:
        """Make the window as large, and prefer light or dark."""
        self.cdp(
            "Emulation.setDeviceMetricsOverride",
            width=width,
            height=height,
            deviceScaleFactor=1,
            mobile=width < 600,
        )
        features = [{"name": "prefers-color-scheme", "value": scheme}]
        self.cdp("Emulation.setEmulatedMedia", features=features)

    def violations(self) -> list[list[str]]:
        """Return what axe finds wrong with the page as it is."""
        if not AXE.exists():
            pytest.skip("axe-core is not there: npm install --no-save axe-core")
        self.run(AXE.read_text())
        found: list[list[str]] = self.browser.execute_async_script(VIOLATIONS)
        return found

    def console(self) -> list[str]:
        """Return what the browser has complained about since the last time.

        Answers that are errors are left out: a name that is free is a 404.
        """
        entries = self.browser.get_log("browser")
        messages = [entry["message"] for entry in entries if entry["level"] != "INFO"]
        return [m for m in messages if "Failed to load resource" not in m]
