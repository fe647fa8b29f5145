"""What capture, rewriting and printing made of a model, beside the model itself.

The reference is the user's own module, called as the user calls it: a fault of ours cannot hide in
it. Four models are run in the same situations:

    own        the user's module
    base       the captured one, before any clause
    start      the rewritten one at its initialisation
    module     the rewritten one as it is
    emitted    what `build` of the emitted source makes, with the weights of `module`
"""

from __future__ import annotations

import linecache
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field, replace
from functools import cached_property
from typing import TYPE_CHECKING, Any

import torch
from torch import nn

from ..emission.checked import found_good
from ..text import listing
from ..tracing.fused import FUSED, fused_attention
from .check import Check
from .modes import mode_watched
from .numeric import at_start, given, lowering_error, over_largest, randomised, sample, starts_equal
from .original import call_own, own_model
from .runs import Casts, Outcome, Situation, apart, outcome, tensors
from .stages import Stage, stages
from .watching import changes_watched, errors_watched

if TYPE_CHECKING:
    from ..rewrite.rewritten import Rewritten

OWN, BASE, START, MODULE, EMITTED = "own", "base", "start", "module", "emitted"


@dataclass(eq=False)
class Runs:
    """The models behind a rewritten one, each run at most once in a situation.

    Attributes:
        made: what they yielded.
        modeless: of which of these nothing asked for its mode, so that training yields the same.
        casts: their tensors in other dtypes.
        changes: how far the modules that passes put in change values at the start; see `watching`.
        errors: what passes measure of the calls of their modules as they are.
    """

    rewritten: Rewritten
    made: dict[Any, Outcome] = field(default_factory=dict)
    modeless: set[Any] = field(default_factory=set)
    casts: Casts = field(default_factory=Casts)
    changes: dict[str, float] = field(default_factory=dict)
    errors: dict[int, dict[str, float]] = field(default_factory=dict)

    @cached_property
    def own(self) -> nn.Module | str:
        """The user's module, or why there is none."""
        return own_model(self.rewritten)

    @cached_property
    def fresh(self) -> Rewritten:
        """The rewritten model as it is drawn at first."""
        return at_start(self.rewritten)

    @cached_property
    def equal_at_start(self) -> bool:
        """Whether no clause changes the output at the start."""
        return starts_equal(self.rewritten)

    @cached_property
    def twin(self) -> Rewritten:
        """A copy whose inserted parameters are random, so that no branch is zero."""
        return randomised(self.rewritten)

    @cached_property
    def twins_made(self) -> list[torch.Tensor]:
        """What it makes of one image in eval, with what gradients take."""
        module = self.twin.module.eval()
        return list(tensors(module(*sample(self.rewritten, 1))))

    @cached_property
    def twins_output(self) -> list[torch.Tensor]:
        """The same without."""
        return [t.detach() for t in self.twins_made]

    @cached_property
    def stages(self) -> list[Stage]:
        """The twin, lowered clause by clause."""
        return list(stages(self.twin))

    def measure(self, metric: str) -> Any:
        """The number that `identity`, `lowers` or `max_error` is about, of the model as it starts.

        What is run for other checks, too, is not run again.
        """
        if metric == "identity":
            own = BASE if isinstance(self.own, str) else OWN
            return apart(*(given(self(which, Situation())) for which in (own, START)))
        if self.fresh is self.rewritten and self.rewritten.result.editor.insertions:
            return over_largest(self.twins_output, self.stages[-1].output)
        return lowering_error(self.fresh)

    @cached_property
    def emitted(self) -> nn.Module:
        """The model that the emitted text builds."""
        from ..emission.twin import emitted_twin

        return emitted_twin(self.text, self.rewritten.module.state_dict())

    @cached_property
    def text(self) -> str:
        """The emitted source."""
        from ..folder.writing import model_text

        return model_text(self.rewritten)

    @property
    def other_dtype(self) -> torch.dtype:
        """bfloat16, or float32 for a model in bfloat16."""
        parameters = self.rewritten.base.parameters()
        own = {p.dtype for p in parameters if p.is_floating_point()}
        return torch.float32 if own == {torch.bfloat16} else torch.bfloat16

    @cached_property
    def situations(self) -> tuple[Situation, ...]:
        """An image, two of them, training, another dtype, and another size if one is possible."""
        other = self.other_shapes
        sized = () if other is None else (Situation(shapes=other),)
        return (*self.few, Situation(2), Situation(dtype=self.other_dtype), *sized)

    @cached_property
    def few(self) -> tuple[Situation, ...]:
        """An image, and training; batch norms need two images there."""
        norms = any("BatchNorm" in type(m).__name__ for m in self.rewritten.base.modules())
        return Situation(), Situation(1 + norms, training=True)

    @cached_property
    def other_shapes(self) -> tuple[tuple[int, ...], ...] | None:
        """Shapes of another image size, or number of tokens, that the user's module takes."""
        own = [tuple(v.shape[1:]) for v in self.rewritten.result.example]
        if isinstance(self.own, str) or len(own) != 1:
            return None
        for shape in _others(own[0]):
            situation = Situation(shapes=(shape,))
            if not isinstance(self(OWN, situation), Exception):
                return (shape,)
            del self.made[OWN, situation]
        return None

    def __call__(self, which: str, situation: Situation) -> Outcome:
        """What one of the models yields."""
        key = self._same_run(which, situation)
        if key not in self.made:
            self.made[key] = self._run(*key)
        return self.made[key]

    def _same_run(self, which: str, situation: Situation) -> tuple[str, Situation]:
        """A run that is this one."""
        if situation.training:
            key = self._same_run(which, replace(situation, training=False))
            return key if key in self.modeless else (which, situation)
        if which == START and self.fresh is self.rewritten:
            which = MODULE
        return which, situation

    def in_training(self, situation: Situation, *models: str) -> Situation:
        """Training with as many images, if runs in eval tell of it; else as `few` has it."""
        for which in models:
            self(which, situation)
        shown = all(self._same_run(which, situation) in self.modeless for which in models)
        return replace(situation, training=True) if shown else self.few[1]

    def _run(self, which: str, situation: Situation) -> Outcome:
        values = sample(self.rewritten, situation.batch, shapes=situation.shapes)
        if situation.dtype is not None:
            values = tuple(v.to(situation.dtype) if v.is_floating_point() else v for v in values)
        if which == OWN:
            assert isinstance(self.own, nn.Module)
            return outcome(
                self.own, lambda m: call_own(self.rewritten, m, values), situation, casts=self.casts
            )
        model = self._model(which)
        still = _inserted(self.rewritten, model) if which == START else ()
        with self._watched(which, situation), mode_watched(model) as watch:
            made = outcome(model, lambda m: m(*values), situation, still, self.casts)
        if not watch.asked and not situation.training and not isinstance(made, Exception):
            self.modeless.add((which, situation))
        return made

    def _model(self, which: str) -> nn.Module:
        if which == EMITTED:
            return self.emitted
        if which == START:  # made only when it is asked for
            return self.fresh.module
        return self.rewritten.base if which == BASE else self.rewritten.module

    @contextmanager
    def _watched(self, which: str, situation: Situation) -> Iterator[None]:
        """Looks at the modules that passes put in, in the first run of an image."""
        image, rewritten = situation == Situation(), self.rewritten
        at_start = not rewritten.lowered and (
            which == START or (which == MODULE and self.fresh is rewritten)
        )
        with ExitStack() as watches:
            if image and which == MODULE:
                watches.enter_context(errors_watched(rewritten, self.errors))
            if image and at_start:
                watches.enter_context(changes_watched(self.fresh, self.changes))
            yield


