"""What has some tokens pass a part of a block and others skip it, as modules without state.

While a model is trained all tokens are computed, and a gate multiplies what comes of it. A lowered
one computes the active tokens alone: `ActiveRows` takes them out of all images, `PaddedRows` image
by image, and `RowsBack` puts what was made of them where they were. How many there are hangs on the
numbers; on meta, where there are none, it is the stated rate.
"""

from __future__ import annotations

import torch
from torch import nn


class Gated(nn.Module):
    """gate * y, one number for each token; with `onto`, x + gate * (y - x)."""

    inserted_by = "vitrewrite"
    changes = (0,)

    def __init__(self, onto: bool = False) -> None:
        super().__init__()
        self.onto = onto

    def forward(
        self, y: torch.Tensor, gate: torch.Tensor, x: torch.Tensor | None = None
    ) -> torch.Tensor:
        """y [B, T, C] where the gate [B, T] is 1; else zero, or x."""
        return gate[..., None] * y if x is None else x + gate[..., None] * (y - x)


class ActiveRows(nn.Module):
    """The active tokens of all images in one row, [1, rows, C], and where they were, [rows].

    On meta there are `prefix` and a share `rate` of the others in an image; `number` spreads the
    fractions of several such modules.
    """

    inserted_by = "vitrewrite"

    def __init__(self, prefix: int, rate: float, number: int = 0) -> None:
        super().__init__()
        self.prefix, self.rate, self.number = prefix, rate, number

    def forward(self, x: torch.Tensor, gate: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        """Of x [B, T, C] the tokens whose gate [B, T] is not 0."""
        if x.is_meta:
            share = self.rate * (x.shape[1] - self.prefix)
            active = int(share * (self.number + 1)) - int(share * self.number)
            index = gate.new_empty(x.shape[0] * (self.prefix + active), dtype=torch.long)
        else:
            index = gate.detach().flatten().nonzero().squeeze(1)
        return x.flatten(0, 1).index_select(0, index)[None], index


class PaddedRows(nn.Module):
    """The active tokens of each image in front, [B, rows, C], and where they were, [B, rows].

    Rows are as many as the image with most active tokens has; the third output, [B, rows], is 0 for
    those that another image has too many. With `fixed` they are `prefix` and a share `rate` of the
    others in every image, as they are on meta anyway.
    """

    inserted_by = "vitrewrite"

    def __init__(self, prefix: int, rate: float, number: int = 0, fixed: bool = False) -> None:
        super().__init__()
        self.prefix, self.rate, self.number, self.fixed = prefix, rate, number, fixed

    def forward(
        self, x: torch.Tensor, gate: torch.Tensor
    ) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
        """Of x [B, T, C] the tokens whose gate [B, T] is not 0, in their order."""
        active = gate.detach() != 0
        order = active.to(torch.uint8).argsort(dim=1, descending=True, stable=True)
        index = order[:, : self.count(x, active)]
        rows = x.gather(1, index[..., None].expand(-1, -1, x.shape[2]))
        return rows, index, active.gather(1, index).to(x.dtype)

    def count(self, x: torch.Tensor, active: torch.Tensor) -> torch.types.Number:
        """How many rows there are."""
        others = self.rate * (x.shape[1] - self.prefix)
        if self.fixed:
            return self.prefix + int(others)
        if x.is_meta:
            more = int(others * (self.number + 1)) - int(others * self.number)
            return self.prefix + more
        # Two at least: with one row an exporter could not tell that from an axis of length one.
        count = active.sum(dim=1).max().clamp(min=2, max=x.shape[1]).item()
        torch._check(count >= 2)
        torch._check(count <= x.shape[1])
        return count


class RowsBack(nn.Module):
    """Rows where they were; all other tokens are zero, or with `onto` those of x."""

    inserted_by = "vitrewrite"
    changes = (0,)

    def __init__(self, onto: bool = False) -> None:
        super().__init__()
        self.onto = onto

    def forward(
        self, rows: torch.Tensor, index: torch.Tensor, valid: torch.Tensor | None, x: torch.Tensor
    ) -> torch.Tensor:
        """[B, T, C] like x, of rows [1 or B, rows, C] at the index [rows] or [B, rows]."""
        base = x if self.onto else torch.zeros_like(x, dtype=rows.dtype)
        rows = rows.to(base.dtype)
        if valid is None:
            return base.flatten(0, 1).index_copy(0, index, rows[0]).view(x.shape)
        place = index[..., None].expand(-1, -1, x.shape[2])
        kept = torch.where(valid[..., None] != 0, rows, base.gather(1, place))
        return base.scatter(1, place, kept)
