"""The commands `convert` and `merge`: what becomes of a trained delta elsewhere."""

from __future__ import annotations

import math
from pathlib import Path

import click

from ..errors import UsageError
from ..text import plural, shown
from .commands import _json, _trust, cli
from .common import PATH, busy, echo_json, echo_written, starting, trusted


@cli.command()
@click.argument("folder", type=PATH)
@click.argument("overrides", nargs=-1, metavar="[model=FILE.py:CALLABLE]")
@click.option("--to", "form", type=click.Choice(["peft"]), required=True, help="What to write.")
@click.option("--out", type=PATH, help="Folder; default FOLDER-peft.")
@_trust
@_json
def convert(
    folder: Path,
    overrides: tuple[str, ...],
    form: str,
    out: Path | None,
    trust: bool,
    as_json: bool,
) -> None:
    """Writes the delta of a folder as an adapter that the library peft loads.

    The other way round, a folder of PEFT is given wherever a delta is: 'lower DIR --delta FOLDER',
    and vitrewrite.load(rewritten, FOLDER) in Python.
    """
    allowed = trusted(str(folder), overrides, trust)
    target = out or folder.with_name(f"{folder.name}-{form}")
    with starting():
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


@cli.command()
@click.argument("deltas", nargs=-1, type=PATH, metavar="DELTA DELTA...")
@click.option("--weights", metavar="W,W,...", help="Of each; by default all the same, 1 together.")
@click.option("--out", type=PATH, required=True, help="A folder if the first is one, else a file.")
@_trust
@_json
def merge(
    deltas: tuple[Path, ...], weights: str | None, out: Path, trust: bool, as_json: bool
) -> None:
    """Adds up deltas of one spec over one base: files, or folders that have one.

    Tensors are added up, each times its weight. Of low-rank updates that is the product of two
    sums, not the sum of the products.
    """
    numbers = _weights(deltas, weights)
    with starting():
        from ..disk import check_file, check_target
        from ..folder.merging import merged, merged_folder, save_merged
        from ..folder.reading import Trust
        from ..folder.writing import emit
        from ..verification.claims import judged
    is_folder = deltas[0].is_dir()
    check_target(out) if is_folder else check_file(out)
    with busy("merging"):
        delta = merged(deltas, numbers)
    with busy(f"writing {out}"):
        if is_folder:
            emit(judged(merged_folder(deltas[0], delta, Trust(trust))), out)
        else:
            save_merged(delta, out)
    if as_json:
        echo_json({"weights": numbers, "tensors": len(delta.tensors), "out": str(out)})
        return
    click.echo(f"merged    {len(delta.tensors)} tensors of {len(deltas)} deltas")
    echo_written(out, "/" if is_folder else "")


def _weights(deltas: tuple[Path, ...], text: str | None) -> list[float]:
    """The weights of some deltas.

    Raises:
        UsageError: VR778 for fewer than two deltas, or weights that are not one for each.
    """
    if len(deltas) < 2:
        raise UsageError(
            "VR778", f"{plural(len(deltas), 'delta')} given: merging takes two or more"
        )
    if text is None:
        return [1 / len(deltas)] * len(deltas)
    try:
        found = [float(item) for item in text.split(",")]
    except ValueError:
        found = []
    if len(found) != len(deltas) or not all(map(math.isfinite, found)):
        raise UsageError(
            "VR778",
            f"--weights {shown(text)} are not {len(deltas)} numbers, one for each delta",
            suggestion=f"write --weights {','.join(['0.5'] * len(deltas))}",
        )
    return found
