"""The command `profile`."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING

import click

from ..errors import UsageError
from .commands import _COUNT, _json, cli
from .common import (
    PATH,
    check_device,
    echo_json,
    echo_written,
    progress_bar,
    request,
    starting,
)
from .group import overrides_alone

if TYPE_CHECKING:
    from ..sensitivity.profile import Profile


@cli.command()
@click.argument("spec")
@overrides_alone
@click.option("--out", type=PATH, required=True, help="The file to write.")
@click.option("--batch", type=_COUNT, default=32, show_default=True, help="Images each.")
@click.option("--activations", metavar="SITES", help="Keep what enters and leaves these sites too.")
@click.option("--samples", type=_COUNT, default=100, show_default=True, help="Images kept of.")
@click.option("--tokens", type=_COUNT, help="Tokens kept of each image; default all.")
@_json
def profile(
    spec: str,
    overrides: tuple[str, ...],
    out: Path,
    batch: int,
    activations: str | None,
    samples: int,
    tokens: int | None,
    as_json: bool,
) -> None:
    """Measures a model on data=DATA: which parameters it is sensitive in.

    How many samples, and whether each is a step of its own, is what the spec's 'sensitive(...)'
    says; without one what its passes do, or 800, each for itself. With --activations 'blocks[*]'
    it keeps what flows through the model there; nothing else if the spec has no 'sensitive(...)'.
    """
    wanted = request(spec, overrides)
    if wanted.data is None:
        raise UsageError("VR907", "profile needs images", suggestion="add data=digits, or a folder")
    with starting():
        from ..disk import check_file
        from ..profiling.activations import Activations
        from ..profiling.run import measure
    check_file(out)
    check_device(wanted.device)
    kept = Activations(activations, samples, tokens) if activations is not None else None
    with progress_bar() as told:
        found = measure(
            wanted.spec,
            data=wanted.data,
            device=wanted.device,
            batch=batch,
            activations=kept,
            progress=told,
            **wanted.arguments,
        )
    found.save(out)
    if as_json:
        echo_json({**found.about, "tensors": len(found.tensors), "out": str(out)})
        return
    for line in _lines(found):
        click.echo(f"measured  {line}")
    echo_written(out)


def _lines(found: Profile) -> Iterator[str]:
    """What was measured, in words."""
    counts = [sum(n.startswith(p) for n in found.tensors) for p in ("sensitivity.", "activation.")]
    if counts[0]:
        yield f"{counts[0]} tensors on {found.about['samples']} images, per {found.about['per']}"
    if counts[1]:
        about = found.about["activations"]
        tokens = "all tokens" if about["tokens"] is None else f"at most {about['tokens']} tokens"
        yield f"{counts[1]} activations of {about['samples']} images, {tokens} of each"
