"""The layers: who may import whom."""

from __future__ import annotations

import ast
from collections.abc import Iterator
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent / "httpnas"
#: What each layer may import of httpnas, and which packages it must not know.
LAYERS = {
    "storage": ({"storage"}, {"twisted", "klein", "werkzeug", "treq"}),
    "transfer": ({"storage", "transfer"}, {"klein", "werkzeug", "treq"}),
    "web": ({"storage", "transfer", "web"}, {"treq"}),
    "client": ({"client"}, {"klein", "werkzeug"}),
}
#: Only the streaming request may know twisted.web's insides.
INSIDES = "twisted.web"


def imports(path: Path) -> Iterator[str]:
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{path}: relative import"
            yield from (f"{node.module}.{alias.name}" for alias in node.names)


def violations(path: Path, source: Path = ROOT) -> list[str]:
    layer = path.relative_to(source).parts[0]
    if layer not in LAYERS:
        return []
    allowed, forbidden = LAYERS[layer]
    found = []
    for name in imports(path):
        package, *rest = name.split(".")
        own = package == "httpnas"
        if own and rest[0] not in allowed and rest != ["__version__"]:
            found.append(name)
        if package in forbidden or (layer == "transfer" and name.startswith("twisted.web")):
            found.append(name)
        if name.startswith(INSIDES) and path.name != "streaming.py":
            found.append(name)
    return found


@pytest.mark.parametrize("path", sorted(ROOT.rglob("*.py")), ids=lambda p: str(p.relative_to(ROOT)))
def test_imports_go_one_way(path: Path) -> None:
    assert violations(path) == []


@pytest.mark.parametrize(
    "layer, line",
    [
        ("storage", "from twisted.internet import defer"),
        ("storage", "from httpnas.transfer.disk import Disk"),
        ("storage", "import httpnas.web.names"),
        ("transfer", "from httpnas.web.names import decode_name"),
        ("transfer", "from twisted.web import http"),
        ("web", "from httpnas.tap import Options"),
        ("web", "from twisted.web import http"),
        ("client", "from httpnas.storage.store import Storage"),
    ],
)
def test_an_import_against_the_direction_is_seen(tmp_path: Path, layer: str, line: str) -> None:
    path = tmp_path / layer / "module.py"
    path.parent.mkdir()
    path.write_text(line)
    assert violations(path, tmp_path)
