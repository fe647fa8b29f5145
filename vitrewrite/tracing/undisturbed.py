"""What the process is set to while vitrewrite works: nothing leaks in, and nothing leaks out."""

from __future__ import annotations

import gc
import random
import sys
import threading
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager

import torch

LOCK = threading.RLock()
"""Held while a model is captured, which patches torch, or built, which uses its random state."""


@contextmanager
def undisturbed() -> Iterator[None]:
    """Around everything that the API does: what the caller has set for its own work does not count.

    Gradients are computed, there is no inference mode, autocast or default device, whatever is made
    is on the CPU unless a model says otherwise, and random states are afterwards what they were
    before. One thread at a time.

    The default dtype stays: it is one setting for all threads, and models may depend on it.
    """
    with LOCK, ExitStack() as stack:
        stack.enter_context(same_randomness())
        stack.enter_context(torch.inference_mode(mode=False))
        stack.enter_context(torch.enable_grad())
        for kind in ("cpu", "cuda"):
            if torch.is_autocast_enabled(kind):
                stack.enter_context(torch.autocast(kind, enabled=False))
        if torch.get_default_device().type != "cpu":
            stack.enter_context(torch.device("cpu"))
        yield


@contextmanager
def default_dtype(dtype: torch.dtype) -> Iterator[None]:
    """Makes factories without a dtype give `dtype`. The setting is the process's: be short."""
    before = torch.get_default_dtype()
    if before == dtype:
        yield
        return
    torch.set_default_dtype(dtype)
    try:
        yield
    finally:
        torch.set_default_dtype(before)


@contextmanager
def same_randomness() -> Iterator[None]:
    """Leaves the random state of torch (every device in use), numpy and Python as it was."""
    numpy = sys.modules.get("numpy")
    known = random.getstate(), numpy and numpy.random.get_state(), torch.get_rng_state()
    cuda = torch.cuda.get_rng_state_all() if torch.cuda.is_initialized() else None  # type: ignore[no-untyped-call]
    try:
        yield
    finally:
        random.setstate(known[0])
        if numpy is not None:
            numpy.random.set_state(known[1])
        torch.set_rng_state(known[2])
        if cuda is not None:
            torch.cuda.set_rng_state_all(cuda)


def seed(number: int) -> None:
    """Seeds torch's global generators: the CPU's, and those of an accelerator if there is one.

    Where there is none, `torch.manual_seed` notes for each device that may yet come what to seed,
    with the stack that asked for it, and keeps all these notes.
    """
    if torch.accelerator.is_available():
        torch.manual_seed(number)
    else:
        torch.default_generator.manual_seed(number)


@contextmanager
def without_garbage() -> Iterator[None]:
    """No search for garbage: hardly any is made, and to search what libraries hold takes long.

    Where no weights are made: what is garbage meanwhile is held until the end.
    """
    searched = gc.isenabled()
    gc.disable()
    try:
        yield
    finally:
        if searched:
            gc.enable()
