"""A bank as its user holds it: tasks by name, and a model that takes a task for each sample."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import fx, nn

from ..errors import UsageError
from ..rewrite.rewritten import Rewritten
from ..storage.hashing import hashed_once
from ..text import did_you_mean, listing, plural, shown
from ..tracing.undisturbed import undisturbed
from .fill import Delta, Filler
from .slots import TaskSlots
from .tree import refused, task_tree

Tasks = str | int | Sequence[str | int] | torch.Tensor


class BankModule(nn.Module):
    """A model that takes a task for each sample, for evaluation.

    Its state dict has the frozen tensors under their names, and those of all tasks, stacked.
    """

    def __init__(self, graph: fx.GraphModule, capacity: int) -> None:
        super().__init__()
        self.graph = graph
        self.names: list[str | None] = [None] * capacity
        self.eval()

    def __repr__(self) -> str:
        known = [name for name in self.names if name is not None]
        return f"<model with {plural(len(known), 'task')}: {listing(known)}>"

    def train(self, mode: bool = True) -> BankModule:
        """It stays in eval mode: deltas are trained one by one."""
        super().train(False)
        return self

    def forward(self, *inputs: Any) -> Any:
        """What the model yields for a batch, each sample with the delta of its task.

        Args:
            inputs: those of the model, such as images [samples, 3, H, W], and last the tasks: a
                tensor [samples] of slots, names or slots in a sequence, or one for all samples.

        Raises:
            UsageError: VR774 for a task that is not there, or tasks of another number of samples;
                not under `torch.compile`, where tasks are a tensor that is taken as it is.
        """
        *given, tasks = inputs
        if not torch.compiler.is_compiling():
            tasks = self.slots(tasks, given[0].shape[0], given[0].device)
        return self.graph(*given, tasks)

    def slots(self, tasks: Tasks, count: int, device: torch.device | str = "cpu") -> torch.Tensor:
        """The slots of some tasks, [count].

        Raises:
            UsageError: VR774 as `forward`.
        """
        found: list[Any]
        if isinstance(tasks, torch.Tensor):
            found = tasks.tolist() if tasks.dim() else [tasks.item()]
        else:
            found = [tasks] if isinstance(tasks, (str, int)) else list(tasks)
        if len(found) == 1:
            found *= count
        if len(found) != count:
            message = f"{plural(len(found), 'task')} for {plural(count, 'sample')}"
            raise UsageError("VR774", message, suggestion="give one for each, or one for all")
        return torch.tensor([self.slot(task) for task in found], device=device)

    def slot(self, task: str | int) -> int:
        """The slot of a task by its name or number.

        Raises:
            UsageError: VR774 if there is none.
        """
        if type(task) is int and 0 <= task < len(self.names) and self.names[task] is not None:
            return task
        if isinstance(task, str) and task in self.names:
            return self.names.index(task)
        known = [f"{name} ({i})" for i, name in enumerate(self.names) if name is not None]
        raise UsageError(
            "VR774",
            f"no task {shown(task)} in the bank",
            notes=[f"tasks: {listing(known)}"],
            suggestion=did_you_mean(str(task), [n for n in self.names if n is not None]),
        )


class Bank:
    """Deltas of one spec over one base, each with a name.

    Attributes:
        module: the model; `bank.module(x, tasks)`.
        capacity: how many tasks there is room for.
        classes: for how many classes, if the head is part of a delta.
    """

    def __init__(self, rewritten: Rewritten, capacity: int, classes: int | None) -> None:
        self.capacity, self.classes = capacity, classes
        self._filler = Filler(rewritten)
        self.module = BankModule(task_tree(rewritten, capacity, classes), capacity)

    @property
    def tasks(self) -> dict[str, int]:
        """The slot of each task by name."""
        return {name: i for i, name in enumerate(self.module.names) if name is not None}

    @undisturbed()
    def add(self, name: str, delta: Delta) -> int:
        """Puts a delta into a free slot; compiled code stays as it is.

        Args:
            name: of the task.
            delta: a file, a folder of PEFT, tensors by name, or a model that the same spec made.

        Returns:
            The slot.

        Raises:
            UsageError: VR775 if the name is taken or empty, or the bank is full, VR776 for more
                classes than there is room for.
            FileError: as `vr.load`, but that a head may have another number of classes.
        """
        if not isinstance(name, str) or not name or name in self.tasks:
            why = "is in the bank already" if name in self.tasks else "is no name of a task"
            raise UsageError("VR775", f"{shown(name)} {why}")
        if None not in self.module.names:
            raise UsageError(
                "VR775",
                f"the bank is full: it has room for {plural(self.capacity, 'task')}",
                suggestion="remove one, or make the bank with a larger capacity",
            )
        self._fill(name, self._filler.read(delta), slot := self.module.names.index(None))
        return slot

    def _fill(self, name: str, tensors: Mapping[str, torch.Tensor], slot: int) -> None:
        count = self._filler.classes(tensors)
        if count is not None and self.classes is not None and count > self.classes:
            raise UsageError(
                "VR776",
                f"{shown(name)} has {count} classes, the bank has room for {self.classes}",
                suggestion=f"make it with classes={count}",
            )
        for path, held in self._filler.of_modules(tensors).items():
            self._slots(path).fill(slot, held)
        self.module.names[slot] = name

    def remove(self, name: str) -> None:
        """Empties the slot of a task; what still asks for it gets NaN.

        Raises:
            UsageError: VR774 if it is not there.
        """
        slot = self.module.slot(name)
        for module in self.module.modules():
            if isinstance(module, TaskSlots):
                module.clear(slot)
        self.module.names[slot] = None

    def _slots(self, path: str) -> TaskSlots:
        found = self.module.graph.get_submodule(path)
        assert isinstance(found, TaskSlots)
        return found

    def __contains__(self, name: object) -> bool:
        return name in self.tasks

    def __len__(self) -> int:
        return len(self.tasks)

    def __repr__(self) -> str:
        held = ", ".join(f"{slot}: {name}" for name, slot in self.tasks.items())
        classes = "" if self.classes is None else f", at most {self.classes} classes"
        return f"<bank of {len(self)} of {plural(self.capacity, 'task')}{classes}: {held}>"


@undisturbed()
def make(
    rewritten: Rewritten, deltas: Mapping[str, Delta] | None, capacity: int, classes: int | None
) -> Bank:
    """A bank with some deltas in it; arguments and errors are those of `vitrewrite.bank`."""
    if rewritten.lowered:
        raise refused(rewritten.spec.name, "it is lowered, so its delta is in its weights")
    if type(capacity) is not int or capacity < 1:
        raise UsageError("VR775", f"capacity must be a number from 1 on, got {shown(capacity)}")
    filler = Filler(rewritten)
    with hashed_once():
        read = {name: filler.read(delta) for name, delta in (deltas or {}).items()}
    found = [filler.classes(tensors) for tensors in (rewritten.delta(), *read.values())]
    counts = [count for count in found if count is not None]
    room = (classes or max(counts)) if counts else None
    made = Bank(rewritten, capacity, room)
    for name, tensors in read.items():
        made.add(name, tensors)
    return made
