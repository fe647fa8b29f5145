"""What claims count: parameters, shares, MACs under a convention, tokens."""

from __future__ import annotations

import math
from collections.abc import Callable, Collection, Iterable, Mapping
from itertools import accumulate
from operator import attrgetter

from torch import nn

from ..editing.costs import Costs
from ..editing.editor import join
from ..editing.extracting import extracted
from ..editing.measure import Propagation
from ..errors import VerifyError
from ..language.conventions import CONVENTIONS
from ..language.model import Claim
from ..layers.packing import SCALE_BYTES, size_of
from ..layers.quantised import Quantised
from ..selection.select import Selection
from ..tasks.queries import CLASSES
from ..tracing.unit import on_meta
from .engine import Rewrite
from .measures import Measures
from .parameters import parameters_of, paths_of
from .patches import beside_patches


def count(claim: Claim, measures: Measures, result: Rewrite) -> float:
    """The value of a claim's metric.

    Raises:
        VitrewriteError: what the claim asks for has no such value on this model.
    """
    return _METRICS[claim.metric](claim, measures, result)


# -- parameters -----------------------------------------------------------------------------------


def _parameters(claim: Claim, measures: Measures, result: Rewrite) -> int:
    trained = claim.metric == "trainable"
    total = measures.params.trainable if trained else measures.params.total
    names = set[str]()
    if claim.excluding is not None:
        sites = Selection(result.anatomy, result.root).sites(claim.excluding)
        names = parameters_of(sites, result.root)
    total -= sum(p.numel() for _, p in _named(result.root, names, trained))
    classes = claim.values.get("head")
    if classes is not None and result.head.isdisjoint(names):
        own = sum(p.numel() for _, p in _named(result.root, result.head, trained))
        total += _head_of(result, classes, trained) - own
    return total


def _parameters_lowered(claim: Claim, measures: Measures, result: Rewrite) -> int:
    return sum(p.numel() for p in measures.editor_lowered.root.parameters())


def _named(root: nn.Module, names: set[str], trained: bool) -> Iterable[tuple[str, nn.Parameter]]:
    """The parameters of some names, those that are not trained left out if so wanted."""
    named = ((n, p) for n, p in root.named_parameters() if n in names)
    return ((n, p) for n, p in named if p.requires_grad or not trained)


def _head_of(result: Rewrite, classes: object, trained: bool) -> int:
    """Parameters of the head if it had another number of classes, which may be a mean."""
    assert isinstance(classes, (int, float))
    shapes = [p.shape for _, p in _named(result.root, result.head, trained)]
    now = shapes[-1][0] if shapes else 0  # of the last layer's bias or weight
    return round(sum(s.numel() * (classes / now if s[0] == now else 1) for s in shapes))


def _share(claim: Claim, measures: Measures, result: Rewrite) -> float:
    options = claim.values
    classes = options.get("head")
    head = 0 if classes is None else _head_of(result, classes, trained=False)
    own = sum(p.numel() for _, p in _named(result.root, result.head, trained=False))
    whole = {
        "base": result.base_without_head,
        "base_and_head": result.base_without_head + head,
        "all": measures.params.total - own + head,
    }[str(options.get("of", "base"))]
    return _of_a_task(claim, measures, result) / whole


def _of_a_task(claim: Claim, measures: Measures, result: Rewrite) -> int:
    """Parameters that a task trains."""
    classes = claim.values.get("head")
    tuned = 0 if classes is None else _head_of(result, classes, trained=True)
    return measures.params.trainable_without_head + tuned


def _storage(claim: Claim, measures: Measures, result: Rewrite) -> float:
    """What tasks store over one base, in bases; one that each task trains whole is not kept.

    A parameter takes 32 bits; those of quantised matrices take what they have, packed.
    """
    tasks = claim.values["tasks"]
    assert isinstance(tasks, int)
    kept = any(not p.requires_grad for p in result.root.parameters())
    stored = _of_a_task(claim, measures, result) - _spared(claim, result)
    return kept + tasks * stored / result.base_without_head


def _spared(claim: Claim, result: Rewrite) -> float:
    """What packing spares of a task, in parameters of 32 bits."""
    classes, found = claim.values.get("head"), 0.0
    for path, matrix in result.root.named_modules():
        if not isinstance(matrix, Quantised) or matrix.bits == 32:
            continue
        count = matrix.weight.numel()
        if join(path, "weight") not in result.head:
            found += count - (size_of(matrix) + SCALE_BYTES) / 4
        elif classes is not None:
            count = _head_of(result, classes, trained=True)
            found += count - (count * matrix.bits / 8 + SCALE_BYTES) / 4
    return found


