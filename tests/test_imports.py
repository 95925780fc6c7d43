"""The layers: who may import whom, and no circles."""

from __future__ import annotations

import ast
from collections.abc import Iterator
from graphlib import CycleError, TopologicalSorter
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent / "httpnas"
#: What each package may import of httpnas (the longest prefix decides), and what else it must not
#: know.
LAYERS: dict[str, tuple[set[str], set[str]]] = {
    "fields": ({"fields"}, {"twisted", "klein", "werkzeug", "treq"}),
    "storage": ({"storage"}, {"twisted", "klein", "werkzeug", "treq"}),
    "transfer": ({"storage", "transfer"}, {"twisted.web", "klein", "werkzeug", "treq"}),
    "files": (
        {"fields", "storage", "transfer", "files"},
        {"twisted.web", "klein", "werkzeug", "treq"},
    ),
    "access.jwks": ({"access"}, {"klein", "werkzeug", "treq"}),
    "access": (
        {"fields", "files", "access"},
        {"twisted.web", "klein", "werkzeug", "treq"},
    ),
    "web.server": ({"fields", "web.server"}, {"twisted.web", "klein", "werkzeug", "treq"}),
    "web.doors": (
        {"fields", "storage", "transfer", "files", "access", "web"},
        {"twisted.web", "klein", "werkzeug", "treq"},
    ),
    "web": (
        {"fields", "storage", "transfer", "files", "access", "web"},
        {"httpnas.web.doors", "twisted.web", "treq"},
    ),
}


def name_of(path: Path, source: Path = ROOT) -> str:
    """Return the dotted name of a module, without the package's own."""
    parts = path.relative_to(source).with_suffix("").parts
    return ".".join(parts[:-1] if parts[-1] == "__init__" else parts)


def is_within(name: str, package: str) -> bool:
    return name == package or name.startswith(package + ".")


def imports(path: Path) -> Iterator[str]:
    """Yield what a module imports, also for its types only, and in functions."""
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{path}: relative import"
            yield from (f"{node.module}.{alias.name}" for alias in node.names)


def violations(path: Path, source: Path = ROOT) -> list[str]:
    name = name_of(path, source)
    layer = max((layer for layer in LAYERS if is_within(name, layer)), key=len, default=None)
    if layer is None:
        return []
    allowed, forbidden = LAYERS[layer]
    found = []
    for imported in imports(path):
        ours = imported.removeprefix("httpnas.")
        is_ours = is_within(imported, "httpnas") and ours != "__version__"
        is_above = is_ours and not any(is_within(ours, package) for package in allowed)
        if is_above or any(is_within(imported, package) for package in forbidden):
            found.append(imported)
    return found


def circle(source: Path = ROOT) -> list[str]:
    """Return the modules of one circle of imports, none if there is no circle."""
    modules = {name_of(path, source): path for path in source.rglob("*.py")}
    graph = {
        name: {
            module
            for imported in imports(path)
            if (module := _module(imported, modules)) not in (None, name)
        }
        for name, path in modules.items()
    }
    try:
        TopologicalSorter(graph).prepare()
    except CycleError as error:
        return list(error.args[1])
    return []


def _module(imported: str, modules: dict[str, Path]) -> str | None:
    """Return which of *modules* is meant by an import of a module, or of something in it."""
    if not is_within(imported, "httpnas"):
        return None
    ours = imported.removeprefix("httpnas").removeprefix(".")
    return ours if ours in modules else ours.rpartition(".")[0]


@pytest.mark.parametrize("path", sorted(ROOT.rglob("*.py")), ids=lambda p: str(p.relative_to(ROOT)))
def test_imports_go_one_way(path: Path) -> None:
    assert violations(path) == []


def test_no_modules_import_each_other_in_a_circle() -> None:
    assert circle() == []


def test_every_package_is_installed() -> None:
    """The tests run from the source tree, where a package that setup.py forgets is found too."""
    setup = ast.parse((ROOT.parent / "setup.py").read_text())
    listed = {node.value for node in ast.walk(setup) if isinstance(node, ast.Constant)}
    packages = {name_of(path) for path in ROOT.rglob("__init__.py")}
    assert {f"httpnas.{name}" for name in packages if name} <= listed


@pytest.mark.parametrize(
    "package, line",
    [
        ("fields", "from httpnas.storage.version import Version"),
        ("fields", "from twisted.python.failure import Failure"),
        ("storage", "from twisted.internet import defer"),
        ("storage", "from httpnas.transfer.disk import Disk"),
        ("storage", "import httpnas.fields.names"),
        ("transfer", "from httpnas.fields.names import decode_name"),
        ("transfer", "from httpnas.files.job import Job"),
        ("transfer", "from twisted.web import http"),
        ("files", "from httpnas.web.problems import Problem"),
        ("files", "from twisted.web import http"),
        ("files", "from httpnas.access.rules import Rules"),
        ("access", "from httpnas.storage.store import Storage"),
        ("access", "from httpnas.web.problems import Problem"),
        ("access", "from twisted.web import http"),
        ("web/server", "from httpnas.access.rules import Rules"),
        ("web/server", "from httpnas.storage.errors import StorageError"),
        ("web/server", "from httpnas.transfer.sender import ConsumerGone"),
        ("web/server", "from httpnas.files.job import Job"),
        ("web/server", "from httpnas.web.doors.file import FileDoor"),
        ("web/server", "from httpnas.web import problems"),
        ("web/doors", "from httpnas.tap import Options"),
        ("web/doors", "from twisted.web import http"),
        ("web", "from httpnas.web.doors.file import FileDoor"),
        ("web", "from httpnas.web import doors"),
        ("web", "from httpnas.tap import Options"),
        ("web", "from twisted.web import http"),
    ],
)
def test_an_import_against_the_direction_is_seen(tmp_path: Path, package: str, line: str) -> None:
    path = tmp_path / package / "module.py"
    path.parent.mkdir(parents=True)
    path.write_text(line)
    assert violations(path, tmp_path)


@pytest.mark.parametrize(
    "lines",
    [
        ("import httpnas.storage.b", "from httpnas.storage.a import name"),
        ("from httpnas.storage import b", "def f():\n    from httpnas.storage import a"),
        ("from httpnas.storage.b import T", "if TYPE_CHECKING:\n    import httpnas.storage.a"),
    ],
)
def test_a_circle_is_seen(tmp_path: Path, lines: tuple[str, str]) -> None:
    folder = tmp_path / "storage"
    folder.mkdir()
    (folder / "a.py").write_text(lines[0])
    (folder / "b.py").write_text(lines[1])
    assert set(circle(tmp_path)) == {"storage.a", "storage.b"}
