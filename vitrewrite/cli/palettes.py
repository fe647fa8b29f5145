"""Those of `show` that are about several models that are stitched."""

from __future__ import annotations

import json
from pathlib import Path

import click

from ..errors import UsageError
from .commands import _json, _trust
from .common import PATH, busy, check_device, echo_shown, progress_bar, starting
from .showing import _rewritten, _separated, show

_COUNT = click.IntRange(1)


@show.command()
@click.argument("folder", type=PATH)
@click.option("--svg", type=PATH, help="Draw it into this file.")
@click.option("--latency", type=PATH, help="Times; measured if there is no such file.")
@click.option("--batch", type=_COUNT, default=1, help="Images of a timed run.")
@click.option("--rounds", type=_COUNT, default=7, help="Timed runs of each stitch.")
@click.option("--device", default="cpu", help="Where they run.")
@_trust
@_json
def stitches(
    folder: Path,
    svg: Path | None,
    latency: Path | None,
    batch: int,
    rounds: int,
    device: str,
    trust: bool,
    as_json: bool,
) -> None:
    """Shows what each stitch costs and scores, and the best of each interval of costs.

    FOLDER is one that 'tune' wrote of a spec that stitches models. With --latency the intervals are
    of time: all stitches run in turn, taken out and folded, and the median counts.
    """
    from ..disk import write_text
    from ..folder.lock import Folder
    from ..report.stitches import TrainedStitches

    found = TrainedStitches.of(folder, Folder.open(folder).json("report.json"))
    measures = latency is not None and not latency.exists()
    if latency is not None and measures:
        _measure(folder, latency, batch, rounds, device, trust)
    if latency is not None:
        found = found.timed(latency)
    if svg is not None:
        write_text(svg, found.picture())
    echo_shown(found.to_json(), found.lines(), as_json, svg, latency if measures else None)


def _measure(folder: Path, out: Path, batch: int, rounds: int, device: str, trust: bool) -> None:
    """Writes how long the stitches of a folder take."""
    with starting():
        import torch

        from ..disk import check_file, write_text
        from ..profiling.latency import latencies_of
    check_file(out)
    check_device(device)
    with busy(f"reading {folder}"):
        rewritten = _rewritten(str(folder), (), trust)
    with progress_bar() as told:
        found = latencies_of(
            rewritten, torch.device(device), batch=batch, rounds=rounds, progress=told
        )
    write_text(out, json.dumps(found.to_json()) + "\n")


@show.command()
@click.argument("targets", nargs=-1, required=True, metavar="TARGET... [KEY=VALUE]...")
@click.option("--data", multiple=True, help="Of all targets, or one for each in turn.")
@click.option("--batch", type=_COUNT, default=64, show_default=True, help="Images of the loss.")
@click.option("--seed", type=int, default=0, show_default=True, help="Which images.")
@click.option("--device", default="cpu", help="Where to compute.")
@click.option("--out", type=PATH, required=True, help="The SVG to write.")
@_trust
@_json
def angles(
    targets: tuple[str, ...],
    data: tuple[str, ...],
    batch: int,
    seed: int,
    device: str,
    out: Path,
    trust: bool,
    as_json: bool,
) -> None:
    """Draws the angles between the gradients of stitches: above 90 degrees they are at odds.

    Each TARGET is a folder that 'tune' wrote of a spec that stitches models, or such a spec. The
    gradients are those of one batch by the query, key and value weights that two stitches share.
    """
    names, overrides = _separated(targets)
    if len(data) not in (1, len(names)):
        message = f"{len(data)} times --data for {len(names)} targets"
        raise UsageError("VR907", message, suggestion="give one, or one for each")
    with starting():
        from ..disk import check_file, write_text
        from ..profiling.angles import angles_on
        from ..report.angles import AnglesPicture
    check_file(out)
    check_device(device)
    found = []
    for name, source in zip(names, data * (len(names) // len(data)), strict=True):
        with busy(f"reading {name}"):
            rewritten = _rewritten(name, overrides, trust)
        with busy("taking gradients"):
            each = angles_on(rewritten, source, batch=batch, seed=seed, device=device)
        found.append((Path(name).name, each))
    picture = AnglesPicture(tuple(found))
    write_text(out, picture.picture())
    echo_shown({"models": picture.to_json()}, picture.lines(), as_json, out)
