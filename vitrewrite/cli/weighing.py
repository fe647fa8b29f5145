"""The commands `show features` and `show embeddings`: what a head reads, over images."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

import click

from ..errors import UsageError
from .commands import _COUNT, _json, _overrides, _trust
from .common import PATH, busy, echo_shown, is_folder, request, starting
from .showing import _rewritten, show

if TYPE_CHECKING:
    from ..data import Data
    from ..rewrite.rewritten import Rewritten


@show.command()
@click.argument("target")
@_overrides
@click.option(
    "--images",
    type=_COUNT,
    default=50,
    show_default=True,
    help="How many of data=DATA, for weights that hang on the image.",
)
@click.option("--svg", type=PATH, help="Draw it into this file.")
@_trust
@_json
def features(
    target: str,
    overrides: tuple[str, ...],
    images: int,
    svg: Path | None,
    trust: bool,
    as_json: bool,
) -> None:
    """Shows how much each feature counts that a head reads of a model, by tap and block.

    TARGET is a folder that 'apply', 'lower' or 'tune' wrote, or a spec: of synqt, vqt, head2toe,
    lst, side_tuning. Weights that hang on the image are those of images of data=DATA; of a folder
    that 'tune' wrote, by default those it was measured on.
    """
    with starting():
        import torch

        from ..data import batches
        from ..disk import write_text
        from ..report.features import FeaturesPicture
    rewritten, name = _read(target, overrides, trust, svg)
    pixels = None
    if name is not None:
        found = _opened(name, rewritten)
        parts = [b.images for b in batches(found.val, min(images, 64), seed=0, limit=images)]
        pixels = torch.cat(parts)
    with busy("asking the passes"):
        shown = FeaturesPicture.of(rewritten, pixels)
    if svg is not None:
        write_text(svg, shown.picture())
    echo_shown(shown.to_json(), shown.lines(), as_json, svg)


@show.command()
@click.argument("target")
@_overrides
@click.option("--images", type=_COUNT, default=500, show_default=True, help="How many at most.")
@click.option("--tsne", is_flag=True, help="By t-SNE; principal components without it.")
@click.option("--perplexity", type=float, help="Of t-SNE; default 30, or what few images allow.")
@click.option("--seed", type=click.IntRange(0), default=0, show_default=True, help="Of t-SNE.")
@click.option("--svg", type=PATH, help="Draw it into this file.")
@_trust
@_json
def embeddings(
    target: str,
    overrides: tuple[str, ...],
    images: int,
    tsne: bool,
    perplexity: float | None,
    seed: int,
    svg: Path | None,
    trust: bool,
    as_json: bool,
) -> None:
    """Draws what the head of a model reads of images, each with the colour of its class.

    TARGET is a folder that 'apply', 'lower' or 'tune' wrote, or a spec. The images are those that
    data=DATA is measured on; of a folder that 'tune' wrote, by default those it was.
    """
    if perplexity is not None and not tsne:
        raise UsageError("VR905", "--perplexity is of t-SNE", suggestion="add --tsne")
    with starting():
        from ..data import batches
        from ..disk import write_text
        from ..report.embeddings import Embeddings, EmbeddingsPicture
    rewritten, name = _read(target, overrides, trust, svg)
    if name is None:
        raise UsageError(
            "VR907", "show embeddings needs images", suggestion="add data=digits, or a folder"
        )
    data = _opened(name, rewritten)
    with busy("looking at the images"):
        found = Embeddings.of(rewritten, batches(data.val, 32, seed=0, limit=images), data.classes)
    with busy("drawing"):
        shown = (
            EmbeddingsPicture.by_neighbours(found, seed, perplexity)
            if tsne
            else EmbeddingsPicture.by_components(found)
        )
    if svg is not None:
        write_text(svg, shown.picture())
    echo_shown(shown.to_json(), shown.lines(), as_json, svg)


def _read(
    target: str, overrides: tuple[str, ...], trust: bool, svg: Path | None
) -> tuple[Rewritten, str | None]:
    """A model, and the data that is named, or that it was tuned on."""
    from ..disk import check_file

    if svg is not None:
        check_file(svg)
    folder = is_folder(target)
    given = [each for each in overrides if each.startswith("data=")]
    others = tuple(each for each in overrides if each not in given) if folder else overrides
    with busy(f"reading {target}"):
        rewritten = _rewritten(target, others, trust)
    if given:
        return rewritten, given[-1].removeprefix("data=")
    return rewritten, _tuned_on(Path(target)) if folder else request(target, overrides).data


def _tuned_on(folder: Path) -> str | None:
    """The data that a folder of `tune` says it was trained on."""
    from ..folder.lock import Folder

    report = Folder.open(folder).json("report.json")
    training = report.get("training") if isinstance(report, dict) else None
    name = training.get("data") if isinstance(training, dict) else None
    return name if isinstance(name, str) else None


def _opened(name: str, rewritten: Rewritten) -> Data:
    """Labelled images as the model takes them."""
    from ..data import Preprocessing, open_data
    from ..errors import MatchError

    with busy(f"opening {name}"):
        found = open_data(name, Preprocessing.of(rewritten.base))
    if found.maps:
        raise MatchError(
            "VR572",
            f"the images of '{name}' have maps of labels, and no label each",
            suggestion="give a folder with a subfolder per class",
        )
    return found
