"""The Python API: `import vitrewrite as vr`."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

from torch import Tensor, nn

from .anatomy.fingerprint import trunk_fingerprint
from .banking import Bank, Delta, make
from .editing.fitting import modes_kept
from .emission.captured import Captured
from .errors import raise_all
from .folder import writing as files
from .folder.delta import load_delta, save_delta
from .language import parse_spec
from .language.model import Spec
from .models.stitched import Given, requested
from .rewrite.captures import Captures
from .rewrite.compilation import Compilation
from .rewrite.least_squares import calibrate
from .rewrite.lowered import lowered
from .rewrite.rewritten import Rewritten
from .rewrite.taking import taken
from .rewrite.weights import weighted
from .sensitivity.profile import Profile
from .text import Pictured
from .tracing import trace
from .tracing.undisturbed import undisturbed, without_garbage
from .verification import Check, verify_rewritten
from .verification.claims import judged, with_errors


def _draw(shown: Pictured) -> str:
    from .report.notebook import drawn  # a notebook pays for it

    return drawn(shown)


Pictured.draw = staticmethod(_draw)


def parse(source: str | Path, **overrides: object) -> Spec:
    """Reads and checks a spec.

    Args:
        source: a path, the name of a shipped spec, or the text of one.
        overrides: values of params, by name; `**{"lora.rank": 4}` sets an option of a pass.

    Raises:
        VitrewriteError: everything that is wrong with it, together.
    """
    return parse_spec(source, overrides)


@undisturbed()
@without_garbage()
def capture(model: nn.Module, example: Any = None) -> Captured:
    """Captures a model as graphs, one per distinct module forward.

    Args:
        model: any module, a flat `fx.GraphModule` too; it stays as it was.
        example: what it is called with (a tensor, a tuple, or a dict of keywords); by default
            what the model says of itself. Only shapes and dtypes matter.

    Returns:
        A callable module with the same state-dict keys, sharing the model's parameters.
        `.graphs` are its graphs by class name, `.flat()` is one `fx.GraphModule`.

    Raises:
        CaptureError: if a forward cannot be followed.
    """
    from .emission.realise import realise

    root = trace(model, example)
    realise(root)
    assert isinstance(root, Captured)
    return root


@undisturbed()
@without_garbage()
def plan(
    spec: Spec | str | Path,
    model: Given = None,
    *,
    example: Any = None,
    weights: str = "random",
    seed: int = 0,
    profile: Profile | str | Path | None = None,
    captures: Captures | None = None,
    **overrides: object,
) -> Compilation:
    """What `spec` would change in `model`; no weight is allocated.

    Args:
        spec: a `Spec`, a path, the name of a shipped spec, or a text.
        model: a module, or a name; by default the spec's own.
        example: what the model is called with, if it does not say so itself.
        weights: what `apply` would start from; of a checkpoint only names and shapes are read.
        seed: of random weights.
        profile: measurements for `sensitive(...)`, or the file of one.
        captures: of plans before, which spares those of one model to capture it again.
        overrides: params and pass options of the spec.

    Raises:
        VitrewriteError: everything that is wrong with the spec on this model.
    """
    request = requested(_spec(spec, overrides), model, weights, seed)
    if captures is None or example is not None:
        base = request.traced(example, meta=True)[1]
        return Compilation.of(request, base, profile=_profile(profile))
    known = captures.of(request)
    return Compilation.of(
        request, known.root, profile=_profile(profile), original=known.run, anatomy=known.anatomy
    )


@undisturbed()
def apply(
    spec: Spec | str | Path,
    model: Given = None,
    *,
    example: Any = None,
    weights: str = "random",
    seed: int = 0,
    model_options: Mapping[str, Any] | None = None,
    profile: Profile | str | Path | None = None,
    allocations: Mapping[str, Any] | None = None,
    delta: str | Path | None = None,
    calibration: Iterable[Tensor] | str | Path | None = None,
    **overrides: object,
) -> Rewritten:
    """Rewrites a model; the input model is unchanged and shares its frozen weights.

    Args:
        spec: a `Spec`, a path, the name of a shipped spec, or a text.
        model: a module, or a name; by default the spec's own.
        example: what the model is called with, if it does not say so itself.
        weights: `random`, `pretrained` or a checkpoint, for a model by name.
        seed: of random weights, and of what the passes add.
        model_options: constructor arguments of a model by name.
        profile: measurements for `sensitive(...)`, or the file of one.
        allocations: what was decided by measurements before, as a lock file has it.
        delta: a file or a folder of PEFT, as `load` takes it; new values by default.
        calibration: batches of images, or data by name, that layers between models are solved from
            by least squares; as they are drawn by default.
        overrides: params and pass options of the spec.

    Raises:
        VitrewriteError: everything that is wrong, claims that do not hold included.
    """
    original, made = compiled(
        spec,
        model,
        example=example,
        weights=weights,
        seed=seed,
        model_options=model_options,
        profile=profile,
        allocations=allocations,
        **overrides,
    )
    return finished(made, original, delta, calibration)


@undisturbed()
def compiled(
    spec: Spec | str | Path,
    model: Given = None,
    *,
    example: Any = None,
    weights: str = "random",
    seed: int = 0,
    model_options: Mapping[str, Any] | None = None,
    profile: Profile | str | Path | None = None,
    allocations: Mapping[str, Any] | None = None,
    **overrides: object,
) -> tuple[nn.Module, Compilation]:
    """The model, and the spec carried out on it: what `apply` prints and then gives its weights.

    Args and errors are those of `apply`, but for the claims that take weights.
    """
    request = requested(_spec(spec, overrides), model, weights, seed, model_options)
    original, base = request.traced(example, meta=False)
    if request.module is None:
        base.eval()
    measured = _profile(profile)
    made = Compilation.of(request, base, profile=measured, allocations=allocations)
    if measured is not None and (made.allocations or made.result.editor.origins):
        measured.check(trunk_fingerprint(base, made.anatomy))
    return original, made


@undisturbed()
def finished(
    made: Compilation,
    original: nn.Module,
    delta: str | Path | None = None,
    calibration: Iterable[Tensor] | str | Path | None = None,
    *,
    judge: bool = True,
) -> Rewritten:
    """The rewritten model, with all claims judged, and then the values of a delta, if one is given.

    Without `judge` the claims that take a run are left to `verify_rewritten`.

    Raises:
        VerifyError: VR501 for every claim that does not hold, together.
    """
    rewritten = weighted(made)
    rewritten.original = original
    if calibration is not None:
        calibrate(rewritten, calibration)
    if judge:
        judged(rewritten)
    return rewritten if delta is None else load(rewritten, delta)


def _spec(spec: Spec | str | Path, overrides: Mapping[str, object]) -> Spec:
    return spec if isinstance(spec, Spec) else parse_spec(spec, overrides)


def _profile(profile: Profile | str | Path | None) -> Profile | None:
    return Profile.load(profile) if isinstance(profile, (str, Path)) else profile


@undisturbed()
def lower(rewritten: Rewritten, *, stitch: int | None = None) -> Rewritten:
    """The cheapest equal model: what can be folded into weights is folded.

    Args:
        rewritten: the model.
        stitch: of what a spec makes that stitches models, the number of the one that is taken out
            as a model of its own; all stay by default.

    `rewritten` is unchanged, and stays in the result as `unlowered`. The result's report has the
    error of every fold and clause by dtype, measured when it is first asked for; see
    `verification.lowered`. A model that is lowered already is its own cheapest equal.
    """
    if stitch is not None:
        return taken(rewritten if rewritten.lowered else lowered(rewritten, stitch), stitch)
    return rewritten if rewritten.lowered else with_errors(lowered(rewritten))


def verify(rewritten: Rewritten, *, compiled: bool = False, graphs: bool = True) -> list[Check]:
    """Checks a rewritten model; see `verification.checks` for what is checked.

    Args:
        rewritten: the model; it is not changed.
        compiled: whether to compare with inductor's code too.
        graphs: whether to export and compile it, which takes most of the time.

    Raises:
        VerifyError: for every check that fails, together.
    """
    checks = verify_rewritten(rewritten, compiled=compiled, graphs=graphs)
    raise_all([check.error() for check in checks if check.holds is False])
    return checks


def emit(rewritten: Rewritten, out: str | Path, *, weights: bool = True) -> Path:
    """Writes source, weights, delta and report to the folder `out`, all or nothing.

    Raises:
        FileError: if the folder is something else, or cannot be written.
    """
    with modes_kept(rewritten.module, rewritten.base):
        return files.emit(rewritten, out, weights=weights)


def save(rewritten: Rewritten, path: str | Path, *, packed: bool = False) -> None:
    """Writes the delta to a safetensors file.

    A folder is written as a whole, with `emit`; its own delta cannot be replaced.

    Args:
        rewritten: the model.
        path: the file.
        packed: whether matrices of few bits are written as such: what a task stores. By default
            their latent numbers are, which training goes on from.

    Raises:
        FileError: if it cannot be written, belongs to a folder, or has a tensor that is not finite.
        RewriteError: if there is nothing to pack, or it cannot be.
    """
    save_delta(rewritten, path, packed=packed)


def load(rewritten: Rewritten, path: str | Path) -> Rewritten:
    """Loads a delta, strictly, into a model that the same spec made from the same base.

    Matrices of few bits that were packed are from then on used as they were read.

    Returns:
        `rewritten`, changed in place.

    Raises:
        FileError: for another base or spec, for missing or unexpected tensors or ones that are not
            finite, and for a file that was changed since it was written.
    """
    load_delta(rewritten, path)
    rewritten.trained = True
    return rewritten


def bank(
    rewritten: Rewritten,
    deltas: Mapping[str, Delta] | None = None,
    *,
    capacity: int = 16,
    classes: int | None = None,
) -> Bank:
    """Many deltas of one spec in one model: each sample of a batch has a task of its own.

    `bank.module(x, tasks)` is given a task for each sample, by name or by slot. In eager mode each
    gets the bits that its delta alone yields for that batch, in evaluation; compiled code is one
    program whatever is in the slots.

    Args:
        rewritten: what the spec made of the base; it stays as it is, and shares its frozen weights.
        deltas: by name of the task: files, folders of PEFT, tensors by name, or rewritten models.
        capacity: room for how many tasks.
        classes: room for how many classes, where the head is part of a delta; by default the most
            of `deltas` and `rewritten`. Scores of classes that a task does not have are -inf.

    Raises:
        RewriteError: VR773 for what samples of one batch cannot each have of their own.
        FileError: as `load`, but that a head may have another number of classes.
        UsageError: VR775 for a capacity below one or names that are none, VR776 for more classes
            than there is room for.
    """
    return make(rewritten, deltas, capacity, classes)
