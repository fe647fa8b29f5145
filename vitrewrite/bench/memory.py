"""Memory of a step: the peak while it runs, and what autograd keeps for the backward pass."""

from __future__ import annotations

import json
import os
import tempfile
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path

import torch

from ..profiling.timing import Step, wait


def peak_bytes(step: Step, device: torch.device) -> int | None:
    """The most that torch held during a step above what it held before, in bytes.

    Weights and inputs are there before, so they do not count; activations and gradients do.
    On an accelerator it is the caching allocator's own figure. On the CPU it is the running sum of
    every allocation and release that torch's allocator reports to the profiler: exact for
    tensors, without the scratch memory that oneDNN or MKL take from the system.

    Returns:
        None on a device that keeps no count.
    """
    if device.type == "cpu":
        return _peak_of(_changes(step))
    module = torch.get_device_module(device)
    if not hasattr(module, "max_memory_allocated"):
        return None
    wait(device)
    before = module.memory_allocated(device)
    module.reset_peak_memory_stats(device)
    step()
    wait(device)
    return int(module.max_memory_allocated(device) - before)


def saved_bytes(forward: Step, living: Iterable[torch.Tensor]) -> int:
    """What autograd saves during a forward pass for its backward, in bytes.

    Each storage counts once and whole, since a saved view keeps all of it.

    Args:
        forward: runs the forward pass.
        living: parameters, inputs and the like; they are in memory anyway and do not count.
    """
    known = {tensor.untyped_storage().data_ptr() for tensor in living}
    saved: dict[int, torch.UntypedStorage] = {}  # held, so that no address is used twice

    def pack(tensor: torch.Tensor) -> torch.Tensor:
        storage = tensor.untyped_storage()
        if storage.data_ptr() not in known:
            saved[storage.data_ptr()] = storage
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(pack, lambda tensor: tensor):
        forward()
    return sum(storage.nbytes() for storage in saved.values())


def _changes(step: Step) -> list[int]:
    """Bytes taken (positive) and given back (negative) during a step, in order."""
    activities = [torch.profiler.ProfilerActivity.CPU]
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder, "trace.json")
        with (
            _quiet(),
            torch.profiler.profile(
                activities=activities, profile_memory=True, acc_events=True
            ) as profile,
        ):
            step()
        profile.export_chrome_trace(str(path))
        events = json.loads(path.read_text(encoding="utf-8"))["traceEvents"]
    found = [(e["ts"], e["args"]["Bytes"]) for e in events if e.get("name") == "[memory]"]
    return [count for _, count in sorted(found, key=lambda each: each[0])]


def _peak_of(changes: list[int]) -> int:
    total = peak = 0
    for change in changes:
        total += change
        peak = max(peak, total)
    return peak


@contextmanager
def _quiet() -> Iterator[None]:
    """Without the profiler's notes, which it writes to the descriptor whatever its log level."""
    kept = os.dup(2)
    nowhere = os.open(os.devnull, os.O_WRONLY)
    os.dup2(nowhere, 2)
    try:
        yield
    finally:
        os.dup2(kept, 2)
        os.close(kept)
        os.close(nowhere)
