"""RepAdapter: a linear residual bottleneck in front of a projection, which folds into it.

What it does
    Changes what a frozen linear layer reads: `z + s * (up(down(z)))`, without an activation.

Source
    Luo et al., "Towards Efficient Visual Adaption via Structural Re-parameterization", 2023,
    equations 4 to 9. The up projection in groups as in the authors' code.

Attaches to
    Linear layers, all rows of them. The paper's variants are `block`, at `attn.qkv` and `mlp.fc1`
    (behind the norms), and `attn`, at the first alone. Separate q, k and v that read one value
    share one adapter. On windows it acts on each token by itself, so that it is the same in front
    of them; on padding, which is zero in front of it, it acts too. Also in front of a convolution,
    as on ConvNeXt's depthwise one, where it does not fold.

Parameters
    down.weight [h, d], Xavier-uniform, down.bias [h], zero; up.weight [d, h / g], up.bias [d], both
    zero: channels of one of g equal groups see the hidden units of that group alone. All trained;
    the scale s is fixed, 0.1, 0.5, 1, 5 or 10 in the paper, and part of the spec that a delta is
    bound to.

Forward
    z + s * (up(drop(down(z))) + up.bias), for all tokens; in training numbers of the code are
    dropped. Deltas at the layer, such as LoRA's, read what it yields, whatever the order of the
    clauses.

Exactness
    The model is unchanged at initialisation. Folds exactly, after what is beside the layer and
    before what is behind it: with A = I + s up down and c = s (up down.bias + up.bias), W = W A
    and b = b + W c. Not where the layer is shared, or has no bias of its own that could take c, or
    where something that does not fold reads what the adapter yields.

Example
    insert repadapter(hidden=8, groups=2) at blocks[*].attn.qkv + blocks[*].mlp.fc1
    adds 239,808 parameters to ViT-B/16, 221,184 of them weights; folded, it costs nothing.
"""

from dataclasses import dataclass
from typing import ClassVar

import torch
import torch.nn.functional as F
from torch import nn

from vitrewrite.authoring import ConvSite, LinearSite, Pass, option


class RepAdapter(nn.Module):
    """z + scale * up(down(z)) on `dim` channels, which lie on `axis`; up in equal groups."""

    inserted_by = "repadapter"
    changes = (0,)
    ahead = True

    def __init__(
        self, dim: int, hidden: int, groups: int, scale: float, dropout: float = 0.0, axis: int = -1
    ) -> None:
        super().__init__()
        self.dim, self.hidden, self.groups = dim, hidden, groups
        self.scale, self.dropout, self.axis = scale, dropout, axis
        self.down = nn.Linear(dim, hidden)
        self.up = nn.Linear(hidden // groups, dim)
        self.reset_parameters()

    def reset_parameters(self, generator: torch.Generator | None = None) -> None:
        """Draws the weight of `down` and zeroes the rest, so that nothing changes at first."""
        nn.init.xavier_uniform_(self.down.weight, generator=generator)
        for zero in (self.down.bias, self.up.weight, self.up.bias):
            nn.init.zeros_(zero)

    def forward(self, z: torch.Tensor) -> torch.Tensor:
        """What the layer reads, adapted, in the same shape."""
        x = z if self.axis == -1 else z.movedim(self.axis, -1)
        codes = F.dropout(self.down(x), self.dropout, self.training).chunk(self.groups, -1)
        ups = self.up.weight.chunk(self.groups)
        if torch.is_grad_enabled():
            groups = zip(codes, ups, self.up.bias.chunk(self.groups), strict=True)
            x = torch.add(x, torch.cat([F.linear(*g) for g in groups], -1), alpha=self.scale)
        else:  # into memory of its own
            x = torch.add(x, self.up.bias.to(x.dtype), alpha=self.scale).contiguous()
            pieces = x.view(-1, self.dim).chunk(self.groups, -1)
            for piece, code, up in zip(pieces, codes, ups, strict=True):
                code = code.flatten(0, -2).to(x.dtype)
                piece.addmm_(code, up.T.to(x.dtype), alpha=self.scale)
        return x if self.axis == -1 else x.movedim(-1, self.axis)


@dataclass(frozen=True)
class Reparameterised(Pass):
    """A linear adapter in front of a layer."""

    verbs: ClassVar[tuple[str, ...]] = ("insert at",)
    attaches: ClassVar[tuple[str, ...]] = ("linear", "conv")
    source: ClassVar[str] = "Luo et al., 2023"
    claims: ClassVar[tuple[str, ...]] = ("same_output_at_init", "lowers_exactly")

    hidden: int = option(8, minimum=1, help="width of the bottleneck")
    groups: int = option(2, minimum=1, help="of the up projection")
    scale: float = option(1.0, help="fixed factor of what it adds")
    dropout: float = option(0.1, minimum=0, below=1, help="of its code, in training only")

    def rewrite(self, layer: LinearSite | ConvSite) -> None:
        """y = W z + b becomes y = W (z + s * up(down(z))) + b."""
        dim = layer.in_features
        for option_, size in (("hidden", self.hidden), ("width", dim)):
            layer.expect(
                size % self.groups == 0,
                "groups",
                f"{option_} {size} is not {self.groups} equal groups",
                notes=[f"valid: {listed(self.hidden, dim)}"],
            )
        if self.hidden >= dim:
            layer.warn(f"hidden {self.hidden} is no bottleneck of {dim} channels")
        options = self.hidden, self.groups, self.scale, self.dropout
        layer.before(RepAdapter(dim, *options, axis=layer.axis))

    def lower(self, layer: LinearSite | ConvSite, adapter: RepAdapter) -> bool:
        """W = W A, b = b + W c."""
        wide = torch.promote_types(adapter.up.weight.dtype, torch.float32)
        own = adapter.up.weight, adapter.down.weight, adapter.down.bias
        parts = (tensor.to(wide).chunk(adapter.groups) for tensor in own)
        groups = list(zip(*parts, strict=True))
        product = torch.cat([up @ down for up, down, _ in groups])
        shift = torch.cat([up @ bias for up, _, bias in groups]) + adapter.up.bias.to(wide)
        matrix = torch.eye(adapter.dim, dtype=wide, device=product.device)
        return layer.fold_before(matrix + adapter.scale * product, adapter.scale * shift)


def listed(hidden: int, dim: int) -> str:
    """Numbers of groups that divide both widths."""
    return ", ".join(str(n) for n in range(1, min(hidden, dim) + 1) if not (hidden % n or dim % n))
