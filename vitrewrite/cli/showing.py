"""The command `show`: pictures of what a rewrite is about."""

from __future__ import annotations

import json
from pathlib import Path

import click

from ..disk import write_text
from ..errors import FileError
from .commands import _json, cli
from .common import echo_json


@cli.group()
def show() -> None:
    """Draws what is easier to look at than to read."""


@show.command()
@click.argument("folder", type=click.Path(path_type=Path))
@click.option("--svg", type=click.Path(path_type=Path), help="Draw it into this file.")
@_json
def sensitivity(folder: Path, svg: Path | None, as_json: bool) -> None:
    """Shows where the sensitive parameters are, from a folder that 'apply' wrote."""
    from ..report.sensitivity import Sensitivity

    try:
        found = json.loads((folder / "report.json").read_text("utf-8"))["allocations"]
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise FileError("VR703", f"'{folder}' is no folder that apply wrote: {error}") from error
    if not found:
        raise FileError(
            "VR703", f"the spec of '{folder}' has no sensitive(...)",
            suggestion="apply a spec such as spt_lora",
        )  # fmt: skip
    if as_json:
        echo_json(found)
        return
    for call, allocation in found.items():
        shown = Sensitivity.of(call, allocation)
        click.echo(shown.text())
        if svg is not None:
            write_text(svg, shown.picture())
            click.echo(f"\nwritten   {svg}")
