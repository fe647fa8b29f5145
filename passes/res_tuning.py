"""Res-Tuning: trained bottlenecks beside frozen parts, or in a path of their own beside all blocks.

What it does
    `form=base` adds `T(x)` to what an attention, an MLP or a whole block makes of x. `form=bypass`
    leaves the blocks alone: a second stream starts as their input, takes what every block yields,
    and is what the last norm or the head reads.

Source
    Jiang et al., "Res-Tuning: A Flexible and Efficient Tuning Paradigm via Unbinding Tuner from
    Backbone", NeurIPS 2023; the bypass as in the authors' library (ms-swift 2.6.1). Tuners are
    Res-Adapters. Res-Prefix is rows beside keys and values: the pass `kv_prompt`.

Attaches to
    attn, mlp, block. The bypass: blocks that follow each other, of one width and length; what reads
    the stream behind the last of them reads the bypass instead.

Parameters
    Of each tuner: down.weight [h, d] and up.weight [d, h], Xavier-uniform; down.bias [h] and
    up.bias [d], drawn from N(0, 1e-6^2); with `zero_up` up is zero. `weight=scale` adds scale [1],
    `weight=channels` scale [d], both one; `weight=gate` gate.weight [1, d] and gate.bias [1], as
    torch's linear layers. A block of the bypass has two, `lateral` and `vertical`; with
    `mix=weighted` also mix [1], zero. All trained.

Forward
    t(z) = up(gelu(down(z))), T(z) = w * t(z); w is 1, `scale`, or the mean over the tokens of
    sigmoid(gate(t(z))).
    base    y = part(x) + T(x), inside of layer scale and drop path at attn and mlp.
    bypass  b[0] = stop(x[0]), b[i + 1] = L(stop(x[i + 1])) + V(b[i]), where x[i + 1] is what block
            i yields, and L(z) = z + T(z) and V likewise. With `mix=weighted` it is
            m L + (1 - m) V, where m = sigmoid(mix). No gradient flows into the blocks.

Exactness
    Another output at initialisation; base with `zero_up` is unchanged. Not linear, so it does not
    fold.

Example
    insert res_tuning(form=bypass, hidden=10) at blocks[*]
    adds 387,312 parameters to ViT-B/16 and 73 MMAC.
"""

from dataclasses import dataclass
from typing import ClassVar

import torch
import torch.nn.functional as F
from torch import nn

from vitrewrite.authoring import AttentionSite, BlockSite, MlpSite, Pass, option


class ResAdapter(nn.Module):
    """w * up(gelu(down(z))), with channels on `axis`."""

    def __init__(
        self, width: int, hidden: int, weight: str | None, zero_up: bool, axis: int
    ) -> None:
        super().__init__()
        self.weight, self.zero_up, self.axis = weight, zero_up, axis
        self.down = nn.Linear(width, hidden)
        self.up = nn.Linear(hidden, width)
        self.scale: nn.Parameter | None = None
        if weight == "scale":
            self.scale = nn.Parameter(torch.ones(1))
        if weight == "channels":
            self.scale = nn.Parameter(torch.ones(width))
        self.gate = nn.Linear(width, 1) if weight == "gate" else None

    def draw(self, generator: torch.Generator | None) -> None:
        """Draws both layers."""
        for layer in (self.down, self.up):
            nn.init.xavier_uniform_(layer.weight, generator=generator)
            nn.init.normal_(layer.bias, std=1e-6, generator=generator)
        if self.zero_up:
            nn.init.zeros_(self.up.weight)
            nn.init.zeros_(self.up.bias)
        if self.scale is not None:
            nn.init.ones_(self.scale)
        if self.gate is not None:
            bound = self.gate.in_features**-0.5
            nn.init.uniform_(self.gate.weight, -bound, bound, generator=generator)
            nn.init.uniform_(self.gate.bias, -bound, bound, generator=generator)

    def forward(self, z: torch.Tensor) -> torch.Tensor:
        """What it adds, in the shape of z."""
        made: torch.Tensor = self.up(F.gelu(self.down(z.movedim(self.axis, -1))))
        if self.scale is not None:
            made = made * self.scale
        if self.gate is not None:
            weight = torch.sigmoid(self.gate(made))
            made = made * weight.mean(tuple(range(1, weight.dim())), keepdim=True)
        return made.movedim(-1, self.axis)


class ParallelTuner(nn.Module):
    """y + T(x): beside a part that makes y of x."""

    inserted_by = "res_tuning"
    changes = (1,)

    def __init__(
        self,
        width: int,
        hidden: int,
        weight: str | None = None,
        zero_up: bool = False,
        axis: int = -1,
    ) -> None:
        super().__init__()
        self.width, self.hidden, self.weight = width, hidden, weight
        self.zero_up, self.axis = zero_up, axis
        self.tuner = ResAdapter(width, hidden, weight, zero_up, axis)
        self.reset_parameters()

    def reset_parameters(self, generator: torch.Generator | None = None) -> None:
        """Draws the tuner."""
        self.tuner.draw(generator)

    def forward(self, x: torch.Tensor, y: torch.Tensor) -> torch.Tensor:
        """What the part yields, with the tuner's part."""
        added: torch.Tensor = self.tuner(x)
        return y + added


