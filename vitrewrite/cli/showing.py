"""The command `show`: pictures of what a rewrite is about."""

from __future__ import annotations

import re
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from .. import catalog
from ..errors import DataError, FileError
from .commands import Commands, _json, _overrides, _trust, cli
from .common import PATH, busy, echo_shown, is_folder, request, starting, trusted

if TYPE_CHECKING:
    from PIL.Image import Image

    from ..rewrite.rewritten import Rewritten


def _numbers(context: click.Context, parameter: click.Parameter, text: str | None) -> Any:
    """Blocks by number, `0,1,10,11`."""
    if text is None:
        return None
    try:
        return [int(each) for each in text.split(",")]
    except ValueError:
        raise click.BadParameter(f"'{text}' is no list of numbers such as 0,1,10,11") from None


def _patch(context: click.Context, parameter: click.Parameter, text: str | None) -> Any:
    """A patch, `ROW,COL`."""
    found = _numbers(context, parameter, text)
    if found is not None and len(found) != 2:
        raise click.BadParameter(f"'{text}' is no patch such as 7,7: its row and its column")
    return None if found is None else tuple(found)


@cli.group(cls=Commands)
def show() -> None:
    """Draws what is easier to look at than to read."""


@show.command()
@click.argument("folder", type=PATH)
@click.option("--svg", type=PATH, help="Draw it into this file.")
@_json
def sensitivity(folder: Path, svg: Path | None, as_json: bool) -> None:
    """Shows where the sensitive parameters are, from a folder that 'apply' wrote."""
    from ..disk import write_text
    from ..folder.lock import Folder
    from ..report.sensitivity import Sensitivity

    try:
        found = Folder.open(folder).json("report.json")["allocations"]
    except (KeyError, TypeError) as error:
        raise FileError("VR703", f"'{folder}' has no report of vitrewrite") from error
    if not found:
        raise FileError(
            "VR703",
            f"the spec of '{folder}' has no sensitive(...)",
            suggestion="apply a spec such as spt_lora",
        )
    shown = [Sensitivity.of(call, allocation) for call, allocation in found.items()]
    if svg is not None:
        for each in shown:
            write_text(svg, each.picture())
    echo_shown(found, (each.text() for each in shown), as_json, svg)


@show.command()
@click.argument("target")
@_overrides
@click.option("--image", type=PATH, help="Default: one of scikit-learn.")
@click.option("--query", type=click.IntRange(0), help="Default: the most certain one.")
@click.option("--out", type=PATH, required=True, help="The PNG to write.")
@_trust
@_json
def segmentation(
    target: str,
    overrides: tuple[str, ...],
    image: Path | None,
    query: int | None,
    out: Path,
    trust: bool,
    as_json: bool,
) -> None:
    """Paints an image with the classes that a model sees in it, and what one query looks at.

    TARGET is a folder that 'apply' or 'tune' wrote, or a spec. The picture shows the semantic map,
    and of one query its mask and its cross-attention in each level, averaged over heads.
    """
    with starting():
        from ..disk import check_file, replacing_file
        from ..report.segmentation import SegmentationPicture, decoder_of, prepared
    check_file(out)
    opened = opened_image(image)
    with busy(f"reading {target}"):
        rewritten = _rewritten(target, overrides, trust)
    decoder_of(rewritten)
    with busy("segmenting"):
        found = SegmentationPicture.of(rewritten, *prepared(rewritten, opened), query)
        picture = found.picture()
    with replacing_file(out) as temporary:
        picture.save(temporary, "png")
    shares = found.to_json()["classes"].items()
    belief = f"{found.names[found.belief[0]]}, {found.belief[1]:.2%}"
    lines = [
        *(f"{share:7.2%}   {name}" for name, share in shares),
        f"query     {found.query}: {belief}",
    ]
    echo_shown(found.to_json(), lines, as_json, out)


