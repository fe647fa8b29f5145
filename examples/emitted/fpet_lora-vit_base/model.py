"""vit_base rewritten by fpet_lora, written by vitrewrite.

    model vit_base

    insert lora(rank=8, scale=1.0) at blocks[*].attn.{q, v}
    insert merge.bdm() after blocks[6].attn
    train head

    require trainable <= 310000 excluding head
    require tokens at blocks[7] == 99
    require macs_lowered within 1% of 13400000000
    require lowers exactly

Takes images 3x224x224, RGB; the shorter side resized to 248 (bicubic), the middle cropped;
values from 0 to 1, mean 0.5, std 0.5. Returns scores of 1000 classes, whose names are not
known.
"""

import math
from fnmatch import fnmatch

import torch
import torch.nn.functional as F
from torch import nn


class LowRank(nn.Module):
    """A low-rank update of rows of a linear layer: y + scale * up(down(x)).

    Features lie on the last axis, or on `axis`, as those of a 1x1 convolution do.
    """

    inserted_by = "lora"
    changes = (1,)

    def __init__(
        self,
        in_features: int,
        rows: tuple[tuple[int, int], ...],
        rank: int,
        scale: float,
        dropout: float = 0.0,
        drop_input: bool = False,
        pieces: tuple[int, ...] = (),
        axis: int = -1,
    ) -> None:
        super().__init__()
        self.in_features, self.rows, self.rank, self.scale = in_features, rows, rank, scale
        self.dropout, self.drop_input, self.axis = dropout, drop_input, axis
        # How many of the ranges in `rows` are one matrix: one, unless the heads take turns.
        self.pieces = pieces
        self.down = nn.Parameter(torch.empty(len(pieces or rows) * rank, in_features))
        self.up = nn.Parameter(torch.empty(sum(b - a for a, b in rows), rank))
        self.reset_parameters()

    def reset_parameters(self, generator: torch.Generator | None = None) -> None:
        """Draws `down` and zeroes `up`, so that the update starts at zero."""
        nn.init.kaiming_uniform_(self.down, a=math.sqrt(5), generator=generator)
        nn.init.zeros_(self.up)

    def forward(
        self, x: torch.Tensor, y: torch.Tensor, keep: torch.Tensor | None = None
    ) -> torch.Tensor:
        """The output y of the linear, updated; x is its input, `keep` a factor per sample."""
        given = y
        if self.axis != -1:
            x, y = x.movedim(self.axis, -1), y.movedim(self.axis, -1)
            keep = None if keep is None else keep.movedim(self.axis, -1)
        if self.drop_input:
            code = F.linear(F.dropout(x, self.dropout, self.training), self.down)
        else:
            code = F.dropout(F.linear(x, self.down), self.dropout, self.training)
        if keep is not None:
            code = code * keep.to(code.dtype)
        code, out = code.flatten(0, -2), y.flatten(0, -2)
        if torch.is_grad_enabled():  # all rows in one product
            wide = torch.cat([self.padded(part, y.shape[-1]) for part in self.parts()], 1)
            out = torch.addmm(out, code, wide.T, alpha=self.scale)
        else:
            out = out.clone()  # y is not ours: whoever called the linear layer may have kept it
            for part, ups in zip(torch.split(code, self.rank, 1), self.parts(), strict=True):
                for (a, b), up in ups:
                    out[:, a:b].addmm_(part, up.T.to(part.dtype), alpha=self.scale)
        out = out.view(y.shape)
        if self.axis == -1:
            return out
        return torch.empty_like(given).copy_(out.movedim(-1, self.axis))  # in memory as it was

    def parts(self) -> list[list[tuple[tuple[int, int], torch.Tensor]]]:
        """For each matrix its ranges of rows, each with the rows of `up` for it."""
        ups = torch.split(self.up, [b - a for a, b in self.rows])
        pairs = iter(zip(self.rows, ups, strict=True))
        return [[next(pairs) for _ in range(n)] for n in self.pieces or (1,) * len(self.rows)]

    def padded(self, part: list[tuple[tuple[int, int], torch.Tensor]], width: int) -> torch.Tensor:
        """The rows of `up` of one matrix where they are in the whole layer, zero elsewhere."""
        made, end = [], 0
        for (start, stop), up in part:
            made += [up.new_zeros(start - end, self.rank)] * (start > end) + [up]
            end = stop
        return F.pad(torch.cat(made), (0, 0, 0, width - end))


