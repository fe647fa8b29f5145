"""`python -m tests.matrix`: fills the matrix and writes it into `docs/coverage.md`."""

from __future__ import annotations

import json
import multiprocessing
import sys
from pathlib import Path

import click
from rich.console import Console
from rich.progress import Progress

from tests.matrix.cell import Cell, cells, one
from tests.zoo.table import write

DOCS = Path(__file__).parents[2] / "docs"


@click.command()
@click.option("--jobs", default=2, show_default=True)
@click.option("--only", multiple=True, help="Methods or architectures; others stay as they are.")
@click.option("--out", default=DOCS, type=click.Path(path_type=Path), show_default=True)
def main(jobs: int, only: tuple[str, ...], out: Path) -> None:
    """Every method on every architecture."""
    wanted = [cell for cell in cells() if not only or {*cell} & {*only}]
    found: list[Cell] = []
    path = out / "coverage.json"
    known = json.loads(path.read_text()).get("matrix", []) if path.exists() else []
    table = {(c["method"], c["architecture"]): c for c in known}
    context = multiprocessing.get_context("spawn")
    with Progress(console=Console(stderr=True)) as progress, context.Pool(jobs) as pool:
        task = progress.add_task("matrix", total=len(wanted))
        for cell in pool.imap(one, wanted):
            progress.update(task, advance=1, description=cell.method)
            found.append(cell)
            if cell.outcome == "fails" or only:
                progress.console.print(
                    f"{cell.method} on {cell.architecture}: {cell.outcome} {cell.why}"
                )
    table |= {(cell.method, cell.architecture): cell.to_dict() for cell in found}
    write(out, cells=[table[key] for key in cells() if key in table])
    sys.exit(any(cell.outcome == "fails" for cell in found))


if __name__ == "__main__":
    main()
