"""The analysis as a whole: flow, attentions, trunk, blocks, and what is around them."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import Any

from torch import nn

from ..tracing.unit import Unit
from .attention import Core, cores
from .bases import joined, with_roles
from .blocks import Assembler, Notes, Parts, place, site
from .cuts import with_tokens
from .decoder import Decoder, PixelDecoder
from .flow import Flow, Op, flatten, union
from .kinds import FUSED_ATTENTION, is_norm, layer_matrix, matrix, norm_path
from .layers import with_layers
from .pixels import joins, pixel_decoder
from .queries import Finder, find_chain
from .residuals import with_branches
from .sites import Anatomy, Attention, Block, Linear, Place, StreamFacts
from .stem import find_stem
from .stream import final_norms, find_stream, heads, late_tokens, patch_embed, with_maps
from .trunk import Sets, Trunk, find_trunk, residual_sums


def analyse(root: nn.Module, bases: Sequence[str] = ()) -> Anatomy:
    """See `vitrewrite.anatomy.analyse`."""
    if bases:
        return joined({name: with_roles(_analyse(root, name), name) for name in bases})
    return _analyse(root, "")


def _analyse(root: nn.Module, path: str) -> Anatomy:
    flow = flatten(root, path)
    try:
        return _analysed(root.get_submodule(path), flow)
    finally:
        flow.release()


def _analysed(root: nn.Module, flow: Flow) -> Anatomy:
    attentions = cores(flow)
    sets = Sets(flow, attentions)
    residuals = residual_sums(flow, sets)
    chain = find_chain(attentions, residuals, sets)
    joined = [] if chain is None else joins(flow, chain, sets)
    behind = 0 if chain is None else chain.start.after  # what is no part of the backbone
    scales = union(()) if not joined else joined[0].after & ~behind
    trunk = find_trunk(flow, attentions, sets, residuals, ~(behind | scales))
    assembler = Assembler(flow, trunk, sets)
    blocks = assembler.blocks()
    parts = Parts()
    pool = _pool([c for c in attentions if not c.op.bit & behind], assembler, parts)
    notes = assembler.notes
    norm = None if chain else _final_norm(flow, trunk, assembler, notes)
    head = heads(flow, trunk.sums)
    stem = find_stem(trunk.groups[0].first.point, flow, sets) if blocks else None
    pixels = decoder = None
    if chain is not None:
        inner = find_trunk(flow, attentions, sets, residuals, scales)
        pixels = pixel_decoder(flow, joined, inner, assembler, sets)
        decoder = Finder(flow, chain, attentions, residuals, assembler, sets).decoder(head)
        uses = [p.norm for p in decoder.predictions]
        norm = uses[-1] if uses else norm
    anatomy = Anatomy(
        model=_name(root),
        blocks=blocks,
        stream=StreamFacts("sequence", (), None, None),
        patch_embed=None,
        norm=norm,
        head=head,
        linears=_linears(flow, _known(blocks, head, pixels, decoder), parts),
        pool=pool,
        pixel_decoder=pixels,
        decoder=decoder,
        calls=_calls(flow),
        fused=tuple({o.frame.path: None for o in flow.ops if o.name == FUSED_ATTENTION}),
    )
    if stem is not None:
        first = blocks[0].linears
        stream = find_stream(flow, trunk.groups, stem, first[0].in_features if first else None)
        embed = patch_embed(flow, stem, trunk.groups, sets)
        blocks = with_tokens(blocks, flow, trunk.groups) if stream.layout == "sequence" else blocks
        blocks = with_branches(with_maps(blocks, flow, trunk.groups), trunk.groups)
        anatomy = replace(anatomy, stream=stream, patch_embed=embed, blocks=blocks)
        _note_stream(notes, flow, trunk, stem.suffix, sets)
    else:
        notes.add("no residual blocks found")
    return replace(with_layers(anatomy, flow), notes=notes.lines())


def _name(root: nn.Module) -> str:
    template = root.template if isinstance(root, Unit) else None
    return "" if template is None else template.name


def _pool(attentions: list[Core], assembler: Assembler, parts: Parts) -> Attention | None:
    """An attention behind all blocks; others outside of blocks are only noted."""
    groups = assembler.trunk.groups
    inside = {c for g in groups for c in g.cores}
    sums = union(g.first.sum for g in groups)
    pool = None
    for core in attentions:
        if core in inside:
            continue
        if pool is None and not core.op.after & sums:
            pool = assembler.attention("pool", core, parts)
        else:
            where = core.op.frame.path or "the root"
            assembler.notes.add(f"the attention in {where} belongs to no block")
    return pool


def _final_norm(flow: Flow, trunk: Trunk, assembler: Assembler, notes: Notes) -> str | None:
    found = final_norms(flow, trunk, assembler.norms) if trunk.groups else []
    if len(found) > 1:
        notes.add(f"there are {len(found)} final norms, one per stream: {', '.join(found)}")
        return None
    return found[0] if found else None


def _known(
    blocks: tuple[Block, ...],
    head: tuple[Linear, ...],
    pixels: PixelDecoder | None,
    decoder: Decoder | None,
) -> dict[Any, Linear]:
    """The matrices that have a role, by weight and rows."""
    found = [*head, *(s for b in blocks for s in b.linears)]
    for part in (pixels, decoder):
        found += [s for _, s in part.roles() if isinstance(s, Linear)] if part else []
    return {(s.weight, s.rows): s for s in reversed(found)}


def _linears(flow: Flow, known: dict[Any, Linear], parts: Parts) -> tuple[Linear, ...]:
    """Every matrix once; those without a role are numbered over the model."""
    sites: dict[Any, Linear] = {}
    for op in flow.ops:
        weight = matrix(op)
        if weight is not None and (weight.path, weight.rows) not in sites:
            key, name = (weight.path, weight.rows), _outer_name(op, parts, len(sites))
            sites[key] = known.get(key) or site(name, op)
    return tuple(sites.values())


def _calls(flow: Flow) -> dict[tuple[str, int], tuple[Place, ...]]:
    """Where matrices and norms are applied; what a unit does each time that it runs counts once."""
    found: dict[tuple[str, int], dict[Place, None]] = {}
    for op in flow.ops:
        if (weight := layer_matrix(op)) is not None:
            key = weight.path, weight.rows[0] if weight.rows else 0
        elif is_norm(op):
            key = f"{norm_path(op)}.weight", 0
        else:
            continue
        found.setdefault(key, {})[place(op)] = None
    return {key: tuple(places) for key, places in found.items()}


def _outer_name(op: Op, parts: Parts, number: int) -> str:
    return parts.names.get(op, f"linear[{number}]")


def _note_stream(
    notes: Notes, flow: Flow, trunk: Trunk, suffix: list[tuple[str, int]], sets: Sets
) -> None:
    for name, _ in suffix:
        notes.add(f"{name} is put behind the patches")
    for name, index in late_tokens(flow, trunk.groups, sets):
        notes.add(f"{name} joins the tokens at blocks[{index}]")
    for op in flow.ops:
        if op.name == FUSED_ATTENTION:
            where = op.frame.path or "the root"
            notes.add(f"the attention in {where} is one fused call: its parts are no sites")
    if trunk.skips:
        notes.add(f"sums that reach over whole blocks: {len(trunk.skips)}")