@show.command()
@click.argument("targets", nargs=-1, required=True, metavar="TARGET... [KEY=VALUE]...")
@click.option("--image", type=PATH, help="Default: one of scikit-learn.")
@click.option("--out", type=PATH, required=True, help="The PNG to write.")
@_trust
@_json
def tokens(
    targets: tuple[str, ...], image: Path | None, out: Path, trust: bool, as_json: bool
) -> None:
    """Paints which patches of an image ended in one token.

    Each TARGET is a folder that 'apply' or 'tune' wrote, or a spec; several stand side by side.
    Patches in one token have their mean colour and an outline; what was dropped is faded.
    """
    names, overrides = _separated(targets)
    with starting():
        from ..disk import check_file, replacing_file
        from ..report.tokens import TokenMap, cropped, tokens_picture
    check_file(out)
    opened, maps, pictured = opened_image(image), [], None
    for name in names:
        with busy(f"reading {name}"):
            rewritten = _rewritten(name, overrides, trust)
        with busy("following the tokens"):
            pictured, pixels = cropped(rewritten, opened)
            maps.append(TokenMap.of(rewritten, pixels))
    assert pictured is not None
    with replacing_file(out) as temporary:
        tokens_picture(pictured, maps).save(temporary, "png")
    lines = [f"{each.title}: tokens {', '.join(map(str, each.tokens))}" for each in maps]
    echo_shown({"maps": [each.to_json() for each in maps]}, lines, as_json, out)


@show.command()
@click.argument("target")
@_overrides
@click.option("--image", type=PATH, help="Default: one of scikit-learn.")
@click.option("--out", type=PATH, required=True, help="The PNG to write.")
@_trust
@_json
def rates(
    target: str,
    overrides: tuple[str, ...],
    image: Path | None,
    out: Path,
    trust: bool,
    as_json: bool,
) -> None:
    """Shows which patches of an image pass the gated parts of a model, layer by layer.

    TARGET is a folder that 'apply' or 'tune' wrote, or a spec.
    """
    with starting():
        from ..disk import check_file, replacing_file
        from ..report.rates import RatesPicture
        from ..report.tokens import cropped
    check_file(out)
    opened = opened_image(image)
    with busy(f"reading {target}"):
        rewritten = _rewritten(target, overrides, trust)
    with busy("looking at the gates"):
        found = RatesPicture.of(rewritten, *cropped(rewritten, opened))
        picture = found.picture()
    with replacing_file(out) as temporary:
        picture.save(temporary, "png")
    lines = [f"{layer.rate:7.2%}   {layer.name}" for layer in found.layers]
    echo_shown(found.to_json(), [*lines, f"{found.overall:7.2%}   all layers"], as_json, out)


@show.command()
@click.argument("targets", nargs=-1, required=True, metavar="TARGET... [KEY=VALUE]...")
@click.option("--across", type=click.IntRange(1), default=1, help="Models side by side.")
@click.option("--out", type=PATH, required=True, help="The SVG to write.")
@_trust
@_json
def architecture(
    targets: tuple[str, ...], across: int, out: Path, trust: bool, as_json: bool
) -> None:
    """Draws what each block of a model is made of, and the width of its MLP.

    Each TARGET is a folder that 'apply', 'lower' or 'tune' wrote, a spec, or a model; each is drawn
    as it is when it is lowered. A dashed line is the width that the MLP had.
    """
    names, overrides = _separated(targets)
    with starting():
        from ..disk import check_file, write_text
        from ..report.architecture import Architecture, architecture_picture
    check_file(out)
    found = []
    for name in names:
        with busy(f"reading {name}"):
            if is_folder(name):
                found.append(Architecture.of(_rewritten(name, overrides, trust)))
            else:
                found.append(Architecture.planned(request(_spec(name), overrides).plan()))
    write_text(out, architecture_picture(found, across))
    data = {"models": [each.to_json() for each in found]}
    echo_shown(data, [str(each) for each in found], as_json, out)


