"""The layer while it is searched: attention and convolutions at once, weighed by gates."""

import torch
import torch.nn.functional as F
from torch import nn

from vitrewrite.authoring import StructureGates


class PatchMap(nn.Module):
    """Patches as a map [B, C, h, w] and back: of tokens [B, T, C], or of a map [B, h, w, C].

    The last tokens are the patches of a `grid`, which is given while it runs if it is None here.
    A map is one as a whole.
    """

    inserted_by = "umsa"

    def __init__(self, grid: tuple[int, int] | None = None) -> None:
        super().__init__()
        self.grid = grid

    def forward(self, x: torch.Tensor, height: int = 0, width: int = 0) -> torch.Tensor:
        """The patches of x, in memory as they are."""
        if x.dim() == 4:
            return x.permute(0, 3, 1, 2)
        height, width = self.grid or (height, width)
        patches = x[:, x.shape[1] - height * width :].mT
        return patches.reshape(*patches.shape[:2], height, width)

    def back(self, made: torch.Tensor, x: torch.Tensor) -> torch.Tensor:
        """What was made of the patches in the layout of x, whose other tokens stay as they are."""
        if x.dim() == 4:
            return made.permute(0, 2, 3, 1)
        made = made.flatten(2).mT
        return torch.cat([x[:, : x.shape[1] - made.shape[1]], made], 1)


class HeadMixture(nn.Module):
    """Convolutions out of the heads of an attention: for each position a softmax over heads.

    Position (dy, dx) of the largest kernel, `size` on a side, is column dy + size dx; a smaller
    kernel is the middle of it.
    """

    inserted_by = "umsa"

    def __init__(self, heads: int, size: int, tau: float) -> None:
        super().__init__()
        self.heads, self.size, self.tau = heads, size, tau
        self.head_logits = nn.Parameter(torch.ones(heads, size * size))

    def forward(
        self, kernel: int, v: torch.Tensor, v_bias: torch.Tensor | None, proj: torch.Tensor
    ) -> tuple[torch.Tensor, torch.Tensor | None, torch.Tensor]:
        """Weight [d, C, k, k] and bias [d] of the convolution, and the matrix [C, d] behind it."""
        share = (self.head_logits.float() / self.tau).softmax(0).to(v.dtype)
        edge = (self.size - kernel) // 2
        middle = slice(edge, edge + kernel)
        share = share.view(-1, self.size, self.size).mT[:, middle, middle]
        weight = torch.einsum("hyx,hdc->dcyx", share, v.view(self.heads, -1, v.shape[1]))
        whole = share.sum((1, 2))
        up = torch.einsum("h,chd->cd", whole, proj.view(len(proj), self.heads, -1))
        if v_bias is None:
            return weight, None, up
        return weight, whole @ v_bias.view(self.heads, -1), up


class GateRule(nn.Module):
    """What each branch weighs, by gates [n] of which the last one is that of the most complex.

    Of the open gates the most complex one decides. With `prefix` it has to have all simpler ones
    open, else it counts as closed; with `complex` it is open alone.
    """

    inserted_by = "umsa"

    def __init__(self, rule: str = "prefix") -> None:
        super().__init__()
        self.rule = rule

    def forward(self, gates: torch.Tensor) -> torch.Tensor:
        """Weights [n], at most one of them 1 and the others 0."""
        if self.rule == "prefix":
            gates = gates.cumprod(0)
        closed = F.pad((1 - gates.flip(0)).cumprod(0), (1, -1), value=1.0)
        return gates * closed.flip(0)

    def priced(self, gates: torch.Tensor) -> torch.Tensor:
        """What prices are for: the next branch instead of the one before, or each by itself."""
        return gates.cumprod(0) if self.rule == "prefix" else self(gates)


