"""What of a decoder with queries, and of its pixel decoder, an allocation decides on."""

from __future__ import annotations

from collections.abc import Iterator

from ..anatomy.sites import Anatomy, Attention


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
