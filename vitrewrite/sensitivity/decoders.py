"""What of a decoder with queries, and of its pixel decoder, an allocation decides on."""

from __future__ import annotations

from collections.abc import Iterator

from ..anatomy.decoder import DecoderLayer
from ..anatomy.sites import Anatomy, Attention, Block


def paths(anatomy: Anatomy) -> list[str]:
    """Modules whose matrices and vectors are candidates: the layers, and the mask head."""
    decoder, pixels = anatomy.decoder, anatomy.pixel_decoder
    found = [layer.unit for layer in pixels.layers] if pixels is not None else []
    if decoder is not None:
        found += [layer.unit for layer in decoder.layers]
        found += [site.weight.rpartition(".")[0] for site in decoder.mask_head]
    return [path for path in found if path]


def attentions(anatomy: Anatomy) -> Iterator[Attention]:
    """The attentions of the layers."""
    for layer in anatomy.decoder.layers if anatomy.decoder is not None else ():
        yield layer.cross_attn
        if layer.self_attn is not None:
            yield layer.self_attn


def placed(anatomy: Anatomy, name: str) -> tuple[str | None, str] | None:
    """The layer that a parameter belongs to, by its role, and what the parameter is in it.

    The mask head belongs to no layer: None, and `decoder.mask_head.weight`.
    """
    decoder, pixels = anatomy.decoder, anatomy.pixel_decoder
    layers: list[Block | DecoderLayer] = [*(pixels.layers if pixels else ())]
    for layer in (*layers, *(decoder.layers if decoder else ())):
        if layer.unit and name.startswith(f"{layer.unit}."):
            return layer.role, name[len(layer.unit) + 1 :]
    for site in decoder.mask_head if decoder else ():
        path = site.weight.rpartition(".")[0]
        if name.startswith(f"{path}."):
            return None, f"{site.role.partition('[')[0]}{name[len(path) :]}"
    return None
