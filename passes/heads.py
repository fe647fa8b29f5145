"""Heads: an attention with a gate per head, by which a search finds which heads it needs.

What it does
    Multiplies what every head of an attention yields by a gate that is 0 or 1. A search trains
    their logits against a cost, or ranks heads by them; lowered, heads whose gate is closed are
    gone. `keep` states what a search ended with, or any other choice: how many heads stay at each
    site, those with the largest product of the norms of their rows of v and columns of proj, or
    which.

Source
    The baselines of He et al., "Pruning Self-attentions into Convolutional Layers in Single Path",
    TPAMI 2024, table 7. No code of them is public: the gates are those of its UFFN.

Attaches to
    The attention of a block, in which each head has queries, keys and values of its own.

Parameters
    gate_logits [heads], 1.5: a gate is open with probability 0.82. Trained, as are all weights of
    the model, by `train`. With `keep` none: rows of q, k and v and their biases, columns of proj
    and of a table of biases by position are those of the heads that stay, and trained. Without any
    head: bias [C], that of proj.

Forward
    y = proj(concat_h(g_h o_h)), with g_h = 1 where logit_h > 0, else 0.
    Training: g is drawn at each call, one draw for all images and tokens. With U uniform,
    l = logit(U) + logit_h: g_h = 1 where l > 0, with the gradient of sigmoid(l / T).

Exactness
    The model is unchanged at initialisation without `keep`: all gates are open. Lowering takes the
    closed heads out, exactly; width and scale of a head stay. All closed, every token gets the bias
    of proj, and the attention is gone.

Example
    replace blocks[*].attn with heads()
    replace blocks[0:2].attn with heads(keep=[[0, 2], [1]])
    Each head of N tokens that goes takes 4 N C d + 2 N^2 d MACs and 4 C d + 3 d parameters with it:
    14.6 M and 49.3 k of DeiT-Ti.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, ClassVar

import torch
from torch import nn

from vitrewrite.authoring import AttentionSite, Pass, StructureGates, option


class GatedHeads(nn.Module):
    """gate * x, of what heads yield side by side, `width` channels each."""

    inserted_by = "heads"
    changes = (0,)
    ahead = True

    def __init__(
        self, heads: int, width: int, start: float = 1.5, temperature: float = 1.0
    ) -> None:
        super().__init__()
        self.heads, self.width, self.start, self.temperature = heads, width, start, temperature
        self.gates = StructureGates(heads, start, temperature)

    def reset_parameters(self, generator: torch.Generator | None = None) -> None:
        """All gates are open."""
        self.gates.reset_parameters(generator)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """x [..., heads * width], in the same shape."""
        gates: torch.Tensor = self.gates().to(x.dtype)
        return x * gates.repeat_interleave(self.width)

    @property
    def logits(self) -> nn.Parameter:
        """What a search trains."""
        return self.gates.logits

    def priced(self) -> torch.Tensor:
        """Which heads are there, for the cost."""
        return self.gates.priced()


class EveryToken(nn.Module):
    """Numbers that all tokens get: what is left of an attention without heads."""

    inserted_by = "heads"
    changes = (0,)

    def __init__(self, width: int) -> None:
        super().__init__()
        self.width = width
        self.bias = nn.Parameter(torch.zeros(width))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """[..., width], for x [..., channels]."""
        return self.bias.expand(*x.shape[:-1], self.width)


@dataclass(frozen=True)
class Heads(Pass):
    """A gate per head."""

    verbs: ClassVar[tuple[str, ...]] = ("replace",)
    attaches: ClassVar[tuple[str, ...]] = ("attention",)
    source: ClassVar[str] = "He et al., TPAMI 2024"
    claims: ClassVar[tuple[str, ...]] = ("same_output_at_init", "lowers_exactly")
    writes: ClassVar[tuple[str, ...]] = ("layers",)

    keep: int | tuple[int, ...] | None = option(
        None,
        minimum=0,
        maximum=65536,
        help="heads that stay: how many, or which; none for gates that decide it",
    )
    skip: bool = option(False, needs="keep is not None", help="whether a site may lose all heads")
    start: float = option(1.5, above=0, needs="keep is None", help="logit of a gate at first")
    temperature: float = option(
        1.0, above=0, needs="keep is None", help="T of the draw in training"
    )

    def rewrite(self, attn: AttentionSite) -> None:
        """y = proj(concat_h(g_h o_h)); with `keep` the heads are gone at once."""
        if self.keep is not None:
            self.narrow(attn, self.keep)
            attn.waive("same_output_at_init", "heads are gone")
            return
        width = attn.proj.in_features // attn.heads
        attn.gate(GatedHeads(attn.heads, width, self.start, self.temperature))

    def narrow(self, attn: AttentionSite, keep: int | tuple[int, ...]) -> None:
        """Some heads are gone, or all."""
        if keep in (0, ()):
            attn.expect(
                self.skip,
                "keep",
                "no head would stay",
                suggestion="skip=true has every token get the bias of proj",
            )
            attn.silence(EveryToken(attn.dim))
            attn.waive("lowers_exactly", "it is as cheap as it can be")
        else:
            attn.keep_heads(keep)

    def prices(
        self, attn: AttentionSite, module: nn.Module, *, patches_only: bool = False
    ) -> Sequence[float]:
        """What a head costs is the same for all; attention is over all tokens in either count."""
        return [attn.head_macs] * attn.heads

    def lower(self, attn: AttentionSite, module: GatedHeads | EveryToken) -> bool:
        """Heads whose gate is closed go; without them, so does the module."""
        if isinstance(module, EveryToken):
            return False
        keep = self.found(module, module.gates.opened())["keep"]
        return attn.keep_heads(keep) if keep else attn.silence(EveryToken(attn.dim))

    def found(self, module: nn.Module, opened: Sequence[bool]) -> Mapping[str, Any]:
        """The heads that are open."""
        keep = [i for i, there in enumerate(opened) if there]
        return {"keep": keep} if keep else {"keep": keep, "skip": True}

    def initialise(self, module: nn.Module, generator: torch.Generator) -> None:
        """Gates are open; the bias of proj is what it was."""
        if isinstance(module, GatedHeads):
            module.reset_parameters(generator)

    def delta(self, module: GatedHeads | EveryToken) -> list[dict[str, torch.Tensor]]:
        """The logits, named as those of `uffn`; or the bias."""
        if isinstance(module, EveryToken):
            return [{"bias": module.bias}]
        return [{"gate_logits": module.logits}]
