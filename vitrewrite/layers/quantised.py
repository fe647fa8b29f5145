"""A matrix of few bits a number, trained through its rounding."""

import torch
from torch import nn


class Quantised(nn.Module):
    """A matrix [rows, columns] that is used on 2^bits levels around its mean; 32 bits: as it is.

    Levels, by its own mean and standard deviation, are the medians of as many cells of a normal
    distribution. The latent numbers stay in float32 or better, whatever the model is cast to.
    """

    tables: dict[int, list[float]] = {}  # levels that are known, by bits
    levels: torch.Tensor
    scale: torch.Tensor

    def __init__(self, rows: int, columns: int, bits: int = 1, small: bool = False) -> None:
        super().__init__()
        if bits not in (1, 2, 4, 8, 32) or (bits < 32 and rows * columns < 2):
            raise ValueError(f"no matrix of {rows}x{columns} numbers of {bits} bits")
        self.rows, self.columns, self.bits, self.small = rows, columns, bits, small
        self.weight = nn.Parameter(torch.empty(rows, columns, dtype=torch.float32))
        self.register_buffer("levels", self.codebook(), persistent=False)
        # Mean and deviation of a matrix that was read from bits; zeros while it is trained.
        self.register_buffer("scale", torch.zeros(2, dtype=torch.float32))
        self.reset_parameters()

    def reset_parameters(self, generator: torch.Generator | None = None) -> None:
        """Draws it as that of a linear layer or, if `small`, next to zero.

        That is zero only where there are no levels, which ask for a deviation.
        """
        nn.init.zeros_(self.scale)
        if not self.small:
            nn.init.kaiming_uniform_(self.weight, a=5**0.5, generator=generator)
        elif self.bits == 32:
            nn.init.zeros_(self.weight)
        else:
            nn.init.trunc_normal_(self.weight, std=1e-3, a=-2e-3, b=2e-3, generator=generator)

    def forward(self) -> torch.Tensor:
        """The matrix as it is used; its gradient passes the rounding, not mean and deviation."""
        weight = self.weight.to(torch.promote_types(self.weight.dtype, torch.float32))
        if self.bits == 32:
            return weight
        mean, std = weight.mean(), weight.std()
        n = (weight - mean) / (std + 1e-5)
        levels = self.levels.to(n.dtype)
        edges = (levels[1:] + levels[:-1]) / 2  # what lies between two levels stays there
        below, above = (levels[torch.bucketize(n.detach(), edges, right=r)] for r in (False, True))
        made = ((below + above) / 2 + (n - n.detach())) * std + mean
        return torch.where(self.scale[1] > 0, weight, made)  # what was read from bits is on levels

    def codebook(self) -> torch.Tensor:
        """The levels, ascending: from zeros, 500 times each becomes the median of its cell.

        With 8 bits they still move then; the authors' numbers are those after 500.
        """
        if self.bits not in self.tables:
            count = 2**self.bits if self.bits < 32 else 1
            levels = torch.zeros(count, dtype=torch.float64, device="cpu")
            for _ in range(500 if count > 2 else 1):  # one or two stand still at once
                inner = torch.special.ndtr((levels[1:] + levels[:-1]) / 2)
                cells = torch.cat([levels.new_zeros(1), inner, levels.new_ones(1)])
                levels = torch.special.ndtri((cells[1:] + cells[:-1]) / 2)
            self.tables[self.bits] = levels.tolist()
        return torch.tensor(self.tables[self.bits], dtype=torch.float32)

    def _apply(self, fn, recurse=True):
        """Casts and moves; below float32 goes none of them."""
        return super()._apply(lambda t: m if (m := fn(t)).itemsize > 2 else t.to(m.device), recurse)
