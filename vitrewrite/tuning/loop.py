"""A phase on this process: steps, evaluations, and the checkpoints between them."""

from __future__ import annotations

import functools
import math
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any

import torch
from torch import nn

from ..data import Batch, evaluation_batches, training_batches
from ..data.loading import TrainingOrder
from ..data.seeding import mixed, seed_all
from ..errors import TuneError
from ..features.probe import training_mode
from ..tracing import walk
from ..tracing.unit import Unit
from . import optimisation
from .checkpoints import Checkpoints
from .contributions import entry_of
from .copies import Average, Best, averaged, forget
from .distillation import Distillation
from .engine import Engine
from .metrics import Metrics
from .mixing import Mixing
from .run import Run
from .schedules import Rates


class Objective(nn.Module):
    """All losses of a batch in one forward, so that DDP sees one forward per backward."""

    def __init__(self, run: Run) -> None:
        super().__init__()
        self.model = run.module
        self.__dict__["run"] = run
        self.labels = 1 - run.settings.distil_weight if run.settings.distils else 1.0

    def forward(self, batch: Batch) -> dict[str, torch.Tensor]:
        """The losses by name; that of the phase is `task`."""
        run: Run = self.__dict__["run"]
        output = run.phase.output(run, self.forward_of(run), batch.images)
        terms = {"task": self.labels * run.phase.loss(run, batch, output)}
        for hooks in run.hooks:
            terms.update(hooks.terms(run, batch, output))
        return terms

    def forward_of(self, run: Run) -> Callable[[torch.Tensor], Any]:
        """The program of a step: that of the model, or an entry that a procedure asks for."""
        name = entry_of(run.hooks)
        return run.program(self.model) if name == "forward" else getattr(self.model, name)


@dataclass(frozen=True)
class Seen:
    """What a step came to, on the device.

    Attributes:
        step: its number.
        names: of the terms of the loss, and `losses` their values.
        norms: of the gradients, by group.
        scaled: whether steps that are not finite are skipped.
    """

    step: int
    names: tuple[str, ...]
    losses: torch.Tensor
    norms: torch.Tensor
    scaled: bool

    @functools.cached_property
    def terms(self) -> dict[str, float]:
        """The terms of the loss; reading them waits for the device."""
        return dict(zip(self.names, self.losses.tolist(), strict=True))

    @property
    def loss(self) -> float:
        """Their sum."""
        return sum(self.terms.values())


