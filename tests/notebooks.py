"""The notebooks of `examples`, in the form that takes seconds.

    python -m tests.notebooks [NAME...]

A cell whose metadata has `small` is run with that text in the place of its own: fewer epochs, a
smaller model. A command of the shell that fails is an error here, which Jupyter lets pass. Each
notebook runs in an empty folder; nothing is written beside it.
"""

from __future__ import annotations

import json
import os
import sys
import tempfile
from pathlib import Path
from typing import Any

import click

EXAMPLES = Path(__file__).parent.parent / "examples"


def notebooks() -> dict[str, Path]:
    """All of them by name."""
    return {path.stem: path for path in sorted(EXAMPLES.glob("*.ipynb"))}


def code(path: Path, *, small: bool = False) -> list[str]:
    """The texts of the code cells of a notebook."""
    cells = json.loads(path.read_text(encoding="utf-8"))["cells"]
    return [_text(cell, small) for cell in cells if cell["cell_type"] == "code"]


def _text(cell: Any, small: bool) -> str:
    own = "".join(cell["source"])
    return cell["metadata"].get("small", own) if small else own


def _checked(text: str) -> str:
    """A failing command of the shell raises."""
    if not text.startswith("!"):
        return text
    return f"{text}\nif _exit_code: raise RuntimeError(f'exit status {{_exit_code}}')"


def run(path: Path) -> None:
    """Runs a notebook in its small form.

    Raises:
        CellExecutionError: the first cell that fails, with its output.
    """
    import nbformat
    from nbclient import NotebookClient

    book = nbformat.read(path, as_version=4)
    for cell in book.cells:
        if cell["cell_type"] == "code":
            cell["source"] = _checked(_text(cell, small=True))
    with tempfile.TemporaryDirectory() as folder:
        NotebookClient(book, timeout=600, resources={"metadata": {"path": folder}}).execute()


def main(names: list[str]) -> int:
    """Runs those that are named, or all; tells what came of each."""
    beside = Path(sys.executable).parent
    os.environ["PATH"] = f"{beside}{os.pathsep}{os.environ['PATH']}"
    failed = 0
    for name, path in notebooks().items():
        if names and name not in names:
            continue
        try:
            run(path)
        except Exception as error:
            failed += 1
            click.echo(f"FAILS  {name}\n{error}")
        else:
            click.echo(f"ok     {name}")
    return 1 if failed else 0


if __name__ == "__main__":
    raise SystemExit(main(sys.argv[1:]))
