"""Functions of torch that take a length as a plain number, so that exporting would fix it."""

from __future__ import annotations

from typing import Any

import torch


def spread(start: Any, end: Any, steps: Any, **kwargs: Any) -> torch.Tensor:
    """`torch.linspace`, whose number of steps is an int in its signature: a symbol stays one."""
    if not isinstance(steps, torch.SymInt):
        return torch.linspace(start, end, steps, **kwargs)
    gaps = torch.scalar_tensor(steps - 1, **kwargs).clamp(min=1)
    found: torch.Tensor = start + torch.arange(steps, **kwargs) * ((end - start) / gaps)
    return found
