"""The commands `new` and `cp`: a spec to begin with."""

from __future__ import annotations

from pathlib import Path

import click

from .. import catalog
from ..errors import FileError
from ..text import shown
from .common import PATH, echo_json, echo_written
from .group import cli, json_option

_STARTER = """# What this spec does, and where it is from
model {model}(num_classes=10)
param rank: int = 8 in 1..64

insert lora(rank=rank) at blocks[*].attn.{{q, v}}
train head

require identity at init
require lowers exactly

tune {{ epochs = 10, lr = 1e-3 }}
"""


@cli.command()
@click.argument("path", type=PATH, metavar="FILE.peft")
@click.option("--model", default="vit_base", show_default=True, help="The model to rewrite.")
@json_option
def new(path: Path, model: str, as_json: bool) -> None:
    """Writes a spec to begin with: LoRA on the queries and values of a model.

    'vitrewrite plan FILE.peft' shows what it changes; 'vitrewrite list passes' has what else there
    is to insert, and 'vitrewrite explain selectors' where.
    """
    from ..language import parse_model
    from ..language.format import format_text

    parse_model(model).refuse_unknown()
    _write(path, format_text(_STARTER.format(model=model), str(path)), as_json)


@cli.command()
@click.argument("spec")
@click.argument("path", type=PATH, required=False, metavar="[FILE.peft]")
@json_option
def cp(spec: str, path: Path | None, as_json: bool) -> None:
    """Copies a shipped spec, by default to ./SPEC.peft, to change it.

    What it includes stays where it is, and is included from there.
    """
    source = catalog.spec_path(spec)
    _write(path or Path(source.name), source.read_text(encoding="utf-8"), as_json)


def _write(path: Path, text: str, as_json: bool) -> None:
    """Writes a file that is not there yet.

    Raises:
        FileError: VR896 if it is, or its name is not that of a spec.
    """
    from ..disk import check_file, write_text

    if path.suffix != ".peft":
        help_ = f"write {path}.peft"
        raise FileError("VR896", f"{shown(str(path))} is no name of a spec", suggestion=help_)
    if path.exists():
        raise FileError(
            "VR896", f"{shown(str(path))} is there already", suggestion="take another name"
        )
    check_file(path)
    write_text(path, text)
    echo_json({"out": str(path)}) if as_json else echo_written(path)