@show.command()
@click.argument("target")
@_overrides
@click.option(
    "--image",
    "images",
    type=PATH,
    multiple=True,
    help="Several, or a folder: the mean is shown. Default: one of scikit-learn.",
)
@click.option(
    "--block",
    "blocks",
    callback=_numbers,
    metavar="0,1,10,11",
    help="Default: the first two and the last two.",
)
@click.option(
    "--query",
    callback=_patch,
    metavar="ROW,COL",
    help="The patch that looks, of the first block. Default: the one in the middle.",
)
@click.option("--out", type=PATH, required=True, help="The PNG to write.")
@_trust
@_json
def attention(
    target: str,
    overrides: tuple[str, ...],
    images: tuple[Path, ...],
    blocks: list[int] | None,
    query: tuple[int, int] | None,
    out: Path,
    trust: bool,
    as_json: bool,
) -> None:
    """Shows where one patch of an image looks: the attention of each head in some blocks.

    TARGET is a folder that 'apply' or 'tune' wrote, a spec, or a model. Probabilities are those of
    the softmax; tokens that are no patches, such as the class token, are left out.
    """
    with starting():
        from ..disk import check_file, replacing_file
        from ..report.attention import AttentionPicture
        from ..report.tokens import cropped
    check_file(out)
    opened = [opened_image(path) for path in pictures(images)]
    with busy(f"reading {target}"):
        rewritten = _rewritten(target if is_folder(target) else _spec(target), overrides, trust)
    with busy("looking at the attention"):
        pixels = [cropped(rewritten, each) for each in opened]
        found = AttentionPicture.of(rewritten, pixels, blocks, query)
        picture = found.picture()
    with replacing_file(out) as temporary:
        picture.save(temporary, "png")
    lines = []
    for each in found.maps:
        on_patches = float(each.heads.flatten(1).sum(1).mean())
        lines.append(f"block {each.block:<3} {len(each.heads)} heads, {on_patches:.1%} on patches")
    echo_shown(found.to_json(), lines, as_json, out)


def pictures(given: tuple[Path, ...]) -> list[Path | None]:
    """The files that are given, and those in folders; None stands for the picture there is."""
    found: list[Path | None] = []
    for path in given:
        inside = [p for p in sorted(path.iterdir()) if p.is_file()] if path.is_dir() else [path]
        if not inside:
            raise DataError("VR742", f"the folder '{path}' has no images")
        found += inside
    return found or [None]


def _separated(targets: tuple[str, ...]) -> tuple[list[str], tuple[str, ...]]:
    """Specs and folders, and overrides of all of them."""
    overrides = [t for t in targets if re.match(r"[\w.]+=", t)]
    names = [t for t in targets if t not in overrides]
    if not names:
        raise click.UsageError("give a spec, or a folder that 'apply' or 'tune' wrote")
    return names, tuple(overrides)


def _spec(target: str) -> str:
    """A spec, or one that leaves the model as it is that is given in its place."""
    from ..language import parse_model
    from ..language.load import is_text

    if is_text(target) or target in catalog.specs() or Path(target).suffix == ".peft":
        return target
    return f"# The model alone.\nmodel {parse_model(target)}\n"


def _rewritten(target: str, overrides: tuple[str, ...], trust: bool) -> Rewritten:
    if not is_folder(target):
        return request(target, overrides).apply()
    from ..folder.reading import load_folder

    return load_folder(Path(target), trusted(target, overrides, trust))


def opened_image(path: Path | None) -> Image:
    """A picture, or one that comes with scikit-learn."""
    from PIL import Image

    if path is None:
        try:
            from sklearn.datasets import load_sample_image
        except ImportError as error:
            raise DataError(
                "VR745",
                "the picture to start with comes with scikit-learn",
                suggestion="give one of your own with --image, or pip install 'vitrewrite[demo]'",
            ) from error
        return Image.fromarray(load_sample_image("china.jpg"))
    from ..data.pictures import UnreadableError, converted, read_image, refused

    try:
        return converted(read_image(path), "RGB")
    except UnreadableError as error:
        raise refused(path, error, "give another image") from error
