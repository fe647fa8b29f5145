"""`python -m tests.zoo`: looks at every model of the zoo and writes `docs/coverage.md`."""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Any

import click
from rich.console import Console
from rich.progress import Progress

from tests.zoo.lists import LIBRARIES, names
from tests.zoo.run import looked_at
from tests.zoo.table import write

DOCS = Path(__file__).parents[2] / "docs"


@click.command()
@click.option("--library", "libraries", multiple=True, type=click.Choice(LIBRARIES))
@click.option("--only", multiple=True, help="Keys, such as timm:vit_base_patch16_224.")
@click.option("--jobs", default=2, show_default=True)
@click.option("--out", default=DOCS, type=click.Path(path_type=Path), show_default=True)
def main(libraries: tuple[str, ...], only: tuple[str, ...], jobs: int, out: Path) -> None:
    """Captures, emits and compares the models; a library that is not installed is left out."""
    known = _known(out)
    keys = list(only) or [k for lib in libraries or LIBRARIES for k in _keys(lib)]
    if not only:
        looked = {k.partition(":")[0] for k in keys}
        known = {k: v for k, v in known.items() if k.partition(":")[0] not in looked}
    with Progress(console=Console(stderr=True)) as progress:
        task = progress.add_task("zoo", total=len(keys))
        for found in looked_at(keys, jobs):
            progress.update(task, advance=1, description=found["key"])
            known[found["key"]] = found
            write(out, list(known.values()))
            if found["outcome"] != "exact":
                progress.console.print(f"{found['key']}: {found['outcome']}: {found['why']}")
    sys.exit(any(found["outcome"] == "wrong" for found in known.values()))


def _known(out: Path) -> dict[str, Any]:
    path = out / "coverage.json"
    found = json.loads(path.read_text())["models"] if path.exists() else []
    return {each["key"]: each for each in found}


def _keys(library: str) -> list[str]:
    try:
        return [f"{library}:{name}" for name in names(library)]
    except ImportError:
        return []


if __name__ == "__main__":
    main()
