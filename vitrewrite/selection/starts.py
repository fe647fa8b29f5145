"""What the paths of selectors start with: the parts that every model has."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from ..anatomy.sites import Anatomy
from .within import Site, SiteGroup, decoder_parts


def starts(anatomy: Anatomy, module: Callable[[str, str], Site]) -> dict[str, Any]:
    """What the paths of selectors start with in a model, by name.

    Args:
        anatomy: of the model.
        module: the site of a module, by its role and path.
    """
    at = f"{anatomy.base}." if anatomy.base else ""
    stages = [
        SiteGroup(
            f"{at}stages[{i}]",
            (),
            {"blocks": _blocks(anatomy, f"{at}stages[{i}].blocks", i)},
        )
        for i in range(len(anatomy.stages))
    ]
    root: dict[str, Any] = {
        "blocks": _blocks(anatomy, f"{at}blocks", None),
        "stages": SiteGroup(f"{at}stages", tuple(stages)),
        "head": SiteGroup(f"{at}head", anatomy.head),
    }
    for name in ("norm", "patch_embed"):
        path = getattr(anatomy, name)
        if path:
            root[name] = module(f"{at}{name}", path)
    if anatomy.pixel_decoder is not None:
        root["pixel_decoder"] = SiteGroup("pixel_decoder", (), decoder_parts(anatomy.pixel_decoder))
    if anatomy.decoder is not None:
        root["decoder"] = anatomy.decoder
    empty = [
        k
        for k, v in root.items()
        if isinstance(v, SiteGroup) and not (v.items or v.children or v.gone)
    ]
    return {k: v for k, v in root.items() if k not in empty}


def _blocks(anatomy: Anatomy, role: str, stage: int | None) -> SiteGroup:
    """The blocks of a stage or of all, with those that are gone at their old positions."""
    kept = tuple(b for b in anatomy.blocks if stage in (None, b.stage))
    taken = {b.index: (b, why) for b, why in anatomy.gone.values() if stage in (None, b.stage)}
    order = sorted([*(b.index for b in kept), *taken])
    return SiteGroup(role, kept, gone={order.index(i): v for i, v in taken.items()})
