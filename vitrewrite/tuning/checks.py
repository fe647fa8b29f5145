"""Whether the settings of a phase can be carried out, before anything is done."""

from __future__ import annotations

from collections.abc import Iterator

from ..data import Images
from ..errors import TuneError
from ..language.settings import OF_AUGMENTATION, OF_STITCHES, Settings, default
from ..models.request import DROP_PATH
from ..rewrite.rewritten import Rewritten
from ..tasks import Classification, Task
from ..text import giga
from .cached import cut_of_run
from .contributions import entry_of
from .engine import Engine
from .procedure import Hooks, Phase
from .run import Run
from .teachers import OWN


def check_phases(run: Run, engine: Engine) -> None:
    """Whether all phases of a run can be carried out.

    Raises:
        TuneError: as those below.
    """
    for phase in run.phases:
        settings = run.base_settings.changed(phase.settings)
        check_settings(settings, run.data.train, run.task, engine)
        check_drop_path(settings, run.original)
        check_features(settings, run, phase, engine)


def check_settings(settings: Settings, images: Images, task: Task, engine: Engine) -> None:
    """Whether a task on images can be trained with the settings.

    Raises:
        TuneError: VR853, VR858, VR865.
    """
    check_batch(settings, len(images), engine)
    check_smoothing(settings, task)
    check_mixing(settings, task, engine)
    check_cache(settings, varies=images.varies)
    check_search(settings, engine)


def check_search(settings: Settings, engine: Engine) -> None:
    """Whether a search runs as the engine does.

    Raises:
        TuneError: VR872 in shards.
    """
    if settings.macs is not None and engine.sharded:
        message = f"macs = {giga(settings.macs)} asks for a search, which does not run in shards"
        raise TuneError("VR872", message, suggestion="search with shard = false")


def check_cache(settings: Settings, *, varies: bool) -> None:
    """Whether what a teacher says can be kept, if the settings ask for it.

    Args:
        settings: of a phase.
        varies: whether images are changed at random.

    Raises:
        TuneError: VR865 where it sees other images in every epoch, or changes itself.
    """
    if not settings.distils or not settings.teacher_cache:
        return
    if varies or settings.mixes:
        what = "changed at random" if varies else "mixed"
        reason = f"images are {what}, and none is seen twice"
    elif settings.teacher in OWN:
        reason = f"'{settings.teacher}' has the weights that are trained"
    else:
        return
    raise TuneError("VR865", f"teacher_cache = true cannot be: {reason}", suggestion="leave it out")


def check_features(settings: Settings, run: Run, phase: Phase, engine: Engine) -> None:
    """Whether training can run on what the frozen part of the model yields.

    Raises:
        TuneError: VR550 and VR551 if there is no such part, VR552 if images are other ones in every
            epoch, VR553 for what needs the whole model.
    """
    if not settings.keeps_features:
        return
    if drawn := next(_drawn(settings, varies=run.data.train.varies), None):
        raise TuneError(
            "VR552",
            f"cache = features sees each image once, and with {drawn} it is another in every epoch",
            suggestion=f"leave tune.{drawn.split()[0]} out, or tune.cache",
        )
    whole = {
        "shards": engine.sharded,
        f"teacher = {settings.teacher}": settings.teacher is not None,
        "a search over structure": settings.macs is not None,
        "several models": bool(run.original.spec.bases),
        "label maps": run.data.maps,
        f"the entry '{entry_of(run.procedures)}'": entry_of(run.procedures) != Hooks.entry,
        f"the phase '{phase.name}'": _calls_itself(phase),
    }
    for what, needed in whole.items():
        if needed:
            raise TuneError(
                "VR553",
                f"cache = features cannot be with {what}: the whole model is needed",
                suggestion="leave tune.cache out",
            )
    if phase is run.phases[0]:
        cut_of_run(run)


def _drawn(settings: Settings, *, varies: bool) -> Iterator[str]:
    """Settings that have images vary."""
    for name in (*(OF_AUGMENTATION if varies else ()), "mixup", "cutmix"):
        value = getattr(settings, name)
        if value != default(name) and value:
            yield f"{name} = {value:g}" if isinstance(value, float) else f"{name} = {value}"


