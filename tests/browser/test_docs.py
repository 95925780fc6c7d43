"""The pages of the API at ``/docs`` and of its problems at ``/docs/problems``."""

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


@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_the_page_of_problems_opens_at_the_one_that_a_type_names(page: Page, scheme: str) -> None:
    page.emulate(scheme=scheme)
    page.browser.get(f"{page.daemon.url}/docs/problems#storage-full")
    section = page.browser.find_element("css selector", "section:target")
    assert section.text.startswith("storage-full\n507 Insufficient Storage\n")
    assert page.run("return scrollY > 0")
    assert page.violations() == []
    assert page.console() == []
