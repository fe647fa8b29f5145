"""A search over structure: gates are trained to a cost, then what is left is trained from the base.

He et al., "Pruning Self-attentions into Convolutional Layers in Single Path", TPAMI 2024: all
weights and gates are trained with the loss + weight (target - MACs)^2; what the gates ended with is
built anew out of the weights that the model had before, and trained as the settings say. Gates are
closed or opened at the end so that the model costs what was asked for.

Other ways to decide are there to compare with: a ranking of trained scores (STEP), the gradient of
gates on some batches (salience: |sum of weight times gradient| over the weights that a gate takes
out is |gradient of the gate|), and chance.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import TYPE_CHECKING, Any

import torch

from ..errors import TuneError
from ..language.settings import Settings
from ..rewrite.choosing import FoundOptions
from ..rewrite.deciding import decided
from ..rewrite.rewritten import Rewritten
from ..text import giga
from .borders import bordered, ranked
from .draws import drawn
from .findings import findings
from .procedure import ParameterGroup, Phase, Procedure
from .projection import Projection
from .run import Run
from .spaces import Space, space_of

if TYPE_CHECKING:
    from ..data import Batch

_MEMORY = "search"  # in `run.memory`, which passes share
_SLACK = 0.005
"""How far beyond its ends a range of costs is still met, as a share: what is asked is rounded."""
_WEIGHT = 30.0
"""The weight of the cost if the dense model costs 1: the paper's are 24 to 63 of its models."""
_BATCHES = 32
"""That salience looks at."""
_AS_IT_IS = {
    "warmup_epochs": 0.0, "ema": None, "report": "last", "stop_after": None, "distil": "none",
}  # fmt: skip
"""What belongs to the training of the model that is found."""


class StructureSearch(Procedure):
    """Search, then training of what was found; nothing to do where a search was before."""

    def phases(self, run: Run) -> Sequence[Phase]:
        """The search as the settings have it, and training."""
        settings = run.base_settings
        space = space_of(run.original, patches=settings.count == "patches")
        if space is None:
            if run.original.result.found:
                return ()
            raise _nothing(settings)
        _check(run.original, space, settings)
        kinds: Mapping[str, type[SearchPhase]] = {
            "gates": GateSearch, "ranked": RankedSearch, "salience": SalienceSearch,
            "random": RandomSearch,
        }  # fmt: skip
        return kinds[settings.search](space, settings), Hardened()

    def report(self, run: Run) -> Mapping[str, Any]:
        """What was asked for, and what was found."""
        if _MEMORY not in run.memory:
            return {}
        known = {k: v for k, v in run.memory[_MEMORY].items() if k != "found"}
        return {"search": {**known, **findings(run.original, run.rewritten)}}


class SearchPhase(Phase):
    """What decides which parts stay."""

    name = "search"

    def __init__(self, space: Space, settings: Settings) -> None:
        assert settings.macs is not None
        self.space, self.target = space, float(settings.macs)
        self.settings: Mapping[str, Any] = {**_AS_IT_IS, **self.lasts(settings)}

    def lasts(self, settings: Settings) -> dict[str, Any]:
        """How long it takes, and at what rates."""
        lr, floor = settings.search_lr, settings.search_min_lr
        return {
            "epochs": settings.search_epochs, "steps": settings.search_steps,
            "lr": settings.lr if lr is None else lr,
            "min_lr": settings.min_lr if floor is None else floor,
        }  # fmt: skip

    def groups(self, run: Run) -> Iterable[ParameterGroup]:
        """Gates have a rate of their own, that stays, and no decay."""
        logits = {id(part.logits(run.module)) for part in self.space.parts}
        names = tuple(n for n, p in run.module.named_parameters() if id(p) in logits)
        rate = run.base_settings.gate_lr
        yield ParameterGroup(
            "gates", names, lr=rate, weight_decay=0.0, schedule="constant", fixed=True
        )

    def measures(self, run: Run) -> Mapping[str, Any]:
        """What the model costs by now, and how many of each module's parts are there."""
        return {
            "macs": round(float(self.space.cost(run.module).detach())),
            "open": opened(self.space, run.module),
        }

    def logits(self, run: Run) -> list[list[float]]:
        """What the search came to, part by part: above zero is open."""
        return [
            part.logits(run.rewritten.module).detach().flatten().tolist()
            for part in self.space.parts
        ]

    def finish(self, run: Run) -> None:
        """Meets the cost, and remembers what was found."""
        self.remember(run, Projection(self.space, self.logits(run), self.target))

    def remember(self, run: Run, found: Projection) -> None:
        """What was found as data."""
        options = self.space.found(found.opened)
        run.memory[_MEMORY] = {
            "by": run.base_settings.search,
            "count": run.base_settings.count,
            "asked": round(self.target),
            "searched": round(found.searched),
            "reached": round(found.cost),
            "off": round(found.off, 4),
            "moved": found.moved,
            "macs": self.space.by_pass(found.opened),
            "found": {name: each.to_json()["options"] for name, each in options.items()},
        }


