"""What a delta belongs to: the frozen weights of a base, and a spec."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import replace

import torch

from ..anatomy.fingerprint import fingerprint_of
from ..language.expressions import Literal
from ..language.model import Spec
from ..language.selectors import Option
from ..rewrite.rewritten import Rewritten

BASE = "base_fingerprint"
_CLASSES = ("num_classes", "num_labels")


def fingerprint(rewritten: Rewritten, like: Mapping[str, torch.Tensor] | None = None) -> str:
    """Identifies the frozen weights of the original model.

    Args:
        rewritten: the model.
        like: trained tensors by name that have other shapes, such as a head of other classes.
    """
    made = rewritten.unlowered or rewritten  # what lowering took out was trained, too
    state, trained = rewritten.base.state_dict(), made.result.base_trained
    others = {k: v for k, v in (like or {}).items() if k in trained}
    return fingerprint_of({**state, **others}, trained)


def hashes(spec: Spec, classes: int | None = None) -> Iterator[str]:
    """What identifies a spec; with `classes` also the one whose model has that many of them."""
    yield spec.hash
    if spec.model is None or classes is None:
        return
    for name in _CLASSES:
        kept = tuple(option for option in spec.model.options if option.name != name)
        span = spec.model.span
        stated = Option(name, Literal(classes, span), span)
        for model in (replace(spec.model, options=kept), spec.model.extended((stated,))):
            yield replace(spec, model=model).hash
