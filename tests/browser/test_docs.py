"""The page of the API at ``/docs``."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING
from urllib.request import urlopen

import pytest

if TYPE_CHECKING:
    from tests.browser.page import Page

pytestmark = pytest.mark.browser


def test_the_page_of_the_api_shows_its_operations(page: Page) -> None:
    with urlopen(f"{page.daemon.url}/openapi.json") as answer:
        paths = json.load(answer).get("paths", {})
    page.browser.get(f"{page.daemon.url}/docs")
    if paths:
        shown = page.browser.find_elements
        page.wait(lambda: shown("css selector", ".opblock"), "the operations")
    else:
        page.wait(lambda: page.browser.find_elements("css selector", ".swagger-ui"), "Swagger UI")
    complaints = [message for message in page.console() if "style" not in message]
    assert complaints == []
