"""Capture: from a model to a tree of units, one `fx.Graph` per distinct module forward."""

from __future__ import annotations

import re
from collections.abc import Iterator
from typing import Any

import torch
from torch import fx, nn

from ..errors import CaptureError
from ..text import listing, shown
from . import construction, entries, inputs, modes, tree, walk
from .about import About, write
from .arguments import separated
from .caches import Caches
from .control import programs
from .cutting import handed_over
from .detour import Detour
from .fused import FUSED, fused_attention
from .guards import check_input, is_guard
from .helpers import helpers_of
from .nodes import is_size
from .notes import GUARD, VALUE
from .pre_logits import pre_logits
from .pruning import pass_on, prune
from .runs import Given, TraceRun
from .sizes import settle
from .state import Snapshot, tracked_builtins
from .template import Template
from .undisturbed import LOCK, same_randomness, without_garbage
from .unit import checkpoint, copy_tree
from .witness import IMAGE


def trace(model: nn.Module, example: Any = None) -> nn.Module:
    """The tree of units for `model`, which stays as it was.

    Args:
        model: any `nn.Module`; a flat `fx.GraphModule` too.
        example: what it is called with (a tensor, a tuple or a dict of keywords); by default what
            the model says of itself. Only shapes of tensors matter; other entries are constants
            that it is captured for.

    Raises:
        CaptureError: if a forward cannot be followed.
    """
    _check_names(model)
    example = inputs.example_input(model) if example is None else example
    example, constants = separated(model, example)
    detour = Detour()
    with LOCK, same_randomness(), without_garbage(), tracked_builtins(model), detour.placed():
        caches, before = Caches.of(model), Snapshot(model)
        found = programs(Given(model, example, constants, caches, before, detour))
    merged = modes.merge(found.evaluation, found.training)
    _share_programs(model, merged)
    fixed = found.fixed
    for template in {id(t): t for t in merged.values() if isinstance(t, Template)}.values():
        _drop_settled_guards(template, set(fixed))
        if IMAGE in fixed:
            for graph in template.graphs:
                settle(graph)
        template.clean()
    prune(merged)
    pass_on(merged)
    for template in {id(t): t for t in merged.values() if isinstance(t, Template)}.values():
        entries.settle(template)
    if IMAGE in fixed:
        _guard_input_size(merged[""], example)
    root = copy_tree(model, merged, _at_first_path(model, *found.runs))
    helpers = helpers_of(model)
    if (features := handed_over(merged[""].graph)) is not None:
        with LOCK, same_randomness():
            helpers["pre_logits"] = pre_logits(model, features)
    checkpoint(root, found.checkpointed)
    known = About(
        example=tree.map_leaves(lambda t: t.to("meta"), example),
        constants=constants,
        notes=tuple(_notes(model, found.lost_checkpoints)),
        helpers=helpers,
        programs=construction.programs(model),
        pretrained_cfg=getattr(model, "pretrained_cfg", None),
        config=getattr(model, "config", None),
    )
    write(root, known)
    return root


def _notes(model: nn.Module, lost: set[str]) -> Iterator[str]:
    """What a user should know about how the model was captured."""
    if names := fused_attention(model):
        yield (
            f"{listing(names)} take kernels of their own in eval, which round differently: there "
            f"the model itself and what is captured may be {FUSED:g} apart"
        )
    for path in sorted(lost):
        yield (
            f"{shown(path) if path else 'the model'} checkpoints a part of what it computes: of "
            "that, the modules it calls are computed again in backward, the rest is kept in memory"
        )


def _share_programs(model: nn.Module, assigned: dict[str, Any]) -> None:
    """Gives a module with several paths, of which some are called, one program under all of them.

    Raises:
        CaptureError: VR604 if it has several.
    """
    for paths in tree.module_paths(model).values():
        found = [path for path in paths if path in assigned]
        if len(paths) < 2 or not found:
            continue
        first = assigned[found[0]]
        for path in found[1:]:
            other = assigned[path]
            templates = isinstance(first, Template) and isinstance(other, Template)
            if other is not first and not (templates and first.same(other)):
                raise CaptureError(
                    "VR604",
                    f"'{found[0]}', which is '{path}', too, is called in two ways that "
                    "give different programs",
                )
        assigned.update(dict.fromkeys(paths, first))


def _at_first_path(model: nn.Module, *traces: TraceRun) -> dict[str, torch.Tensor]:
    """The constants of all traces, each at the first path of the module that holds it."""
    paths = tree.module_paths(model).values()
    firsts = {path: each[0] for each in paths for path in each}
    found: dict[str, torch.Tensor] = {}
    for name, constant in (item for each in traces for item in each.constants.items()):
        owner, _, own = name.rpartition(".")
        found[f"{firsts[owner]}.{own}".lstrip(".")] = constant
    return found


def _check_names(model: nn.Module) -> None:
    """Names are joined by dots, so none may have one in it, and are keys in files.

    Raises:
        CaptureError: VR606.
    """
    for path, module in walk.named(model):
        for name in (*module._modules, *module._parameters, *module._buffers):
            if "." in name or not name or re.search("[\ud800-\udfff]", name):
                where = f"'{path}'" if path else type(model).__name__
                raise CaptureError(
                    "VR606",
                    f"{where} has a part named {shown(name)}: a name is not empty, has no "
                    "dot, and can be written to a file",
                )


def _drop_settled_guards(template: Template, fixed: set[int]) -> None:
    """Guards about what is fixed anyway are covered by the check of the input."""
    for graph in template.graphs:
        for node in list(graph.nodes):
            if is_guard(node) and GUARD.of(node) <= fixed:
                graph.erase_node(node)


def _guard_input_size(template: Template, example: Any) -> None:
    sizes = {}
    for value in tree.leaves(inputs.as_arguments(example)):
        if value.dim() >= 3:
            sizes[tuple(value.shape)] = value
    for graph in template.graphs:
        placeholders = [n for n in graph.nodes if n.op == "placeholder"]
        for node in placeholders:
            value = VALUE.of(node)
            if not isinstance(value, torch.Tensor) or value.dim() < 3:
                continue
            dims = (value.dim() - 2, value.dim() - 1) if value.dim() >= 4 else (1,)
            with graph.inserting_after(placeholders[-1]):
                captured = tuple(int(value.shape[d]) for d in dims)
                guard = graph.call_function(check_input, ((), captured))
                GUARD.put(guard, frozenset({IMAGE}))
            guard.args = (tuple(_size(guard, node, d) for d in dims), captured)


def _size(guard: fx.Node, tensor: fx.Node, dim: int) -> fx.Node:
    """A size of an input, read before the guard; where it is read later, it now is earlier."""
    for user in tensor.users:
        if is_size(user) and user.args[1] == dim:
            guard.prepend(user)
            return user
    with guard.graph.inserting_before(guard):
        return guard.graph.call_method("size", (tensor, dim))
