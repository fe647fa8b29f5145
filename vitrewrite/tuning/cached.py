"""Training without the frozen part of a model: what it yields is computed once for each image.

Batches have what crosses in place of images, and the trained part of the program is what a step and
an evaluation call. The module stays whole: its parameters, checkpoints and deltas are as without.
"""

from __future__ import annotations

import functools
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from torch import nn

from ..anatomy.fingerprint import trunk_fingerprint
from ..data import Batch, Images, evaluation_batches
from ..data.batch import Key
from ..data.loading import EvaluationOrder, ProcessShare, TrainingOrder, loaded
from ..errors import FileError, TuneError
from ..features.cut import Crossing, FeatureCut
from ..features.probe import training_mode
from ..features.store import LABELS, FeatureStore, Stored, missing, stored
from ..rewrite.frozen import cut_of
from ..text import shown
from .run import Run

if TYPE_CHECKING:
    from .engine import Engine
    from .metrics import Metrics

FOLDER = "features"  # in that of a run
_LABEL = Stored((), torch.int64, torch.int64)
_APART, _APART_HALVED = 0.01, 0.05


class CrossingBatch:
    """What crosses, of some images; in a `Batch` it stands in their place.

    Args:
        values: in the order of the cut; None for what is not read.
        images: those of them that the trained part reads, if it does.
        count: how many images it is of.
    """

    def __init__(
        self, values: Sequence[torch.Tensor | None], images: torch.Tensor | None, count: int
    ) -> None:
        self.values, self.images, self.count = tuple(values), images, count

    def to(self, device: torch.device, non_blocking: bool = False) -> CrossingBatch:
        """The same on another device."""
        moved = [v if v is None else v.to(device, non_blocking=non_blocking) for v in self.values]
        images = None if self.images is None else self.images.to(device, non_blocking=non_blocking)
        return CrossingBatch(moved, images, self.count)

    def __getattr__(self, name: str) -> Any:
        """Any other use as images; see `__torch_function__`."""
        if name.startswith("__"):
            raise AttributeError(name)
        raise _computed_with()

    @classmethod
    def __torch_function__(cls, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        """Any use as images.

        Raises:
            TuneError: VR553.
        """
        raise _computed_with()


@dataclass(frozen=True)
class Features:
    """What the frozen part of a phase's model yields, and the program that is left.

    Attributes:
        stored: by digest how a value is kept, and `tensors` the values of all images.
        computed: what each value is computed in, by digest.
        rows: of an image of the source, which row it has.
    """

    cut: FeatureCut
    stored: Mapping[str, Stored]
    tensors: Mapping[str, torch.Tensor]
    computed: Mapping[str, torch.dtype]
    rows: Mapping[int, int]

    @property
    def bytes(self) -> int:
        """What is kept of an image."""
        return sum(self.stored[each.digest].bytes(1) for each in self.cut.kept)

    def program(self, module: nn.Module) -> Callable[[Any], Any]:
        """The trained part of a model, as what is called with a batch."""
        return functools.partial(self._called, module)

    def _called(self, module: nn.Module, batch: Any) -> Any:
        given = {}
        device = next(module.parameters()).device
        for each, value in zip(self.cut.crossing, batch.values, strict=True):
            if each.is_input and each.read:
                given[each] = batch.images
            elif value is None:  # if it were read after all, this would show
                odd = torch.nan if self.computed[each.digest].is_floating_point else 0
                one = torch.full((), odd, dtype=self.computed[each.digest], device=device)
                given[each] = one.expand(batch.count, *each.shape)
            else:
                given[each] = value.to(self.computed[each.digest])
        return self.cut.call(module, given)

    # -- batches ----------------------------------------------------------------------------------

    def training(
        self, images: Images, order: TrainingOrder, workers: int | None
    ) -> Iterator[Batch]:
        """Micro-batches in the order of training."""
        return self._batches(images, order, workers)

    def evaluation(
        self, images: Images, batch: int, share: ProcessShare, workers: int | None
    ) -> Iterator[Batch]:
        """This process's part of all images; labels of padding are -1."""
        return self._batches(images, EvaluationOrder(len(images), batch, share), workers)

    def _batches(self, images: Images, order: Any, workers: int | None) -> Iterator[Batch]:
        pictures = loaded(images, order, workers or 0) if self.cut.reads_images else None
        with ThreadPoolExecutor(1) as reader:  # one batch ahead
            ahead = None
            for keys in order:
                known, ahead = ahead, reader.submit(self._gathered, images, keys)
                if known is not None:
                    yield self._joined(known.result(), pictures)
            if ahead is not None:
                yield self._joined(ahead.result(), pictures)

    def _joined(self, batch: Batch, pictures: Iterator[Batch] | None) -> Batch:
        if pictures is not None:
            crossing: Any = batch.images
            crossing.images = next(pictures).images
        return batch

    def _gathered(self, images: Images, keys: Sequence[Key]) -> Batch:
        rows = torch.tensor([self.rows[images.indices[key.place]] for key in keys])
        values = [
            self.tensors[each.digest][rows] if each.kept else None for each in self.cut.crossing
        ]
        labels = self.tensors[LABELS][rows]
        labels[torch.tensor([not key.real for key in keys])] = -1
        crossing: Any = CrossingBatch(values, None, len(keys))
        return Batch(crossing, labels)


def _computed_with() -> TuneError:
    return TuneError(
        "VR553",
        "cache = features has no images in training, and a procedure of this spec "
        "computes with them",
        suggestion="leave tune.cache out",
    )


def cut_of_run(run: Run) -> FeatureCut:
    """The cut through the model of a phase.

    Raises:
        TuneError: VR550, VR551.
    """
    return cut_of(run.rewritten.result, run.rewritten.module, run.original.base)


class Filling:
    """Makes the features of a phase, of what is on disk and what is not there yet.

    Args:
        run: whose model is on the device.
        folder: of the run.
    """

    def __init__(self, run: Run, engine: Engine, folder: Path, metrics: Metrics) -> None:
        self.run, self.engine, self.metrics = run, engine, metrics
        self.cut = cut_of_run(run)
        train, val = run.data.train, run.data.val
        order = dict.fromkeys((*train.indices, *val.indices))
        self.rows = {index: row for row, index in enumerate(order)}
        self.images = train.joined(val)
        self.images.indices = tuple(order)
        self.store = store_of(run, folder, len(order))
        self.digests = [each.digest for each in self.cut.kept]

    def features(self) -> Features:
        """All of them, computed where they are not there.

        Raises:
            TuneError: VR557 if they are other ones in training than in evaluation.
            FileError: VR554 to VR556, VR702, VR735.
        """
        first = self._first()
        self.engine.on_main(lambda: self._fill(first))
        known = self.store.known
        wanted = {name: known[name] for name in (*self.digests, LABELS)}
        tensors = {name: self.store.read(name, value) for name, value in wanted.items()}
        self._expect_alike(first, tensors)
        computed = {each.digest: value.dtype for each, value in first.items()}
        return Features(self.cut, wanted, tensors, computed, self.rows)

    def _first(self) -> dict[Crossing, torch.Tensor]:
        """What crosses, of the first images, the same in training and evaluation."""
        batch = next(evaluation_batches(self.images, 2, workers=0)).to(self.engine.device)
        module = self.run.module
        with torch.no_grad(), self.engine.accelerator.autocast():
            training = self.cut.look(training_mode(module), batch.images)
            found = self.cut.look(module.eval(), batch.images)
        for each in self.cut.kept:
            if not torch.equal(training[each], found[each]):
                raise TuneError(
                    "VR557",
                    f"cache = features keeps '{each.name}', which is another value in "
                    "training than in evaluation",
                    suggestion="leave tune.cache out",
                )
        return found

    def _fill(self, first: Mapping[Crossing, torch.Tensor]) -> None:
        halved = self.run.base_settings.cache_dtype == "bf16"
        left = missing(self.store.known, [*self.digests, LABELS])
        values = {
            each.digest: stored(each, value.dtype, halved=halved)
            for each, value in first.items()
            if each.digest in left
        }
        if LABELS in left:
            values[LABELS] = _LABEL
        if not values:
            return
        with self.metrics.progress() as told, self.store.adding(values) as writer:
            done = 0
            for batch in self._images():
                rows = {LABELS: batch.labels, **self._computed(batch)}
                writer.write({name: rows[name] for name in values})
                done += len(batch.labels)
                told(f"features {done:,} of {len(self.images):,}", done / len(self.images))

    def _images(self) -> Iterator[Batch]:
        settings = self.run.settings
        return evaluation_batches(self.images, settings.evaluation_batch, workers=settings.workers)

    @torch.no_grad()
    def _computed(self, batch: Batch) -> dict[str, torch.Tensor]:
        """What is kept, of images."""
        with self.engine.accelerator.autocast():
            found = self.cut.keep(self.run.module.eval(), batch.images.to(self.engine.device))
        return {each.digest: value for each, value in found.items()}

    def _expect_alike(
        self, first: Mapping[Crossing, torch.Tensor], tensors: Mapping[str, torch.Tensor]
    ) -> None:
        """The first rows are what the model yields now."""
        most = _APART_HALVED if self.run.base_settings.cache_dtype == "bf16" else _APART
        for each in self.cut.kept:
            now = first[each].float().cpu()
            apart = (tensors[each.digest][: len(now)].float() - now).abs().max()
            if not apart <= most * now.abs().max():
                raise FileError(
                    "VR555",
                    f"the features in {shown(self.store.folder, 200)} are not what the "
                    f"model yields at '{each.name}'",
                    suggestion="remove the folder, or give another one with tune.cache_at",
                )


def done_with(run: Run, folder: Path) -> None:
    """Removes features that lie in the folder of a run, which nobody else reads."""
    if run.features is not None and run.base_settings.cache_at is None:
        store_of(run, folder, len(run.features.rows)).remove()


def store_of(run: Run, folder: Path, rows: int) -> FeatureStore:
    """Where the features of a run are, and what they are of."""
    settings, original = run.base_settings, run.original
    at = folder / FOLDER if settings.cache_at is None else Path(settings.cache_at)
    key = {
        "weights": trunk_fingerprint(original.base, original.result.anatomy),
        "images": f"{run.data.fingerprint} {_sizes(run.data.train)}",
        "transforms": str({**run.data.train.wanted.record, "resize": settings.resize}),
        "precision": settings.precision,
        "cache_dtype": settings.cache_dtype,
    }
    return FeatureStore(at, key, rows)


def _sizes(images: Images) -> int:
    """Bytes of all files, where images are files; a repaired image has another size."""
    files: Sequence[Path] = getattr(images.source, "files", ())
    return sum(path.stat().st_size for path in files)
