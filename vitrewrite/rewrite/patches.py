"""What a run computes for tokens that are no patches, and in the norms of blocks."""

from __future__ import annotations

import math
from collections.abc import Collection, Iterator

from torch import nn

from ..anatomy.flow import Flow, Op, flatten
from ..anatomy.kinds import layer_matrix
from ..anatomy.sites import Anatomy, Block, Linear, Place
from ..editing.costs import Costs
from ..editing.editor import Editor
from ..editing.measure import Propagation


def beside_patches(
    anatomy: Anatomy, editor: Editor, run: Propagation, without: Collection[str] = ()
) -> Costs:
    """The kinds that a count by patches weighs: `prefixed` and `normalised_in_blocks`.

    Args:
        anatomy: the places of the model as it was.
        editor: of the tree that ran.
        run: of that tree.
        without: modules that are left out.
    """
    normalised = 0
    for block in anatomy.blocks:
        norms = (norm for norm in block.norms if not _under(norm.path, without))
        places = {place for norm in norms for place in editor.calls(norm.calls)}
        normalised += sum(math.prod(run.shape(place) or (0,)) for place in places)
    prefixed = 0
    if others := anatomy.stream.prefix_tokens + anatomy.stream.suffix_tokens:
        costs = _per_token(anatomy, editor.root, run)
        prefixed = sum(others * cost for path, cost in costs if not _under(path, without))
    return Costs(prefixed=prefixed, normalised_in_blocks=normalised)


def _under(path: str, others: Collection[str]) -> bool:
    return any(path == other or path.startswith(f"{other}.") for other in others)


def _per_token(anatomy: Anatomy, root: nn.Module, run: Propagation) -> Iterator[tuple[str, int]]:
    """What each layer of an MLP computes for one token of a sequence, with its weight's name."""
    flow = flatten(root)
    try:
        layers = by_weight(flow)
        for block in anatomy.blocks:
            for site, op in ((s, o) for s in mlp_sites(block) for o in layers.get(s.weight, ())):
                shape = run.shape(Place(op.frame.path, op.node.name))
                if shape is not None and len(shape) == 3:
                    yield site.weight, _rows(site, op) * widths(op)[0]
    finally:
        flow.release()


def by_weight(flow: Flow) -> dict[str, list[Op]]:
    """Every call of a matrix, by the name of its weight."""
    found: dict[str, list[Op]] = {}
    for op in flow.ops:
        if (weight := layer_matrix(op)) is not None:
            found.setdefault(weight.path, []).append(op)
    return found


def mlp_sites(block: Block) -> list[Linear]:
    """The layers of the feed-forward part of a block."""
    mlp = block.mlp
    return [] if mlp is None else [s for s in (mlp.fc1, mlp.gate, mlp.fc2) if s is not None]


def widths(op: Op) -> tuple[int, int]:
    """Features that a matrix takes and yields."""
    weight = layer_matrix(op)
    assert weight is not None
    return weight.in_features, weight.out_features


def _rows(site: Linear, op: Op) -> int:
    """How many rows are the site's: all, or those of a layer that makes more than it."""
    return widths(op)[1] if site.rows is None else site.out_features
