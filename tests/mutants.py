"""Random one-line mutants of the compiler, each against the tests that are nearest to it.

A script, not collected by pytest:

    python tests/mutants.py --count 100 --seed 1 --jobs 2 --out mutants.json

A mutant changes one operator, comparison, constant, `and` or `or`, drops a `not`, swaps two
arguments, or takes a line out. It lives in a copy of the tree, never in place. One whose module
does not import is no mutant, and another is drawn. A test kills it that fails; a package's tests
run nearest first and stop at the first that does.

Exit status: 0 if at least `--least` percent die, else 1.
"""

from __future__ import annotations

import argparse
import ast
import copy
import json
import os
import random
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict, dataclass
from pathlib import Path
from queue import SimpleQueue

ROOT = Path(__file__).resolve().parents[1]
NEAR: dict[str, tuple[str, ...]] = {
    "vitrewrite/tracing": (
        "tests/tracing", "tests/test_capture.py", "tests/test_constants.py",
        "tests/test_escapes.py", "tests/test_caches.py", "tests/test_checkpointing.py",
        "tests/test_inputs.py", "tests/test_decompose.py", "tests/test_contexts.py",
        "tests/emission", "tests/test_zoo.py", "tests/hf/test_zoo.py", "tests/properties",
    ),
    "vitrewrite/anatomy": (
        "tests/anatomy", "tests/hf/test_anatomy.py", "tests/hf/test_registers.py", "tests/passes",
        "tests/hf/test_faseg.py",
    ),
    "vitrewrite/rewrite": (
        "tests/passes", "tests/lowering", "tests/language/test_resolve.py", "tests/test_plan.py",
        "tests/test_refusals.py", "tests/test_advice.py", "tests/sensitivity", "tests/cli",
        "tests/hf/test_faseg.py",
    ),
    "vitrewrite/emission": (
        "tests/emission", "tests/test_rolls.py", "tests/test_comprehensions.py",
        "tests/test_zoo.py", "tests/hf/test_loops.py",
        "tests/hf/test_names.py", "tests/properties",
    ),
    "passes": ("tests/passes", "tests/lowering", "tests/hf/test_faseg.py", "tests/tuning"),
}  # fmt: skip
_SWAPS: dict[type, type] = {
    ast.Add: ast.Sub, ast.Sub: ast.Add, ast.Mult: ast.FloorDiv, ast.FloorDiv: ast.Mult,
    ast.Div: ast.Mult, ast.Mod: ast.Mult, ast.BitAnd: ast.BitOr, ast.BitOr: ast.BitAnd,
    ast.Lt: ast.LtE, ast.LtE: ast.Lt, ast.Gt: ast.GtE, ast.GtE: ast.Gt, ast.Eq: ast.NotEq,
    ast.NotEq: ast.Eq, ast.Is: ast.IsNot, ast.IsNot: ast.Is, ast.In: ast.NotIn, ast.NotIn: ast.In,
    ast.And: ast.Or, ast.Or: ast.And,
}  # fmt: skip


@dataclass(frozen=True)
class Mutant:
    """One change: `source` is the whole file with it."""

    file: str
    line: int
    before: str
    after: str
    source: str


@dataclass
class Verdict:
    """What became of a mutant; `killed_by` is a test's name, or empty."""

    file: str
    line: int
    before: str
    after: str
    killed_by: str = ""


