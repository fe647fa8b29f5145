"""Dynamic tuning (DyT): a gate per token decides whether it passes a part of a block or skips it.

What it does
    In every block a trained gate looks at each token. Those that it lets pass are computed as ever,
    the others skip the MLP, the attention, or the block, and are changed by a small adapter alone,
    which all tokens pass. While it is trained all tokens are computed; lowered, only the active.

Source
    Zhao et al., "Dynamic Tuning Towards Parameter and Inference Efficiency for ViT Adaptation",
    NeurIPS 2024. At `mlp_branch` as in the authors' code; the other places and `experts` are named
    in the paper alone, and are our reading of it.

Attaches to
    `mlp_branch` (the paper's choice), `attn_branch`, both, or whole blocks, over one sequence of
    tokens. Tokens of the prefix are always active: class, registers, distillation, prompts. Gates
    read tokens as they are there, merged ones too.

Parameters
    dispatch.weight [1, d], truncated normal of std 0.02, and bias [1], zero; adapter.down.weight
    [h, d], Kaiming-uniform with a = sqrt(5), and bias [h], zero; adapter.up.weight [d, h] and bias
    [d], zero. With `experts` E the adapter's have E in front, and there are adapter.router.weight
    [E, d] and bias [E]. All trained.

Forward
    l = w x + b for patches x of the stream, not normalised
    g = [l > 0] in evaluation; in training p = sigmoid((l + G1 - G2) / tau) with Gumbel noise, and
    g = [p > 1/2] + p - stop(p)
    x = x + g f(x) + s up(drop(relu(down x)))                           a branch
    x = x + g (block(x) - x) + s up(drop(relu(down x)))                 a block
    An attention that is skipped attends among active tokens: + log g to the scores of their keys,
    or with `soft_keys` + log p in training.
    alpha = softmax(router(mean over tokens of x)); down = sum alpha_e down_e, up likewise   experts
    The entry `complete` of the model has all g = 1, and `dynamic` yields (output, gates).
    Loss = CE(dynamic) + 2 (mean g - rate)^2 + CE(complete) + KL(stop(complete) || dynamic), with
    one mean over batch, layers and patches.
    With `budget` the share of tokens with the largest l is active in evaluation, not those above 0.

Exactness
    Lowers to a gather of the active tokens over the batch, and an index-copy; attention is padded
    to the image with most of them. A head that pools sees all tokens. Costs of the lowered model
    are told for `rate`, or for `stated`.

Example
    insert dispatch(rate=0.5) at blocks[*].mlp_branch
    adds 165,996 parameters to ViT-B/16; lowered it costs 12.05 GMAC instead of 17.56 where half of
    the patches are active.
"""

import math
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, ClassVar

import torch
import torch.nn.functional as F
from torch import nn

from vitrewrite.authoring import BlockSite, BranchSite, Pass, frozen, option

if TYPE_CHECKING:
    from .losses import RateAndCompleteModel


class TokenGate(nn.Module):
    """One number per token: 1 for those that are active, 0 for the others.

    The first `prefix` tokens are always active. `hard` gates draw no noise in training.
    """

    inserted_by = "dispatch"

    def __init__(
        self,
        width: int,
        prefix: int,
        tau: float = 5.0,
        bias: float = 0.0,
        budget: float | None = None,
        soft: bool = False,
        hard: bool = False,
    ) -> None:
        super().__init__()
        self.width, self.prefix, self.tau, self.bias = width, prefix, tau, bias
        self.budget, self.soft, self.hard = budget, soft, hard
        self.dispatch = nn.Linear(width, 1)
        self.reset_parameters()

    def reset_parameters(self, generator: torch.Generator | None = None) -> None:
        """Draws the weight; the bias is where the gate starts."""
        nn.init.trunc_normal_(self.dispatch.weight, std=0.02, generator=generator)
        nn.init.constant_(self.dispatch.bias, self.bias)

    def forward(
        self, x: torch.Tensor, complete: torch.Tensor | None = None
    ) -> torch.Tensor | tuple[torch.Tensor, torch.Tensor]:
        """Gates [B, T] of x [B, T, C], all 1 where `complete` is; if soft also what keys weigh."""
        score = self.dispatch(x[:, self.prefix :]).squeeze(-1).float()
        noisy = self.training and not self.hard
        if noisy:
            score = score + self.gumbel(score) - self.gumbel(score)
        chance = torch.sigmoid(score / self.tau)
        active = (self.best(score) if not noisy and self.budget is not None else score > 0).float()
        gate = self.with_prefix(active + (chance - chance.detach()), x, complete)
        if not self.soft:
            return gate
        return gate, self.with_prefix(chance, x, complete) if noisy else gate

    def gumbel(self, like: torch.Tensor) -> torch.Tensor:
        """Independent standard Gumbel noise."""
        return -torch.empty_like(like).exponential_().log()

    def best(self, score: torch.Tensor) -> torch.Tensor:
        """Whether a token is one of those that the budget allows, [B, N]."""
        count = int((self.budget or 0.0) * score.shape[1])
        chosen = score.topk(count, dim=1).indices
        return torch.zeros_like(score).scatter(1, chosen, 1.0)

    def with_prefix(
        self, gate: torch.Tensor, x: torch.Tensor, complete: torch.Tensor | None
    ) -> torch.Tensor:
        """Gates of all tokens, in the dtype of x."""
        gate = F.pad(gate, (self.prefix, 0), value=1.0).to(x.dtype)
        return gate if complete is None else gate + complete * (1 - gate)


