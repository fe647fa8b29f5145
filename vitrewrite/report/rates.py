"""`show rates`: which patches pass a gated part of each block, after Zhao et al., NeurIPS 2024."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import torch
from torch import nn

from ..errors import MatchError
from ..rewrite.activity import gates_of
from ..rewrite.rewritten import Rewritten
from .canvas import PALE, Canvas, palette, resized
from .tokens import DROPPED, composed, grid_of, traced

if TYPE_CHECKING:
    from PIL.Image import Image

_WIDTH, _MARGIN, _ROW, _CAPTION, _ACROSS = 1240, 24, 26, 24, 6
_LABEL, _NUMBER = 200, 70
_BLUE = torch.tensor([0.0, 0.447, 0.698])[:, None, None]  # the first colour of the palette


@dataclass(frozen=True)
class Layer:
    """One gated part.

    Attributes:
        name: the site.
        active: [h, w], whether each patch passes, as the token that it is in there.
        rate: the share of tokens behind the prefix that pass.
    """

    name: str
    active: torch.Tensor
    rate: float


@dataclass(frozen=True)
class RatesPicture:
    """What passes the gates of a model for one image."""

    title: str
    image: torch.Tensor
    layers: tuple[Layer, ...]

    @classmethod
    def of(cls, rewritten: Rewritten, image: torch.Tensor, pixels: torch.Tensor) -> RatesPicture:
        """Runs a model in evaluation.

        Args:
            rewritten: a model with gates.
            image: [3, H, W] from 0 to 1.
            pixels: the same as the model takes it.

        Raises:
            MatchError: VR301 if no clause has tokens pass or skip a part.
        """
        title, module = rewritten.spec.name, rewritten.module.eval()
        with torch.no_grad(), traced(module) as steps, _gated(rewritten, steps) as gates:
            module(pixels[None])
        if not gates:
            raise MatchError(
                "VR301",
                f"'{title}' has no gates for tokens",
                suggestion="add a clause such as: insert dispatch() at blocks[*].mlp_branch",
            )
        grid = grid_of(rewritten, pixels.shape[-2:])
        layers = [_layer(rewritten, *gate, steps, grid) for gate in gates]
        return cls(f"{title} on {rewritten.model_name}", image, tuple(layers))

    @property
    def overall(self) -> float:
        """The mean of the layers."""
        return sum(layer.rate for layer in self.layers) / len(self.layers)

    def to_json(self) -> dict[str, Any]:
        """The numbers in the picture."""
        return {"rates": {layer.name: layer.rate for layer in self.layers}, "rate": self.overall}

    def picture(self) -> Image:
        """The page: a bar per layer beside the image, below them the active patches of each."""
        side = (_WIDTH - (_ACROSS + 1) * _MARGIN) // _ACROSS
        ratio = self.image.shape[-2] / self.image.shape[-1]
        small, large = (round(side * ratio), side), (round(2 * side * ratio), 2 * side)
        rows = -(-len(self.layers) // _ACROSS)
        upper = max(large[0], _ROW * (len(self.layers) + 1))
        top, below = 66, 66 + upper + 2 * _MARGIN
        height = below + rows * (small[0] + _CAPTION + _MARGIN)
        page = Canvas(_WIDTH, height + _MARGIN)
        page.text((_MARGIN, 20), self.title, size=22, width=_WIDTH - 2 * _MARGIN)
        page.panel((_MARGIN, top), resized(self.image, large))
        self._bars(page, large[1] + 3 * _MARGIN, top)
        for number, layer in enumerate(self.layers):
            row, column = divmod(number, _ACROSS)
            at = _MARGIN + column * (side + _MARGIN), below + row * (small[0] + _CAPTION + _MARGIN)
            caption = f"{layer.name}: {100 * layer.rate:.0f} %"
            page.text(at, caption, size=13, ink=PALE, width=side)
            page.panel((at[0], at[1] + _CAPTION), self._tinted(layer, small))
        return page.page

    def _bars(self, page: Canvas, left: int, top: int) -> None:
        start, most = left + _LABEL, _WIDTH - left - _LABEL - _NUMBER - _MARGIN
        bars = [(layer.name, layer.rate) for layer in self.layers] + [("all layers", self.overall)]
        colours = [palette(2)[int(i == len(bars) - 1)] for i in range(len(bars))]
        for row, ((name, rate), colour) in enumerate(zip(bars, colours, strict=True)):
            y = top + row * _ROW
            page.text((left, y), name, width=_LABEL - 10)
            page.bar((start, y + 3), round(most * rate), _ROW - 10, colour)
            page.text((start + round(most * rate) + 8, y), f"{100 * rate:.1f} %", ink=PALE)

    def _tinted(self, layer: Layer, size: tuple[int, int]) -> torch.Tensor:
        """The image with what passes in blue, and what skips as it is but paler."""
        active = resized(layer.active[None].float(), size, smooth=False)[0] > 0.5
        image = resized(self.image, size)
        grey = image.mean(0, keepdim=True)
        return torch.where(active, 0.45 * _BLUE + 0.55 * image, 0.5 + 0.5 * grey)


def _layer(
    rewritten: Rewritten,
    name: str,
    gate: torch.Tensor,
    changes: int,
    steps: Sequence[torch.Tensor],
    grid: tuple[int, int],
) -> Layer:
    """A gate [tokens] as a map of the patches, behind some of the changes of tokens."""
    groups = composed(rewritten, [into[0] for into in steps[:changes]])
    count = int(groups.max()) + 1
    own = gate[len(gate) - count :] > 0.5
    active = own[groups.clamp(min=0)] & (groups != DROPPED)
    return Layer(name, active.view(grid), float(own.float().mean()))


@contextmanager
def _gated(
    rewritten: Rewritten, steps: Sequence[torch.Tensor]
) -> Iterator[list[tuple[str, torch.Tensor, int]]]:
    """While it lasts, each gate tells its site, itself for the first image, and after how many
    changes of tokens it stands.
    """
    seen: list[tuple[str, torch.Tensor, int]] = []

    def keep(role: str) -> Any:
        def hook(module: nn.Module, given: object, made: Any) -> None:
            gate = made[0] if isinstance(made, tuple) else made
            seen.append((role, gate[0], len(steps)))

        return hook

    gates = [insertion for insertion, _ in gates_of(rewritten.result.editor)]
    modules = [(rewritten.module.get_submodule(gate.path), gate.site.role) for gate in gates]
    hooks = [module.register_forward_hook(keep(role)) for module, role in modules]
    try:
        yield seen
    finally:
        for hook in hooks:
            hook.remove()
