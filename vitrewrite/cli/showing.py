"""The command `show`: pictures of what a rewrite is about."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

import click

from ..disk import write_text
from ..errors import DataError, FileError, UsageError, first_line, shown
from ..reading import read_json, regular
from .commands import Commands, _json, _overrides, cli
from .common import busy, echo_json, is_folder, request

if TYPE_CHECKING:
    from PIL.Image import Image

    from ..rewrite.rewritten import Rewritten


@cli.group(cls=Commands)
def show() -> None:
    """Draws what is easier to look at than to read."""


@show.command()
@click.argument("folder", type=click.Path(path_type=Path))
@click.option("--svg", type=click.Path(path_type=Path), help="Draw it into this file.")
@_json
def sensitivity(folder: Path, svg: Path | None, as_json: bool) -> None:
    """Shows where the sensitive parameters are, from a folder that 'apply' wrote."""
    from ..report.sensitivity import Sensitivity

    try:
        found = read_json(folder / "report.json")["allocations"]
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise FileError("VR703", f"'{folder}' is no folder that apply wrote: {error}") from error
    if not found:
        raise FileError(
            "VR703", f"the spec of '{folder}' has no sensitive(...)",
            suggestion="apply a spec such as spt_lora",
        )  # fmt: skip
    if as_json:
        echo_json(found)
        return
    for call, allocation in found.items():
        shown = Sensitivity.of(call, allocation)
        click.echo(shown.text())
        if svg is not None:
            write_text(svg, shown.picture())
            click.echo(f"\nwritten   {svg}")


@show.command()
@click.argument("target")
@_overrides
@click.option("--image", type=click.Path(path_type=Path), help="Default: one of scikit-learn.")
@click.option("--query", type=click.IntRange(0), help="Default: the most certain one.")
@click.option("--out", type=click.Path(path_type=Path), required=True, help="The PNG to write.")
@_json
def segmentation(
    target: str, overrides: tuple[str, ...], image: Path | None, query: int | None, out: Path,
    as_json: bool,
) -> None:  # fmt: skip
    """Paints an image with the classes that a model sees in it, and what one query looks at.

    TARGET is a folder that 'apply' or 'tune' wrote, or a spec. The picture shows the semantic map,
    and of one query its mask and its cross-attention in each level, averaged over heads.
    """
    with busy("starting torch"):
        from ..disk import check_file, replacing_file
        from ..report.segmentation import Segmentation, decoder_of, prepared
    check_file(out)
    opened = _opened(image)
    with busy(f"reading {target}"):
        rewritten = _rewritten(target, overrides)
    decoder_of(rewritten)
    with busy("segmenting"):
        found = Segmentation.of(rewritten, *prepared(rewritten, opened), query)
        picture = found.picture()
    with replacing_file(out) as temporary:
        picture.save(temporary, "png")
    if as_json:
        echo_json({**found.to_json(), "out": str(out)})
        return
    for name, share in found.to_json()["classes"].items():
        click.echo(f"{share:7.2%}   {name}")
    click.echo(f"query     {found.query}: {found.names[found.belief[0]]}, {found.belief[1]:.2%}")
    click.echo(f"written   {out}")


def _rewritten(target: str, overrides: tuple[str, ...]) -> Rewritten:
    if not is_folder(target):
        return request(target, overrides).apply()
    if overrides:
        raise UsageError(
            "VR905", f"'{target}' is a folder, which takes no overrides such as {overrides[0]}"
        )
    from ..verification.folder import load_folder

    return load_folder(Path(target))


def _opened(path: Path | None) -> Image:
    """A picture, or one that comes with scikit-learn."""
    from PIL import Image

    if path is None:
        try:
            from sklearn.datasets import load_sample_image
        except ImportError as error:
            raise DataError(
                "VR745", "the picture to start with comes with scikit-learn",
                suggestion="give one of your own with --image, or pip install 'vitrewrite[demo]'",
            ) from error  # fmt: skip
        return Image.fromarray(load_sample_image("china.jpg"))
    try:
        with Image.open(regular(path)) as opened:
            return opened.convert("RGB")
    except Exception as error:  # Pillow raises many kinds
        reason = first_line(error)
        raise DataError("VR742", f"cannot read the image {shown(path, 200)}: {reason}") from error
