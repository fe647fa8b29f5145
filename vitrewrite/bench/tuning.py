"""`tune` against a plain loop of PyTorch: the same model, images, steps and evaluations."""

from __future__ import annotations

import gc
import os
import tempfile
from collections.abc import Callable, Iterator, Mapping
from contextlib import AbstractContextManager, contextmanager
from functools import partial
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from torch import nn

from ..data import Data, Preprocessing, batches, open_data
from ..data.seeding import restored
from ..errors import DataError
from ..language.settings import Settings
from ..profiling.timing import Step, seconds
from ..rewrite.rewritten import Rewritten
from ..tasks import Task, task_for
from ..tracing.unit import duplicate
from ..tuning.contributions import contributions, phases
from ..tuning.engine import Engine
from ..tuning.folder import RunFolder
from ..tuning.metrics import Metrics
from ..tuning.run import Run
from ..tuning.trainer import Trainer

DATA = "digits"

Prepared = AbstractContextManager[Step]


def tuning(
    rewritten: Rewritten, steps: int, device: torch.device
) -> dict[str, Callable[[], Prepared]] | None:
    """Whole runs of so many steps: `base` is the plain loop, `tune` is ours.

    Both have images of 8 bits in memory, no workers, AdamW, a cosine, lines in a file, an
    evaluation and a checkpoint on the disk after each epoch. Models are made before the clock runs.

    Returns:
        None for a model that cannot be trained on digits.
    """
    settings = Settings(steps=steps, workers=0)
    try:
        data = open_data(DATA, Preprocessing.of(rewritten.base))
        task = task_for(data, rewritten.module, rewritten.result.anatomy)
    except DataError:
        return None
    for images in (data.train, data.val):  # into memory
        for _ in batches(images, settings.batch):
            pass
    return {
        "base": partial(_plain, rewritten, data, settings, device),
        "tune": partial(_ours, rewritten, data, task, settings, device),
    }


def timed_runs(
    runs: Mapping[str, Callable[[], Prepared]],
    rounds: int,
    device: torch.device,
    tick: Callable[[], None],
) -> dict[str, list[float]]:
    """Seconds of each run in each round, after one round that does not count."""
    times: dict[str, list[float]] = {name: [] for name in runs}
    for number in range(rounds + 1):
        for name in list(runs)[:: 1 if number % 2 else -1]:  # who comes first changes
            with restored(), runs[name]() as step:
                gc.collect()
                measured = seconds(step, device)
            if number:
                times[name].append(measured)
            tick()
    return times


def plain_loop(
    model: nn.Module, data: Data, settings: Settings, device: torch.device, folder: Path
) -> float:
    """What `tune` is compared with, in at most 40 lines; returns the accuracy at the end."""
    (images, labels), (held, truth) = _cached(data, device)
    normalised = data.train.wanted.normalised
    trained = [p for p in model.parameters() if p.requires_grad]
    flat, weights = ([p for p in trained if (p.dim() <= 1) is one] for one in (True, False))
    groups: Any = [{"params": weights}, {"params": flat, "weight_decay": 0.0}]
    optimiser = torch.optim.AdamW(groups, settings.lr, weight_decay=settings.weight_decay)
    steps, batch = settings.steps or 0, settings.batch
    schedule = torch.optim.lr_scheduler.CosineAnnealingLR(optimiser, steps)
    per_epoch, accuracy = len(images) // batch, 0.0
    for step in range(steps):
        if step % per_epoch == 0:
            order = torch.randperm(len(images)).to(device)
            model.train()
        chosen = order[step % per_epoch * batch :][:batch]
        loss = F.cross_entropy(model(normalised(images[chosen])), labels[chosen])
        optimiser.zero_grad()
        loss.backward()  # type: ignore[no-untyped-call]
        norm = torch.nn.utils.get_total_norm([p.grad for p in trained if p.grad is not None])
        if not bool(torch.isfinite(loss) & torch.isfinite(norm)):
            raise FloatingPointError
        optimiser.step()
        schedule.step()
        if (step + 1) % settings.log_every == 0:
            with (folder / "log.txt").open("a") as file:
                file.write(f"{step} {loss.item()} {norm.item()}\n")
        if (step + 1) % per_epoch == 0 or step + 1 == steps:
            model.eval()
            with torch.no_grad():
                parts = (torch.split(v, settings.evaluation_batch) for v in (held, truth))
                found = [(model(normalised(x)).argmax(-1), y) for x, y in zip(*parts, strict=True)]
            accuracy = sum(int((best == y).sum()) for best, y in found) / len(held)
            with (folder / f"{step}.pt").open("wb") as file:
                torch.save([[p.detach() for p in trained], optimiser.state_dict()], file)
                os.fsync(file.fileno())
    return accuracy


def _cached(data: Data, device: torch.device) -> Iterator[tuple[torch.Tensor, ...]]:
    """All images, of 8 bits, and labels of each part."""
    for images in (data.train, data.val):
        found = images.resized.gather(range(len(images)))
        assert found is not None
        yield tuple(each.to(device) for each in found)


@contextmanager
def _plain(
    rewritten: Rewritten, data: Data, settings: Settings, device: torch.device
) -> Iterator[Step]:
    def parameter(old: nn.Parameter) -> nn.Parameter:
        return nn.Parameter(old.detach().to(device, copy=True), requires_grad=old.requires_grad)

    model = duplicate(rewritten.module, parameter, lambda b: b.to(device, copy=True))
    with tempfile.TemporaryDirectory() as folder:
        yield partial(plain_loop, model, data, settings, device, Path(folder))


@contextmanager
def _ours(
    rewritten: Rewritten, data: Data, task: Task, settings: Settings, device: torch.device
) -> Iterator[Step]:
    with tempfile.TemporaryDirectory() as place:
        folder = RunFolder(Path(place, "run"))
        engine = Engine(settings, device.type, folder=folder.path)
        run = Run(rewritten, data, task, settings, 0, contributions(rewritten, settings))
        run.phases = phases(run)
        folder.open({}, resume=False)
        try:
            with Metrics(folder.metrics, task, main=True, live=False) as metrics:
                yield Trainer(run, engine, folder, metrics).train
        finally:
            folder.close()
            engine.close()
