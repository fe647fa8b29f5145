"""Anatomy: what each place of a captured model is, told by dataflow alone."""

from __future__ import annotations

from torch import nn

from .sites import Anatomy


def analyse(root: nn.Module) -> Anatomy:
    """The sites of a captured tree, as `tracing.trace` makes it.

    Raises:
        TypeError: if `root` was not captured.
    """
    from .analysis import analyse as run

    return run(root)


__all__ = ["Anatomy", "analyse"]
