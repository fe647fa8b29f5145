"""What is uploaded: the files of wheel and sdist, beside those of the tree.

    python -m tests.packages dist

`make package` builds both and runs this; `tests/test_packaging.py` asks the same of a wheel that
it builds.
"""

from __future__ import annotations

import sys
import tarfile
import zipfile
from pathlib import Path

import click

ROOT = Path(__file__).parent.parent
INSTALLED = (("vitrewrite", ""), ("passes", "vitrewrite/"), ("specs", "vitrewrite/"))
SHIPPED = ("vitrewrite", "passes", "specs", "tests", "examples", "docs", ".ci", ".github")
PAGES = {
    "CHANGELOG.md", "CONTRIBUTING.md", "LICENSE", "Makefile", "README.md", "SECURITY.md",
    "pyproject.toml",
}  # fmt: skip
METADATA = {"METADATA", "WHEEL", "RECORD", "LICENSE", "entry_points.txt"}
ADDED = {"PKG-INFO", ".gitignore"}
"""What hatchling puts into every sdist."""


def files(top: str) -> set[str]:
    """The files below a folder of the tree, without what Python and tools leave there."""
    return {
        path.relative_to(ROOT).as_posix()
        for path in (ROOT / top).rglob("*")
        if path.is_file() and path.suffix != ".pyc" and not _left(path.relative_to(ROOT / top))
    }


def _left(path: Path) -> bool:
    return any(part.startswith((".", "__pycache__")) for part in path.parts)


def of_a_wheel() -> set[str]:
    """The files that belong into a wheel, by their names there: no tests, no examples."""
    return {inside + name for top, inside in INSTALLED for name in files(top)}


def of_an_sdist() -> set[str]:
    """The files that belong into an sdist: all that builds, tests and explains."""
    return PAGES.union(*map(files, SHIPPED))


def in_wheel(path: Path) -> tuple[set[str], set[str]]:
    """What a wheel holds: its files, and the names of those that describe it."""
    with zipfile.ZipFile(path) as archive:
        names = set(archive.namelist())
    packed = {name for name in names if ".dist-info/" not in name}
    return packed, {name.rsplit("/", 1)[-1] for name in names - packed}


def in_sdist(path: Path) -> set[str]:
    """What an sdist holds, without its first folder."""
    with tarfile.open(path) as archive:
        return {m.name.partition("/")[2] for m in archive.getmembers() if m.isfile()} - ADDED


def main(folder: str) -> int:
    """Compare the wheel and the sdist in a folder with the tree; tell what differs."""
    (wheel,), (sdist,) = Path(folder).glob("*.whl"), Path(folder).glob("*.tar.gz")
    packed, described = in_wheel(wheel)
    pairs = [
        (wheel, packed, of_a_wheel()),
        (wheel, described, METADATA),
        (sdist, in_sdist(sdist), of_an_sdist()),
    ]
    wrong = 0
    for path, found, wanted in pairs:
        for name in sorted(found ^ wanted):
            wrong += 1
            click.echo(f"{path.name}: {name} is {'missing' if name in wanted else 'too much'}")
        click.echo(f"{path.name}: {len(found)} files")
    return 1 if wrong else 0


if __name__ == "__main__":
    raise SystemExit(main(sys.argv[1]))
