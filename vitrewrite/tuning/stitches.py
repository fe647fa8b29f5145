"""Training of several models that are stitched: each step trains one stitch.

Uniform draws are those of SN-Net. With `stitch_sampling = scored` and `stitch_teacher = anchor` it
is ESTA: He et al., CVPR 2024. Each step the largest model learns from the labels, and a stitch from
them and from the class that the largest model says. The score of a stitch is the moving average of
sum |parameter * gradient of its loss| over what it trains, heads left out.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
import torch.nn.functional as F
from torch import nn
from torch.func import functional_call

from ..data import evaluation_batches
from ..data.loading import ProcessShare
from ..language.settings import Settings
from ..profiling.latencies import Latencies
from ..profiling.latency import latencies_of
from ..report.palette import Interval, best, intervals
from ..rewrite.rewritten import Rewritten
from ..rewrite.stitches import OneStitch
from ..tasks import logits
from ..tracing.paths import told
from .palette import draw
from .procedure import Phase, Procedure
from .run import Run

if TYPE_CHECKING:
    from ..data import Batch

_MEMORY = "stitches"  # in `run.memory`, which passes share
_PEAKED = 20.0
"""A score so far above the median of its interval takes all draws: softmax is then an argmax."""


class StitchTraining(Procedure):
    """One phase, in which a step trains one stitch."""

    skips_parameters = True

    def phases(self, run: Run) -> Sequence[Phase]:
        """The phase."""
        return (StitchPhase(run.original, run.base_settings),)

    def report(self, run: Run) -> Mapping[str, Any]:
        """What each interval of costs is left with, and how often each stitch was drawn."""
        phase = run.phases[-1]
        assert isinstance(phase, StitchPhase)
        return {"stitches": phase.told(run)}


class StitchPhase(Phase):
    """Steps that train one stitch each.

    What is kept between the parts of a step is in attributes: no step is interrupted.
    """

    skips_parameters = True

    def __init__(self, rewritten: Rewritten, settings: Settings) -> None:
        space = rewritten.measures.stitches
        assert space is not None
        self.costs = [stitch.macs_lowered for stitch in space.stitches]
        alone = [s.number for s in space.stitches if s.path.layer is None]
        self.largest = max(alone, key=self.costs.__getitem__)
        table = settings.stitch_table
        self.given = None if table is None else Latencies.read(Path(table), len(self.costs))
        anatomies = rewritten.result.anatomy.bases.values()
        self.heads = tuple(h.weight.rpartition(".")[0] + "." for a in anatomies for h in a.head)
        self.copies: dict[str, torch.Tensor] = {}  # what the largest model's gradients go to
        self.tables: dict[int, torch.Tensor] = {}
        self.labelled: torch.Tensor | None = None

    def memory(self, run: Run) -> dict[str, Any]:
        """What a resumed run goes on with."""
        empty = {
            "drawn": 0, "scores": [0.0] * len(self.costs), "counts": [0] * len(self.costs),
            "measured": {}, "latency": {},
        }  # fmt: skip
        found: dict[str, Any] = run.memory.setdefault(_MEMORY, empty)
        return found

    def parts(self, run: Run) -> tuple[Interval, ...]:
        """The intervals of costs; times are measured once in a run, before its first step."""
        settings, known = run.settings, self.memory(run)
        if settings.stitch_by == "macs":
            return intervals(self.costs, settings.stitch_intervals)
        if not known["latency"]:
            device = next(run.module.parameters()).device
            found = self.given or latencies_of(
                run.rewritten, device, batch=settings.stitch_batch, rounds=settings.stitch_rounds
            )
            known["latency"] = found.to_json()
        return intervals(known["latency"]["ms"], settings.stitch_intervals)

    # -- a step -----------------------------------------------------------------------------------

    def before_step(self, run: Run) -> None:
        """Draws a stitch."""
        known, settings, generator = self.memory(run), run.settings, run.generator("stitch")
        parts = self.parts(run)
        if settings.stitch_sampling == "uniform" or run.progress < settings.stitch_warmup:
            number = int(torch.randint(len(self.costs), (1,), generator=generator))
        else:
            number = draw(
                parts,
                known["scores"],
                generator,
                temperature=settings.stitch_temperature,
                normalised=settings.stitch_scores == "maximum",
            )
        known["drawn"] = number
        if settings.stitch_teacher == "anchor":
            self.copies = {
                f"model.{n}": p.detach().requires_grad_()
                for n, p in run.module.named_parameters()
                if p.requires_grad
            }

    def output(self, run: Run, model: Any, images: torch.Tensor) -> Any:
        """What the stitch yields."""
        return run.module.stitch(images, self.memory(run)["drawn"])  # type: ignore[operator]

    def loss(self, run: Run, batch: Batch, output: Any) -> torch.Tensor:
        """That of the labels, and of what the largest model says."""
        own = super().loss(run, batch, output)
        if run.settings.stitch_teacher == "none":
            return own
        # On copies of the parameters: the score is of the stitch's gradient alone.
        said = functional_call(OneStitch(run.module, self.largest), self.copies, (batch.images,))
        self.labelled = super().loss(run, batch, said)
        weight = run.settings.stitch_weight
        hard = F.cross_entropy(logits(output), logits(said).detach().argmax(1))
        return (1 - weight) * own + weight * hard

    def terms(self, run: Run, batch: Batch, output: Any) -> Mapping[str, torch.Tensor]:
        """The largest model learns from the labels."""
        found, self.labelled = self.labelled, None
        return {} if found is None else {"anchor": found}

    def after_backward(self, run: Run) -> None:
        """Scores the stitch; then the gradients of both are one."""
        known, named = self.memory(run), dict(run.module.named_parameters())
        number, momentum = known["drawn"], run.settings.stitch_momentum
        value = self._score(named)
        first = run.settings.stitch_start == "score" and not known["counts"][number]
        before = value if first else known["scores"][number]
        known["scores"][number] = momentum * before + (1 - momentum) * value
        known["counts"][number] += 1
        for name, copy in self.copies.items():
            parameter = named[name.removeprefix("model.")]
            if copy.grad is not None:
                parameter.grad = copy.grad if parameter.grad is None else parameter.grad + copy.grad
        self.copies = {}
        self.tables = {id(m): m.table.detach().clone() for m in _with_rows(run.module)}

    def _score(self, named: Mapping[str, nn.Parameter]) -> float:
        """sum |p dL/dp|, heads left out."""
        found = [
            (p.detach() * p.grad).abs().sum()
            for n, p in named.items()
            if p.grad is not None and not n.startswith(self.heads)
        ]
        return float(torch.stack(found).sum()) if found else 0.0

    @torch.no_grad()
    def after_step(self, run: Run) -> None:
        """Rows of stitches that did not run stay: an optimiser's momentum and decay reach all."""
        ran = {self.memory(run)["drawn"]}
        ran |= {self.largest} if run.settings.stitch_teacher == "anchor" else set()
        for module in _with_rows(run.module):
            rows = [i for i, number in enumerate(module.stitches) if number not in ran]
            module.table[rows] = self.tables[id(module)][rows]
        self.tables = {}

    # -- what comes out ---------------------------------------------------------------------------

    def predict(self, run: Run, images: torch.Tensor) -> Any:
        """The largest model by itself."""
        return run.module.stitch(images, self.largest)  # type: ignore[operator]

    def finish(self, run: Run) -> None:
        """Measures those that the scores chose; all of them where there is no score."""
        known = self.memory(run)
        numbers: Sequence[int] = range(len(self.costs))
        if run.settings.stitch_sampling == "scored":
            found = (best(part, known["scores"], known["counts"]) for part in self.parts(run))
            numbers = [number for number in found if number is not None]
        values = _measured(run, numbers)
        known["measured"] = {str(n): value for n, value in zip(numbers, values, strict=True)}

    def told(self, run: Run) -> dict[str, Any]:
        """What the report says."""
        known = self.memory(run)
        rows = [self._row(part, run) for part in self.parts(run) if part.stitches]
        latency = {"latency": known["latency"]} if known["latency"] else {}
        return {
            "metric": run.task.metric, "by": run.settings.stitch_by, "intervals": rows,
            "count": run.settings.stitch_intervals, "sampling": run.settings.stitch_sampling,
            "drawn": known["counts"], "scores": known["scores"], "measured": known["measured"],
            **latency,
        }  # fmt: skip

    def _row(self, part: Interval, run: Run) -> dict[str, Any]:
        """What an interval is left with."""
        known = self.memory(run)
        scores, measured = known["scores"], known["measured"]
        if run.settings.stitch_sampling == "scored":
            chosen = best(part, scores, known["counts"])
        else:
            chosen = max(part.stitches, key=lambda n: measured[str(n)])
        inside = sorted(scores[n] for n in part.stitches)
        return {
            "from": part.low, "to": part.high, "stitches": list(part.stitches),
            "best": chosen, "peaked": inside[-1] - inside[len(inside) // 2] > _PEAKED,
        }  # fmt: skip


def _with_rows(root: nn.Module) -> list[Any]:
    """The modules with a row for each stitch."""
    modules: list[Any] = list(told(root))
    return [module for module in modules if module.stitches]


@torch.no_grad()
def _measured(run: Run, numbers: Sequence[int]) -> list[float]:
    """How well each of some stitches does, over the images that are measured."""
    model: Any = run.frozen(run.rewritten.module)
    device = next(model.parameters()).device
    tallies: list[Any] = [0] * len(numbers)
    settings = run.settings
    whole = ProcessShare(0, 1, 1)
    for batch in evaluation_batches(
        run.data.val, settings.evaluation_batch, whole, settings.workers
    ):
        images, labels = batch.to(device)
        for i, number in enumerate(numbers):
            tallies[i] = tallies[i] + run.task.tally(model.stitch(images, number), labels)
    return [round(run.task.results(tally.cpu())[run.task.metric], 6) for tally in tallies]
