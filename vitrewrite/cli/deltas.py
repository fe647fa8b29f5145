"""The commands `convert` and `merge`: what becomes of a trained delta elsewhere."""

from __future__ import annotations

from pathlib import Path

import click

from .commands import _json, _trust, cli
from .common import PATH, busy, echo_json, echo_written, trusted


@cli.command()
@click.argument("folder", type=PATH)
@click.argument("overrides", nargs=-1, metavar="[model=FILE.py:CALLABLE]")
@click.option("--to", "form", type=click.Choice(["peft"]), required=True, help="What to write.")
@click.option("--out", type=PATH, help="Folder; default FOLDER-peft.")
@_trust
@_json
def convert(
    folder: Path, overrides: tuple[str, ...], form: str, out: Path | None, trust: bool,
    as_json: bool,
) -> None:  # fmt: skip
    """Writes the delta of a folder as an adapter that the library peft loads.

    The other way round, a folder of PEFT is given wherever a delta is: 'lower DIR --delta FOLDER',
    and vitrewrite.load(rewritten, FOLDER) in Python.
    """
    allowed = trusted(str(folder), overrides, trust)
    target = out or folder.with_name(f"{folder.name}-{form}")
    with busy("starting torch"):
        from ..disk import check_target
        from ..folder.adapter import save_adapter
        from ..folder.reading import rewritten_folder
    check_target(target)
    with busy(f"reading {folder}"):
        rewritten = rewritten_folder(folder, allowed)
    with busy(f"writing {target}"):
        adapter = save_adapter(rewritten, target)
    kept = adapter.settings["modules_to_save"] or []
    layers = len(adapter.layers)
    if as_json:
        echo_json({"form": form, "layers": layers, "modules": kept, "out": str(target)})
        return
    trained = f", {', '.join(kept)} whole" if kept else ""
    click.echo(f"converted {adapter.settings['peft_type']} of {layers} layers{trained}")
    echo_written(target, "/")
