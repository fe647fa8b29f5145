"""Initial values of what passes put in."""

from __future__ import annotations

import random
from collections import Counter
from typing import TYPE_CHECKING

import torch

from ..catalog.declare import Pass
from ..catalog.own_code import file_of, own_code
from ..data.seeding import mixed
from ..editing.editor import Insertion
from ..editing.fitting import initialise
from ..errors import caused_at
from ..layers.packing import is_flat
from ..layers.quantised import Quantised

if TYPE_CHECKING:
    from .engine import Rewrite


def draw(result: Rewrite, seed: int) -> None:
    """Draws them, from a generator per site: the same spec gives the same bits.

    A generator hangs on the seed, the pass and the site alone, so that another clause or another
    order of the clauses changes nobody's values. What several sites share is drawn for its owner.
    """
    seen: Counter[tuple[str, str]] = Counter()
    for insertion in result.editor.insertions:
        name = insertion.pass_name, insertion.key
        generator = torch.Generator().manual_seed(mixed(seed, *name, seen[name]))
        seen[name] += 1
        with caused_at(result.spec.clauses[insertion.clause].span):
            _initialise(result.methods.of(insertion), insertion, generator)
        inherit(result, insertion)


@torch.no_grad()
def inherit(result: Rewrite, insertion: Insertion) -> None:
    """Has a pass make initial values of the model's own, if its clause asked for that."""
    origin = result.editor.origins.get(insertion.clause)
    if origin is None or not origin.known:
        return
    method, site = result.methods.of(insertion), insertion.site
    where = f"inherit() at '{site.role}'"
    with own_code(type(method), insertion.pass_name, where, site.clause.span):
        method.inherit(site, insertion.module, origin)


def _initialise(method: Pass, insertion: Insertion, generator: torch.Generator) -> None:
    """Has a pass draw the values of a module, from the generator alone.

    Raises:
        RewriteError: VR428 if it draws from the global one, VR420 if it fails, VR445 if all numbers
            of a quantised matrix are equal.
    """
    where = f"initialise() at '{insertion.site.role}'"
    before, python = torch.get_rng_state(), random.getstate()
    with own_code(type(method), insertion.pass_name, where):
        initialise(method, insertion.module, generator)
    _check_spread(insertion)
    if not torch.equal(before, torch.get_rng_state()) or python != random.getstate():
        raise insertion.site.clause.error(
            "VR428",
            f"pass {insertion.pass_name} draws from the global generator in {where}",
            notes=[f"in {file_of(type(insertion.module))}"],
            suggestion="give what draws the generator: nn.init.normal_(w, generator=generator)",
        )


def _check_spread(insertion: Insertion) -> None:
    """Raises VR445 for a quantised matrix whose numbers are all equal: it has no levels."""
    for name, matrix in insertion.module.named_modules():
        if isinstance(matrix, Quantised) and matrix.bits < 32 and is_flat(matrix.weight):
            where = f"'{name}' of {insertion.pass_name} at '{insertion.site.role}'"
            raise insertion.site.clause.error(
                "VR445",
                f"all numbers of the quantised matrix {where} are equal at first",
                suggestion="levels lie around a mean, as far apart as the numbers vary",
            )
