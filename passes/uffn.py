"""UFFN: an MLP with a gate per hidden unit, by which a search finds how many units it needs.

What it does
    Multiplies every hidden unit of a feed-forward part by a gate that is 0 or 1. A search trains
    their logits against a cost; lowered, units whose gate is closed are gone. `keep` states what
    such a search ended with, or any other choice: how many units stay at each site, those with the
    largest product of the norms of their row of fc1 and column of fc2, or which.

Source
    He et al., "Pruning Self-attentions into Convolutional Layers in Single Path", TPAMI 2024,
    section 3.4; as in the authors' code.

Attaches to
    The MLP of a block, also one with a second matrix that gates it (SwiGLU).

Parameters
    gate_logits [hidden], 1.5: a gate is open with probability 0.82. Trained, as are all weights of
    the model, by `train`. With `keep` none: rows of fc1 and its bias and columns of fc2 are those
    of the units that stay, and trained.

Forward
    y = fc2(u * act(fc1 x)), with u_j = 1 where logit_j > 0, else 0.
    Training: u is drawn at each call, one draw for all images and tokens. With U uniform,
    l = logit(U) + logit_j: u_j = 1 where l > 0, with the gradient of sigmoid(l / T).

Exactness
    The model is unchanged at initialisation without `keep`: all gates are open. Lowering takes the
    closed units out, exactly: their rows of fc1 and columns of fc2. All closed, one stays, and its
    column is zero.

Example
    replace blocks[*].mlp with uffn()
    replace blocks[0:2].mlp with uffn(keep=[300, 412])
    replace blocks[0:2].mlp with uffn(keep=[[0, 5, 9], [1, 2]])
    Each unit that goes takes 2 N C MACs and 2 C + 1 parameters with it: 531 units of DeiT-Ti are
    0.04 G and 0.204 M.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, ClassVar

import torch
from torch import nn

from vitrewrite.authoring import MlpSite, Pass, StructureGates, option


class GatedUnits(nn.Module):
    """gate * x, of hidden units x that lie on `axis`."""

    inserted_by = "uffn"
    changes = (0,)
    ahead = True

    def __init__(
        self, hidden: int, start: float = 1.5, temperature: float = 1.0, axis: int = -1
    ) -> None:
        super().__init__()
        self.hidden, self.start, self.temperature, self.axis = hidden, start, temperature, axis
        self.gates = StructureGates(hidden, start, temperature)

    def reset_parameters(self, generator: torch.Generator | None = None) -> None:
        """All gates are open."""
        self.gates.reset_parameters(generator)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """x [..., hidden] or [batch, hidden, ...], in the same shape."""
        gates: torch.Tensor = self.gates().to(x.dtype)
        if self.axis == -1:
            return x * gates
        shape = [1] * x.dim()
        shape[self.axis] = self.hidden
        return x * gates.view(shape)

    @property
    def logits(self) -> nn.Parameter:
        """What a search trains."""
        return self.gates.logits

    def priced(self) -> torch.Tensor:
        """Which units are there, for the cost."""
        return self.gates.priced()


@dataclass(frozen=True)
class Uffn(Pass):
    """A gate per hidden unit."""

    verbs: ClassVar[tuple[str, ...]] = ("replace",)
    attaches: ClassVar[tuple[str, ...]] = ("mlp",)
    source: ClassVar[str] = "He et al., TPAMI 2024"
    claims: ClassVar[tuple[str, ...]] = ("same_output_at_init", "lowers_exactly")
    writes: ClassVar[tuple[str, ...]] = ("layers",)

    keep: int | tuple[int, ...] | None = option(
        None,
        minimum=0,
        maximum=1048576,
        help="hidden units that stay: how many, or which; none for gates that decide it",
    )
    start: float = option(1.5, above=0, needs="keep is None", help="logit of a gate at first")
    temperature: float = option(
        1.0, above=0, needs="keep is None", help="T of the draw in training"
    )

    def rewrite(self, mlp: MlpSite) -> None:
        """y = fc2(u * act(fc1 x)); with `keep` the units are gone at once."""
        if self.keep is not None:
            mlp.keep(self.keep)
            mlp.waive("same_output_at_init", "hidden units are gone")
            return
        mlp.gate(GatedUnits(mlp.units, self.start, self.temperature, mlp.axis))

    def prices(
        self, mlp: MlpSite, module: nn.Module, *, patches_only: bool = False
    ) -> Sequence[float]:
        """What a unit costs is the same for all: its row of fc1 and its column of fc2."""
        return [mlp.unit_macs(patches_only=patches_only)] * mlp.units

    def lower(self, mlp: MlpSite, module: GatedUnits) -> bool:
        """Units whose gate is closed go; without them, so does the module."""
        return mlp.keep(self.found(module, module.gates.opened())["keep"])

    def found(self, module: nn.Module, opened: Sequence[bool]) -> Mapping[str, Any]:
        """The units that are open."""
        return {"keep": [i for i, there in enumerate(opened) if there]}

    def delta(self, module: GatedUnits) -> list[dict[str, torch.Tensor]]:
        """The logits, by the name that they have in the paper's code."""
        return [{"gate_logits": module.logits}]
