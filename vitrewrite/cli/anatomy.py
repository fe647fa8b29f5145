"""The command `sites`."""

from __future__ import annotations

import click

from .commands import _json, cli
from .common import Invocation, busy, echo_json, request, starting
from .group import overrides_of_model


def _is_spec(text: str) -> bool:
    """Whether what was named is a spec, not a model."""
    from .. import catalog
    from ..language.load import is_text

    return text.endswith(".peft") or is_text(text) or text in catalog.specs()


def _sites_of_bases(wanted: Invocation, as_json: bool) -> None:
    """Prints the anatomy of each model of a spec, by its name."""
    with starting():
        from ..anatomy.report import to_json, to_text
    with busy("reading"):
        found = wanted.plan().base_anatomies
    if as_json:
        echo_json({name: to_json(anatomy) for name, anatomy in found.items()})
        return
    for number, (name, anatomy) in enumerate(found.items()):
        click.echo(f"{'' if number == 0 else chr(10)}{name}")
        click.echo(to_text(anatomy), nl=False)


@cli.command()
@click.argument("model")
@overrides_of_model
@_json
def sites(model: str, overrides: tuple[str, ...], as_json: bool) -> None:
    """Prints the anatomy of a model, or of each that a spec stitches: what each place of it is."""
    from ..language import Overrides, parse_model, parse_overrides

    if _is_spec(model):
        _sites_of_bases(request(model, overrides), as_json)
        return
    ref = parse_model(model, Overrides(parse_overrides(overrides)))
    ref.refuse_unknown()
    with starting():
        from .. import models
        from ..anatomy import analyse
        from ..anatomy.report import to_json, to_text
        from ..tracing import inputs, trace
    with busy(f"reading {model}"), models.asked_by(ref):
        built = models.create(ref.name, ref.values, meta=True)
        anatomy = analyse(trace(built, inputs.stated_input(built, ref.input)))
    echo_json(to_json(anatomy)) if as_json else click.echo(to_text(anatomy))