def opened(space: Space, root: torch.nn.Module) -> dict[str, int]:
    """How many of the parts of each module are there."""
    modules: list[Any] = [root.get_submodule(part.insertion.path) for part in space.parts]
    with torch.no_grad():
        counts = torch.stack([module.priced().sum() for module in modules]).tolist()
    return {part.role: round(n) for part, n in zip(space.parts, counts, strict=True)}


class GateSearch(SearchPhase):
    """Gates that are drawn, with a loss of what they cost."""

    def terms(self, run: Run, batch: Batch, output: Any) -> Mapping[str, torch.Tensor]:
        """weight (target - MACs)^2, in G."""
        weight = run.base_settings.cost_weight
        if weight is None:
            weight = _WEIGHT / (self.space.ends[1] / 1e9) ** 2
        off = (self.space.cost(run.module) - self.target) / 1e9
        return {"cost": (weight * off * off).float()}


class RankedSearch(SearchPhase):
    """STEP: those with the largest scores are there, as many as the cost allows."""

    def start(self, run: Run) -> None:
        """Scores that differ: equal ones have no order."""
        with torch.no_grad():
            for part in self.space.parts:
                logits = part.logits(run.rewritten.module)
                draw = torch.rand(logits.shape, generator=run.generator(part.role))
                logits.copy_(draw.to(logits))

    def before_step(self, run: Run) -> None:
        """The border between open and closed, where the cost is met."""
        for part in self.space.parts:
            for gates in part.gates(run.module):
                gates.drawn = False
        with torch.no_grad():
            scores = [part.logits(run.module) for part in self.space.parts]
            border = ranked(self.space, scores, self.target)
            for each in scores:
                each.sub_(border.to(each))


class SalienceSearch(SearchPhase):
    """SSP: how much the loss would change without a part, to first order, on some batches."""

    update = False

    def lasts(self, settings: Settings) -> dict[str, Any]:
        """So many batches."""
        return {"steps": settings.search_steps or _BATCHES}

    def before_step(self, run: Run) -> None:
        """All is there."""
        for part in self.space.parts:
            for gates in part.gates(run.module):
                gates.drawn = False

    def after_backward(self, run: Run) -> None:
        """Adds up what this batch says."""
        found = []
        for part in self.space.parts:
            gradient = part.logits(run.module).grad
            assert gradient is not None
            found.append(gradient.detach().abs().flatten().cpu())
        before = run.memory.get(f"{_MEMORY}.salience")
        pairs = zip(before, found, strict=True) if before else ()
        run.memory[f"{_MEMORY}.salience"] = [a + b for a, b in pairs] if before else found

    def logits(self, run: Run) -> list[list[float]]:
        """How far each is from the border at which the cost is met."""
        scores = run.memory.pop(f"{_MEMORY}.salience")
        return bordered(self.space, scores, self.target)


class RandomSearch(SearchPhase):
    """Chance: nothing is trained before it is drawn what stays."""

    update = False

    def lasts(self, settings: Settings) -> dict[str, Any]:
        """No step."""
        return {"steps": 0, "schedule": "constant"}

    def finish(self, run: Run) -> None:
        """Draws."""
        generator = run.generator(f"draw {run.base_settings.search_draw}")
        self.remember(run, drawn(self.space, self.target, generator))


class Hardened(Phase):
    """Training of the model that was found, from the weights of the base."""

    def build(self, run: Run, rewritten: Rewritten) -> Rewritten:
        """The same clauses with what was found for them, on the base."""
        found = run.memory[_MEMORY]["found"]
        return decided(run.original, {k: FoundOptions(v) for k, v in found.items()}, anew=True)


# -- what cannot be searched ----------------------------------------------------------------------


def _nothing(settings: Settings) -> TuneError:
    return TuneError(
        "VR870",
        f"macs = {giga(settings.macs or 0)} asks for a search, and nothing in the spec "
        "has parts that one decides about",
        suggestion="replace blocks[*].mlp with uffn(), or leave out macs",
    )


def _check(rewritten: Rewritten, space: Space, settings: Settings) -> None:
    """Whether a search can come to what is asked for.

    Raises:
        TuneError: VR871 for a cost out of reach, VR872 for a way to search that does not fit,
            VR874 for a model that was trained before.
    """
    assert settings.macs is not None
    low, high = space.ends
    if not low * (1 - _SLACK) <= settings.macs <= high * (1 + _SLACK):
        raise TuneError(
            "VR871",
            f"macs = {giga(settings.macs)} is out of reach",
            notes=[f"within reach: {giga(round(low))} to {giga(round(high))}"],
        )
    if rewritten.trained:
        raise TuneError(
            "VR874",
            "what a search finds is trained from the weights of the base, and this model "
            "was trained already",
            suggestion="lower it, save its state, and give that as weights=FILE",
        )
    if settings.search in ("ranked", "salience"):
        _check_ranks(rewritten, space, settings.search)


def _check_ranks(rewritten: Rewritten, space: Space, search: str) -> None:
    for part in space.parts:
        if part.states or not part.gates(rewritten.module):
            raise TuneError(
                "VR872",
                f"search = {search} ranks parts that stand by themselves, and the gates "
                f"of {part.insertion.pass_name} at '{part.role}' hang together",
                suggestion="take search = gates, or random",
            )
