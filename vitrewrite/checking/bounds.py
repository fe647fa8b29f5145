"""A bound on what a pass makes, so that an option without a maximum is told and not waited for."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

from torch import nn
from torch.nn.modules.module import register_module_parameter_registration_hook

MOST = 5_000
"""Parameters that are made for a tiny model at most: any of ours has below 300."""


@contextmanager
def bounded() -> Iterator[None]:
    """Refuses to make more than `MOST` parameters.

    Raises:
        ValueError: where there are more.
    """
    made = 0

    def count(module: nn.Module, name: str, parameter: nn.Parameter) -> None:
        nonlocal made
        made += parameter is not None
        if made > MOST:
            raise ValueError(
                f"over {MOST} parameters are made: an option that counts modules "
                "takes a maximum, option(..., maximum=64)"
            )

    handle = register_module_parameter_registration_hook(count)
    try:
        yield
    finally:
        handle.remove()
