"""`python -m tests.zoo`: looks at every model of the zoo and writes `docs/coverage.md`."""

from __future__ import annotations

import json
import multiprocessing
import sys
import warnings
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import click
from rich.console import Console
from rich.progress import Progress

from tests.zoo.lists import LIBRARIES, names
from tests.zoo.table import write

DOCS = Path(__file__).parents[2] / "docs"
LIMIT = 240  # seconds for one model


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
        for found in _found(keys, jobs):
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


def _found(keys: list[str], jobs: int) -> Iterator[dict[str, Any]]:
    """What was found of each, in processes that end now and then, to give memory back."""
    context = multiprocessing.get_context("spawn")
    with context.Pool(jobs, maxtasksperchild=25) as pool:
        yield from pool.imap_unordered(_one, keys)


def _one(key: str) -> dict[str, Any]:
    import torch

    from tests.zoo.check import Found, check, limited
    from tests.zoo.clean import Clean
    from tests.zoo.lists import subject

    warnings.simplefilter("ignore")
    torch.set_num_threads(1)
    clean = Clean()
    try:
        with limited(LIMIT):
            return check(subject(key), clean).to_dict()
    except Exception as error:  # one that takes too long, or whose library refuses it
        return Found(key, "does not run", f"{type(error).__name__}: {error}"[:300]).to_dict()
    finally:
        clean.close()


if __name__ == "__main__":
    main()
