"""Random one-line mutants of the compiler, each against the tests that reach its line.

    python -m tests.mutants --count 100 --seed 11 --out mutants.json

In a copy of the tree, one run of all tests says which of them reach which mutant; then each mutant
meets these, quick ones first, until one fails. A mutant whose module does not import is no mutant,
and another is drawn.

Exit status: 0 if at least `--least` percent die, else 1.
"""

from __future__ import annotations

import argparse
import json
import multiprocessing
import os
import random
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Iterator, Sequence
from concurrent.futures import ProcessPoolExecutor
from dataclasses import asdict
from pathlib import Path
from typing import Any

from . import judge, reach
from .draw import Mutant, draw

ROOT = Path(__file__).resolve().parents[2]
PACKAGES = (
    "vitrewrite/tracing", "vitrewrite/anatomy", "vitrewrite/emission", "vitrewrite/editing",
    "vitrewrite/selection", "vitrewrite/sites", "vitrewrite/rewrite", "passes",
)  # fmt: skip


def main(argv: list[str] | None = None) -> int:
    """Draws mutants, runs them and writes what became of each."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("--count", type=int, default=100)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--jobs", type=int, default=2)
    parser.add_argument("--seconds", type=float, default=600, help="for the tests of one mutant")
    parser.add_argument("--least", type=float, default=92.0, help="percent that have to die")
    parser.add_argument("--root", type=Path, default=ROOT, help="the tree")
    parser.add_argument("--packages", nargs="*", default=PACKAGES, help="what to draw from")
    parser.add_argument("--tests", nargs="*", default=["tests"], help="what may kill")
    parser.add_argument("--reach", type=Path, help="keep or take what the run of all tests said")
    parser.add_argument("--out", type=Path, default=Path("mutants.json"))
    options = parser.parse_args(argv)
    judge.preload()
    with tempfile.TemporaryDirectory(prefix="mutants.") as folder:
        copies = [_copied(options.root, Path(folder) / str(n)) for n in range(options.jobs)]
        mutants = list(_importable(options, copies[0]))
        known = options.reach or Path(folder) / "reach"
        outside = _reach(options, mutants, _copied(options.root, Path(folder) / "marked"), known)
        verdicts = list(_verdicts(options, mutants, copies, known, outside))
    dead = sum(bool(v["killed_by"]) for v in verdicts)
    _say(f"{dead} of {len(verdicts)} mutants died")
    return 0 if 100 * dead >= options.least * len(verdicts) else 1


def _importable(options: argparse.Namespace, copy: Path) -> Iterator[Mutant]:
    drawn = draw(options.root, options.packages, random.Random(options.seed))
    found = 0
    for mutant in drawn:
        if found == options.count:
            return
        with _Standing(copy, mutant):
            if judge.imports(copy, mutant):
                found += 1
                yield mutant


def _reach(
    options: argparse.Namespace, mutants: Sequence[Mutant], copy: Path, known: Path
) -> set[int]:
    """Runs all tests once, unless that was done; the mutants that run at import."""
    outside = reach.mark(copy, mutants)
    if not any(known.glob("*.json")):
        known.mkdir(parents=True, exist_ok=True)
        shutil.copytree(ROOT / "tests/mutants", copy / "tests/mutants", dirs_exist_ok=True)
        command = [sys.executable, "-m", "pytest", "-q", "-p", "tests.mutants.reach"]
        command += ["-n", str(options.jobs), "--dist", "loadgroup", *options.tests]
        subprocess.run(
            command,
            cwd=copy,
            check=False,
            stdout=subprocess.DEVNULL,
            env={**os.environ, "PYTHONPATH": str(copy), reach.FOLDER: str(known.resolve())},
        )
    return outside


def _verdicts(
    options: argparse.Namespace,
    mutants: Sequence[Mutant],
    copies: Sequence[Path],
    known: Path,
    outside: set[int],
) -> Iterator[dict[str, Any]]:
    found: list[dict[str, Any]] = []
    shares = [list(range(k, len(mutants), len(copies))) for k in range(len(copies))]
    with ProcessPoolExecutor(len(copies), multiprocessing.get_context("fork")) as pool:
        started = [
            pool.submit(_share, share, mutants, copy, known, outside, options.seconds)
            for share, copy in zip(shares, copies, strict=True)
        ]
        for each in started:
            found += each.result()
    found.sort(key=lambda v: int(v["number"]))
    options.out.write_text(json.dumps(found, indent=1))
    yield from found


def _share(
    numbers: Sequence[int],
    mutants: Sequence[Mutant],
    copy: Path,
    known: Path,
    outside: set[int],
    seconds: float,
) -> list[dict[str, Any]]:
    """What becomes of some mutants, one after the other in one copy."""
    return [_verdict(n, mutants[n], copy, known, n in outside, seconds) for n in numbers]


def _verdict(
    number: int, mutant: Mutant, copy: Path, known: Path, outside: bool, seconds: float
) -> dict[str, Any]:
    tests = reach.tests_of(known, number, mutant.file, every=outside)
    with _Standing(copy, mutant):
        killed = judge.killer(copy, tests, seconds, copy)
    _say(f"{number} {mutant.file}:{mutant.line} of {len(tests)} tests: {killed or 'SURVIVED'}")
    if not killed:
        _say(f"  - {mutant.before}\n  + {mutant.after}")
    about = {k: v for k, v in asdict(mutant).items() if k != "source"}
    return {"number": number, **about, "tests": len(tests), "killed_by": killed}


class _Standing:
    """A mutant in a tree, for as long as the block runs."""

    def __init__(self, root: Path, mutant: Mutant) -> None:
        self.path, self.mutant = root / mutant.file, mutant

    def __enter__(self) -> None:
        self.before = self.path.read_text()
        self.path.write_text(self.mutant.source)

    def __exit__(self, *_: object) -> None:
        self.path.write_text(self.before)


def _copied(root: Path, folder: Path) -> Path:
    ignored = shutil.ignore_patterns(".git", ".venv", "__pycache__", ".*_cache", "*.whl")
    shutil.copytree(root, folder, ignore=ignored)
    return folder


def _say(text: str) -> None:
    sys.stdout.write(f"{text}\n")
    sys.stdout.flush()


if __name__ == "__main__":
    raise SystemExit(main())