class DispatchAdapter(nn.Module):
    """y + scale * up(relu(down(x))), with biases: what all tokens pass."""

    inserted_by = "dispatch"
    changes = (1,)

    def __init__(self, width: int, hidden: int, scale: float = 1.0, dropout: float = 0.1) -> None:
        super().__init__()
        self.width, self.hidden, self.scale, self.dropout = width, hidden, scale, dropout
        self.down, self.up = nn.Linear(width, hidden), nn.Linear(hidden, width)
        self.reset_parameters()

    def reset_parameters(self, generator: torch.Generator | None = None) -> None:
        """Draws `down` and zeroes the rest, so that it starts as nothing."""
        nn.init.kaiming_uniform_(self.down.weight, a=math.sqrt(5), generator=generator)
        for tensor in (self.down.bias, self.up.weight, self.up.bias):
            nn.init.zeros_(tensor)

    def forward(self, x: torch.Tensor, y: torch.Tensor) -> torch.Tensor:
        """y [B, T, C] with what it makes of x added."""
        code = F.dropout(F.relu(self.down(x)), self.dropout, self.training)
        made: torch.Tensor = self.up(code)
        return y + self.scale * made


class ExpertLinear(nn.Module):
    """Linear layers [experts, out, in], which are mixed into one for each image."""

    def __init__(self, experts: int, inputs: int, outputs: int) -> None:
        super().__init__()
        self.experts, self.inputs, self.outputs = experts, inputs, outputs
        self.weight = nn.Parameter(torch.empty(experts, outputs, inputs))
        self.bias = nn.Parameter(torch.empty(experts, outputs))

    def forward(self, x: torch.Tensor, share: torch.Tensor) -> torch.Tensor:
        """The mixed layer of x [B, T, in] with shares [B, experts]."""
        weight = (share @ self.weight.flatten(1)).view(-1, self.outputs, self.inputs)
        return torch.baddbmm((share @ self.bias)[:, None], x, weight.mT)


class MixtureAdapter(nn.Module):
    """The same with experts, whose weights are mixed for each image by what its tokens are."""

    inserted_by = "dispatch"
    changes = (1,)

    def __init__(
        self, width: int, hidden: int, experts: int, scale: float = 1.0, dropout: float = 0.1
    ) -> None:
        super().__init__()
        self.width, self.hidden, self.experts = width, hidden, experts
        self.scale, self.dropout = scale, dropout
        self.router = nn.Linear(width, experts)
        self.down = ExpertLinear(experts, width, hidden)
        self.up = ExpertLinear(experts, hidden, width)
        self.reset_parameters()

    def reset_parameters(self, generator: torch.Generator | None = None) -> None:
        """Draws `down` of each expert and the router, and zeroes the rest."""
        for matrix in (self.router.weight, *self.down.weight):
            nn.init.kaiming_uniform_(matrix, a=math.sqrt(5), generator=generator)
        for tensor in (self.router.bias, self.down.bias, self.up.weight, self.up.bias):
            nn.init.zeros_(tensor)

    def forward(self, x: torch.Tensor, y: torch.Tensor) -> torch.Tensor:
        """y [B, T, C] with what it makes of x added."""
        share = self.router(x.mean(dim=1)).softmax(dim=-1)
        code = F.dropout(F.relu(self.down(x, share)), self.dropout, self.training)
        made: torch.Tensor = self.up(code, share)
        return y + self.scale * made


