"""What a rewrite does to each layer, in terms that other libraries know."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from torch import nn

from ..catalog.own_code import own_code
from ..catalog.updates import LowRankUpdate, Rescaling
from ..editing.editor import Insertion, join
from ..errors import FileError
from ..rewrite.rewritten import Rewritten
from ..sites import LinearSite


@dataclass(frozen=True)
class RowShare:
    """What is done to some rows of a layer.

    Attributes:
        name: what its tensors are called in a delta, without the last part.
        role: of the site.
        rows: half-open ranges of the rows of the layer, in order.
        update: what is done.
    """

    name: str
    role: str
    rows: tuple[tuple[int, int], ...]
    update: LowRankUpdate | Rescaling

    @property
    def height(self) -> int:
        """How many rows there are."""
        return sum(stop - start for start, stop in self.rows)


@dataclass(frozen=True)
class AdaptedLayer:
    """A layer and what is done to its rows.

    Attributes:
        path: of the layer.
        width: its input features.
        height: its output features.
        pointwise: whether it is a 1x1 convolution.
    """

    path: str
    width: int
    height: int
    pointwise: bool
    shares: tuple[RowShare, ...]

    @property
    def whole(self) -> bool:
        """Whether one update is about all rows of the layer, in order."""
        return len(self.shares) == 1 and self.shares[0].rows == ((0, self.height),)


def layers_of(rewritten: Rewritten) -> list[AdaptedLayer]:
    """The layers that a spec adapts, in the order of its clauses.

    Raises:
        FileError: VR770 for a pass or a layer that has no words in PEFT.
    """
    found: dict[str, list[RowShare]] = {}
    for insertion in rewritten.result.editor.insertions:
        update = _update(rewritten, insertion)
        site = insertion.site
        if update is None or not isinstance(site, LinearSite):
            raise unsaid(f"what {insertion.pass_name} puts at '{site.role}'")
        if insertion.others:
            raise unsaid(f"what {insertion.pass_name} puts in front of '{site.role}' and others")
        for owner, part in zip(insertion.owners, site.parts, strict=True):
            share = RowShare(join(owner, insertion.pass_name), part.role, part.ranges, update)
            found.setdefault(part.weight, []).append(share)
    return [_layer(rewritten, weight, shares) for weight, shares in found.items()]


def _update(rewritten: Rewritten, insertion: Insertion) -> Any:
    method = rewritten.result.methods.of(insertion)
    module, name = rewritten.module.get_submodule(insertion.path), insertion.pass_name
    with own_code(type(method), name, f"update() at '{insertion.site.role}'"):
        return method.update(module)


def _layer(rewritten: Rewritten, weight: str, shares: Sequence[RowShare]) -> AdaptedLayer:
    path = weight.removesuffix(".weight")
    held = rewritten.module.get_parameter(weight)
    layer = rewritten.module.get_submodule(path) if path != weight else None
    pointwise = isinstance(layer, nn.Conv2d) and layer.groups == 1 and held[0, 0].numel() == 1
    if not (isinstance(layer, nn.Linear) or pointwise):
        raise unsaid(f"'{weight}', which is not the weight of a linear layer,")
    height, width = held.shape[:2]
    return AdaptedLayer(path, width, height, pointwise, tuple(shares))


def unsaid(what: str, *notes: str) -> FileError:
    """VR770, for what PEFT has no words for."""
    return FileError(
        "VR770",
        f"{what} cannot be said in PEFT",
        notes=notes,
        suggestion="'vitrewrite lower' folds it into weights, where it can be folded",
    )
