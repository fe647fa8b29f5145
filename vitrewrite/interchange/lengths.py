"""Functions of torch that take a length as a plain number, so that exporting would fix it."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch.overrides import TorchFunctionMode


class FollowedLengths(TorchFunctionMode):
    """While it is entered, lengths that hang on the size of an image stay symbols."""

    def __torch_function__(
        self, func: Callable[..., Any], types: Any, args: Any = (), kwargs: Any = None
    ) -> Any:
        """As torch does, but of `linspace` over a symbol."""
        kwargs = kwargs or {}
        if func is torch.linspace and len(args) == 3 and isinstance(args[2], torch.SymInt):
            return _spread(*args, **kwargs)
        return func(*args, **kwargs)


def _spread(start: Any, end: Any, steps: torch.SymInt, **kwargs: Any) -> torch.Tensor:
    """`torch.linspace`, whose number of steps is an int in its signature."""
    gaps = torch.scalar_tensor(steps - 1, **kwargs).clamp(min=1)
    found: torch.Tensor = start + torch.arange(steps, **kwargs) * ((end - start) / gaps)
    return found