def main(argv: list[str] | None = None) -> int:
    """Draws mutants, runs them and writes what became of each."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("--count", type=int, default=100)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--jobs", type=int, default=1)
    parser.add_argument("--timeout", type=int, default=900, help="seconds for the tests of one")
    parser.add_argument("--least", type=float, default=92.0, help="percent that have to die")
    parser.add_argument("--only", default="", help="a package or file to draw from")
    parser.add_argument("--out", type=Path, default=Path("mutants.json"))
    options = parser.parse_args(argv)
    copies: SimpleQueue[Path] = SimpleQueue()
    with tempfile.TemporaryDirectory(prefix="mutants.") as folder:
        for number in range(options.jobs):
            copies.put(_copied(Path(folder) / str(number)))
        drawn = draw(random.Random(options.seed), options.only)
        verdicts: list[Verdict] = []
        with ThreadPoolExecutor(options.jobs) as pool:
            while len(verdicts) < options.count:
                wanted = [next(drawn) for _ in range(options.count - len(verdicts))]
                found = pool.map(lambda m: _judged(m, copies, options.timeout), wanted)
                for verdict in (v for v in found if v is not None):
                    verdicts.append(verdict)
                    fate = verdict.killed_by or "SURVIVED"
                    _say(f"{verdict.file}:{verdict.line}: {fate}")
                    options.out.write_text(json.dumps([asdict(v) for v in verdicts], indent=1))
    dead = sum(bool(v.killed_by) for v in verdicts)
    _say(f"{dead} of {len(verdicts)} mutants died")
    for verdict in (v for v in verdicts if not v.killed_by):
        _say(f"{verdict.file}:{verdict.line}\n  - {verdict.before}\n  + {verdict.after}")
    return 0 if 100 * dead >= options.least * len(verdicts) else 1


def _say(text: str) -> None:
    sys.stdout.write(f"{text}\n")
    sys.stdout.flush()


def draw(generator: random.Random, only: str = "") -> Iterator[Mutant]:
    """Mutants without end, files weighed by how many places to change they have."""
    places = []
    for package in NEAR:
        for path in sorted((ROOT / package).rglob("*.py")):
            name = path.relative_to(ROOT).as_posix()
            if name.startswith(only):
                places += [(path, i) for i in range(sum(1 for _ in changes(_parsed(path))))]
    while True:
        path, number = generator.choice(places)
        yield mutant(path, number)


def mutant(path: Path, number: int) -> Mutant:
    """The change of a file with a number."""
    tree = _parsed(path)
    node, new = list(changes(tree))[number]
    old = ast.unparse(node)
    source = path.read_text()
    lines = source.splitlines(keepends=True)
    assert isinstance(node, ast.expr | ast.stmt)
    assert node.end_lineno is not None
    first, last = node.lineno - 1, node.end_lineno - 1
    start = lines[first].encode()[: node.col_offset].decode()
    end = lines[last].encode()[node.end_col_offset :].decode()
    text = ast.unparse(new)
    text = f"({text})" if isinstance(new, ast.expr) else text
    changed = "".join([*lines[:first], f"{start}{text}{end}", *lines[last + 1 :]])
    return Mutant(path.relative_to(ROOT).as_posix(), node.lineno, old, text, changed)


def changes(tree: ast.AST) -> Iterator[tuple[ast.AST, ast.AST]]:
    """Nodes of a module with what they become, in order; not those of annotations or strings."""
    skipped = {id(n) for a in _idle(tree) for n in ast.walk(a)}
    for node in ast.walk(tree):
        if id(node) not in skipped:
            yield from ((node, new) for new in _changed(node))


def _idle(tree: ast.AST) -> Iterator[ast.AST]:
    """Parts of a module that no run sees: annotations, text, and what is for type checkers."""
    for node in ast.walk(tree):
        for name in ("annotation", "returns"):
            if (found := getattr(node, name, None)) is not None:
                yield found
        if isinstance(node, ast.If) and "TYPE_CHECKING" in ast.unparse(node.test):
            yield node
        if isinstance(node, ast.JoinedStr | ast.Assert | ast.Raise):
            yield node


def _changed(node: ast.AST) -> Iterator[ast.AST]:
    if isinstance(node, ast.BinOp | ast.BoolOp) and type(node.op) in _SWAPS:
        yield _with(node, op=_SWAPS[type(node.op)]())
    elif isinstance(node, ast.Compare) and type(node.ops[0]) in _SWAPS:
        yield _with(node, ops=[_SWAPS[type(node.ops[0])](), *node.ops[1:]])
    elif isinstance(node, ast.UnaryOp) and isinstance(node.op, ast.Not):
        yield node.operand
    elif isinstance(node, ast.Constant) and isinstance(node.value, bool):
        yield _with(node, value=not node.value)
    elif isinstance(node, ast.Constant) and isinstance(node.value, int):
        yield from (_with(node, value=node.value + step) for step in (1, -1))
    elif isinstance(node, ast.Call) and len(node.args) == 2 and not _starred(node):
        yield _with(node, args=node.args[::-1])
    elif isinstance(node, ast.Return) and node.value is not None:
        yield _with(node, value=ast.Constant(None))
    elif isinstance(node, ast.AugAssign) or _is_call(node):
        yield ast.Pass()
    elif isinstance(node, ast.Continue):
        yield ast.Break()


def _is_call(node: ast.AST) -> bool:
    """Whether a line calls something only for what it does."""
    return isinstance(node, ast.Expr) and isinstance(node.value, ast.Call | ast.Yield)


def _starred(call: ast.Call) -> bool:
    return any(isinstance(a, ast.Starred) for a in call.args)


def _with(node: ast.AST, **fields: object) -> ast.AST:
    new = copy.copy(node)
    for name, value in fields.items():
        setattr(new, name, value)
    return new


def _parsed(path: Path) -> ast.Module:
    return ast.parse(path.read_text())


# -- running ---------------------------------------------------------------------------------------


def _copied(folder: Path) -> Path:
    ignored = shutil.ignore_patterns(".git", ".venv", "__pycache__", ".*_cache", "*.whl")
    shutil.copytree(ROOT, folder, ignore=ignored)
    return folder


def _judged(mutant: Mutant, copies: SimpleQueue[Path], timeout: int) -> Verdict | None:
    """What became of a mutant, or None if it does not import."""
    folder = copies.get()
    target = folder / mutant.file
    original = target.read_text()
    try:
        target.write_text(mutant.source)
        if not _imports(folder, mutant.file):
            return None
        killed = _killer(folder, mutant.file, timeout)
        return Verdict(mutant.file, mutant.line, mutant.before, mutant.after, killed)
    finally:
        target.write_text(original)
        copies.put(folder)


def _environment(folder: Path) -> dict[str, str]:
    settings = {"PYTHONPATH": str(folder), "OMP_NUM_THREADS": "1", "PYTHONDONTWRITEBYTECODE": "1"}
    return {**os.environ, **settings}


def _imports(folder: Path, file: str) -> bool:
    name = file.removesuffix(".py").removesuffix("/__init__").replace("/", ".")
    name = f"vitrewrite.{name}" if name.startswith("passes") else name
    command = [sys.executable, "-c", f"import vitrewrite, {name}"]
    environment = _environment(folder)
    run = subprocess.run(command, cwd=folder, env=environment, capture_output=True, check=False)
    return run.returncode == 0


def _killer(folder: Path, file: str, timeout: int) -> str:
    """The test that fails, `timeout`, or nothing."""
    package = next(p for p in NEAR if file.startswith(p))
    command = [sys.executable, "-m", "pytest", "-x", "-q", "-p", "no:cacheprovider", "-n", "0"]
    tests = [t for t in NEAR[package] if (folder / t).exists()]
    try:
        run = subprocess.run(
            [*command, *tests], cwd=folder, env=_environment(folder), capture_output=True,
            text=True, timeout=timeout, check=False,
        )  # fmt: skip
    except subprocess.TimeoutExpired:
        return "timeout"
    if run.returncode == 0:
        return ""
    lines = (line for line in run.stdout.splitlines() if line.startswith(("FAILED", "ERROR")))
    return next((line.split()[1] for line in lines), f"exit status {run.returncode}")


if __name__ == "__main__":
    raise SystemExit(main())
