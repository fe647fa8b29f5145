"""The command `profile`."""

from __future__ import annotations

from pathlib import Path

import click

from ..errors import UsageError
from ..language import parse_overrides
from .commands import _json, _overrides, cli
from .common import busy, check_device, echo_json, progress_bar, request


@cli.command()
@click.argument("spec")
@_overrides
@click.option("--out", type=click.Path(path_type=Path), required=True, help="The file to write.")
@click.option("--batch", type=click.IntRange(1), default=32, show_default=True, help="Images each.")
@_json
def profile(spec: str, overrides: tuple[str, ...], out: Path, batch: int, as_json: bool) -> None:
    """Measures which parameters a model is sensitive in, on data=DATA.

    How many samples, and whether each is a step of its own, is what the spec's 'sensitive(...)'
    says; 800, each for itself, without one.
    """
    wanted = request(spec, overrides)
    given = parse_overrides(overrides)
    if "data" not in given:
        raise UsageError("VR907", "profile needs images", suggestion="add data=digits, or a folder")
    with busy("starting torch"):
        from ..sensitivity.run import measure
    check_device(wanted.device)
    with progress_bar() as told:
        found = measure(
            wanted.spec, data=given["data"], device=wanted.device, batch=batch, progress=told,
            **wanted.arguments,
        )  # fmt: skip
    found.save(out)
    if as_json:
        echo_json({**found.about, "tensors": len(found.tensors), "out": str(out)})
        return
    about = found.about
    click.echo(
        f"measured  {len(found.tensors)} tensors on {about['samples']} images, per {about['per']}"
    )
    click.echo(f"written   {out}")
