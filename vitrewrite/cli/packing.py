"""The command `pack`."""

from __future__ import annotations

from pathlib import Path

import click

from .commands import _json, _trust, cli
from .common import PATH, busy, echo_json, echo_written, starting, trusted


@cli.command()
@click.argument("folder", type=PATH)
@click.argument("overrides", nargs=-1, metavar="[model=FILE.py:CALLABLE]")
@click.option("--out", type=PATH, required=True, help="The file; FILE.bin for plain bytes.")
@_trust
@_json
def pack(folder: Path, overrides: tuple[str, ...], out: Path, trust: bool, as_json: bool) -> None:
    """Writes what a task stores: the delta of a folder, its matrices of few bits as such.

    'vitrewrite lower FOLDER --delta FILE' and vitrewrite.load read it. Plain bytes have neither
    names nor a header, as the authors of Bi-LoRA write them.
    """
    allowed = trusted(str(folder), overrides, trust)
    with starting():
        from ..disk import check_file
        from ..folder.delta import save_delta
        from ..folder.packed import PLAIN, encoded, quantised, write_plain
        from ..folder.reading import rewritten_folder
    check_file(out)
    with busy(f"packing {folder}"):
        rewritten = rewritten_folder(folder, allowed)
        tensors = encoded(rewritten, bits=True)
        if out.suffix == PLAIN:
            write_plain(rewritten, out)
        else:
            save_delta(rewritten, out, packed=True)
    names = quantised(rewritten)
    found = {
        "matrices": len(names),
        "packed": sum(t.nbytes for n, t in tensors.items() if n.rpartition(".")[0] in names),
        "latent": sum(m.weight.nbytes for m in names.values()),
        "other": sum(t.nbytes for n, t in tensors.items() if n.rpartition(".")[0] not in names),
        "file": out.stat().st_size,
    }
    if as_json:
        echo_json({**found, "out": str(out)})
        return
    click.echo(
        f"packed    {found['matrices']} matrices, {found['packed']:,} bytes in place of "
        f"{found['latent']:,}; {found['other']:,} of others"
    )
    click.echo(f"file      {found['file']:,} bytes")
    echo_written(out)