@dataclass(frozen=True)
class Dispatch(Pass):
    """Tokens pass a part of a block, or skip it."""

    verbs: ClassVar[tuple[str, ...]] = ("insert at",)
    attaches: ClassVar[tuple[str, ...]] = ("branch", "block")
    source: ClassVar[str] = "Zhao et al., NeurIPS 2024"
    claims: ClassVar[tuple[str, ...]] = ("lowers_exactly",)
    reads: ClassVar[tuple[str, ...]] = ("prefix", "size")
    excludes: ClassVar[tuple[str, ...]] = ("adaptformer", "bi.adaptformer", "uniadapter")
    named: ClassVar[str] = "dyt"

    rate: float = option(0.5, above=0, maximum=1, help="share of patches that is to be active")
    hidden: int = option(8, minimum=1, maximum=4096, help="width of the adapter")
    scale: float = option(1.0, help="fixed factor of the adapter; 0.1 on large data sets")
    dropout: float = option(0.1, minimum=0, below=1, help="of its code, in training only")
    experts: int | None = option(
        None, minimum=2, maximum=64, help="adapters that are mixed for each image; none for one"
    )
    tau: float = option(5.0, above=0, help="temperature of the gates in training")
    gate_bias: float = option(0.0, help="what the bias of a gate starts as: more is more active")
    soft_keys: bool = option(
        False, help="whether attention weighs keys by their chance in training, not by the gate"
    )
    budget: float | None = option(
        None, above=0, maximum=1, help="fixed share of patches in evaluation, those of largest l"
    )
    rate_weight: float = option(2.0, minimum=0, help="of the loss of the rate")
    complete: bool = option(True, help="whether training has the losses of the complete model")
    stated: float | None = option(
        None, above=0, maximum=1, help="share that costs are told for; the rate by default"
    )

    def rewrite(self, site: BranchSite | BlockSite) -> None:
        """x + f(x) becomes x + g f(x) + adapter(x)."""
        self.check(site)
        options = site.dim, site.prefix, self.tau, self.gate_bias, self.budget
        gate = TokenGate(*options, soft=self.soft_keys and site.attends)
        names = ("gate", "keys") if gate.soft else ("gate",)
        g, *keys = site.decide(gate, site.asked("complete"), names=names)
        site.route(g, keys=keys[0].log() if keys else None)
        site.beside(self.adapter(site.dim, self.scale, self.dropout))
        site.appended("dynamic", g)

    def adapter(self, width: int, scale: float, dropout: float) -> nn.Module:
        """What all tokens pass."""
        if self.experts is None:
            return DispatchAdapter(width, self.hidden, scale, dropout)
        return MixtureAdapter(width, self.hidden, self.experts, scale, dropout)

    def check(self, site: BranchSite | BlockSite) -> None:
        """What would be odd, or cannot be."""
        if self.hidden >= site.dim:
            site.warn(f"hidden {self.hidden} is no bottleneck of {site.dim} channels")
        if site.pooled:
            site.warn("the head pools all tokens, those too that skipped a part of the blocks")
        if not site.attends:
            site.idle("soft_keys", "where nothing attends")
        elif not site.prefix:
            raise site.unfit(
                "no token is always active, so an image may have none that attends",
                suggestion="gate mlp_branch, or take a model with a class token",
            )

    def lower(self, site: BranchSite | BlockSite, module: Any) -> bool:
        """The active tokens alone, by gates without noise; up = s * up in the adapter."""
        if isinstance(module, TokenGate):
            share = self.stated or self.budget or self.rate
            site.gather(share, site.siblings.index(site.role), fixed=self.budget is not None)
            options = module.width, module.prefix, module.tau, module.bias, module.budget
            hard = TokenGate(*options, soft=module.soft, hard=True)
            hard.dispatch = frozen(module.dispatch)
            site.swap(hard, given=(0,))
            return False
        if module.scale == 0:
            site.drop()
            return True
        with torch.device("meta"):  # every tensor is put in its place
            fused: Any = self.adapter(module.width, scale=1.0, dropout=0.0)
        for name, parameter in module.named_parameters():
            owner, _, leaf = name.rpartition(".")
            value = module.scale * parameter if owner == "up" else parameter
            setattr(fused.get_submodule(owner), leaf, nn.Parameter(value))
        site.swap(fused)
        return False

    def delta(self, module: nn.Module) -> list[dict[str, torch.Tensor]]:
        """The gate, or what is of the adapter, as the method names it."""
        front = "" if isinstance(module, TokenGate) else "adapter."
        return [{f"{front}{name}": p for name, p in module.named_parameters()}]

    def procedure(self) -> "RateAndCompleteModel":
        """The losses of the rate and of the complete model."""
        from .losses import RateAndCompleteModel

        return RateAndCompleteModel(self.rate, self.rate_weight, complete=self.complete)
