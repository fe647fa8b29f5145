"""The parameters that sites stand for."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from itertools import accumulate

from torch import nn

from ..anatomy.sites import Linear
from ..errors import RewriteError
from ..selection.kinds import kind_of, parts
from ..selection.within import Site


def parameters_of(sites: Iterable[Site], root: nn.Module) -> set[str]:
    """Names of the parameters that sites stand for.

    Raises:
        RewriteError: VR408 for some rows of a fused weight, trained and counted only as a whole.
    """
    paths = paths_of(sites)
    names = (n for n, _ in root.named_parameters(remove_duplicate=False))
    return {n for n in names if not paths.isdisjoint(accumulate(n.split("."), "{}.{}".format))}


def paths_of(sites: Iterable[Site]) -> set[str]:
    """The modules and parameters that sites stand for.

    Raises:
        RewriteError: VR408 for some rows of a fused weight.
    """
    return {path for site in sites for path in _paths(site)}


def _paths(site: Site) -> Iterator[str]:
    """The modules and parameters of a site."""
    for part in parts(site):
        if isinstance(part, Linear) and part.rows is not None and part is site:
            raise RewriteError(
                "VR408",
                f"'{part.role}' is some rows of {part.weight}, trained and counted only as a whole",
            )
        if path := kind_of(part).module(part):
            yield path