class BipartiteMerge(nn.Module):
    """Merges one half of the patches into the other: x [B, T, C] and sizes [B, T] shrink.

    The last tokens are the patches of the grid, row by row; k is [B, heads, T, d]. Once `hard`,
    matches are found by argmax and merged by index-add. If `traced`, it tells in which token each
    is now, [B, T], and which took their places, [B, T'].
    """

    inserted_by = "merge.bdm"
    changes = (0, None)
    a: torch.Tensor
    b: torch.Tensor

    def __init__(
        self,
        grid: tuple[int, int],
        dim: int,
        hidden: int = 32,
        bits: int = 1,
        scale: float = 1.0,
        dropout: float = 0.1,
        split: str = "checkerboard",
        refine: bool = True,
        stop: bool = True,
        hard: bool = False,
        traced: bool = False,
    ) -> None:
        super().__init__()
        self.grid, self.dim, self.hidden, self.hard = grid, dim, hidden, hard
        self.bits, self.scale, self.dropout = bits, scale, dropout
        self.split, self.refine, self.stop, self.traced = split, refine, stop, traced
        self.down = self.up = None
        if refine:
            self.down = Quantised(hidden, dim, bits)
            self.up = Quantised(dim, hidden, bits, small=True)
        a, b = self.halves()
        self.register_buffer("a", torch.tensor(a), persistent=False)
        self.register_buffer("b", torch.tensor(b), persistent=False)
        self.reset_parameters()

    def halves(self) -> tuple[list[int], list[int]]:
        """The patches that merge and those that they merge into, by number, in order."""
        height, width = self.grid
        if self.split == "row":
            return list(range(1, height * width, 2)), list(range(0, height * width, 2))
        a, b = (
            [
                i * width + j
                for start in parities
                for i in range(start[0], height, 2)
                for j in range(start[1], width, 2)
            ]
            for parities in (((0, 0), (1, 1)), ((1, 0), (0, 1)))
        )
        return a, b

    def reset_parameters(self, generator: torch.Generator | None = None) -> None:
        """Draws the adapter so that it changes little or nothing."""
        if self.down is not None and self.up is not None:
            self.down.reset_parameters(generator)
            self.up.reset_parameters(generator)

    def forward(
        self, x: torch.Tensor, k: torch.Tensor, size: torch.Tensor | None = None
    ) -> tuple[torch.Tensor, ...]:
        """The merged tokens, and how many patches each stands for."""
        prefix = x.shape[1] - self.grid[0] * self.grid[1]
        size = self.wide(x.new_ones(x.shape[:2])) if size is None else size
        with torch.autocast("cpu" if x.is_meta else x.device.type, enabled=False):
            scores = self.match(k[:, :, prefix:])
            weight = self.wide(size[:, prefix:, None])
            both = torch.cat([weight * self.wide(x[:, prefix:]), weight], dim=2)
            merge = self.merge_hard if self.hard else self.merge_soft
            both = merge(scores, both[:, self.a], both[:, self.b])
            patches, count = both[..., :-1] / both[..., -1:], both[..., -1]
        x = torch.cat([x[:, :prefix], patches.to(x.dtype)], dim=1)
        size = torch.cat([size[:, :prefix], count.to(size.dtype)], dim=1)
        return (x, size, *self.trace(scores, prefix)) if self.traced else (x, size)

    def trace(self, scores: torch.Tensor, prefix: int) -> tuple[torch.Tensor, torch.Tensor]:
        """In which token each is, and which are kept."""
        number = torch.arange(prefix + len(self.b), device=scores.device)
        number = number.expand(scores.shape[0], -1)
        order = torch.cat([self.a, self.b]).argsort()
        into = torch.cat([scores.argmax(dim=-1) + prefix, number[:, prefix:]], dim=1)[:, order]
        kept = torch.cat([number[:, :prefix], (self.b + prefix).expand(scores.shape[0], -1)], dim=1)
        return torch.cat([number[:, :prefix], into], dim=1), kept

    def match(self, k: torch.Tensor) -> torch.Tensor:
        """Cosines of A and B, [B, N_A, N_B]; once `stop`, no gradient reaches the keys."""
        m = self.wide(k.detach() if self.stop else k).mean(dim=1)
        if self.down is not None and self.up is not None:
            code = F.relu(F.linear(m, self.down().to(m.dtype)))
            code = F.dropout(code, self.dropout, self.training)
            m = m + self.scale * F.linear(code, self.up().to(m.dtype))
        m = m / m.norm(dim=-1, keepdim=True).clamp_min(1e-30)
        return torch.bmm(m[:, self.a], m[:, self.b].transpose(1, 2))

    def merge_soft(self, scores: torch.Tensor, a: torch.Tensor, b: torch.Tensor) -> torch.Tensor:
        """b + W^T a, with W the match made hard and the gradient of the sigmoid."""
        gate = torch.sigmoid(scores - scores.topk(2, dim=-1).values.mean(dim=-1, keepdim=True))
        best = torch.zeros_like(gate).scatter(-1, scores.argmax(dim=-1, keepdim=True), 1.0)
        chosen = gate + (best - gate).detach()
        return b + chosen.transpose(1, 2) @ a

    def merge_hard(self, scores: torch.Tensor, a: torch.Tensor, b: torch.Tensor) -> torch.Tensor:
        """b with every row of a added to its best match."""
        first = torch.arange(b.shape[0], device=b.device)[:, None] * b.shape[1]
        into = (scores.argmax(dim=-1) + first).flatten()
        return b.flatten(0, 1).index_add(0, into, a.flatten(0, 1)).view_as(b)

    def wide(self, x: torch.Tensor) -> torch.Tensor:
        """In float32 or better."""
        return x.to(torch.promote_types(x.dtype, torch.float32))


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
        made = (self.nearest(n.detach()) + (n - n.detach())) * std + mean
        return torch.where(self.scale[1] > 0, weight, made)  # what was read from bits is on levels

    def nearest(self, n: torch.Tensor) -> torch.Tensor:
        """The nearest level of each number; what lies halfway between two stays there."""
        levels = self.levels.to(n.dtype)
        edges = (levels[1:] + levels[:-1]) / 2
        below, above = torch.bucketize(n, edges), torch.bucketize(n, edges, right=True)
        return (levels[below] + levels[above]) / 2

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

        def exact(tensor: torch.Tensor) -> torch.Tensor:
            made: torch.Tensor = fn(tensor)
            return made if made.itemsize >= 4 else tensor.to(made.device)

        return super()._apply(exact, recurse)


