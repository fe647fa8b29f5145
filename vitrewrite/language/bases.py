"""What a spec says of several models: their names, and selectors that start at one of them."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence

from vitrewrite.errors import Span, SpecError
from vitrewrite.text import did_you_mean, listing, shown

from .factors import Factor
from .model import Clause, Model, Require
from .references import ModelRef
from .selectors import Call, EveryBase, Path, Selector
from .sites import parts_of

RESERVED = (
    *("blocks", "stages", "head", "norm", "patch_embed", "pixel_decoder", "decoder"),
    *("stitches", "forward", "stitch", "training"),
)
"""What no base may be called: sites that every model has, and members of what is made of them."""


def check_stitch(clause: Clause, before: Sequence[Clause], model: Model | None) -> None:
    """Refuses a `stitch` clause that is not the first, or whose bases have no names of their own.

    Raises:
        SpecError: VR506 for a name, VR507 for what stands beside the clause.
    """
    if model is not None:
        message = "'stitch' names the models itself, and the spec has a 'model' line too"
        raise SpecError("VR507", message, span=model.span, suggestion="leave the line out")
    if before:
        said = "second 'stitch'" if before[0].verb == "stitch" else "'stitch' behind other clauses"
        notes = [f"the first clause is at {before[0].span}"]
        suggestion = "write one 'stitch', and what is done to its bases behind it"
        raise SpecError("VR507", f"a {said}", span=clause.span, notes=notes, suggestion=suggestion)
    labels: set[str] = set()
    for label, ref in _labelled(clause.models):
        if label in labels:
            raise SpecError("VR506", f"two bases are named {shown(label)}", span=ref.span)
        if label in RESERVED:
            message = f"a base cannot be named {shown(label)}: every model has such a part"
            raise SpecError("VR506", message, span=ref.span, suggestion="such as small and base")
        labels.add(label)


def _labelled(models: Sequence[ModelRef]) -> Iterator[tuple[str, ModelRef]]:
    return ((ref.label or "abc"[i], ref) for i, ref in enumerate(models[:3]))


def check_starts(
    bases: Mapping[str, ModelRef],
    clauses: Iterable[Clause],
    requires: Iterable[Require],
    factors: Iterable[Factor],
) -> Iterator[SpecError]:
    """What is wrong with where the selectors of a spec start."""
    found: list[Selector | None] = [clause.sites for clause in clauses]
    found += [part for each in requires for part in (each.claim.site, each.claim.excluding)]
    found += [factor.sites for factor in factors]
    parts = (part for selector in found if selector is not None for part in parts_of(selector))
    yield from (error for part in parts if (error := _wrong(part, bases)) is not None)


def _wrong(part: Selector, bases: Mapping[str, ModelRef]) -> SpecError | None:
    if not bases:
        if not isinstance(part, EveryBase):
            return None
        message = "'every base' is of specs that stitch several models"
        suggestion = f"write '{part.path}'" if part.path else "name the sites"
        return SpecError("VR505", message, span=part.span, suggestion=suggestion)
    if isinstance(part, Call):
        message = f"'{part.name}()' measures one model, and the spec stitches {listing(bases)}"
        return SpecError("VR513", message, span=part.span, suggestion="name the sites")
    if isinstance(part, Path):
        return _without_base(part, part.steps[0].names, part.steps[0].span, bases)
    return None


def _without_base(
    path: Path, names: tuple[str, ...], span: Span, bases: Mapping[str, ModelRef]
) -> SpecError | None:
    odd = [name for name in names if name not in bases and name != "stitches"]
    if not odd:
        return None
    near = did_you_mean(odd[0], bases)
    suggestion = near or f"write '{next(iter(bases))}.{path}' or 'every base.{path}'"
    notes = [f"bases: {listing(bases)}"]
    message = f"{shown(odd[0])} is no base: a selector starts at one where several are stitched"
    return SpecError("VR504", message, span=span, notes=notes, suggestion=suggestion)
