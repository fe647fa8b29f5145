"""The order of packages: each imports only what stands above it, wherever the import is written."""

import ast
import re
from collections import Counter
from collections.abc import Iterator
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[1]

PACKAGE = "vitrewrite"
ROOMS = (
    "errors", "version", "text", "disk", "storage", "layers", "catalog", "language", "tracing",
    "anatomy", "emission", "program", "models", "data", "tasks", "editing", "selection",
    "sensitivity", "sites", "features", "rewrite", "profiling", "report", "interchange", "folder",
    "banking", "verification", "api", "tuning", "authoring", "checking", "bench", "cli",
)  # fmt: skip
DOORS = ("", "__main__")
"""The package itself, whose names are the API, and its command: they see every room."""


def files() -> list[Path]:
    return sorted((ROOT / PACKAGE).rglob("*.py"))


def dotted(path: Path) -> str:
    return ".".join(path.relative_to(ROOT).with_suffix("").parts).removesuffix(".__init__")


def room(name: str) -> str:
    return [*name.split("."), ""][1]


def imported(path: Path) -> Iterator[tuple[int, str]]:
    """Names of modules of ours that a file imports anywhere, with lines."""
    here = dotted(path).split(".")
    package = here if path.name == "__init__.py" else here[:-1]
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            yield from ((node.lineno, alias.name) for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            parts = package[: len(package) + 1 - node.level] if node.level else []
            base = ".".join([*parts, *([node.module] if node.module else [])])
            yield from ((node.lineno, f"{base}.{alias.name}") for alias in node.names)
        elif isinstance(node, ast.Constant) and isinstance(node.value, str):
            text = node.value  # an import by name
            if re.fullmatch(rf"{PACKAGE}(\.\w+)+", text) and _exists(text):
                yield node.lineno, text


def _exists(name: str) -> bool:
    path = ROOT / name.replace(".", "/")
    return path.is_dir() or path.with_suffix(".py").exists()


def test_every_room_has_its_place() -> None:
    assert {room(dotted(p)) for p in files()} - set(DOORS) <= set(ROOMS)


@pytest.mark.parametrize("name", ROOMS)
def test_a_room_imports_only_what_stands_above_it(name: str) -> None:
    above = ROOMS[: ROOMS.index(name) + 1]
    wrong = [
        f"{path.relative_to(ROOT)}:{line} imports {what}"
        for path in files()
        if room(dotted(path)) == name
        for line, what in imported(path)
        if what.split(".")[0] == PACKAGE and room(what) not in (*above, "passes", "generated")
    ]
    assert not wrong, "\n".join(wrong)


def test_no_class_name_is_used_twice() -> None:
    texts = (p.read_text() for p in [*files(), *sorted((ROOT / "passes").rglob("*.py"))])
    names = Counter(
        n.name for text in texts for n in ast.parse(text).body if isinstance(n, ast.ClassDef)
    )
    assert [name for name, count in names.items() if count > 1] == []


KEYS = re.compile(r"""\.meta(\.\w+\(|\[)["']|["'] (not )?in \w+\.meta\b""")
OTHER_METAS = {"tracing/inputs.py", "emission/captured.py"}  # that of an `fx.GraphModule`


def test_what_is_known_of_a_node_is_read_through_notes() -> None:
    found = {str(p.relative_to(ROOT / PACKAGE)) for p in files() if KEYS.search(p.read_text())}
    assert found == OTHER_METAS


def test_no_name_that_a_package_offers_is_hidden_by_a_file() -> None:
    """A file takes the place of what `__getattr__` yields under its name, once it is imported."""
    hidden = []
    for path in (p for p in files() if p.name == "__init__.py"):
        body = ast.parse(path.read_text()).body
        if any(isinstance(n, ast.FunctionDef) and n.name == "__getattr__" for n in body):
            lists = [n.value for n in body if isinstance(n, ast.Assign)]
            # Where names stand beside their files, the names alone are offered.
            parts = [k for n in lists for k in (n.keys if isinstance(n, ast.Dict) else [n]) if k]
            known = (c for n in parts for c in ast.walk(n) if isinstance(c, ast.Constant))
            offered = {str(c.value) for c in known}
            hidden += sorted(offered & {p.stem for p in path.parent.iterdir()})
    assert hidden == []
