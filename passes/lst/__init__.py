"""LST: a narrow network beside the model reads what every block yields, and the head reads it.

What it does
    A side network, r times narrower than the model, takes the output of every block of the clause
    through a gated linear layer, one plain block after the other. The head reads its end instead of
    the model's. Nothing in the model is trained, and no gradient enters it.

Source
    Sung, Cho, Bansal, "LST: Ladder Side-Tuning for Parameter and Memory Efficient Transfer
    Learning", NeurIPS 2022. Its models are T5, BART and CLIP-T5; the form for vision transformers
    is ours. Which rows the side network starts with is the authors' code.

Attaches to
    Blocks over one sequence of tokens of one width, in front of a head that reads a class token or
    a mean over patches. A block that is left out has no rung: `blocks[1:4] + blocks[5:8]`. Nothing
    in front may be trained, no tokens be merged, and no other clause have the head read anything.

Parameters
    e = d / r, in every block: down [e, d] and [e], as torch's linear layers are drawn, and in the
    first one first_down, likewise; gate [1], 0; side, a plain block of width e with as many heads
    and as wide an MLP, in proportion, as the model's. At the head: side_norm [e] and up [d, e] with
    bias [d], as torch's linear layers are drawn. All trained; the head is, by `train head`.
    side and side_norm start as rows and columns of the model's own (`init`), those that matter
    most: `weights` by their size, `fisher` by squared gradients of the loss on `samples` training
    images, which `vitrewrite profile` measures; or as they are drawn (`random`). `rows` says
    whether rows of queries, keys and values are chosen among all (`flat`) or as many in each head
    (`per_head`).

Forward
    h = first_down(x_0), x_0 what enters the first block of the model; then for every block i
    m = sigmoid(gate_i / 0.1), h = m h + (1 - m) down_i(x_{i+1}), h = side_i(h), with x_{i+1} what
    block i yields. The head reads up(side_norm(h)) of the class token, or of the mean over patches.

Exactness
    Another output from the start. Lowered, m is a number that scales h, and 1 - m goes into down.
    Blocks behind the last one of the clause, and the model's last norm, are gone from the start.

Example
    insert lst(reduction=8) at blocks[*]
    train head
    adds 2,376,492 parameters to ViT-B/16, and 0.54 GMACs.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import ClassVar

import torch
import torch.nn.functional as F
from torch import nn

from vitrewrite.authoring import BlockSite, HeadSite, OwnLayers, Pass, Value, option

from .pruning import count, cut, norm, walked

TEMPERATURE = 0.1
"""What a gate is divided by in front of its sigmoid."""


class SideAttention(nn.Module):
    """Attention of a side network."""

    def __init__(self, width: int, heads: int) -> None:
        super().__init__()
        self.heads = heads
        self.qkv = nn.Linear(width, 3 * width)
        self.proj = nn.Linear(width, width)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """Of tokens [batch, tokens, width]."""
        q, k, v = self.qkv(x).unflatten(-1, (3, self.heads, -1)).permute(2, 0, 3, 1, 4)
        attended = F.scaled_dot_product_attention(q, k, v).transpose(1, 2).flatten(2)
        made: torch.Tensor = self.proj(attended)
        return made


class SideMlp(nn.Module):
    """The feed-forward part of a side network."""

    def __init__(self, width: int, hidden: int) -> None:
        super().__init__()
        self.fc1 = nn.Linear(width, hidden)
        self.fc2 = nn.Linear(hidden, width)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """Of tokens [batch, tokens, width]."""
        made: torch.Tensor = self.fc2(F.gelu(self.fc1(x)))
        return made


class SideBlock(nn.Module):
    """A plain block of a vision transformer, with norms in front."""

    def __init__(self, width: int, heads: int, hidden: int) -> None:
        super().__init__()
        self.norm1 = nn.LayerNorm(width, eps=1e-6)
        self.attn = SideAttention(width, heads)
        self.norm2 = nn.LayerNorm(width, eps=1e-6)
        self.mlp = SideMlp(width, hidden)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """Of tokens [batch, tokens, width]."""
        x = x + self.attn(self.norm1(x))
        made: torch.Tensor = x + self.mlp(self.norm2(x))
        return made


class LadderRung(nn.Module):
    """h = side(m h + (1 - m) down(x)) for what a block yields; the first is given x_0 as h.

    With `folded` m is `share`, and 1 - m is in down.
    """

    inserted_by = "lst"
    share: torch.Tensor

    def __init__(
        self,
        dim: int,
        width: int,
        heads: int,
        hidden: int,
        first: bool = False,
        folded: bool = False,
    ) -> None:
        super().__init__()
        self.dim, self.width, self.heads, self.hidden = dim, width, heads, hidden
        self.first, self.folded = first, folded
        if first:
            self.first_down = nn.Linear(dim, width)
        self.down = nn.Linear(dim, width)
        if folded:
            self.register_buffer("share", torch.zeros(1))
        else:
            self.gate = nn.Parameter(torch.zeros(1))
        self.side = SideBlock(width, heads, hidden)

    def forward(self, x: torch.Tensor, h: torch.Tensor) -> torch.Tensor:
        """The side network behind the block."""
        if self.first:
            h = self.first_down(h)
        if self.folded:
            h = self.share * h + self.down(x)
        else:
            share = torch.sigmoid(self.gate / 0.1)
            h = share * h + (1 - share) * self.down(x)
        made: torch.Tensor = self.side(h)
        return made


class LadderTop(nn.Module):
    """up(side_norm(h)) of the class token, or with `patches` of the mean over all from there on."""

    inserted_by = "lst"

    def __init__(self, width: int, dim: int, patches: int | None = None) -> None:
        super().__init__()
        self.width, self.dim, self.patches = width, dim, patches
        self.side_norm = nn.LayerNorm(width, eps=1e-6)
        self.up = nn.Linear(width, dim)

    def forward(self, h: torch.Tensor) -> torch.Tensor:
        """What the head reads, [batch, dim]."""
        if self.patches is None:
            h = self.side_norm(h[:, 0])
        else:
            h = self.side_norm(h[:, self.patches :]).mean(1)
        made: torch.Tensor = self.up(h)
        return made


@dataclass(frozen=True)
class Lst(Pass):
    """A ladder of narrow blocks beside the model."""

    verbs: ClassVar[tuple[str, ...]] = ("insert at",)
    attaches: ClassVar[tuple[str, ...]] = ("block",)
    source: ClassVar[str] = "Sung et al., NeurIPS 2022"
    claims: ClassVar[tuple[str, ...]] = ()
    reads: ClassVar[tuple[str, ...]] = ("prefix", "size")
    excludes: ClassVar[tuple[str, ...]] = ("res_tuning",)
    sole: ClassVar[str] = "readout"

    reduction: int = option(8, minimum=1, maximum=1024, help="how much narrower it is, r")
    init: str = option(
        "weights",
        choices=("weights", "fisher", "random"),
        help="which rows of the model the side network starts with: the largest, those that matter "
        "most for the task, or none",
    )
    rows: str = option(
        "flat",
        choices=("flat", "per_head"),
        needs="init != 'random'",
        help="whether rows of attention are chosen among all, or as many in each head",
    )
    samples: int = option(
        1024, minimum=1, needs="init == 'fisher'", help="images that squared gradients are of"
    )

    @property
    def measured_on(self) -> int:
        """One image at a time says what matters."""
        return self.samples if self.init == "fisher" else 0

    def rewrite(self, block: BlockSite) -> None:
        """h = side(m h + (1 - m) down(x)); behind the last block the head reads up(norm(h))."""
        self.check(block)
        if block.leads and self.init != "random":
            self.check_origin(block)
            block.start_from_model(measured=self.init == "fisher")
        before = block.handed
        if before is None:
            start = block.all_blocks[0].input
            for each in block.together:
                each.expect_kept(start)
            before = block.from_frozen(start.value, "x")
        rung = LadderRung(
            block.dim,
            block.dim // self.reduction,
            block.attn.heads,
            count(block.hidden, self.reduction),
            block.leads,
        )
        x = block.from_frozen(block.leaving.value, "x")
        made = block.aside(rung, x, before, name="h")
        block.hand_on(made)
        if block.ends:
            for head in block.heads:
                self.top(block, head, made)

    def top(self, block: BlockSite, head: HeadSite, h: Value) -> None:
        """The head reads the end of the side network."""
        if len(block.heads) > 1:
            raise block.unfit("the model has several heads")
        if block.pooled and head.pooling != ("mean",):
            raise block.unfit("its head reads neither a class token nor a mean over patches")
        if not block.pooled:
            block.attn.expect_class()
        patches = block.own_prefix if block.pooled else None
        head.feed(
            LadderTop(block.dim // self.reduction, head.in_features, patches), h, pooled=False
        )

    def check(self, block: BlockSite) -> None:
        """Whether blocks are plain, and a narrower one has as many heads."""
        same = all(each.dim == block.stem_dim for each in block.all_blocks)
        if not same or not block.has_patches or not block.input.is_sequence or block.attn.windowed:
            raise block.unfit("it is not over one sequence of tokens of one width")
        width, heads = block.dim / self.reduction, block.attn.heads
        fits = [
            r for r in range(1, block.dim + 1) if not block.dim % r and not block.dim // r % heads
        ]
        block.expect(
            self.reduction in fits,
            "reduction",
            f"{block.dim} / {self.reduction} = {width:g} channels are not those of {heads} heads",
            notes=[f"valid: {', '.join(map(str, fits))}"],
        )

    def check_origin(self, block: BlockSite) -> None:
        """Whether the model's blocks have all layers of plain ones, and heads that can be cut."""
        for each in block.all_blocks:
            plain = len(each.norms) >= 2 and not each.gated and each.hidden and each.attn.plain
            each.expect(
                plain,
                "init",
                "the block has other layers than a plain one",
                suggestion="write init=random",
            )
        width = block.dim // block.attn.heads
        block.expect(
            self.rows == "flat" or not width % self.reduction,
            "rows",
            f"{width} rows of a head are no multiple of {self.reduction}",
            suggestion="write rows=flat",
        )

    def inherit(self, site: BlockSite | HeadSite, module: nn.Module, origin: OwnLayers) -> None:
        """Rows and columns of the model's own: those that matter most."""
        blocks = site.blocks if isinstance(site, HeadSite) else site.all_blocks
        heads = blocks[0].attn.heads if self.rows == "per_head" else 1
        roles = [block.role for block in blocks]
        kept = origin.once("kept", lambda: walked(origin, roles, self.reduction, heads))
        if isinstance(module, LadderRung):
            cut(module.side, origin, site.role, kept[site.role])
        elif isinstance(module, LadderTop) and "norm" in origin:
            norm(module.side_norm, origin, "norm", kept[roles[-1]].fc2)

    def weights(self, module: nn.Module, given: Sequence[object]) -> dict[str, torch.Tensor]:
        """Of a rung, 1 - m: the share of the block in what its side block reads."""
        if not isinstance(module, LadderRung):
            return {}
        if module.folded:
            return {"share of the block": 1 - module.share}
        return {"share of the block": torch.sigmoid(-module.gate.detach() / TEMPERATURE)}

    def lower(self, block: BlockSite, rung: nn.Module) -> bool:
        """m becomes a number, and 1 - m goes into down."""
        if not isinstance(rung, LadderRung) or rung.folded:
            return False
        share = torch.sigmoid(rung.gate.double() / TEMPERATURE)
        sizes = rung.dim, rung.width, rung.heads, rung.hidden
        with torch.device("meta"):  # every tensor is put in its place
            new = LadderRung(*sizes, rung.first, folded=True)
        new.side, new.share = rung.side, share.detach().to(rung.gate.dtype)
        if rung.first:
            new.first_down = rung.first_down
        for name, old in rung.down.named_parameters():
            data = ((1 - share) * old.double()).to(old.dtype)
            setattr(new.down, name, nn.Parameter(data, requires_grad=False))
        block.swap(new)
        return False
