"""The parameters that sites stand for."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from itertools import accumulate

from torch import nn

from ..anatomy.sites import Linear
from ..editing.editor import Editor
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
    return {n for n in names if not paths.isdisjoint(_prefixes(n))}


def parameters_at(sites: Iterable[Site], editor: Editor, root: nn.Module) -> set[str]:
    """Those that sites stand for, and those of what passes put there, wherever it lies in the tree.

    Raises:
        RewriteError: as `parameters_of`.
    """
    sites = tuple(sites)
    whole = {path for site in sites if (path := str(getattr(site, "path", "")))}
    places = whole | {path for site in sites for path in _paths(site)}
    put = tuple(
        f"{each.path}."
        for each in editor.insertions
        if any(not places.isdisjoint(_prefixes(path)) for path in (each.path, *each.owners))
    )
    inserted = {n for n, _ in root.named_parameters(remove_duplicate=False) if n.startswith(put)}
    return parameters_of(sites, root) | inserted


def _prefixes(path: str) -> Iterator[str]:
    """A path and all paths that it lies in."""
    return accumulate(path.split("."), "{}.{}".format)


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
