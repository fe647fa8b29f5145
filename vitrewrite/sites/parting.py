"""Which parts of a layer, hidden units or heads, a clause has stay."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from typing import TYPE_CHECKING

import torch

from ..anatomy.sites import Place
from ..editing.narrowing import Remaining, Slices

if TYPE_CHECKING:
    from .base import BoundSite


def chosen(
    site: BoundSite,
    parts: Sequence[int] | int,
    count: int,
    what: str,
    by: Sequence[tuple[torch.Tensor, Slices]],
) -> Remaining:
    """The choice that a clause states, checked.

    Args:
        site: where.
        parts: numbers of parts; or how many stay, those that weigh most by the tensors of `by`.
        count: how many there are.
        what: they are, in words.
        by: tensors with their slices.

    Raises:
        RewriteError: VR485 for parts that are not there or named twice, VR486 if there are not as
            many as are to stay, or if none would.
    """
    if isinstance(parts, int):
        _expect(site, parts, count, what)
        return Remaining(parts, by=by)
    twice = [part for part, times in Counter(parts).items() if times > 1]
    beyond = [i for i in parts if not 0 <= i < count]
    if beyond or twice:
        odd = f"there is no {beyond[0]}" if beyond else f"{twice[0]} twice"
        raise site.clause.error(
            "VR485",
            f"{site.pass_name} at '{site.role}' names {what}: {odd}",
            "keep",
            suggestion=f"name some of 0..{count - 1}, each once",
        )
    _expect(site, len(parts), count, what)
    return Remaining(len(parts), torch.tensor(sorted(parts), dtype=torch.long, device="cpu"))


def shape_before(site: BoundSite, place: Place) -> tuple[int, ...]:
    """Of a value for one image, as the model was before the clause."""
    assert site.context.batches is not None
    found = site.context.batches.runs[0].shape(place)
    if found is None:
        raise site.unfit("it is not known what it yields")
    return found


def _expect(site: BoundSite, kept: int, count: int, what: str) -> None:
    if not 1 <= kept <= count:
        raise site.clause.error(
            "VR486",
            f"{site.pass_name} at '{site.role}' keeps {kept} of {count} {what}",
            "keep",
            suggestion=f"keep 1 to {count}",
        )
