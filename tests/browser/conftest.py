from __future__ import annotations

import importlib.util
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest

from tests.harness import Twistd

CHROMIUM = "/usr/bin/chromium"
CHROMEDRIVER = "/usr/bin/chromedriver"
ARGUMENTS = [
    "--headless=new",
    "--no-sandbox",
    "--disable-gpu",
    "--disable-quic",
    "--no-first-run",
    "--disable-background-networking",
    "--disable-component-update",
    "--disable-sync",
    "--disable-dev-shm-usage",
]


@pytest.fixture(scope="session")
def browser(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Any]:
    """Chromium without a window, for all tests."""
    missing = [path for path in (CHROMIUM, CHROMEDRIVER) if not Path(path).exists()]
    if importlib.util.find_spec("selenium") is None:
        missing.append("the package selenium")
    if missing:
        pytest.skip(f"not there: {', '.join(missing)}")
    from selenium.webdriver import Chrome, ChromeOptions  # noqa: PLC0415
    from selenium.webdriver.chrome.service import Service  # noqa: PLC0415

    options = ChromeOptions()
    options.binary_location = CHROMIUM
    for argument in [*ARGUMENTS, f"--user-data-dir={tmp_path_factory.mktemp('profile')}"]:
        options.add_argument(argument)
    options.set_capability("goog:loggingPrefs", {"browser": "ALL"})
    with Chrome(options=options, service=Service(CHROMEDRIVER)) as driver:
        yield driver


@pytest.fixture(scope="session")
def start_daemon(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Callable[[], Twistd]]:
    """Gives a new daemon on an empty folder, which has started while the last was in use."""

    def start() -> Twistd:
        root = tmp_path_factory.mktemp("nas") / "root"
        root.mkdir()
        return Twistd(root, "--durability=none")

    with ThreadPoolExecutor(1) as thread:
        started = [thread.submit(start)]

        def take() -> Twistd:
            started.append(thread.submit(start))
            return started.pop(0).result()

        yield take
        end(started.pop().result())


def end(daemon: Twistd) -> None:
    daemon.process.kill()
    daemon.process.wait()


@pytest.fixture
def page(browser: Any, start_daemon: Callable[[], Twistd]) -> Iterator[Any]:
    """The page of a daemon of its own; in the end the browser has nothing to complain about."""
    from tests.browser.page import Page  # noqa: PLC0415  (needs selenium)

    page = Page(browser, start_daemon())
    page.emulate()
    page.console()
    yield page
    page.throttle(-1)
    complaints = page.console()
    browser.get("about:blank")
    end(page.daemon)
    assert complaints == []
