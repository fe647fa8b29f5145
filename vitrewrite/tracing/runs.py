"""One trace of a model, and traces of single modules with what they were called with in it."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any, Protocol

import torch
from torch import nn

from ..errors import CaptureError, VitrewriteError
from . import calls, inputs, tree
from .caches import Caches, passed_by
from .checkpoints import checkpoints_seen
from .detour import Detour
from .escapes import AnewError
from .frame import Frame
from .history import PastCall
from .inputs import Aspects
from .limits import tracked_limits
from .memo import Entry
from .numbers import Tracked, plain
from .ranks import of_any_rank
from .recorder import Recorder
from .state import Snapshot
from .template import Template
from .witness import COUNT, Witnesses


class FailedError(CaptureError):
    """A forward raised an error of its own.

    Args:
        path: of the module.
        message: what it says.
    """

    def __init__(self, path: str, message: str) -> None:
        super().__init__("VR602", message)
        self.path = path


@dataclass(frozen=True)
class Given:
    """What is traced.

    Attributes:
        model: the model.
        example: what it is called with.
        constants: keywords that are the same in every call.
        caches: what it reaches that keeps values from call to call.
        before: the model as it is before it is traced, and after each trace.
        detour: by which its modules are called.
    """

    model: nn.Module
    example: Any
    constants: dict[str, Any]
    caches: Caches
    before: Snapshot
    detour: Detour


class TraceRun:
    """A trace of a model.

    Args:
        given: what is traced.
        training: the mode.
        aspects: in what it differs from the trace that becomes the program; None if it is that one.
        other: another trace.
        places: whether to note where in the source operations are.

    Attributes:
        assignments: the program (or torch layer) of each module by path.
        checkpointed: paths of what is computed again in backward.

    Raises:
        CaptureError: if a forward cannot be followed.
    """

    recorder: Recorder

    def __init__(
        self,
        given: Given,
        *,
        training: bool,
        aspects: Aspects | None = None,
        other: TraceRun | None = None,
        places: bool = False,
    ) -> None:
        self.given, self.training, self._aspects = given, training, aspects
        anew: set[type] = set(other.recorder.anew) if other else set()
        while True:
            try:
                entry = self._entry(other, anew, places=places)
                break
            except AnewError as found:
                if found.classes <= anew:
                    raise CaptureError("VR603", "a value leaves a call that did not run") from found
                anew |= found.classes
        self.assignments: dict[str, Any] = {"": entry.template, **entry.assignments}
        self.checkpointed = entry.checkpointed
        self.constants = self.recorder.constants
        self.fixed = self.recorder.values.dead

    def _entry(self, other: TraceRun | None, anew: set[type], *, places: bool) -> Entry:
        model, aspects = self.given.model, self._aspects
        values = Witnesses() if aspects is None else Witnesses(0, _state_in(model, aspects.dtype))
        before = self.given.before
        with before.kept():
            known = other.recorder if other else None
            self.recorder = Recorder(model, known, before.restore, values)
            self.recorder.anew = anew
            self.recorder.places = {} if places else None
            args, kwargs = _arguments(self.recorder, self.given.example, aspects)
            kwargs = kwargs | self.given.constants
            try:
                with _tracing(self.recorder, self.given, self.training):
                    return calls.trace_forward(
                        self.recorder, model, "", args, kwargs, model.forward
                    )
            except VitrewriteError:
                raise
            except Exception as error:
                path = self.recorder.failed_in
                said = f"cannot be captured: in '{path or 'the root'}': {error}"
                raise FailedError(path, f"{type(model).__name__} {said}") from error

    def calls(self, template: Template) -> list[PastCall]:
        """The calls that a program of this trace stands for."""
        return self.recorder.history.of(template)

    def trails(self, template: Template) -> list[Any]:
        """What the forwards of a program decided on numbers."""
        return [call.trail for call in self.calls(template)]

    def in_other_mode(
        self, templates: Sequence[Template], shared: set[int]
    ) -> list[tuple[Template | None, list[PastCall]]]:
        """The programs of single modules in the other mode, under the inputs of this trace.

        Args:
            templates: their programs in this mode.
            shared: ids of the programs that are the same in both modes.

        Returns:
            Program and calls of each; None for what cannot be traced by itself.
        """
        before = self.given.before
        with before.kept():
            values = self.recorder.values
            recorder = Recorder(self.given.model, self.recorder, before.restore, values)
            recorder.anew, recorder.memo.shared = self.recorder.anew, shared
            with _tracing(recorder, self.given, not self.training):
                found = [_together(recorder, self.calls(t)) for t in templates]
        self.constants.update(recorder.constants)
        return [(t, [] if t is None else recorder.history.of(t)) for t in found]


def _together(recorder: Recorder, made: list[PastCall]) -> Template | None:
    """The program of calls that were one program in the other mode, if they are in this one."""
    one: Template | None = None
    for call in made:
        template = _again(recorder, call)
        if template is None:
            return None
        if one is not None and not one.same(template):
            joined = of_any_rank(one, template)
            if joined is None:
                return None
            recorder.history.join(joined, one, template)
            template = joined
        one = one if one is not None and one.same(template) else template
    return one


def _again(recorder: Recorder, call: PastCall, arguments: Any = None) -> Template | None:
    """The program of a call that is traced by itself; None if it cannot be."""
    caller = Frame(recorder, call.module, "")
    caller.reads = call.given
    renewed: dict[int, Any] = {}

    def own(value: Any) -> Any:
        if not isinstance(value, Tracked):
            return value
        if id(value) not in renewed:
            kind: Any = type(value)
            number: Any = kind(plain(value))
            number.frame, number.witnesses, number.deps = caller, value.witnesses, value.deps
            number.recipe, number.hint = value.recipe, value.hint
            if not recorder.values.count:
                number.witnesses, number.deps = (), frozenset()
            renewed[id(value)] = number
        return renewed[id(value)]

    args, kwargs = tree.map_leaves(own, arguments or (call.args, call.kwargs))
    recorder.frames.append(caller)
    try:
        entry = calls.trace_forward(recorder, call.module, call.path, args, kwargs, call.forward)
    except (Exception, AnewError):  # by itself; the whole model can be traced, or says why not
        return None
    finally:
        recorder.frames.clear()
    found: Template = entry.template
    return found


class Recall(Protocol):
    """A call under other inputs, and what is called in it."""

    call: PastCall

    @property
    def dtype(self) -> torch.dtype:
        """What the model is cast to."""

    def arguments(self) -> Any:
        """What is called with, positional and by name."""

    def answer(self, target: str, number: int) -> Entry:
        """What a call in it gives."""


def again(run: TraceRun, recalls: Sequence[Recall], *, training: bool) -> list[Template | None]:
    """The programs of forwards under other inputs; None for one that fails, or goes another way."""
    if not recalls:
        return []
    model = run.given.model
    values = Witnesses(0, _state_in(model, recalls[0].dtype))
    before = run.given.before
    with before.kept():
        recorder = Recorder(model, run.recorder, before.restore, values)
        with _tracing(recorder, run.given, training):
            return [_recalled(recorder, each) for each in recalls]


def _recalled(recorder: Recorder, recall: Recall) -> Template | None:
    try:
        arguments = recall.arguments()
    except Exception:
        return None
    for value in tree.leaves(arguments):
        if isinstance(value, torch.Tensor):
            recorder.values.add(value, [])
    recorder.replayed = recall.answer
    return _again(recorder, recall.call, arguments)


@contextmanager
def _tracing(recorder: Recorder, given: Given, training: bool) -> Iterator[None]:
    def handler(module: nn.Module, args: Any, kwargs: Any, run: Any) -> Any:
        if not recorder.frames:
            return run()
        return calls.call_module(recorder, module, args, kwargs, run)

    with (
        given.detour.taken(given.model, handler, training=training),
        tracked_limits(recorder),
        checkpoints_seen(recorder),
        passed_by(given.caches, recorder),
        recorder,
    ):
        yield


def _arguments(recorder: Recorder, example: Any, aspects: Aspects | None) -> Any:
    """The example's arguments on meta, registered with their witnesses."""
    batch = inputs.batch_of(example)

    def register(value: torch.Tensor) -> torch.Tensor:
        if aspects is None:
            primary = inputs.variant(value, batch, None)
            recorder.values.add(primary, [inputs.variant(value, batch, i) for i in range(COUNT)])
        else:
            primary = inputs.control(value, batch, aspects)
            recorder.values.add(primary, [])
        return primary

    return tree.map_leaves(register, inputs.as_arguments(example))


def _state_in(
    model: nn.Module, dtype: torch.dtype | None
) -> Callable[[torch.Tensor, torch.Tensor], torch.Tensor] | None:
    """Casts the shadows of what `model.to(dtype)` would cast."""
    if dtype is None:
        return None
    state = {id(t) for t in (*model.parameters(), *model.buffers())}

    def cast(tensor: torch.Tensor, shadow: torch.Tensor) -> torch.Tensor:
        return shadow.to(dtype) if id(tensor) in state and shadow.is_floating_point() else shadow

    return cast
