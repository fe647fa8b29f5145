"""Anatomy: what each place of a captured model is, told by dataflow alone."""

from __future__ import annotations

from collections.abc import Sequence

from torch import nn

from .sites import Anatomy


def analyse(root: nn.Module, bases: Sequence[str] = ()) -> Anatomy:
    """The sites of a captured tree, as `tracing.trace` makes it.

    Args:
        root: the tree.
        bases: names of the models in it, if it holds several.

    Raises:
        TypeError: if `root` was not captured.
    """
    from .analysis import analyse as run

    return run(root, bases)


__all__ = ["Anatomy", "analyse"]
