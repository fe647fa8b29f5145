"""What a module becomes in a bank: the same program, with tensors for each task."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import torch
import torch.nn.functional as F
from torch import nn
from torch.func import functional_call

from .lay import Lay

_LINE = 64
"""Bytes of a cache line: kernels round otherwise where a tensor begins inside of one."""


class TaskSlots(nn.Module):
    """One module of a model with `capacity` sets of its tensors; each sample chooses one.

    In eager mode every sample gets, bit for bit, what the module itself yields with the tensors of
    its task for the whole batch. Where the kernels yield the same bits for a sample alone, which is
    tried once for each shape, each sample is computed once; elsewhere the batch is, once for each
    task in it. Under `torch.compile` all samples are one batched product, which is equal up to
    rounding, and one program for all that is in the slots.

    Args:
        module: what it was; frozen tensors stay its own.
        stacked: its tensors that tasks bring, by name.
        capacity: how many tasks there is room for.
        inputs: how samples lie in each argument, None where there are none.
        outputs: how they lie in each result.
        classes: if it makes the classes, room for how many; tasks may have fewer, and their scores
            of the others are minus infinity.
    """

    sizes: torch.Tensor

    def __init__(
        self,
        module: nn.Module,
        stacked: Mapping[str, torch.Tensor],
        capacity: int,
        inputs: Sequence[Lay | None],
        outputs: Sequence[Lay],
        classes: int | None = None,
    ) -> None:
        super().__init__()
        self.module = module
        self.inputs, self.outputs, self.classes = tuple(inputs), tuple(outputs), classes
        self.names = {name: f"{name.replace('.', '_')}_of_tasks" for name in stacked}
        for name, tensor in stacked.items():
            shape = tensor.shape if classes is None else (classes, *tensor.shape[1:])
            room = tensor.new_empty(capacity, *shape)
            self.register_buffer(self.names[name], room, persistent=True)
        sizes = torch.full((capacity,), classes or 0, device=next(iter(stacked.values())).device)
        self.register_buffer("sizes", sizes)
        self._alone: dict[Any, bool] = {}
        for slot in range(capacity):
            self.clear(slot)

    @torch.no_grad()
    def fill(self, slot: int, tensors: Mapping[str, torch.Tensor]) -> None:
        """Puts the tensors of a task into a slot."""
        for name, tensor in tensors.items():
            room = self.get_buffer(self.names[name])[slot]
            if self.classes is not None:
                self.sizes[slot] = len(tensor)
                room[len(tensor) :] = 0
                room = room[: len(tensor)]
            room.copy_(tensor)

    @torch.no_grad()
    def clear(self, slot: int) -> None:
        """Leaves nothing that could be taken for a task's: NaN."""
        for name in self.names.values():
            room = self.get_buffer(name)[slot]
            room.fill_(torch.nan if room.is_floating_point() else 0)

    def forward(self, tasks: torch.Tensor, *args: Any) -> Any:
        """What the module yields, each sample with the tensors of its task.

        Args:
            tasks: [samples], whole numbers below the capacity.
            args: what the module is called with.
        """
        outputs = self._mapped(tasks, args) if _is_compiled() else self._exact(tasks, args)
        return outputs if len(self.outputs) > 1 else outputs[0]

    # -- eager ------------------------------------------------------------------------------------

    def _exact(self, tasks: torch.Tensor, args: Sequence[Any]) -> tuple[Any, ...]:
        slots: list[int] = tasks.tolist()
        if len(set(slots)) == 1:
            return self._run(slots[0], args)
        if self._is_alone(slots[0], args, len(slots)):
            return self._together(
                [self._run(slot, self._sample(args, i, len(slots))) for i, slot in enumerate(slots)]
            )
        first, *others = dict.fromkeys(slots)
        results = self._run(first, args)
        for slot in others:
            chosen = tasks == slot
            results = tuple(
                torch.where(lay.mask(chosen, new), new, old)
                for lay, new, old in zip(self.outputs, self._run(slot, args), results, strict=True)
            )
        return results

    def _is_alone(self, slot: int, args: Sequence[Any], count: int) -> bool:
        """Whether samples alone yield the bits that they yield in this batch."""
        tensors = [(a.shape, a.stride(), a.dtype, a.device) for a in args if _is_tensor(a)]
        key = (count, torch.get_num_threads(), torch.is_grad_enabled(), *tensors)
        if key not in self._alone:
            whole = self._run(slot, args)
            alone = [self._run(slot, self._sample(args, i, count)) for i in range(count)]
            pairs = zip(whole, self._together(alone), strict=True)
            self._alone[key] = all(torch.equal(a, b) for a, b in pairs)
        return self._alone[key]

    def _sample(self, args: Sequence[Any], number: int, count: int) -> list[Any]:
        pairs = zip(args, self.inputs, strict=True)
        return [a if lay is None else lay.sample(a, number, count) for a, lay in pairs]

    def _together(self, results: Sequence[tuple[Any, ...]]) -> tuple[Any, ...]:
        columns = zip(*results, strict=True)
        return tuple(
            lay.together(column) for lay, column in zip(self.outputs, columns, strict=True)
        )

    def _run(self, slot: int, args: Sequence[Any]) -> tuple[Any, ...]:
        """The module with the tensors of one task."""
        tensors = {name: self._tensor(slot, room) for name, room in self.names.items()}
        results = functional_call(self.module, tensors, tuple(args))
        if self.classes is None:
            return results if isinstance(results, tuple) else (results,)
        missing = self.classes - results.shape[-1]
        return (F.pad(results, (0, missing), value=-torch.inf) if missing else results,)

    def _tensor(self, slot: int, name: str) -> torch.Tensor:
        room = self.get_buffer(name)[slot]
        room = room if self.classes is None else room[: int(self.sizes[slot])]
        return room.clone() if room.data_ptr() % _LINE else room

    # -- compiled ---------------------------------------------------------------------------------

    def _mapped(self, tasks: torch.Tensor, args: Sequence[Any]) -> tuple[Any, ...]:
        count = tasks.shape[0]
        tensors = {name: self.get_buffer(room)[tasks] for name, room in self.names.items()}
        given = [
            arg if lay is None else lay.first(arg, count)
            for arg, lay in zip(args, self.inputs, strict=True)
        ]
        where = (0, *(None if lay is None else 0 for lay in self.inputs))
        # Where no gradient is asked for, modules may write in place, which `vmap` has no rules for.
        with torch.enable_grad():
            found = torch.vmap(self._of_one, in_dims=where)(tensors, *given)
        pairs = zip(found, self.outputs, strict=True)
        results = tuple(lay.back(each) for each, lay in pairs)
        return results if self.classes is None else (self._masked(results[0], tasks),)

    def _of_one(self, tensors: dict[str, torch.Tensor], *args: Any) -> tuple[Any, ...]:
        results = functional_call(self.module, tensors, args)
        return results if isinstance(results, tuple) else (results,)

    def _masked(self, scores: torch.Tensor, tasks: torch.Tensor) -> torch.Tensor:
        """Minus infinity for classes that a task does not have."""
        numbers = torch.arange(scores.shape[-1], device=scores.device)
        (lay,) = self.outputs
        sizes = lay.mask(self.sizes[tasks], scores)
        return scores.masked_fill(numbers >= sizes, -torch.inf)


def _is_compiled() -> bool:
    return torch.compiler.is_compiling()


def _is_tensor(value: Any) -> bool:
    return isinstance(value, torch.Tensor)
