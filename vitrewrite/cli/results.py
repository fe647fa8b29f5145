"""The commands `predict` and `export`: what is done with a result."""

from __future__ import annotations

import json
from pathlib import Path

import click

from ..errors import UsageError
from .commands import _COUNT, _json, _trust, cli
from .common import PATH, busy, check_device, echo_json, echo_written, starting, trusted
from .showing import opened_image, pictures

_DEVICE = "device="


@cli.command()
@click.argument("folder", type=PATH)
@click.argument("images", nargs=-1, type=PATH, required=True, metavar="IMAGE... [device=cpu|cuda]")
@click.option("--top", type=_COUNT, default=5, show_default=True, help="Classes of a label.")
@click.option("--out", type=PATH, help="A PNG of what is seen.")
@_trust
@_json
def predict(
    folder: Path, images: tuple[Path, ...], top: int, out: Path | None, trust: bool, as_json: bool
) -> None:
    """Tells what the model of a folder sees in images, or in folders of them.

    Classes with their probabilities; of a model that segments, with their shares of the area, and
    --out paints the map over the photograph. Images are prepared as 'preprocessing.json' says.
    device=cuda computes on a GPU.
    """
    images, device = _device(images)
    allowed = trusted(str(folder), (), trust)
    with starting():
        from ..disk import check_file, replacing_file
        from ..folder.lock import Folder
        from ..folder.predicting import Predictor, refuse_other
        from ..folder.running import emitted_model, usage_of
        from ..report.prediction import page_of
    check_device(device)
    if out is not None:
        check_file(out)
    found = Folder.open(folder)
    usage = usage_of(found)
    refuse_other(usage)
    opened = [(str(path), opened_image(path)) for path in pictures(images)]
    with busy(f"reading {folder}"):
        predictor = Predictor(emitted_model(found, allowed).to(device), usage, device)
    seen = []
    for name, image in opened:
        with busy(f"looking at {name}"):
            seen.append(predictor.predict(name, image, top))
    if out is not None:
        title = f"{found.lock['spec_name']} on {found.lock['model']}"
        with replacing_file(out) as temporary:
            page_of(seen, title).save(temporary, "png")
    if as_json:
        written = {} if out is None else {"out": str(out)}
        echo_json({"predictions": [each.to_json() for each in seen], **written})
        return
    for each in seen:
        click.echo(str(each))
    if out is not None:
        echo_written(out)


def _device(given: tuple[Path, ...]) -> tuple[tuple[Path, ...], str]:
    """Images, and the device behind or between them; a file may be called so as well."""
    images = tuple(p for p in given if p.exists() or not str(p).startswith(_DEVICE))
    named = [str(p).removeprefix(_DEVICE) for p in given if p not in images]
    if not images:
        raise click.UsageError("give an image, or a folder of them")
    if len(named) > 1:
        raise UsageError("VR905", f"device= is given twice: {named[0]} and {named[1]}")
    return images, named[0] if named else "cpu"


@cli.command()
@click.argument("folder", type=PATH)
@click.option("--to", "form", type=click.Choice(["onnx", "pt2"]), required=True)
@click.option("--out", type=PATH, help="The file; default FOLDER.onnx or FOLDER.pt2.")
@_trust
@_json
def export(folder: Path, form: str, out: Path | None, trust: bool, as_json: bool) -> None:
    """Writes the model of a folder for other runtimes, and compares what was written with it.

    The batch is dynamic, and the size of images where the model takes several. ONNX is compared in
    onnxruntime, a program of torch.export is read again: at another batch, and at another size.
    """
    allowed = trusted(str(folder), (), trust)
    target = out or folder.resolve().parent / f"{folder.resolve().name}.{form}"
    with starting():
        from ..disk import check_file, replacing_file
        from ..folder.lock import Folder
        from ..folder.running import emitted_model, usage_of
        from ..folder.usage import PREPROCESSING
        from ..interchange import exported
    check_file(target)
    found = Folder.open(folder)
    usage = usage_of(found)
    exported.check_packages(form)
    with busy(f"reading {folder}"):
        model = emitted_model(found, allowed)
    about = {PREPROCESSING: json.dumps(usage.to_json()), "made_by": "vitrewrite"}
    with busy(f"exporting to {form}"):
        made = exported.export(
            model,
            form,
            usage.size,
            fixed=usage.fixed,
            multiple=usage.multiple,
            dtype=usage.torch_dtype,
            about=about,
        )
    with replacing_file(target) as temporary:
        temporary.write_bytes(made.content)
    if as_json:
        echo_json({**made.to_json(), "out": str(target)})
        return
    click.echo(str(made))
    echo_written(target)