def _others(shape: tuple[int, ...]) -> Iterator[tuple[int, ...]]:
    """Smaller inputs before larger ones, of another aspect first."""
    if len(shape) == 2:  # tokens
        yield from ((shape[0] + 3, shape[1]), (2 * shape[0], shape[1]))
    if len(shape) == 3:
        channels, height, width = shape
        for up, across in ((0.5, 1), (1, 0.5), (0.5, 0.5), (1.5, 1), (2, 1), (2, 2)):
            yield channels, int(height * up), int(width * across)


def _inserted(rewritten: Rewritten, model: nn.Module) -> set[nn.Module]:
    """The modules that passes put in, with what is in them; they draw no random numbers then."""
    editor = rewritten.result.editor
    paths = (*(i.path for i in editor.insertions), *editor.helpers)
    return {child for path in paths for child in model.get_submodule(path).modules()}


# -- checks ---------------------------------------------------------------------------------------


def reference(runs: Runs, situations: Sequence[Situation]) -> Iterator[Check]:
    """The comparisons with the user's own module, and of the emitted source."""
    if isinstance(runs.own, str):
        yield Check("the model itself", None, "not checked", runs.own)
        if runs.equal_at_start:
            yield _same("rewritten at its start = captured", runs, BASE, START, situations)
    else:
        yield _same("captured = the model itself", runs, OWN, BASE, situations)
        if runs.equal_at_start:
            yield _same("rewritten at its start = the model itself", runs, OWN, START, situations)
        yield from _fused(runs)
    # It is the text of the same classes: of a batch of one or of two, one is enough.
    some = list(situations)
    if Situation(2) in situations:
        some = [runs.in_training(Situation(2), MODULE, EMITTED), *situations[2:]]
    emitted = _same("emitted source = rewritten", runs, MODULE, EMITTED, some)
    if emitted.holds:
        found_good(runs.text, runs.rewritten.module)
    yield emitted


