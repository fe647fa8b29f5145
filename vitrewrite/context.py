"""What the process is set to while vitrewrite works: nothing leaks in, and nothing leaks out."""

from __future__ import annotations

import random
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import nn
from torch.overrides import TorchFunctionMode

from .tracing.operators import is_inplace


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


class Uninitialised(TorchFunctionMode):
    """Leaves parameters as they were allocated: they are loaded afterwards."""

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        """Skips what fills a parameter."""
        if args and isinstance(args[0], nn.Parameter) and is_inplace(func):
            return args[0]
        return func(*args, **(kwargs or {}))
