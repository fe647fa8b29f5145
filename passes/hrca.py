"""High-resolution cross-attention (HRCA): queries see the finest map, but only where it matters.

What it does
    A decoder attends to maps of 1/32, 1/16 and 1/8. A fourth layer per round attends to the map of
    1/4, only at the pixels of those coarse cells that drew most attention in the round's first
    layer. If the decoder has a level as fine as its masks already, that level's layers are made
    sparse and none is added.

Source
    He et al., "Dynamic Focus-aware Positional Queries for Semantic Segmentation", CVPR 2023
    (FASeg); whole cells as in its code, single pixels (`cells=bilinear`) as in its text.

Attaches to
    The decoder of Mask2Former and its like: `decoder`.

Parameters
    hrca_layers.{r}: per round a decoder layer, and one last layer at 1/32; Xavier-uniform matrices.
    level_embed [C], N(0, 1). Trained.

Forward
    r[n] = sum over queries of A_0[q, n]                                A_0: mean of the heads
    cells = the n / omega best of r, one set for all queries of an image, without gradient
    keys = the s x s pixels of each cell, cell by cell, row by row;     s = sqrt(H W / n)
    y = LN(y + MHA(y + B, keys + positions, keys)), no mask; then self-attention, FFN, prediction.

Exactness
    Changes the output. Nothing folds.

Example
    add hrca() to decoder
    adds 6.32 M parameters to Mask2Former: nine layers become thirteen.
"""

import math
from collections.abc import Iterator
from dataclasses import dataclass
from typing import ClassVar

import torch
import torch.nn.functional as F
from torch import nn

from vitrewrite.authoring import DecoderSite, LayerSite, Pass, Value, option


class FineLevel(nn.Module):
    """A map [B, C, H, W] as a level: [H W, B, C], with an embedding that tells it apart."""

    inserted_by = "hrca"

    def __init__(self, dim: int) -> None:
        super().__init__()
        self.dim = dim
        self.level_embed = nn.Parameter(torch.empty(dim))
        self.reset_parameters()

    def reset_parameters(self, generator: torch.Generator | None = None) -> None:
        """Draws the embedding as those of the other levels are."""
        nn.init.normal_(self.level_embed, generator=generator)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """The features of each pixel, row by row."""
        return (x + self.level_embed[:, None, None]).flatten(2).permute(2, 0, 1)