def _fused(runs: Runs) -> Iterator[Check]:
    """How far torch's own kernels, which the user's module takes in eval, are from the capture."""
    if not isinstance(runs.own, nn.Module) or not (names := fused_attention(runs.own)):
        return
    wanted, got = runs(OWN, Situation(fused=True)), runs(BASE, Situation())
    if isinstance(wanted, Exception) or isinstance(got, Exception):
        return  # that is told already
    largest = max((float(t.abs().max()) for t in wanted if t.numel()), default=0.0)
    difference = apart(wanted, got) / max(1.0, largest)
    what = f"kernels of their own that {listing(names)} take in eval"
    yield Check(what, difference <= FUSED, difference, f"at most {FUSED:g}: they round differently")


def _same(name: str, runs: Runs, first: str, second: str, situations: Sequence[Situation]) -> Check:
    """Whether two models yield the same bits wherever the first one runs."""
    seen, refused = [], []
    for situation in situations:
        wanted, got = runs(first, situation), runs(second, situation)
        if isinstance(wanted, Exception):
            refused.append(f"{situation}: the model itself fails, {_reason(wanted)}")
            continue
        if isinstance(got, Exception):
            if situation.shapes is not None and _is_refusal(got):
                refused.append(f"{situation}: refused, {_reason(got)}")
                continue
            return Check(name, False, _reason(got), str(situation))
        difference = apart(wanted, got)
        if difference:
            return Check(name, False, difference, str(situation))
        seen.append(str(situation))
    note = "; ".join([*seen, *refused])
    return Check(name, True if seen else None, 0.0 if seen else "not checked", note)


def _is_refusal(error: Exception) -> bool:
    """Whether a line that says `raise ValueError` was reached: a guard, not an accident."""
    trace = error.__traceback__
    while trace is not None and trace.tb_next is not None:
        trace = trace.tb_next
    if trace is None or not isinstance(error, ValueError):
        return False
    code = trace.tb_frame.f_code
    return linecache.getline(code.co_filename, trace.tb_lineno).strip().startswith("raise ")


def _reason(error: Exception) -> str:
    lines = str(error).strip().splitlines()
    return f"{type(error).__name__}: {lines[0]}" if lines else type(error).__name__