class UnifiedAttention(nn.Module):
    """An attention, and bottleneck convolutions out of its v and proj: one of them, or nothing.

    Gates say which; in training they are drawn. Both batch norms see every batch.
    """

    inserted_by = "umsa"
    changes = (1,)

    def __init__(
        self,
        hidden: int,
        heads: int,
        tau: float,
        kernels: tuple[int, ...],
        rule: str = "prefix",
        grid: tuple[int, int] | None = None,
        start: float = 1.5,
        temperature: float = 1.0,
    ) -> None:
        super().__init__()
        self.hidden, self.heads, self.kernels, self.tau = hidden, heads, kernels, tau
        self.rule, self.grid, self.start, self.temperature = rule, grid, start, temperature
        self.gates = StructureGates(len(kernels) + 1, start, temperature)
        self.weighed = GateRule(rule)
        self.mixture = HeadMixture(heads, max(kernels), tau)
        self.norms = nn.ModuleList(nn.BatchNorm2d(hidden) for _ in kernels)
        self.patches = PatchMap(grid)

    @property
    def logits(self) -> nn.Parameter:
        """Of the gates: each kernel in turn, then attention."""
        return self.gates.logits

    def forward(
        self,
        x: torch.Tensor,
        y: torch.Tensor,
        v: torch.Tensor,
        v_bias: torch.Tensor | None,
        proj: torch.Tensor,
        proj_bias: torch.Tensor | None,
        height: int = 0,
        width: int = 0,
        uniforms: torch.Tensor | None = None,
    ) -> torch.Tensor:
        """What is there, in place of what attention makes of x, y."""
        share = self.weighed(self.gates(uniforms)).to(y.dtype)
        maps = self.patches(x, height, width)
        out: torch.Tensor = y * share[-1]
        for i, (kernel, norm) in enumerate(zip(self.kernels, self.norms, strict=True)):
            weight, bias, up = self.mixture(kernel, v, v_bias, proj)
            code = F.relu(norm(F.conv2d(maps, weight, bias, padding=kernel // 2)))
            made = F.conv2d(code, up[:, :, None, None], proj_bias)
            out = torch.addcmul(out, share[i], self.patches.back(made, x))
        return out

    def priced(self) -> torch.Tensor:
        """What is there in evaluation, as its rule has it."""
        found: torch.Tensor = self.weighed.priced(self.gates.priced())
        return found


class SeparatePaths(nn.Module):
    """An attention, and bottleneck convolutions that share nothing with it, weighed by gates."""

    inserted_by = "umsa"
    changes = (1,)

    def __init__(
        self,
        width: int,
        hidden: int,
        kernels: tuple[int, ...],
        rule: str = "prefix",
        grid: tuple[int, int] | None = None,
        start: float = 1.5,
        temperature: float = 1.0,
    ) -> None:
        super().__init__()
        self.width, self.hidden, self.kernels = width, hidden, kernels
        self.rule, self.grid, self.start, self.temperature = rule, grid, start, temperature
        self.gates = StructureGates(len(kernels) + 1, start, temperature)
        self.weighed = GateRule(rule)
        self.convs = nn.ModuleList(
            nn.Conv2d(width, hidden, k, padding=k // 2, bias=False) for k in kernels
        )
        self.norms = nn.ModuleList(nn.BatchNorm2d(hidden) for _ in kernels)
        self.ups = nn.ModuleList(nn.Conv2d(hidden, width, 1, bias=False) for _ in kernels)
        self.patches = PatchMap(grid)

    @property
    def logits(self) -> nn.Parameter:
        """Of the gates: each kernel in turn, then attention."""
        return self.gates.logits

    def forward(
        self,
        x: torch.Tensor,
        y: torch.Tensor,
        height: int = 0,
        width: int = 0,
        uniforms: torch.Tensor | None = None,
    ) -> torch.Tensor:
        """What is there, in place of what attention makes of x, y."""
        share = self.weighed(self.gates(uniforms)).to(y.dtype)
        maps = self.patches(x, height, width)
        out: torch.Tensor = y * share[-1]
        for i, conv in enumerate(self.convs):
            made = self.ups[i](F.relu(self.norms[i](conv(maps))))
            out = torch.addcmul(out, share[i], self.patches.back(made, x))
        return out

    def priced(self) -> torch.Tensor:
        """What is there in evaluation, as its rule has it."""
        found: torch.Tensor = self.weighed.priced(self.gates.priced())
        return found
