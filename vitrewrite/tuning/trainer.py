"""`tune`: the phases of any procedure, from data to a folder."""

from __future__ import annotations

from pathlib import Path

import torch

from ..data import Data, Preprocessing, open_data
from ..data.labels import name_classes
from ..data.seeding import mixed, restored, seed_all
from ..language.settings import Settings
from ..models.records import state
from ..rewrite.rewritten import Rewritten
from ..tasks import task_for
from .cached import Filling, done_with
from .checkpoints import Checkpoints, own_tensors
from .checks import check_batch, check_phases, check_stitches
from .contributions import contributions, phases
from .copies import reported, settle
from .engine import Engine
from .folder import RunFolder, identity
from .loop import TrainingLoop
from .metrics import Metrics
from .run import Run
from .teachers import teacher_of
from .tensors import whole


def tune(
    rewritten: Rewritten,
    data: str | Data,
    settings: Settings | None = None,
    *,
    out: str | Path,
    seed: int | None = None,
    device: str | None = None,
    resume: bool = False,
    live: bool = False,
) -> Rewritten:
    """Trains a rewritten model and writes it to a folder.

    Args:
        rewritten: the model; its trained tensors are changed when training is over.
        data: what `vitrewrite.data` opens, or opened data.
        settings: hyperparameters; by default those of the spec.
        out: the folder; `checkpoints/` and `metrics.jsonl` grow in it while training.
        seed: of the order of images and of all randomness; by default the model's own.
        device: `cpu` or `cuda`; by default what there is.
        resume: go on from the last checkpoint in `out`.
        live: show a table on stderr, if that is a terminal.

    Returns:
        The trained model: `rewritten`, unless a procedure replaced it.

    Raises:
        FileError: VR702, VR703, VR715, VR716, VR730 to VR735 for what is wrong with the folder.
        DataError: VR740 to VR748 for what is wrong with the data.
        TuneError: VR536, VR537; VR850 to VR859 if training cannot start or go on; the last
            checkpoint stays.
    """
    folder = RunFolder(Path(out))
    settings = settings or Settings().changed(rewritten.spec.tune.values)
    seed = rewritten.seed if seed is None else seed
    engine = Engine(settings, device, folder=folder.path)
    try:
        for root in (rewritten.base, rewritten.module):
            state(root, settings.binding())
        wanted_images = Preprocessing.of(rewritten.base, settings)
        opened = open_data(data, wanted_images) if isinstance(data, str) else data
        task = task_for(opened, rewritten.module, rewritten.result.anatomy)
        _tell_images(rewritten, opened)
        check_stitches(rewritten, settings, engine)
        run = Run(rewritten, opened, task, settings, seed, contributions(rewritten, settings))
        run.phases = phases(run)
        check_phases(run, engine)
        run.teacher = teacher_of(run, engine.device)
        wanted = identity(rewritten, opened, settings, seed, run.teacher)
        engine.on_main(lambda: folder.open(wanted, resume=resume))
        shown = Metrics(folder.metrics, task, main=engine.is_main, live=live, log=engine.log)
        with restored(), shown as metrics:
            result = Trainer(run, engine, folder, metrics).train()
        engine.on_main(lambda: folder.finish(result))
        engine.on_main(lambda: done_with(run, folder.path))
    finally:
        folder.close()
        engine.close()
    return result


def _tell_images(rewritten: Rewritten, data: Data) -> None:
    """Has a model know its classes and how its images are prepared, for who reads its folder."""
    images = data.train
    for root in (rewritten.base, rewritten.module):
        name_classes(root, data.classes, images.wanted.config, whole=images.source.symbols)


class Trainer:
    """Carries out the phases of a run."""

    def __init__(self, run: Run, engine: Engine, folder: RunFolder, metrics: Metrics) -> None:
        self.run, self.engine, self.metrics = run, engine, metrics
        self.folder = folder
        self.checkpoints = Checkpoints(
            folder.checkpoints, folder.metrics, run.base_settings.keep, engine
        )

    def train(self) -> Rewritten:
        """Trains from the last checkpoint, or from the start."""
        run = self.run
        packed = self.checkpoints.read()
        if packed is not None:
            self.checkpoints.restore_memory(run, packed)
        self.engine.on_main(self.folder.reopen)
        self.metrics.rewind(packed["metrics"]["size"] if packed else 0)
        self.engine.track(run.total)
        reached = run.position
        for position, _ in enumerate(run.phases):
            run.position = position
            run.rewritten = run.phase.build(run, run.rewritten)
            if position >= reached:
                self._phase(packed if position == reached else None)
        run.rewritten.trained = True
        run.rewritten.training = {
            **{k: v for k, v in run.results.items() if k not in ("loss", "images")},
            "metric": run.task.metric,
            "steps": run.total,
            "phases": [phase.name for phase in run.phases],
            **reported(run),
            **{k: v for procedure in run.procedures for k, v in procedure.report(run).items()},
            **({"teacher": run.teacher.record} if run.teacher else {}),
            **({"features": {"bytes": run.features.bytes}} if run.features else {}),
            "images": {"train": len(run.data.train), "val": len(run.data.val)},
            "data": run.data.name,
            "inputs": Preprocessing.of(run.original.base).record,
            "seconds": round(run.seconds, 3),
        }
        return run.rewritten

    # -- a phase ----------------------------------------------------------------------------------

    def _phase(self, packed: object | None) -> None:
        run, engine = self.run, self.engine
        if packed is None:
            run.step = 0
            seed_all(mixed(run.seed, "start", run.position))
            run.phase.start(run)
        self._measure()
        run.module = engine.place(run)
        if run.settings.keeps_features:
            filling = Filling(run, engine, self.folder.path, self.metrics)
            run.features = filling.features()
        TrainingLoop(run, engine, self.checkpoints, self.metrics, packed).steps()
        self._adopt()
        seed_all(mixed(run.seed, "finish", run.position))
        run.phase.finish(run)
        engine.release()

    def _measure(self) -> None:
        """How many steps the phase has."""
        run, settings = self.run, self.run.settings
        count = len(run.phase.images(run))
        check_batch(settings, count, self.engine)
        run.per_epoch = count // settings.batch
        epochs = settings.epochs * run.per_epoch
        run.steps = epochs if settings.steps is None else settings.steps

    def _adopt(self) -> None:
        """Copies what was trained into the phase's model."""
        targets = own_tensors(self.run, self.run.rewritten.module)
        with torch.no_grad():
            for name, trained in settle(self.run).items():
                targets[name].copy_(whole(trained))