class PatchEmbed(nn.Module):
    def __init__(self):
        super().__init__()
        self.proj = nn.Conv2d(3, 768, 16, stride=16)

    def forward(self, x):
        x = self.proj(x)
        return x.flatten(2).transpose(1, 2)


class Mlp(nn.Module):
    def __init__(self):
        super().__init__()
        self.fc1 = nn.Linear(768, 3072)
        self.act = nn.GELU()
        self.fc2 = nn.Linear(3072, 768)

    def forward(self, x):
        x = self.fc1(x)
        x = self.act(x)
        return self.fc2(x)


class Attention(nn.Module):
    def __init__(self):
        super().__init__()
        self.qkv = nn.Linear(768, 2304)
        self.proj = nn.Linear(768, 768)
        self.qkv_lora = LowRank(768, ((0, 768), (1536, 2304)), 8, 1.0, dropout=0.1)

    def forward(self, x, log_size=None):
        B, N, _ = x.shape
        # fpet_lora.peft:8: insert lora(rank=8, scale=1.0) at blocks[*].attn.{q, v}
        qkv = self.qkv_lora(x, self.qkv(x))
        qkv = qkv.reshape(B, N, 3, 12, 64).permute(2, 0, 3, 1, 4)
        q, k, v = qkv.unbind(0)
        # fpet_lora.peft:9: insert merge.bdm() after blocks[6].attn
        attn_mask = log_size[:, None, None].type_as(q) if log_size is not None else None
        x = F.scaled_dot_product_attention(q, k, v, attn_mask=attn_mask)
        x = x.transpose(1, 2).reshape(B, N, 768)
        return self.proj(x), k