class BypassTuner(nn.Module):
    """L(x) + V(b) for what a block yields and the bypass before; or their weighted mean."""

    inserted_by = "res_tuning"

    def __init__(
        self,
        width: int,
        hidden: int,
        vertical_hidden: int,
        weight: str | None = None,
        zero_up: bool = False,
        weighted: bool = False,
        axis: int = -1,
    ) -> None:
        super().__init__()
        self.width, self.hidden, self.vertical_hidden = width, hidden, vertical_hidden
        self.weight, self.zero_up, self.weighted, self.axis = weight, zero_up, weighted, axis
        self.lateral = ResAdapter(width, hidden, weight, zero_up, axis)
        self.vertical = ResAdapter(width, vertical_hidden, weight, zero_up, axis)
        self.mix = nn.Parameter(torch.zeros(1)) if weighted else None
        self.reset_parameters()

    def reset_parameters(self, generator: torch.Generator | None = None) -> None:
        """Draws both tuners."""
        self.lateral.draw(generator)
        self.vertical.draw(generator)
        if self.mix is not None:
            nn.init.zeros_(self.mix)

    def forward(self, x: torch.Tensor, b: torch.Tensor) -> torch.Tensor:
        """The bypass behind the block."""
        lateral: torch.Tensor = x + self.lateral(x)
        vertical: torch.Tensor = b + self.vertical(b)
        if self.mix is None:
            return lateral + vertical
        share = torch.sigmoid(self.mix)
        return share * lateral + (1 - share) * vertical


@dataclass(frozen=True)
class ResTuning(Pass):
    """Bottlenecks beside frozen parts, or a bypass of all blocks."""

    verbs: ClassVar[tuple[str, ...]] = ("insert at",)
    attaches: ClassVar[tuple[str, ...]] = ("attention", "mlp", "block")
    source: ClassVar[str] = "Jiang et al., NeurIPS 2023"
    claims: ClassVar[tuple[str, ...]] = ("same_output_at_init",)
    reads: ClassVar[tuple[str, ...]] = ("prefix", "size")

    form: str = option(
        "base", choices=("base", "bypass"), help="beside parts, or beside all blocks"
    )
    hidden: int = option(10, minimum=1, help="width of the bottleneck")
    vertical_hidden: int | None = option(
        None, minimum=1, needs="form == 'bypass'", help="of the vertical tuners; hidden by default"
    )
    weight: str | None = option(
        None, choices=("scale", "channels", "gate"), help="what a tuner's part is multiplied by"
    )
    zero_up: bool = option(False, help="whether tuners start at zero")
    mix: str = option(
        "sum",
        choices=("sum", "weighted"),
        needs="form == 'bypass'",
        help="how the two tuners of a block come together",
    )

    def rewrite(self, site: AttentionSite | MlpSite | BlockSite) -> None:
        """y = part(x) becomes y = part(x) + T(x), or the bypass goes one block further."""
        site.expect(
            max(self.hidden, self.vertical_hidden or 0) < site.dim,
            "hidden",
            f"{self.hidden} is not below the width {site.dim}",
            notes=[f"valid: 1..{site.dim - 1}"],
        )
        if self.form == "bypass":
            site.waive("same_output_at_init", "the head reads the bypass")
            if not isinstance(site, BlockSite):
                raise site.reject("form", "a bypass is made of whole blocks, as blocks[*]")
            self.bypass(site)
            return
        if not self.zero_up:
            site.waive("same_output_at_init", "up is drawn, unless zero_up=true")
        axis = site.axis if isinstance(site, BlockSite) else -1
        tuner = ParallelTuner(site.dim, self.hidden, self.weight, self.zero_up, axis)
        if isinstance(site, BlockSite):
            site.beside(tuner)
        else:
            site.parallel(tuner)

    def bypass(self, block: BlockSite) -> None:
        """b = L(stop(x)) + V(b), with the x that the block yields."""
        before = block.handed
        if before is None:
            block.expect(block.leads, "form", "the blocks of a bypass have different options")
            for each in block.together:
                each.expect_kept(block.input)
            before = block.outside(block.input.value.detached(), "bypass")
        tuner = BypassTuner(
            block.dim,
            self.hidden,
            self.vertical_hidden or self.hidden,
            self.weight,
            self.zero_up,
            self.mix == "weighted",
            block.axis,
        )
        made = block.aside(tuner, block.leaving.value.detached(), before, name="bypass")
        block.hand_on(made)
        if block.ends:
            block.leaving.follow(made)
