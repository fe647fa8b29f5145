"""What a pass may contribute to training; the trainer knows no method.

A pass returns a `Procedure` from its method `procedure`. Hooks of all procedures of a spec act in
every phase; phases come from one of them at most, and without any there is one plain phase.
Where options differ from site to site it must be the same for all: `run.inserted(name)` are the
modules, and `run.passes(name)` the pass of each with its options there.

Procedures and phases hold no state: what must survive an interruption goes to `run.memory`
(numbers, strings, lists and tensors), and is in every checkpoint.

Example: train, score the masks of a pass, prune half of them, start again.

```python
class PruneAndRewind(Procedure):
    def phases(self, run):
        return [Phase(), Score(), Retrain()]

class Score(Phase):
    name, update, settings = "score", False, {"epochs": 1}

    def after_backward(self, run):                  # the gradient of a step is there
        mask = run.inserted("prompts")[0].mask
        run.memory["score"] = run.memory.get("score", 0) + mask.grad.abs()

    def finish(self, run):
        run.memory["kept"] = run.memory["score"].topk(5).indices

class Retrain(Phase):
    name = "retrain"

    def build(self, run, rewritten):                # on resume too: what is trained, what is frozen
        rewritten.inserted("prompts")[0].mask.requires_grad_(False)
        return rewritten

    def start(self, run):                           # once
        run.rewind()
        mask = run.rewritten.inserted("prompts")[0].mask.data
        mask.zero_()[run.memory["kept"]] = 1
```

An extra loss with its schedule is a hook alone. `run.base` is the model before it was rewritten,
`run.teacher` the one of the recipe, if it has one:

```python
class Distil(Procedure):
    def terms(self, run, batch, output):
        with torch.no_grad():
            wanted = run.base(batch.images)
        return {"distillation": (1 - run.progress) * F.mse_loss(output, wanted)}
```
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    import torch

    from ..data import Batch, Images
    from ..rewrite.rewritten import Rewritten
    from .run import Run


@dataclass(frozen=True)
class ParameterGroup:
    """Parameters with an optimiser's settings of their own; what is None is as in the settings.

    Attributes:
        members: names of parameters, or prefixes of names that end in a dot.
        fixed: whether `lr` is meant as it stands, whatever the batch, and factors for parts.
    """

    name: str
    members: tuple[str, ...]
    lr: float | None = None
    min_lr: float | None = None
    weight_decay: float | None = None
    schedule: str | None = None
    fixed: bool = False

    def takes(self, name: str) -> bool:
        """Whether a parameter belongs to it."""
        return any(name == m or (m.endswith(".") and name.startswith(m)) for m in self.members)


class Hooks:
    """What can be said about every step. All ranks call all hooks, in the same order."""

    # The entry of the model that a step calls: what it yields is `output`. Others call `forward`.
    entry: str = "forward"
    # Whether a step may leave trained parameters without gradient (a random path, say).
    skips_parameters: bool = False

    def groups(self, run: Run) -> Iterable[ParameterGroup]:
        """Parameters that need settings of their own; the first group that takes one has it."""
        return ()

    def before_step(self, run: Run) -> None:
        """Before the forward of a step: temperatures, the choice of a path (`run.generator`)."""

    def terms(self, run: Run, batch: Batch, output: Any) -> Mapping[str, torch.Tensor]:
        """Further scalar losses by name, added to the phase's own; may call `run.module` again."""
        return {}

    def after_backward(self, run: Run) -> None:
        """When the gradient of a step is complete and averaged, before it is clipped."""

    def after_step(self, run: Run) -> None:
        """After the update of a step."""

    def measures(self, run: Run) -> Mapping[str, Any]:
        """What a line of the metrics says besides: numbers, or numbers by name."""
        return {}

    def report(self, run: Run) -> Mapping[str, Any]:
        """Once, when training is over: what the report says of it besides, as JSON has it."""
        return {}


class Phase(Hooks):
    """A stretch of training with an optimiser of its own.

    Attributes:
        name: as metrics and errors show it.
        settings: hyperparameters that differ from the run's, such as `{"epochs": 100}`.
        update: whether steps change parameters; if not, gradients are only looked at.
    """

    name: str = "train"
    settings: Mapping[str, Any] = {}
    update: bool = True

    def build(self, run: Run, rewritten: Rewritten) -> Rewritten:
        """The model of this phase, from that of the phase before.

        Called again on resume, in all phases up to the current one, before tensors are loaded. So
        it must depend on `run.memory` and structure alone: replace modules, set `requires_grad`.
        """
        return rewritten

    def start(self, run: Run) -> None:
        """Once, before the first step: sets tensors of `run.rewritten` (a rewind, masks)."""

    def images(self, run: Run) -> Images:
        """What to train on."""
        return run.data.train

    def loss(self, run: Run, batch: Batch, output: Any) -> torch.Tensor:
        """The main loss, averaged over the batch: that of the task."""
        return run.task.loss(output, batch.labels, smoothing=run.settings.label_smoothing)

    def output(self, run: Run, model: Any, images: torch.Tensor) -> Any:
        """What the losses are of; `model` is the program of a step."""
        return model(images)

    def predict(self, run: Run, images: torch.Tensor) -> Any:
        """The output that an evaluation counts, such as class scores (B, classes)."""
        return run.program(run.module)(images)

    def finish(self, run: Run) -> None:
        """Once, after the last step: `run.rewritten` holds the result, `run.score` is known."""


class Procedure(Hooks):
    """What a pass contributes."""

    def phases(self, run: Run) -> Sequence[Phase]:
        """The phases in order; the same for the same `run.original` and settings."""
        return ()