# -- MACs -----------------------------------------------------------------------------------------


def _macs(claim: Claim, measures: Measures, result: Rewrite) -> int:
    if claim.values.get("stitches") is not None:
        return _macs_of_stitch(claim, measures, result)
    folded = claim.metric == "macs_lowered"
    run = measures.run_lowered if folded else measures.run
    convention = CONVENTIONS[str(claim.values.get("convention", "plain"))]
    left = run.costs - _excluded(claim, run, result)
    if "mapped" in convention.weights:
        left += _map(claim, run, result)
    if "prefixed" in convention.weights:
        editor = measures.editor_lowered if folded else result.editor
        left += beside_patches(result.anatomy, editor, run, _left_out(claim, result))
    return round(left.weighed(convention.weights)) * (2 if claim.metric == "flops" else 1)


def _macs_of_stitch(claim: Claim, measures: Measures, result: Rewrite) -> int:
    """What the stitch costs that costs least or most."""
    convention = CONVENTIONS[str(claim.values.get("convention", "plain"))]
    if measures.stitches is None:
        raise _no_stitch(claim, "no models are stitched")
    if claim.excluding is not None or {"mapped", "prefixed"} & convention.weights.keys():
        raise _no_stitch(claim, "a stitch is counted whole, and of no image's maps or patches")
    lowered = claim.metric == "macs_lowered"
    root = on_meta(measures.editor_lowered.root if lowered else result.root)
    choose = min if claim.values["stitches"] == "least" else max
    cost = attrgetter("macs_lowered" if lowered else "macs")
    chosen = choose(measures.stitches.stitches, key=cost)
    run = Propagation(extracted(root, chosen.number), result.example)
    return round(run.costs.weighed(convention.weights)) * (2 if claim.metric == "flops" else 1)


def _no_stitch(claim: Claim, message: str) -> VerifyError:
    return VerifyError(
        "VR502",
        f"'{claim}' has no value: {message}",
        span=claim.span,
        suggestion="leave out 'stitches'",
    )


def _map(claim: Claim, run: Propagation, result: Rewrite) -> Costs:
    """What it takes to make a map of classes at the size of the image of queries and their masks.

    Masks are resized, then each pixel has the sum of classes over queries: Cheng et al., CVPR
    2022, section 3.1.
    """
    output = run.outputs
    scores = output.get(CLASSES) if isinstance(output, Mapping) else None
    if scores is None:
        raise VerifyError(
            "VR502",
            f"'{claim}' counts a map of queries, and the model yields none",
            span=claim.span,
            suggestion="take convention=norms",
        )
    (queries, classes), pixels = scores.shape[-2:], math.prod(result.example[0].shape[-2:])
    return Costs(mapped=queries * (classes - 1) * pixels, resized=queries * pixels)


def _excluded(claim: Claim, run: Propagation, result: Rewrite) -> Costs:
    """What the modules compute that a claim leaves out; one inside another counts once."""
    costs, paths = Costs(), _left_out(claim, result)
    for path in paths:
        if any(outer in paths for outer in [*accumulate(path.split("."), "{}.{}".format)][:-1]):
            continue
        assert claim.excluding is not None
        if (own := run.costs_of(path)) is None:
            raise VerifyError(
                "VR502",
                f"'{path}' is not called as a module: it has no MACs of its own",
                span=claim.excluding.span,
            )
        costs += own
    return costs


def _left_out(claim: Claim, result: Rewrite) -> Collection[str]:
    """The modules that a claim leaves out."""
    if claim.excluding is None:
        return ()
    return paths_of(Selection(result.anatomy, result.root).sites(claim.excluding))


# -- tokens ---------------------------------------------------------------------------------------


def _tokens(claim: Claim, measures: Measures, result: Rewrite) -> int:
    assert claim.site is not None
    sites = Selection(result.anatomy, result.root).sites(claim.site)
    order = {block.role: place for place, block in enumerate(result.anatomy.blocks)}
    places = [order.get(site.role, getattr(site, "index", 0)) for site in sites]
    found = {measures.tokens[place] for place in places}
    if len(found) != 1 or None in found:
        raise VerifyError(
            "VR502",
            f"'{claim.site}' has no single token count: {sorted(map(str, found))}",
            span=claim.site.span,
        )
    return found.pop() or 0


_METRICS: Mapping[str, Callable[[Claim, Measures, Rewrite], float]] = {
    **dict.fromkeys(("params", "trainable"), _parameters),
    **dict.fromkeys(("macs", "macs_lowered", "flops"), _macs),
    "params_lowered": _parameters_lowered,
    "share": _share,
    "storage": _storage,
    "tokens": _tokens,
}
