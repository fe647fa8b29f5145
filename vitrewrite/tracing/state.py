"""Leaves the user's model exactly as it was."""

from __future__ import annotations

import functools
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import nn


@contextmanager
def preserved(model: nn.Module) -> Iterator[None]:
    """Restores every attribute, container, mode, and the random state, also after an error."""
    saved = [(m, dict(m.__dict__), _containers(m)) for m in model.modules()]
    random_state = torch.get_rng_state()
    try:
        yield
    finally:
        torch.set_rng_state(random_state)
        for module, attributes, containers in saved:
            module.__dict__.clear()
            module.__dict__.update(attributes)
            for name, content in containers.items():
                _refill(module.__dict__[name], content)


def _containers(module: nn.Module) -> dict[str, Any]:
    """Contents of dicts, lists and sets; None stands for empty, as most hook tables are."""
    found = module.__dict__.items()
    return {k: v.copy() if v else None for k, v in found if isinstance(v, (dict, list, set))}


def _refill(container: Any, content: Any) -> None:
    if not container and not content:
        return
    container.clear()
    if isinstance(container, list):
        container.extend(content or ())
    else:
        container.update(content or ())


@contextmanager
def uncached(model: nn.Module) -> Iterator[None]:
    """Bypasses `functools.lru_cache` around functions of the model's modules.

    A cache filled while tracing would hand traced values to the user's model later on.
    """
    names = {type(m).__module__ for m in model.modules()}
    spaces = [vars(sys.modules[n]) for n in names if n in sys.modules and not n.startswith("torch")]
    cached = [
        (space, name, value)
        for space in spaces
        for name, value in space.items()
        if isinstance(value, functools._lru_cache_wrapper)
    ]
    for space, name, value in cached:
        space[name] = value.__wrapped__
    try:
        yield
    finally:
        for space, name, value in cached:
            space[name] = value


@contextmanager
def calls_seen_by(handler: Any) -> Iterator[None]:
    """Sends every `nn.Module.__call__` through `handler(module, args, kwargs, run)`."""
    original = nn.Module.__call__

    def call(module: nn.Module, *args: Any, **kwargs: Any) -> Any:
        return handler(module, args, kwargs, lambda: original(module, *args, **kwargs))

    nn.Module.__call__ = call  # type: ignore[method-assign]
    try:
        yield
    finally:
        nn.Module.__call__ = original  # type: ignore[method-assign]
