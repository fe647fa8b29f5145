"""The command `bench`."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import click

from .commands import _COUNT, _json, _overrides, cli
from .common import PATH, check_device, echo_json, progress_bar, request, starting


@cli.command()
@click.argument("spec")
@_overrides
@click.option("--batch", type=_COUNT, default=8, show_default=True, help="Images per step.")
@click.option("--rounds", type=_COUNT, default=7, show_default=True, help="Interleaved rounds.")
@click.option("--threads", type=_COUNT, help="Threads of the CPU; default torch's own.")
@click.option(
    "--dtype",
    type=click.Choice(["float32", "bfloat16", "float16"]),
    default="float32",
    show_default=True,
    help="Of weights and inputs.",
)
@click.option("--train/--no-train", default=True, show_default=True, help="Training steps too.")
@click.option("--compile", is_flag=True, help="The models under torch.compile too.")
@click.option(
    "--profiling/--no-profiling",
    default=None,
    help="Profiling the base too; by default if the spec has sensitive(...).",
)
@click.option(
    "--tuning",
    type=click.IntRange(min=0),
    default=0,
    metavar="STEPS",
    help="Runs of 'tune' on digits too, beside a plain loop of PyTorch.",
)
@click.option(
    "--by-block",
    is_flag=True,
    help="Only the memory of training, with what the spec does in one block, for each of them.",
)
@click.option("--out", type=PATH, help="Write the JSON there too.")
@click.option("--svg", type=PATH, help="Draw the time ratios, or the memory by block, there.")
@_json
def bench(
    spec: str,
    overrides: tuple[str, ...],
    by_block: bool,
    out: Path | None,
    svg: Path | None,
    as_json: bool,
    **options: Any,
) -> None:
    """Measures base, rewritten and lowered model side by side.

    Time of a forward and of a training step, peak memory, bytes saved for backward, and MACs.
    `device=cuda` measures on a GPU. The base trains its head only.
    """
    wanted = request(spec, overrides)
    with starting():
        from .. import bench as benches
        from ..disk import check_file, write_text
        from ..report.chart import chart
        from ..report.memory import memory_chart
    check_device(wanted.device)
    for target in (out, svg):
        if target:
            check_file(target)
    with progress_bar() as progress:
        progress("rewriting", 0.0)
        run = benches.run_by_block if by_block else benches.run
        result = run(wanted.apply(), benches.BenchSettings(**options), wanted.device, progress)
    if out:
        write_text(out, json.dumps(result, indent=2) + "\n")
    if svg:
        write_text(svg, memory_chart(result) if by_block else chart(result))
    table = benches.by_block if by_block else benches.table
    echo_json(result) if as_json else click.echo(table(result))