class CellSelection(nn.Module):
    """Keeps the keys and positions, [H W, B, C], that lie in the cells with most attention.

    The attention is [B, queries, n] over cells of s x s pixels; `like` is a map [B, ..., H, W].
    """

    inserted_by = "hrca"
    changes = (1, 2)

    def __init__(self, omega: int = 32, cells: str = "top") -> None:
        super().__init__()
        self.omega, self.cells = omega, cells

    def forward(
        self,
        attention: torch.Tensor,
        keys: torch.Tensor,
        positions: torch.Tensor,
        like: torch.Tensor,
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """The chosen keys and their positions, [K, B, C] each."""
        if self.cells == "all":
            return keys, positions
        wide = torch.promote_types(attention.dtype, torch.float32)
        score = attention.detach().sum(1, dtype=wide)
        pixels = self.pixels(score, like.shape[-2], like.shape[-1])
        index = pixels.t()[:, :, None].expand(-1, -1, keys.shape[2])
        return keys.gather(0, index), positions.gather(0, index)

    def pixels(self, score: torch.Tensor, height: int, width: int) -> torch.Tensor:
        """Row-major indices of the chosen pixels, [B, K], from scores of cells, [B, n]."""
        count = score.shape[1]
        side = math.isqrt(height * width // count)
        rows, columns = height // side, width // side
        if rows * columns != count or count < self.omega:
            raise ValueError(
                f"{count} cells on {height}x{width} pixels: sides must be multiples of 32 and give "
                f"{self.omega} cells or more"
            )
        if self.cells == "bilinear":
            score = score.view(-1, 1, rows, columns)
            fine = F.interpolate(score, (height, width), mode="bilinear", align_corners=False)
            return fine.flatten(1).topk(height * width // self.omega).indices
        if self.cells == "random":
            score = self.noise(score)
        cells = score.topk(count // self.omega).indices
        first = cells // columns * (side * width) + cells % columns * side
        steps = torch.arange(side, device=score.device)
        inside = (steps[:, None] * width + steps).flatten()
        return (first[:, :, None] + inside).flatten(1)

    def noise(self, score: torch.Tensor) -> torch.Tensor:
        """Scores without meaning: drawn anew in training, fixed otherwise."""
        if self.training:
            return torch.rand_like(score)
        order = torch.arange(score.shape[1], device=score.device, dtype=torch.float32)
        return torch.frac((order * 12.9898).sin().abs() * 43758.5453).expand_as(score)


@dataclass(frozen=True)
class HighResolutionCrossAttention(Pass):
    """A sparse layer on the finest map behind each round of decoder layers."""

    verbs: ClassVar[tuple[str, ...]] = ("add",)
    attaches: ClassVar[tuple[str, ...]] = ("decoder",)
    source: ClassVar[str] = "He et al., CVPR 2023"
    claims: ClassVar[tuple[str, ...]] = ()
    writes: ClassVar[tuple[str, ...]] = ("layers",)

    omega: int = option(
        32,
        minimum=1,
        needs="cells != 'all'",
        help="one of this many coarse cells, or pixels, is kept",
    )
    cells: str = option(
        "top",
        choices=("top", "bilinear", "random", "all"),
        help="the best cells; the best pixels of the upsampled attention; random cells; everything",
    )

    def rewrite(self, decoder: DecoderSite) -> None:
        """A layer per round on the cells that its first layer saw most, and one at the end."""
        decoder.check()
        rounds = list(self.rounds(decoder))
        self.check(decoder, rounds)
        select = CellSelection(self.omega, self.cells)
        own = [level for level in decoder.levels if level.grid == decoder.mask_grid]
        keys, positions = (own[0].features, own[0].position) if own else self.add_level(decoder)
        fine = [self.fine_layer(decoder, behind, bool(own)) for _, behind in rounds]
        if not own:
            decoder.insert_layer(fine[-1], like=decoder.layers[0], name="hrca_layers")
        for (first, _), layer in zip(rounds, fine, strict=True):
            chosen = decoder.call(
                select,
                first.cross_attn.weights,
                keys,
                positions,
                decoder.mask_features,
                name="hrca_cells",
                results=("keys", "key_positions"),
            )
            layer.attend(*chosen)

    def fine_layer(self, decoder: DecoderSite, behind: list[LayerSite], own: bool) -> LayerSite:
        """The layer of a round that attends to the finest map: its last one, or one more."""
        if own:
            return behind[-1]
        return decoder.insert_layer(behind[-1], like=behind[-1], name="hrca_layers")

    def add_level(self, decoder: DecoderSite) -> tuple[Value, Value]:
        """The map that mask features are made of, as a level; its keys and positions."""
        source = decoder.mask_source
        level = FineLevel(decoder.dim)
        (keys,) = decoder.call(level, source, name="hrca_level", results=("fine_features",))
        return keys, decoder.levels[-1].positions_of(source, "fine_positions")

    def rounds(self, decoder: DecoderSite) -> Iterator[tuple[LayerSite, list[LayerSite]]]:
        """The first layer of each whole round, and the layers behind it."""
        layers, count = decoder.layers, len(decoder.levels)
        for i, layer in enumerate(layers):
            behind = layers[i + 1 : i + count]
            if layer.level.index == 0 and [b.level.index for b in behind] == list(range(1, count)):
                yield layer, list(behind)

    def check(self, decoder: DecoderSite, rounds: list[tuple[LayerSite, list[LayerSite]]]) -> None:
        """Some cells must be left, and there must be a round."""
        rows, columns = decoder.levels[0].grid
        if rows * columns < self.omega and self.cells != "all":
            raise decoder.reject(
                "omega",
                f"one of {self.omega} cells leaves none of {rows * columns}",
                suggestion=f"omega={rows * columns} or less, or larger images",
            )
        if not rounds:
            raise decoder.unfit("its layers do not go through all levels in turn")

    def initialise(self, module: nn.Module, generator: torch.Generator) -> None:
        """Xavier-uniform matrices in new layers, as published; norms begin as ones and zeros."""
        if isinstance(module, (FineLevel, CellSelection)):
            super().initialise(module, generator)
            return
        for layer in module.modules():
            for name, parameter in layer.named_parameters(recurse=False):
                if parameter.dim() > 1:
                    nn.init.xavier_uniform_(parameter, generator=generator)
                else:
                    nn.init.constant_(parameter, float(name == "weight"))
