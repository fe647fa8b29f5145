"""The order in which clauses are carried out, and which of them are in conflict."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import combinations
from typing import Any

from ..catalog.declare import Pass
from ..editing.clause import ClauseRef
from ..errors import RewriteError
from ..selection.kinds import kind_of, overlaps
from ..selection.within import Site


@dataclass(frozen=True)
class Job:
    """A clause with its pass and the sites that it found.

    `by_site` has the pass at each site, where options differ; `method` is the first of them.
    """

    clause: ClauseRef
    method: Pass
    sites: tuple[Site, ...]
    by_site: tuple[Pass, ...] = ()

    def groups(self) -> list[tuple[Pass, tuple[Site, ...]]]:
        """The sites by what the pass is there."""
        if not self.by_site:
            return [(self.method, self.sites)]
        several: dict[int, list[Site]] = {}
        for method, site in zip(self.by_site, self.sites, strict=True):
            several.setdefault(id(method), []).append(site)
        methods = {id(method): method for method in self.by_site}
        return [(methods[key], tuple(sites)) for key, sites in several.items()]


def schedule(jobs: Sequence[Job]) -> list[Job]:
    """The jobs in order: that of the spec, except that facts are written before they are read.

    Raises:
        RewriteError: VR401 for two clauses in conflict, VR455 for two kinds of what a model has
            one of, VR407 for a circle.
    """
    for first, second in combinations(jobs, 2):
        _check_conflict(first, second)
    edges = [
        (i, j)
        for i, first in enumerate(jobs)
        for j, second in enumerate(jobs)
        if _feeds(first.method, second.method) and not _feeds(second.method, first.method)
    ]
    if all(i < j for i, j in edges):  # mostly: the spec has them in order
        return list(jobs)
    return _sorted(jobs, edges)


def _sorted(jobs: Sequence[Job], edges: Sequence[tuple[int, int]]) -> list[Job]:
    import networkx as nx  # takes a tenth of a second

    graph: nx.DiGraph[int] = nx.DiGraph(edges)
    graph.add_nodes_from(range(len(jobs)))
    try:
        return [jobs[i] for i in nx.lexicographical_topological_sort(graph)]
    except nx.NetworkXUnfeasible:
        circle = [jobs[i].clause for i, _ in nx.find_cycle(graph)]
        raise RewriteError(
            "VR407",
            f"'{circle[0].text}' must come both before and after '{circle[-1].text}'",
            span=circle[0].span,
            notes=[f"the other clause: {circle[-1].origin}"],
        ) from None


def _feeds(first: Pass, second: Pass) -> bool:
    """Whether one pass changes a fact of the stream that the other reads."""
    return type(first) is not type(second) and bool(set(first.writes) & set(second.reads))


def _check_conflict(first: Job, second: Job) -> None:
    names = first.clause.pass_name, second.clause.pass_name
    kind = first.method.sole
    if kind and kind == second.method.sole and names[0] != names[1]:
        raise second.clause.error(
            "VR455",
            f"{' and '.join(names)} are both a {kind}, and a model has one",
            notes=[f"the other clause: {first.clause.origin}"],
            suggestion="leave one of the clauses out",
        )
    excluded = names[1] in first.method.excludes or names[0] in second.method.excludes
    if names[0] != names[1] and not excluded:
        return
    shared = [a.role for a in first.sites for b in second.sites if overlaps(a, b)]
    if shared:
        more = f" and {len(shared) - 1} more sites" if len(shared) > 1 else ""
        raise second.clause.error(
            "VR401",
            f"{' and '.join(names)} exclude each other, and both are at '{shared[0]}'{more}"
            if excluded
            else f"two clauses put {names[1]} at '{shared[0]}'{more}",
            notes=[f"the other clause: {first.clause.origin}"],
            suggestion="take the sites out of one of them",
        )


def distinct(sites: Sequence[Site]) -> tuple[Site, ...]:
    """The sites, a matrix or layer that several blocks share only once."""
    found: dict[Any, Site] = {}
    for site in sites:
        found.setdefault(kind_of(site).identity(site), site)
    return tuple(found.values())


def overlapping(sites: Sequence[Site]) -> tuple[Site, Site] | None:
    """Two of the sites that are about the same."""
    by_module: dict[str, list[Site]] = {}
    for site in sites:
        near = by_module.setdefault(kind_of(site).module(site) or site.role, [])
        for other in near:
            if overlaps(site, other):
                return other, site
        near.append(site)
    return None