class BlockWithMerge(nn.Module):
    def __init__(self):
        super().__init__()
        self.norm1 = nn.LayerNorm(768, eps=1e-06)
        self.attn = Attention()
        self.norm2 = nn.LayerNorm(768, eps=1e-06)
        self.mlp = Mlp()
        self.merge = BipartiteMerge((14, 14), 64)

    def forward(self, x):
        y, k = self.attn(self.norm1(x))
        x = x + y
        # fpet_lora.peft:9: insert merge.bdm() after blocks[6].attn
        x, size = self.merge(x, k)
        return x + self.mlp(self.norm2(x)), size.log()


class Block(nn.Module):
    def __init__(self):
        super().__init__()
        self.norm1 = nn.LayerNorm(768, eps=1e-06)
        self.attn = Attention()
        self.norm2 = nn.LayerNorm(768, eps=1e-06)
        self.mlp = Mlp()

    def forward(self, x, log_size=None):
        y, _ = self.attn(self.norm1(x), log_size)
        x = x + y
        return x + self.mlp(self.norm2(x))


class VisionTransformer(nn.Module):
    def __init__(self):
        super().__init__()
        self.cls_token = nn.Parameter(torch.zeros(1, 1, 768))
        self.pos_embed = nn.Parameter(torch.zeros(1, 197, 768))
        self.patch_embed = PatchEmbed()
        self.blocks = nn.ModuleList(
            [*(Block() for _ in range(6)), BlockWithMerge(), *(Block() for _ in range(5))]
        )
        self.norm = nn.LayerNorm(768, eps=1e-06)
        self.head = nn.Linear(768, 1000)

    def forward_features(self, x):
        if x.shape[2:] != (224, 224):
            raise ValueError(f"captured for 224x224, got {x.shape[2]}x{x.shape[3]}")
        x = self.patch_embed(x)
        x = torch.cat([self.cls_token.expand(x.shape[0], -1, -1), x], dim=1)
        x = x + self.pos_embed
        for block in self.blocks[:6]:
            x = block(x)
        x, log_size = self.blocks[6](x)
        for block in self.blocks[7:]:
            x = block(x, log_size)
        return self.norm(x)

    def forward_head(self, x, pre_logits=False):
        x = x[:, 0]
        if pre_logits:
            return x
        return self.head(x)

    def forward(self, x):
        return self.forward_head(self.forward_features(x))


INPUT = "1x3x224x224"


TRAINABLE = ("*.qkv_lora.*", "*.merge.*", "head.*")


def build():
    """The model with fresh weights; see `load` for those of this folder."""
    model = VisionTransformer()
    for name, parameter in model.named_parameters():
        parameter.requires_grad_(any(fnmatch(name, pattern) for pattern in TRAINABLE))
    return model


def load(path):
    """The model with the weights of a safetensors file, in eval mode."""
    from safetensors.torch import load_file

    model = build()
    model.load_state_dict(load_file(path))
    return model.eval()
