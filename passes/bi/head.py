"""Bi-head: a linear head without bias whose weight has few bits a number, one by default.

What it does
    Replaces the layer that makes the classes by a quantised one, so that a task stores 8 to 32
    times less for its head too.

Source
    Jie, Wang, Deng, "Revisiting the Parameter Efficiency of Adapters from the Perspective of
    Precision Redundancy", ICCV 2023.

Attaches to
    A head that is a linear layer. The layer that was there goes, and its bias with it.

Parameters
    weight [classes, d], latent, in float32: Kaiming-uniform with a = sqrt(5), trained.

Forward
    logits = W' x, with W' = (q + n - stop(n)) sg + mu, n = (W - mu) / (sg + 1e-5) and q its nearest
    of 2^bits levels; mu and sg, mean and unbiased deviation of W, are differentiated.

Exactness
    A new head, as any before it is trained. Lowering makes W' a plain weight.

Example
    replace head with bi.head(bits=1)
    is a head of 768,000 parameters on ViT-B/16 with 1000 classes, 96,008 bytes packed.
"""

from dataclasses import dataclass
from typing import ClassVar

import torch
import torch.nn.functional as F
from torch import nn

from vitrewrite.authoring import HeadSite, Pass, Quantised, option


class QuantisedHead(nn.Module):
    """A linear head without bias, of few bits a number."""

    inserted_by = "bi.head"

    def __init__(self, in_features: int, out_features: int, bits: int = 1) -> None:
        super().__init__()
        self.in_features, self.out_features, self.bits = in_features, out_features, bits
        self.quantised = Quantised(out_features, in_features, bits)

    def reset_parameters(self, generator: torch.Generator | None = None) -> None:
        """Draws the weight."""
        self.quantised.reset_parameters(generator)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """The logits of x [..., in_features]."""
        return F.linear(x, self.quantised().to(x.dtype))


@dataclass(frozen=True)
class BiHead(Pass):
    """A head of few bits."""

    verbs: ClassVar[tuple[str, ...]] = ("replace",)
    attaches: ClassVar[tuple[str, ...]] = ("head",)
    source: ClassVar[str] = "Jie et al., ICCV 2023"
    claims: ClassVar[tuple[str, ...]] = ()
    sole: ClassVar[str] = "readout"

    bits: int = option(1, choices=(1, 2, 4, 8, 32), help="of a number; 32 are floats as they are")

    def rewrite(self, head: HeadSite) -> None:
        """logits = W x + b becomes logits = W' x."""
        count = head.in_features * head.out_features
        one = "a matrix of one number has no deviation"
        head.expect(self.bits == 32 or count > 1, "bits", one, suggestion="bits=32")
        head.replace(QuantisedHead(head.in_features, head.out_features, self.bits))

    def lower(self, head: HeadSite, module: QuantisedHead) -> bool:
        """The weight as it is used."""
        plain = QuantisedHead(module.in_features, module.out_features, bits=32)
        plain.quantised.weight = nn.Parameter(module.quantised(), requires_grad=False)
        head.swap(plain)
        return False

    def delta(self, module: QuantisedHead) -> list[dict[str, torch.Tensor]]:
        """The latent weight, or that in use once it is lowered."""
        return [{"weight": module.quantised.weight}]
