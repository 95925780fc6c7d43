"""What comes from others: it is pinned for the image, and Swagger UI is current."""

from __future__ import annotations

import re
from importlib.metadata import requires
from pathlib import Path

from packaging.requirements import Requirement
from packaging.utils import canonicalize_name
from packaging.version import Version

from httpnas.web.doors.pages import _swagger_ui

ROOT = Path(__file__).parent.parent
#: One requirement, and the hashes that follow it.
PINNED = re.compile(r"^([a-z][^\n]*?) \\\n((?:    --hash=sha256:[0-9a-f]{64}(?: \\)?\n)+)", re.M)


def pinned() -> dict[str, list[Requirement]]:
    text = (ROOT / "requirements.txt").read_text()
    found: dict[str, list[Requirement]] = {}
    for line, _ in PINNED.findall(text):
        found.setdefault(canonicalize_name(Requirement(line).name), []).append(Requirement(line))
    assert sum(map(len, found.values())) == len(re.findall("^[a-z]", text, re.M)), "without hash"
    return found


def needed(of: str, seen: set[str]) -> list[Requirement]:
    """Return what *of* needs, and what that needs in turn."""
    found = []
    for requirement in map(Requirement, requires(of) or []):
        if requirement.marker is None or requirement.marker.evaluate({"extra": ""}):
            found.append(requirement)
            if (name := canonicalize_name(requirement.name)) not in seen:
                seen.add(name)
                found += needed(name, seen)
    return found


def test_all_that_is_in_the_image_is_pinned_with_hashes_in_a_version_that_fits() -> None:
    pins = pinned()
    wanted = [*needed("httpnas", set()), Requirement("setuptools>=77")]
    assert len(wanted) > 10
    for requirement in wanted:
        versions = [str(pin.specifier) for pin in pins[canonicalize_name(requirement.name)]]
        assert all(version.startswith("==") for version in versions)
        assert all(version[2:] in requirement.specifier for version in versions), requirement


def test_libraries_with_known_weaknesses_are_not_enough() -> None:
    (werkzeug,) = (r for r in map(Requirement, requires("httpnas") or []) if r.name == "werkzeug")
    assert "3.1.5" not in werkzeug.specifier


def test_swagger_ui_and_the_dompurify_in_it_are_current() -> None:
    bundle = (_swagger_ui() / "swagger-ui-bundle.js").read_text()
    versions = {
        "Swagger UI": re.findall(r'PACKAGE_VERSION:"([\d.]+)"', bundle),
        "DOMPurify": re.findall(r'DOMPurify\.version="([\d.]+)"', bundle),
    }
    assert [Version(found) for found in versions["Swagger UI"]] >= [Version("5.34")]
    assert [Version(found) for found in versions["DOMPurify"]] >= [Version("3.4.16")]
