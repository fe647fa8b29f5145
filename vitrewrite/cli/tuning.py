"""The command `tune`."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import click

from ..errors import UsageError
from ..text import giga
from .commands import _json, _overrides, cli
from .common import PATH, busy, check_device, echo_json, echo_written, request, starting
from .output import current


@cli.command()
@click.argument("spec")
@_overrides
@click.option("--out", type=PATH, required=True, help="Folder of the run.")
@click.option("--resume", is_flag=True, help="Go on from the last checkpoint in the folder.")
@_json
def tune(spec: str, overrides: tuple[str, ...], out: Path, resume: bool, as_json: bool) -> None:
    """Trains a rewritten model on data=DATA and writes it.

    DATA is 'digits', 'digits:0-4', a folder with a subfolder per class, 'timm:NAME@FOLDER',
    'torchvision:NAME@FOLDER', 'hf:FOLDER', or a folder with label maps for segmentation:
    images/training/a.jpg, annotations/training/a.png. 'FOLDER?val=0.2' holds out a fifth of each
    class to measure on; 'images=1000', 'shots=4', 'fold=0&folds=5' and 'draw=1' choose too.
    Hyperparameters stand in the spec's 'tune { ... }', or are given as tune.NAME=VALUE;
    'vitrewrite explain tune' lists them.
    """
    from ..language import parse_overrides

    wanted = request(spec, overrides)
    given = parse_overrides(overrides)
    if "data" not in given:
        raise UsageError("VR907", "tune needs images", suggestion="add data=digits, or a folder")
    with starting():
        import torch

        from ..disk import RUN
        from ..tasks.supervision import supervised
        from ..tuning.trainer import tune as run
    if "device" in given:
        check_device(wanted.device)
    with busy(f"rewriting for {wanted.spec.name}"):
        rewritten = replace(wanted, spec=supervised(wanted.spec)).apply()
    try:
        trained = run(
            rewritten,
            given["data"],
            out=out,
            device=given.get("device"),
            resume=resume,
            live=not current().quiet,
        )
        main = not torch.distributed.is_initialized() or torch.distributed.get_rank() == 0
    except KeyboardInterrupt:
        last = "nothing was written"
        if (out / RUN).is_file():
            last = "go on from the last checkpoint with --resume"
        click.echo(f"interrupted; {last}", err=True)
        raise click.exceptions.Exit(130) from None
    finally:
        if torch.distributed.is_initialized():
            torch.distributed.destroy_process_group()
    if not main:
        return
    if as_json:
        echo_json({**trained.report, "out": str(out)})
        return
    result = trained.training
    metric = result["metric"]
    click.echo(f"{metric:<8}  {result[metric]:.2%} of {result['images']['val']} images")
    if found := result.get("search"):
        reached, asked = giga(found["reached"]), giga(found["asked"])
        click.echo(f"found     {reached} MACs of {asked} asked for, {found['off']:.2%} off")
    for line in result.get("teacher", {}).get("adapted", ()):
        click.echo(f"teacher   {line}")
    click.echo(f"trained   {result['steps']:,} steps in {result['seconds']:.1f} s")
    echo_written(out, "/")
