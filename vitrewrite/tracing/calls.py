"""Module calls while tracing: calling a child is its capture."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import fx, nn

from ..errors import CaptureError
from . import entries, hooks, places, tree
from .arguments import bind_arguments, in_order
from .branches import Outcome, explore
from .checkpoints import checkpointed
from .frame import Frame, getitem
from .history import PastCall
from .leaves import is_inserted, is_leaf, leaf_class, run_leaf, torch_base
from .memo import Entry
from .nodes import add
from .notes import ARITY
from .numbers import Tracked
from .ranks import of_any_rank
from .recorder import Recorder
from .template import Template, signature


def call_module(
    recorder: Recorder, module: nn.Module, args: Any, kwargs: Any, run: Callable[[], Any]
) -> Any:
    """What `module(*args, **kwargs)` means while tracing; `run` calls it for real."""
    path = tree.find(recorder.modules.get(id(module), []), recorder.frame.path)
    if path is None:
        return run()  # built on the fly: its operations belong to the frame that is open
    recorder.harvest()
    if hooks.makes_state(module):  # then that is part of what the module computes
        return _called(recorder, module, path, args, kwargs)
    return hooks.call(module, args, kwargs, lambda a, k: _called(recorder, module, path, a, k))


def _called(recorder: Recorder, module: nn.Module, path: str, args: Any, kwargs: Any) -> Any:
    given = in_order(module, args, kwargs)
    passed = list(tree.passed(recorder.frame, given))  # a list may grow meanwhile
    frame = recorder.frame
    target = str(tree.relative(path, frame.path))
    if recorder.replayed is None:
        entry, is_new = _entry(recorder, module, path, args, kwargs)
    else:
        number = len(frame.called)
        with recorder.off():
            entry, is_new = recorder.replayed(target, number), False
    outputs = entry.fresh(recorder)
    frame.called.append((target, entry))
    if is_new and not entry.decided:
        recorder.known.passed_on(entry.outputs, outputs)
    if isinstance(entry.template, Template):
        traced = entry.frame
        assert traced is not None
        taken = () if traced.shared else traced.taken
        node = add(frame.graph, "call_module", target, frame.arg((*passed, *taken)))
        frame.calls.append((node, traced))
    else:
        node = add(frame.graph, "call_module", target, *frame.arg((args, kwargs)))
    if recorder.places is not None:
        recorder.places[node] = places.here()
    _assign(recorder, frame, target, entry)
    _bind_outputs(frame, node, outputs)
    return outputs


def _entry(
    recorder: Recorder, module: nn.Module, path: str, args: Any, kwargs: Any
) -> tuple[Entry, bool]:
    """The outcome of a call, and whether it was traced now."""
    key = recorder.memo.key(module, (args, kwargs), recorder)
    if is_inserted(module):  # opaque, and may yield more in training
        key = key, module.training
    found = recorder.memo.leaves.get(key)
    if found is None and not hooks.hooked_below(module):
        found = recorder.memo.find(key)
    if found is None and is_leaf(module) and not hooks.makes_state(module):
        found = recorder.memo.leaves[key] = _leaf(
            recorder, module, leaf_class(module), args, kwargs
        )
    is_new = found is None
    if found is None:
        before, effects = tree.signature_of_dict(module), recorder.effects
        found = _first_call(recorder, module, path, args, kwargs)
        # Else the effects of the call could not be replayed.
        if before != tree.signature_of_dict(module):
            recorder.effects += 1
        once = type(module) in recorder.anew or (found.frame is not None and found.frame.taken)
        same = recorder.effects == effects and not once and not hooks.hooked_below(module)
        if same and found.repeatable:
            recorder.memo.entries[key] = found
            if found.frame is not None:
                found.frame.shared = True
    return found, is_new


def _first_call(recorder: Recorder, module: nn.Module, path: str, args: Any, kwargs: Any) -> Entry:
    if hooks.makes_state(module):

        def hooked(*args: Any, **kwargs: Any) -> Any:
            return hooks.call(module, args, kwargs, lambda a, k: module.forward(*a, **k))

        return trace_forward(recorder, module, path, args, kwargs, hooked)
    entry = trace_forward(recorder, module, path, args, kwargs, module.forward)
    base = torch_base(module)
    if base is not None and _is_just(recorder, base, entry, module, path, args, kwargs):
        return _leaf(recorder, module, base, args, kwargs)
    return entry


def _is_just(
    recorder: Recorder,
    base: type[nn.Module],
    entry: Entry,
    module: nn.Module,
    path: str,
    args: Any,
    kwargs: Any,
) -> bool:
    """Whether a subclass of a torch layer computes exactly what that layer does."""
    forward = base.forward.__get__(module)
    dead = dict(recorder.values.dead)
    try:
        plain = trace_forward(recorder, module, path, args, kwargs, forward)
    except (RuntimeError, TypeError, ValueError, CaptureError):
        return False  # `LayerNorm2d` gets images, which `LayerNorm` does not take
    finally:  # a failed trial says nothing about the model
        tried, recorder.values.dead = recorder.values.dead, dead
    return tried.keys() == dead.keys() and bool(
        signature(entry.template.graph) == signature(plain.template.graph)
    )


def trace_forward(
    recorder: Recorder, module: nn.Module, path: str, args: Any, kwargs: Any, forward: Any
) -> Entry:
    """Runs `forward` in a frame of its own, once for each way it may go."""

    given = recorder.frames[-1].reads if recorder.frames else []
    frames: list[Frame] = []

    def run(decisions: tuple[Any, ...]) -> Outcome:
        with recorder.open(module, path, decisions) as frame:
            frames.append(frame)
            bind_arguments(frame, module, args, kwargs)
            outputs = entries.run(frame, forward, args, kwargs)
            frame.graph.output(frame.arg(outputs))
        template = Template.of(module, frame.graph)
        with recorder.off():
            count = recorder.values.count
            witnesses = [recorder.values.outcome(index, outputs) for index in range(count)]
        again, lost = checkpointed(frame)
        recorder.lost_checkpoints.update(lost)
        entry = Entry(
            template, outputs, witnesses, frame.assignments, again, frame, frame.repeatable
        )
        return Outcome(entry, tuple(frame.asked), frozenset(frame.lost), frame.doubt)

    entry = explore(run, recorder.off, path).entry
    trail = [step for frame in frames for step in frame.trail]
    read = [each for frame in frames for each in frame.reads]
    call = PastCall(
        entry.template, module, path, args, kwargs, forward, given, read, trail, frames[-1].called
    )
    recorder.history.add(call)
    return entry


def _leaf(
    recorder: Recorder, module: nn.Module, cls: type[nn.Module], args: Any, kwargs: Any
) -> Entry:
    with recorder.off():
        outputs, witnesses = recorder.values.run(
            lambda a: run_leaf(module, cls, a[0], a[1], recorder.values.meta),
            (args, kwargs),
            cls.__name__,
        )
    return Entry(cls, outputs, witnesses, {})


def _assign(recorder: Recorder, frame: Frame, target: str, entry: Entry) -> None:
    found = {target: entry.template}
    found |= {f"{target}.{path}": template for path, template in entry.assignments.items()}
    frame.checkpointed |= {f"{target}.{path}".rstrip(".") for path in entry.checkpointed}
    for path, template in found.items():
        known = frame.assignments.setdefault(path, template)
        if known is template:
            continue
        one = None
        if isinstance(known, Template) and isinstance(template, Template):
            one = known if known.same(template) else of_any_rank(known, template)
            if one is not None:
                recorder.history.join(one, known, template)
        if one is None:
            raise CaptureError(
                "VR604", f"'{frame.path}.{path}' is called in two ways that give different programs"
            )
        frame.assignments[path] = one


def _bind_outputs(frame: Frame, node: fx.Node, outputs: Any) -> None:
    if isinstance(outputs, (torch.Tensor, Tracked)):
        frame.bind(outputs, node)
        return
    items: list[tuple[Any, Any]] = []
    if isinstance(outputs, (tuple, list)):
        items = list(enumerate(outputs))
        ARITY.put(node, len(items))
    elif isinstance(outputs, dict):
        items = list(outputs.items())
    for key, item in items:
        if next(tree.leaves(item), None) is not None:
            _bind_outputs(frame, getitem(frame, node, key), item)