def _calls_itself(phase: Phase) -> bool:
    """Whether a phase says what of the model is called, or on which images."""
    own = ("output", "predict", "images")
    return any(getattr(type(phase), name) is not getattr(Phase, name) for name in own)


def check_drop_path(settings: Settings, rewritten: Rewritten) -> None:
    """Whether the model drops paths at the rate that the settings ask for.

    Raises:
        TuneError: VR860 if it was built otherwise.
    """
    wanted, built = settings.drop_path, rewritten.model_options.get(DROP_PATH)
    if wanted is None or wanted == built:
        return
    how = "without it" if built is None else f"with {built:g}"
    raise TuneError(
        "VR860",
        f"drop_path = {wanted:g} is an argument of the model, and this one was built {how}",
        suggestion=f"say it in the spec's 'tune {{ }}', or build the model with {DROP_PATH}",
    )


def check_batch(settings: Settings, count: int, engine: Engine) -> None:
    """Whether `count` images fill a batch that can be shared out.

    Raises:
        TuneError: VR853 if they do not, or it cannot.
    """
    pieces = engine.processes * settings.accumulate
    if settings.batch % pieces:
        reason = f"it has to be divided among {engine.processes} processes"
        reason += f", in {settings.accumulate} pieces each"
    elif settings.batch > count:
        reason = f"there are only {count} images"
    else:
        return
    fits = min(max(settings.batch, pieces), count) // pieces * pieces
    help_ = f"say tune.batch={fits}" if fits else f"give at least {pieces} images"
    raise TuneError("VR853", f"a batch of {settings.batch} cannot be: {reason}", suggestion=help_)


def check_smoothing(settings: Settings, task: Task) -> None:
    """Whether the task's loss knows label smoothing, if the settings ask for it.

    Raises:
        TuneError: VR858 if it does not.
    """
    if settings.label_smoothing and not task.smooths:
        what = f"label_smoothing = {settings.label_smoothing:g} is for cross-entropy"
        message = f"{what}, and this model is trained with a matching loss"
        raise TuneError("VR858", message, suggestion="leave it out")


def check_mixing(settings: Settings, task: Task, engine: Engine) -> None:
    """Whether images can be mixed, if the settings ask for it.

    Raises:
        TuneError: VR858 for images with label maps, VR853 for a piece of a step without pairs.
    """
    if not settings.mixes:
        return
    if not isinstance(task, Classification):
        name, value = ("mixup", settings.mixup) if settings.mixup else ("cutmix", settings.cutmix)
        message = f"{name} = {value:g} mixes images with one label each, and these have label maps"
        raise TuneError("VR858", message, suggestion="leave it out")
    size = settings.batch // (engine.processes * settings.accumulate)
    if size % 2:
        message = f"a batch of {settings.batch} cannot be mixed: a piece of it has {size} images"
        raise TuneError("VR853", message, suggestion="mixup and cutmix need an even number")


def check_stitches(rewritten: Rewritten, settings: Settings, engine: Engine) -> None:
    """Whether the stitches of several models are trained as the engine runs.

    Raises:
        TuneError: VR536 for settings of stitches where there are none, VR537 for several processes
            and loss scaling.
    """
    asked = [n for n in OF_STITCHES if getattr(settings, n) != default(n)]
    if asked and not rewritten.spec.bases:
        raise TuneError(
            "VR536",
            f"{asked[0]} is about stitches, and the spec is about one model",
            suggestion="leave it out, or stitch several models",
        )
    if not rewritten.spec.bases:
        return
    odd = "several processes" if engine.processes > 1 else ""
    odd = "shards" if engine.sharded else odd
    odd = "precision = fp16" if settings.precision == "fp16" else odd
    if odd:
        message = f"stitches are trained in one process without loss scaling, not in {odd}"
        raise TuneError("VR537", message, suggestion="take one process, and bf16 or no mixing")
