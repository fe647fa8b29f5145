"""Norms and convolutions as sites: where each is applied, and what it is called."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import replace
from typing import TypeVar

import torch
from torch.nn.modules import conv

from .flow import Flow, FlowFrame, Op
from .kinds import is_conv, is_norm, norm_path
from .sites import Anatomy, Block, ChannelLayer, Conv, Linear, Norm, Place

_L = TypeVar("_L", bound=ChannelLayer)
_LAST = frozenset({"LayerNorm", "RMSNorm", "layer_norm", "rms_norm"})


def with_layers(anatomy: Anatomy, flow: Flow) -> Anatomy:
    """The anatomy with the norms and convolutions of the model, and of each block.

    Kernels of one that are matrices of an attention or a feed-forward part stay linear sites.
    """
    taken = {s.weight for _, s in anatomy.roles() if isinstance(s, Linear)}
    norms = _sites(Norm, ((norm_path(op), op) for op in flow.ops if is_norm(op)))
    convs = _sites(Conv, ((p, op) for op in flow.ops if (p := _kernel(op)) and p not in taken))
    blocks = tuple(
        replace(block, norms=_inside(block, norms), convs=_inside(block, convs))
        for block in anatomy.blocks
    )
    anatomy = replace(anatomy, blocks=blocks)
    return replace(anatomy, norms=_named(anatomy, norms), convs=_named(anatomy, convs))


def _kernel(op: Op) -> str:
    """The name of the weight of a convolution with one row per channel; empty for other ops."""
    if not is_conv(op):
        return ""
    if isinstance(op.module, conv._ConvNd):
        return "" if op.module.transposed else f"{op.path}.weight"
    weight = op.operand(1, "weight")
    return weight.path if weight is not None and weight.name == "get_attr" else ""


def _sites(kind: type[_L], found: Iterable[tuple[str, Op]]) -> list[_L]:
    """One site per layer, called by its path."""
    ops: dict[str, list[Op]] = {}
    for path, op in found:
        ops.setdefault(path.removesuffix(".weight"), []).append(op)
    made = []
    for path, calls in ops.items():
        if width := _width(calls[0], path):
            places = dict.fromkeys(_outside(op, path) for op in calls)
            made.append(kind(path, path, tuple(places), width, _axis(calls[0])))
    return made


def _width(op: Op, path: str) -> int:
    """Channels that a layer yields, or none if its weight has no number or row for each."""
    weight = getattr(op.module, "weight", None)
    if not isinstance(weight, torch.Tensor):
        named = (i for i in op.inputs if i.path == f"{path}.weight")
        shape = next((i.shape for i in named), ())
    else:
        shape = tuple(weight.shape)
    if is_norm(op) and len(shape) != 1:
        return 0 if shape or not op.shape else op.shape[_axis(op)]
    return shape[0] if shape else 0


def _axis(op: Op) -> int:
    """The axis of the channels in what a layer yields: told by what it is, not by lengths."""
    return -1 if op.name in _LAST or _is_last(op) else 1


def _is_last(op: Op) -> bool:
    bases = () if op.module is None else type(op.module).__mro__
    return any(cls.__name__ in _LAST for cls in bases)


def _outside(op: Op, path: str) -> Place:
    """Where a layer is applied: its call, if its own unit does no more than apply it."""
    frame, node = op.frame, op.node
    if frame.path == path and frame.parent is not None and _result(frame) is op:
        name = path.removeprefix(f"{frame.parent.path}.")
        made = (n for n, v in frame.parent.env.items() if v is op and n.op == "call_module")
        if (call := next((n for n in made if n.target == name), None)) is not None:
            return Place(frame.parent.path, call.name)
    return Place(frame.path, node.name)


def _result(frame: FlowFrame) -> object:
    output = next(n for n in reversed(frame.graph.nodes) if n.op == "output")
    return frame.env.get(output.args[0])


def _inside(block: Block, layers: Iterable[_L]) -> tuple[_L, ...]:
    """The layers of a block by their roles in it."""
    roles = ((_role(block, layer.path), layer) for layer in layers)
    return tuple(replace(layer, role=role) for role, layer in roles if role)


def _role(block: Block, path: str) -> str:
    """What a layer is called in a block; empty if it is not in it."""
    for name in ("norm1", "norm2"):
        if path == getattr(block, name):
            return f"{block.role}.{name}"
    inside = block.unit is not None and path.startswith(f"{block.unit}.")
    return f"{block.role}{path[len(block.unit or '') :]}" if inside else ""


def _named(anatomy: Anatomy, layers: Iterable[_L]) -> tuple[_L, ...]:
    """All layers of the model, each once, by the first role that it has."""
    known: dict[str, str] = {}
    for block in anatomy.blocks:
        known |= {s.path: s.role for s in (*block.norms, *block.convs) if s.path not in known}
    if anatomy.norm:
        known.setdefault(anatomy.norm, "norm")
    return tuple(replace(s, role=known.get(s.path) or _outer(anatomy, s.path)) for s in layers)


def _outer(anatomy: Anatomy, path: str) -> str:
    embed = anatomy.patch_embed
    inside = embed and f"{path}.".startswith(f"{embed}.")
    return f"patch_embed{path[len(embed or '') :]}" if inside else path


def layers_of(anatomy: Anatomy) -> Iterator[ChannelLayer]:
    """Norms and convolutions by every role that they have."""
    for block in anatomy.blocks:
        yield from (*block.norms, *block.convs)
    yield from (*anatomy.norms, *anatomy.convs)
