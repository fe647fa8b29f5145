"""The graph of a bank: the model's own for evaluation, given a task for each sample."""

from __future__ import annotations

import operator
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import fx, nn

from ..anatomy.sites import Place
from ..editing.samples import Batches
from ..emission.captured import inlined
from ..errors import RewriteError
from ..rewrite.rewritten import Rewritten
from ..tracing.leaves import changed_by
from ..tracing.notes import ARITY
from ..tracing.unit import Unit, duplicate
from .lay import Lay
from .slots import TaskSlots

TASKS = "tasks"


def task_tree(rewritten: Rewritten, capacity: int, classes: int | None) -> fx.GraphModule:
    """The model of a bank, with empty slots in the place of what a delta holds.

    Args:
        rewritten: the model; frozen tensors are shared with it.
        capacity: room for how many tasks.
        classes: room for how many classes, where the head is part of a delta.

    Raises:
        RewriteError: VR773 for what no sample can have of its own.
    """
    # Modules of its own: those of `rewritten` are put into training mode and back.
    root = duplicate(rewritten.module, _shared, lambda buffer: buffer)
    assert isinstance(root, Unit)
    graph, places = inlined(root, evaluation=True)
    lying = _Lying(rewritten.module, places, Batches(rewritten.module))
    banked = trained(rewritten)
    inputs = [node for node in graph.nodes if node.op == "placeholder"]
    with graph.inserting_before(inputs[-1].next):
        tasks = graph.placeholder(TASKS)
    slots: dict[str, TaskSlots] = {}
    for path, tensors in banked.items():
        calls = [n for n in graph.nodes if n.op == "call_module" and n.target == path]
        found = {lying.at(call) for call in calls}
        if len(found) != 1:
            raise refused(
                path, "it is not called alike everywhere" if found else "nothing calls it"
            )
        given, results = found.pop()
        module = _bare(rewritten.module.get_submodule(path), tensors)
        room = classes if path in heads(rewritten) else None
        slots[path] = TaskSlots(module, tensors, capacity, given, results, room)
    for call in [n for n in graph.nodes if n.op == "call_module" and n.target in slots]:
        call.args = (tasks, *call.args)
    made = fx.GraphModule(root, graph, class_name=type(root).__name__)
    for path, module in slots.items():
        made.set_submodule(path, module)
    return made.eval()


def trained(rewritten: Rewritten) -> dict[str, dict[str, torch.Tensor]]:
    """By module path the tensors there that are part of a delta, by their names in the module.

    Raises:
        RewriteError: VR773 for a tensor that no layer holds.
    """
    found: dict[str, dict[str, torch.Tensor]] = {}
    for insertion in rewritten.result.editor.insertions:
        module = rewritten.module.get_submodule(insertion.path)
        kept = module.state_dict(keep_vars=True)
        if kept:
            found[insertion.path] = dict(kept)
    inside = tuple(f"{path}." for path in found)
    for name in sorted(rewritten.result.base_trained):
        path, _, last = name.rpartition(".")
        module = rewritten.module.get_submodule(path)
        if name.startswith(inside) and inside:
            continue
        if isinstance(module, Unit) or module._modules:
            raise refused(name, "it is no tensor of a layer, and so not used by sample")
        found.setdefault(path, {})[last] = rewritten.module.get_parameter(name)
    return found


def heads(rewritten: Rewritten) -> dict[str, tuple[str, ...]]:
    """By path the layers that make the classes and are trained as a whole, and their tensors."""
    found = {}
    for site in rewritten.result.anatomy.head:
        path = site.weight.rpartition(".")[0]
        layer = rewritten.module.get_submodule(path)
        names = tuple(f"{path}.{name}" for name, _ in layer.named_parameters())
        if isinstance(layer, nn.Linear) and rewritten.result.base_trained.issuperset(names):
            found[path] = names
    return found


def _shared(parameter: nn.Parameter) -> nn.Parameter:
    return nn.Parameter(parameter.detach(), requires_grad=False)


def _bare(module: nn.Module, tensors: Mapping[str, torch.Tensor]) -> nn.Module:
    """A copy that shares what is frozen, and holds nothing where tasks bring tensors."""
    ids = {id(tensor) for tensor in tensors.values()}

    def kept(tensor: Any) -> Any:
        return tensor.detach().new_empty(0) if id(tensor) in ids else tensor.detach()

    def parameter(old: nn.Parameter) -> nn.Parameter:
        return nn.Parameter(kept(old), requires_grad=False)

    return duplicate(module, parameter, kept).eval()


_Lays = tuple[tuple[Lay | None, ...], tuple[Lay, ...]]


@dataclass(frozen=True)
class _Lying:
    """Tells how samples lie in the values of a graph."""

    module: nn.Module
    places: Mapping[fx.Node, Place]
    batches: Batches

    def at(self, call: fx.Node) -> _Lays:
        """How they lie in the arguments and in the results of a call.

        Raises:
            RewriteError: VR773 if there are none, or it cannot be told.
        """
        path = str(call.target)
        given = tuple(self._of(arg, path) for arg in call.args)
        results: list[fx.Node] = [call]
        if count := ARITY.get(call):
            items = {u.args[1]: u for u in call.users if u.target is operator.getitem}
            results = [items[i] for i in range(count) if i in items]
            if len(results) != count:
                raise refused(path, "a result of it is not read")
        lays = tuple(lay for result in results if (lay := self._of(result, path)))
        if not any(given) or len(lays) < len(results):
            raise refused(path, "what it yields is one for all samples")
        return given, lays

    def _of(self, value: Any, path: str) -> Lay | None:
        if not isinstance(value, fx.Node) or self.batches.same(self.places[value]):
            return None
        samples = self.batches.at(self.places[value])
        if samples is not None:
            return Lay.of(samples)
        if (before := self._changed(value)) is not None:
            return self._of(before, path)
        raise refused(path, "the samples of a batch cannot be told apart there")

    def _changed(self, value: fx.Node) -> Any:
        """What an inserted module changed to a value, if one did."""
        call, index = value, 0
        if value.target is operator.getitem:
            call, index = value.args  # type: ignore[assignment]
        if call.op != "call_module":
            return None
        changes = changed_by(self.module.get_submodule(str(call.target)))
        position = changes[index] if index < len(changes) else None
        return None if position is None else call.args[position]


def refused(what: str, why: str) -> RewriteError:
    """VR773, for what cannot be one by sample."""
    return RewriteError("VR773", f"'{what}' cannot be in a bank: {why}")
