"""Which tests reach which mutant: its line calls `reached` in one run of all tests.

The same file is the pytest plugin of that run.
"""

from __future__ import annotations

import ast
import builtins
import json
import os
from collections import defaultdict
from collections.abc import Generator, Sequence
from pathlib import Path
from typing import Any

import pytest

from .draw import Mutant

FOLDER = "MUTANTS_REACH"
"""The environment variable that says where the plugin writes."""


def mark(root: Path, mutants: Sequence[Mutant]) -> set[int]:
    """Puts a call before the statement of every mutant.

    Returns:
        The numbers of those that stand in no function, and run when a module is imported.
    """
    outside: set[int] = set()
    places: dict[str, list[tuple[int, int, int]]] = defaultdict(list)
    for number, mutant in enumerate(mutants):
        place = _place(ast.parse((root / mutant.file).read_text()), mutant.line)
        if place is None:
            outside.add(number)
        else:
            places[mutant.file].append((*place, number))
    for file, found in places.items():
        lines = (root / file).read_text().splitlines(keepends=True)
        for line, column, number in sorted(found, reverse=True):
            lines.insert(line - 1, f"{' ' * column}__reached__({number})\n")
        (root / file).write_text("".join(lines))
    return outside


def _place(tree: ast.Module, line: int) -> tuple[int, int] | None:
    """Line and column of the innermost statement at a line that a call can stand before."""
    functions = [n for n in ast.walk(tree) if isinstance(n, ast.FunctionDef) and _has(n, line)]
    if not functions:
        return None
    inside = max(functions, key=lambda n: n.lineno)
    bodies = [b for n in ast.walk(inside) for b in _bodies(n) if b]
    fitting = [s for body in bodies for s in body if _has(s, line) and s is not inside]
    first = min(fitting, key=lambda s: (s.end_lineno or 0) - s.lineno, default=inside.body[0])
    if isinstance(first, ast.FunctionDef | ast.ClassDef):
        first = inside.body[0]
    return first.lineno, first.col_offset


def _bodies(node: ast.AST) -> list[list[ast.stmt]]:
    """Lists of statements below a node; an `elif` is none, since nothing can stand before it."""
    bodies = [getattr(node, name, []) for name in ("body", "orelse", "finalbody")]
    lists = [b for b in bodies if isinstance(b, list) and b and isinstance(b[0], ast.stmt)]
    chained = isinstance(node, ast.If) and len(node.orelse) == 1
    return [b for b in lists if not (chained and b is node.orelse and isinstance(b[0], ast.If))]  # type: ignore[attr-defined]


def _has(node: ast.stmt, line: int) -> bool:
    return node.lineno <= line <= (node.end_lineno or 0)


# -- the plugin -----------------------------------------------------------------------------------

_now: set[int] = set()
_by_fixture: dict[str, set[int]] = defaultdict(set)
_tests: dict[str, dict[str, Any]] = {}
builtins.__dict__["__reached__"] = _now.add


@pytest.hookimpl(hookwrapper=True)
def pytest_fixture_setup(fixturedef: Any) -> Generator[None, None, None]:
    """What making a fixture reaches, every test that uses it reaches."""
    before = set(_now)
    _now.clear()
    yield
    _by_fixture[fixturedef.argname] |= _now
    _now.update(before)


@pytest.hookimpl(hookwrapper=True)
def pytest_runtest_protocol(item: Any) -> Generator[None, None, None]:
    """Notes what a test reaches and uses."""
    _now.clear()
    _tests[item.nodeid] = {"fixtures": list(getattr(item, "fixturenames", ())), "seconds": 0.0}
    yield
    _tests[item.nodeid]["reached"] = sorted(_now)


def pytest_runtest_logreport(report: Any) -> None:
    """Adds up how long a test takes."""
    if report.nodeid in _tests:
        _tests[report.nodeid]["seconds"] += report.duration


def pytest_sessionfinish() -> None:
    """Writes what the tests of this process reach."""
    for test in _tests.values():
        named = (_by_fixture[name] for name in test.pop("fixtures"))
        test["reached"] = sorted(set(test.get("reached", ())).union(*named))
    if _tests:
        name = f"{os.environ.get('PYTEST_XDIST_WORKER', 'main')}.json"
        Path(os.environ[FOLDER], name).write_text(json.dumps(_tests))


# -- what it wrote --------------------------------------------------------------------------------


NEAR: dict[str, tuple[str, ...]] = {
    "vitrewrite/tracing": (
        "tests/tracing", "tests/test_capture", "tests/test_constants", "tests/test_escapes",
        "tests/test_caches", "tests/test_inputs", "tests/test_decompose", "tests/properties",
    ),
    "vitrewrite/anatomy": ("tests/anatomy", "tests/hf/test_anatomy"),
    "vitrewrite/emission": (
        "tests/emission", "tests/test_rolls", "tests/test_comprehensions", "tests/hf/test_loops",
    ),
    "vitrewrite": ("tests/passes", "tests/lowering", "tests/test_plan", "tests/language"),
    "passes": ("tests/passes", "tests/lowering"),
}  # fmt: skip
"""Tests that are about a package, and so run before others that pass through it."""


def tests_of(folder: Path, number: int, file: str, *, every: bool) -> dict[str, float]:
    """The tests of a mutant with their seconds, in the order in which they run.

    Those that reach it, near and quick ones first, then others of the same files, which may share
    what one of them made.

    Args:
        folder: where the plugin wrote.
        number: of the mutant.
        file: that it stands in.
        every: whether it runs at import, so that all tests reach it.
    """
    found: dict[str, dict[str, Any]] = {}
    for path in folder.glob("*.json"):
        found |= json.loads(path.read_text())
    near = next(names for package, names in NEAR.items() if file.startswith(package))
    quick = sorted(found, key=lambda name: (not name.startswith(near), found[name]["seconds"]))
    direct = [t for t in quick if every or number in found[t]["reached"]]
    files = {t.partition("::")[0] for t in direct}
    rest = [t for t in quick if t.partition("::")[0] in files and t not in set(direct)]
    return {t: float(found[t]["seconds"]) for t in (*direct, *rest)}
