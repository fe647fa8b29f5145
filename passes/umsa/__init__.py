"""UMSA: attentions that a search may turn into convolutions out of their own heads, or drop.

What it does
    In place of an attention stands a layer that is a bottleneck convolution of each kernel and the
    attention at once. The convolutions are mixed out of the heads' values and projections, so they
    start from what was trained. Gates say which of them is there; a search moves them.

Source
    He et al., "Pruning Self-attentions into Convolutional Layers in Single Path", TPAMI 2024. Gates
    and the order of norm and ReLU are those of the authors' code; `rule=complex` is the paper's.

Attaches to
    Attentions over a sequence whose last tokens are a grid of patches, and attentions within
    windows that their block cuts from a map (Swin). There convolutions see the map as a whole, not
    shifted, as they do once they are lowered; `windows=inside` is the authors' search, in which
    they see the (shifted) window alone.

Parameters
    head_logits [h, K K], one, K the largest kernel; gate_logits [n + 1], `start`; for each kernel k
    bn{k}x{k}.weight, bias, running_mean and running_var [d], 1, 0, 0, 1. d = C / h. All trained.
    With `paths=multi` conv{k}x{k}.weight [d, C, k, k] and up{k}x{k}.weight [C, d, 1, 1] instead of
    head_logits, as torch draws them.

Forward
    s[h, p] = softmax over heads of z[h, p] / tau, positions p = dy + K dx
    W_p = sum_h s[h, p] W_v,h; b = sum_p sum_h s[h, p] b_v,h; U = sum_p sum_h s[h, p] W_o,h
    O_k = U relu(BN_k(sum_p shift_p(x W_p) + b)) + b_o over the k k positions in the middle
    I = cumprod(u), or u with `rule=complex`, for gates u of the kernels in turn and of attention
    O = sum_j I_j prod over q > j of (1 - I_q) O_j, the last one being what attention makes
    u = 1[l > 0] + y - stop(y), y = sigmoid(l / T), l = logit(U) + a with U uniform in training;
    u = 1[a > 0] in evaluation. One draw for all tokens and images. What a more complex branch
    covers has a factor of 0, and so no gradient by its own gate.
    Tokens in front of the patches pass a convolution as they are: the branch adds the norm of them.
    Where all is closed it adds nothing.

    A state says which branch is there from the start, with W_v, W_o, head_logits and norm of its
    own; all of it trains. `skip` takes the branch of the block out.

Exactness
    At first attention is there in evaluation: the model is unchanged. Lowers to the open branch, a
    convolution that holds its batch norm, ReLU and a 1x1 convolution; attention as it was; or
    nothing: exact in evaluation. Not with `windows=inside`, where they see the map once they are
    lowered, nor with `skip=identity`, where the norm passes then.

Example
    replace blocks[*].attn with umsa(kernels=[1, 3])
    adds 4,404 parameters to ViT-B/16. Of DeiT-B an attention is 2.362 M parameters and 0.524 GMAC,
    `state="3x3"` lowered 0.492 M and 0.096, `state="1x1"` 0.099 M and 0.019.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import pairwise
from typing import Any, ClassVar

import torch
from torch import nn

from vitrewrite.authoring import AttentionSite, Grid, Pass, folded, option

from .hard import ConvBottleneck, HeadConvolution, NoAttention
from .making import bottleneck, folded_mixture, named
from .search import SeparatePaths, UnifiedAttention


@dataclass(frozen=True)
class Umsa(Pass):
    """Attention, convolutions of its heads, or nothing, by gates."""

    verbs: ClassVar[tuple[str, ...]] = ("replace",)
    attaches: ClassVar[tuple[str, ...]] = ("attention",)
    source: ClassVar[str] = "He et al., TPAMI 2024"
    claims: ClassVar[tuple[str, ...]] = ("same_output_at_init", "lowers_exactly")
    reads: ClassVar[tuple[str, ...]] = ("prefix", "grid")

    kernels: tuple[int, ...] = option((1, 3), help="sides of the convolutions, odd and increasing")
    rule: str = option(
        "prefix",
        choices=("prefix", "complex"),
        help="whether a gate needs all simpler ones open, or the most complex open one decides",
    )
    tau: float | None = option(
        None, above=0, help="temperature of the heads' shares; 0.01, in windows 100 by default"
    )
    paths: str = option(
        "single",
        choices=("single", "multi"),
        help="whether convolutions are mixed out of the heads, or have weights of their own",
    )
    windows: str = option(
        "whole",
        choices=("whole", "inside"),
        help="in windows: whether convolutions see the whole map, as once they are lowered, or in "
        "the search the (shifted) window alone, as in the authors' code",
    )
    state: str = option(
        "search",
        words=("search", "skip", "msa"),
        help='what it is: all of it, decided by gates, or one branch, such as "3x3"',
    )
    skip: str = option(
        "zero",
        choices=("zero", "identity"),
        help="what an attention that is skipped adds, once it is lowered or where the state says "
        "so: nothing, as in the search, or the norm of the stream, as in the authors' code",
    )
    start: float = option(1.5, help="what the logits of the gates start as")
    temperature: float = option(1.0, above=0, help="of the draw of the gates in training")

    def rewrite(self, attn: AttentionSite) -> None:
        """y becomes a sum of y and convolutions of x, weighed by gates; or one of them alone."""
        self.check(attn)
        if self.state == "search":
            self.search(attn)
        elif self.state == "skip":
            self.leave_out(attn)
        elif self.state != "msa":
            self.harden(attn, self.kernels[self.states.index(self.state) - 1])
        if self.state not in ("search", "msa"):
            attn.waive("same_output_at_init", f"its attention is {self.state}")

    def search(self, attn: AttentionSite) -> None:
        """All branches at once."""
        window = attn.windows
        whole = window is not None and self.windows == "whole"
        grid = Grid(window) if window and not whole else attn.branch.grid
        width, options = attn.value_width, (self.rule, grid.size, self.start, self.temperature)
        if self.paths == "multi":
            attn.idle("tau", "where convolutions have weights of their own")
            made: nn.Module = SeparatePaths(attn.dim, width, self.kernels, *options)
        else:
            made = UnifiedAttention(width, attn.heads, self.shared(attn), self.kernels, *options)
        attn.become(made, *grid.sides, beside=True, layers=self.layers, whole=whole)
        if window and not whole:
            attn.waive("lowers_exactly", "convolutions see one window in the search, and all then")
        if self.skip == "identity":
            attn.waive("lowers_exactly", "where nothing is open the norm passes once it is lowered")

    def harden(self, attn: AttentionSite, kernel: int) -> None:
        """A convolution alone."""
        grid, width = attn.branch.grid, attn.value_width
        if self.paths == "multi":
            made: nn.Module = ConvBottleneck(attn.dim, width, kernel, grid.size, True, False)
        else:
            options = self.shared(attn), kernel, max(self.kernels), grid.size
            made = HeadConvolution(width, attn.heads, *options)
        whole = attn.windows is not None
        attn.become(made, *grid.sides, layers=self.layers, whole=whole)

    def leave_out(self, attn: AttentionSite) -> None:
        """Nothing in its place, or what it reads."""
        if self.skip == "identity" or attn.bare:
            attn.leave_out(passing=self.skip == "identity")
        else:
            attn.become(NoAttention(), layers=(), whole=attn.windows is not None)

    @property
    def layers(self) -> tuple[str, ...]:
        """Whose tensors convolutions are made of."""
        return () if self.paths == "multi" else ("v", "proj")

    @property
    def states(self) -> list[str]:
        """What an attention may become, the simplest first."""
        return ["skip", *(f"{k}x{k}" for k in self.kernels), "msa"]

    def shared(self, attn: AttentionSite) -> float:
        """The temperature of the softmax over heads."""
        return self.tau or (0.01 if attn.windows is None else 100.0)

    def lower(self, attn: AttentionSite, module: Any) -> bool:
        """The branch that is open, with weights of its own."""
        if isinstance(module, NoAttention):
            return False
        if isinstance(module, ConvBottleneck):
            if module.normed:
                layers: Any = module.layers
                conv, norm, _, up = layers
                attn.swap(bottleneck(folded(conv, norm), up.weight, up.bias, module.grid))
            return False
        if isinstance(module, HeadConvolution):
            v, v_bias, proj, proj_bias = attn.called_with(1, 2, 3, 4)
            mixed = module.mixture(module.kernel, v, v_bias, proj)
            made = folded_mixture(mixed, module.norm, proj_bias, module.grid)
            attn.take_over(made, (0, *range(5, attn.given)))
            return True
        state = self.states.index(self.found(module, module.gates.opened())["state"])
        if state > len(module.kernels):
            attn.drop()
        elif state:
            self.lower_to(attn, module, state - 1)
        elif self.skip == "identity" or attn.bare:
            attn.leave_out(passing=self.skip == "identity")
        else:
            attn.take_over(NoAttention())
        return True

    def lower_to(
        self, attn: AttentionSite, module: UnifiedAttention | SeparatePaths, index: int
    ) -> None:
        """One of the convolutions of a search."""
        inside = attn.windows is not None and self.windows == "inside"
        grid, norm = None if inside else module.grid, module.norms[index]
        if isinstance(module, UnifiedAttention):
            v, v_bias, proj, proj_bias = attn.called_with(2, 3, 4, 5)
            mixed = module.mixture(module.kernels[index], v, v_bias, proj)
            made = folded_mixture(mixed, norm, proj_bias, grid)
        else:
            conv: Any = module.convs[index]
            up: Any = module.ups[index]
            made = bottleneck(folded(conv, norm), up.weight, up.bias, grid)
        given = range(6 if isinstance(module, UnifiedAttention) else 2, attn.given)
        attn.take_over(made, (0, *given), whole=inside)

    def check(self, attn: AttentionSite) -> None:
        """Kernels that fit the grid, and heads of which each has its own values."""
        sides = list(self.kernels)
        increasing = bool(sides) and all(a < b for a, b in pairwise([0, *sides]))
        attn.expect(
            increasing and all(k % 2 for k in sides),
            "kernels",
            f"{_told(sides)} cannot be",
            suggestion="write odd numbers in increasing order, such as kernels=[1, 3]",
        )
        known = ["search", *self.states]
        attn.expect(
            self.state in known,
            "state",
            f"'{self.state}' is none of its states",
            suggestion=f"write one of {', '.join(known)}",
        )
        if self.state in ("skip", "msa"):
            return
        height, width = attn.branch.patches
        attn.expect(
            sides[-1] <= min(height, width),
            "kernels",
            f"a kernel of {sides[-1]}x{sides[-1]} is larger than {height}x{width} patches",
        )
        attn.expect_whole()
        if attn.over != "tokens":
            raise attn.unfit("it attends over channels")
        if not attn.windows:
            attn.idle("windows", "where nothing attends within windows")

    def prices(
        self,
        attn: AttentionSite,
        module: UnifiedAttention | SeparatePaths,
        *,
        patches_only: bool = False,
    ) -> list[float]:
        """Of each branch alone, or with `rule=prefix` what it costs more than the one before.

        The attention is over all tokens whatever `patches_only` says, as the paper has it.
        """
        height, width = attn.branch.patches
        matrix = height * width * attn.dim * module.hidden
        costs = [*((k * k + 1.0) * matrix for k in module.kernels), float(attn.macs)]
        if module.rule == "complex":
            return costs
        return [b - a for a, b in pairwise([0.0, *costs])]

    def found(
        self, module: UnifiedAttention | SeparatePaths, opened: Sequence[bool]
    ) -> dict[str, str]:
        """The state that gates stand for."""
        if module.rule == "prefix":
            return {"state": self.states[[*opened, False].index(False)]}
        return {"state": self.states[max((i + 1 for i, o in enumerate(opened) if o), default=0)]}

    def delta(self, module: nn.Module) -> list[dict[str, torch.Tensor]]:
        """Named as the method names them."""
        (own,) = super().delta(module)
        return [{named(name, module): tensor for name, tensor in own.items()}]


def _told(sides: Sequence[int]) -> str:
    return f"kernels of {', '.join(map(str, sides))}" if sides else "no kernels"