class TrainingLoop:
    """Carries out the current phase of a run; `run.module` is its model, on the device.

    Args:
        packed: the checkpoint to go on from, or None to start.
    """

    def __init__(
        self, run: Run, engine: Engine, checkpoints: Checkpoints, metrics: Metrics, packed: object
    ) -> None:
        self.run, self.engine, self.checkpoints, self.metrics = run, engine, checkpoints, metrics
        run.recipe = (Distillation(run, engine.device),) if run.settings.distils else ()
        self.optimiser = optimisation.create(run)
        skips = any(hooks.skips_parameters for hooks in run.hooks)
        self.objective, self.stepper = engine.prepare(Objective(run), self.optimiser, skips=skips)
        self.gradients = optimisation.Gradients(self.optimiser)
        self.mixing, self.best = Mixing(run), Best(run)
        if packed is None:
            forget(run)
        self.average = None if run.settings.ema is None else Average(run, sharded=engine.sharded)
        if packed is None:
            checkpoints.save(run, self.optimiser)
        else:
            checkpoints.restore(run, self.optimiser, packed)
        self.rates = Rates(run, self.optimiser)
        self.seen: Seen | None = None  # of the last step

    def steps(self) -> None:
        """All steps that are left."""
        run, settings = self.run, self.run.settings
        images = run.phase.images(run)
        order = TrainingOrder(
            len(images),
            settings.batch,
            range(run.step, run.steps),
            mixed(run.seed, "data", run.position),
            self.engine.share(settings.accumulate),
            augment=images.varies,
        )
        given = training_batches if run.features is None else run.features.training
        batches = given(images, order, settings.workers)
        if run.steps == 0:
            self._evaluate()
        _training_mode(run)
        self.metrics.speed()
        while not self._ended:
            begun = time.perf_counter()
            self._step(batches)
            if self._ended or run.step % (settings.evaluate_every * run.per_epoch) == 0:
                self._evaluate()
            run.seconds += time.perf_counter() - begun
            if self._ended or run.step % (settings.checkpoint_every or run.per_epoch) == 0:
                self._look(self.seen)
                self.checkpoints.save(run, self.optimiser)

    @property
    def _ended(self) -> bool:
        return self.run.step >= self.run.steps or self.best.stops

    # -- a step -----------------------------------------------------------------------------------

    def _step(self, batches: Iterator[Batch]) -> None:
        run, settings, engine = self.run, self.run.settings, self.engine
        # What a step draws depends on its number, not on what came before: a resumed run draws
        # the same, and there is no state of generators to keep.
        seed_all(mixed(run.seed, "step", run.position, run.step, engine.rank))
        if not run.module.training:  # as an evaluation leaves it
            _training_mode(run)
        self.rates.set()
        for hooks in run.hooks:
            hooks.before_step(run)
        self.optimiser.zero_grad()
        sums: dict[str, torch.Tensor] = {}
        for piece in range(settings.accumulate):
            batch = self.mixing(next(batches).to(engine.device))
            last = piece == settings.accumulate - 1
            with engine.piece(self.objective, run.module, last=last):
                terms = self.objective(batch)
                total = sum(terms.values(), torch.zeros((), device=engine.device))
                engine.backward(total / settings.accumulate)
            for name, value in terms.items():
                sums[name] = sums.get(name, 0) + value.detach().float() / settings.accumulate
        self._update(sums)

    def _update(self, sums: dict[str, torch.Tensor]) -> None:
        run, engine = self.run, self.engine
        scaler = engine.accelerator.scaler
        if scaler:
            scaler.unscale_(self.optimiser)
        losses = engine.mean(torch.stack([*sums.values()]))
        seen = Seen(run.step, tuple(sums), losses, self.gradients.norms(), scaled=bool(scaler))
        # What a device is asked for is looked at when the next step has been given to it.
        self._look(self.seen if engine.waits else seen)
        self.seen = seen
        for hooks in run.hooks:
            hooks.after_backward(run)
        if run.phase.update:
            self.gradients.clip(seen.norms, run.settings)
            self.stepper.step()
        run.step, run.total = run.step + 1, run.total + 1
        if self.average is not None and run.phase.update:
            self.average.update()
        for hooks in run.hooks:
            hooks.after_step(run)
        self.metrics.images += run.settings.batch
        if run.step % run.settings.log_every == 0 or run.step == run.steps:
            self._look(seen)
            self.metrics.write(
                run,
                "step",
                loss=seen.loss,
                terms=seen.terms,
                gradient=self.gradients.norm(seen.norms),
                rates=optimisation.rates(self.optimiser),
                images_per_second=self.metrics.speed(),
                **self._measured(),
            )

    def _look(self, seen: Seen | None) -> None:
        """Stops at a step whose loss or gradient is not finite."""
        if seen is None:
            return
        if not math.isfinite(seen.loss):
            raise self._stopped(f"the loss is {seen.loss}", seen)
        # Loss scaling skips such steps by itself.
        if not math.isfinite(self.gradients.norm(seen.norms)) and not seen.scaled:
            raise self._stopped("the gradient is not finite", seen)

    def _stopped(self, what: str, seen: Seen) -> TuneError:
        run, last, terms = self.run, self.checkpoints.latest(), seen.terms
        self.metrics.write(run, "stopped", reason=what)
        odd = [f"{name} = {value}" for name, value in terms.items() if not math.isfinite(value)]
        notes = [f"loss terms: {', '.join(odd)}"] if odd and len(terms) > 1 else []
        epoch = seen.step / run.per_epoch
        return TuneError(
            "VR850",
            f"{what} in phase '{run.phase.name}', epoch {epoch:.2f}, step {seen.step + 1}",
            notes=[*notes, *self.gradients.notes(), f"the last good checkpoint is '{last}'"],
            suggestion="lower tune.lr, lengthen tune.warmup_epochs, or set tune.clip=1",
        )

    @torch.no_grad()
    def _evaluate(self) -> None:
        run = self.run
        self._look(self.seen)
        run.module.eval()
        with averaged(run):
            run.results = run.task.results(self._tallied())
            self.best.evaluated()
        self.rates.evaluated(run.score)
        self.metrics.write(run, "evaluation", **run.results, **self._measured())

    def _measured(self) -> dict[str, Any]:
        """What procedures say of the model as it is now."""
        return {k: v for hooks in self.run.hooks for k, v in hooks.measures(self.run).items()}

    def _tallied(self) -> torch.Tensor:
        """What the task counts, over all images and processes."""
        run, engine = self.run, self.engine
        tallies = []
        given = evaluation_batches if run.features is None else run.features.evaluation
        batches = given(
            run.data.val, run.settings.evaluation_batch, engine.share(), run.settings.workers
        )
        for batch in batches:
            images, labels = batch.to(engine.device)
            with engine.accelerator.autocast():
                output = run.phase.predict(run, images)
            tallies.append(run.task.tally(output, labels))
        return engine.mean(torch.stack(tallies).sum(0)).cpu() * engine.processes


def _training_mode(run: Run) -> None:
    """Training mode, except for batch norms of the base."""
    put = [i for i in run.rewritten.result.editor.insertions if not isinstance(i.module, Unit)]
    new = {id(m) for i in put for m in walk.modules(run.module.get_submodule(i.path))}
    training_mode(run.module, new)
