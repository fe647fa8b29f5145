"""One way through several models, taken out as a rewritten model of its own."""

from __future__ import annotations

import torch
from torch import nn

from ..editing.extracting import extracted
from ..emission.realise import realise
from ..errors import RewriteError
from ..language import parse_spec
from ..models.request import Request
from ..tracing.about import about, is_root, tell
from ..tracing.unit import duplicate
from .compilation import Compilation
from .rewritten import Rewritten
from .weights import weighted


@torch.no_grad()
def taken(rewritten: Rewritten, number: int) -> Rewritten:
    """The model of one stitch: no spec is about it any more, and all of it is its base.

    Args:
        rewritten: what a spec made that stitches models, lowered or not.
        number: of the stitch.

    Raises:
        RewriteError: VR510 if there is no such stitch.
    """
    known = about(rewritten.module).paths if is_root(rewritten.module) else None
    if known is None:
        raise RewriteError(
            "VR510",
            f"'{rewritten.spec.name}' stitches no models, so it has no stitch {number}",
            suggestion="leave the number out",
        )
    count = len(known.table)
    if not 0 <= number < count:
        raise RewriteError(
            "VR510",
            f"there is no stitch {number}: '{rewritten.spec.name}' has {count}",
            suggestion=f"give a number from 0 to {count - 1}; plan and report list them",
        )
    root = duplicate(
        extracted(rewritten.module, number),
        lambda p: nn.Parameter(p.detach(), requires_grad=p.requires_grad),
        lambda b: b.clone(),
    )
    front, stop, layer, end, start, *_ = known.table[number].row
    mid = known.table[number].between
    told = f"blocks 0..{stop}, layer {layer}" if layer is not None else "all of it"
    if mid is not None:
        through = f"{mid.model} {mid.start}..{mid.stop}"
        told = f"blocks 0..{stop}, layer {mid.layer}, {through}, layer {layer}"
    note = f"stitch {number} of {rewritten.spec.name}: {front} {told}, then {end} from {start}"
    realise(root)
    spec = parse_spec(f"# {note}\n").renamed(f"{rewritten.spec.name}_stitch_{number}")
    request = Request(spec, root, "given", rewritten.seed)
    request.name = f"stitch {number} of {rewritten.model_name}"
    base = request.traced(meta=False)[1].eval()
    tell(base, notes=(*about(base).notes, note))
    result = weighted(Compilation.of(request, base))
    result.original = root
    return result
