"""What timm's models tell of themselves, as far as it stays true of a captured model."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from torch import nn

from . import walk
from .entries import ENTRIES
from .unit import Unit

NUMBERS = ("num_features", "head_hidden_size", "embed_dim", "num_classes", "num_prefix_tokens")
_INSIDE = (
    "for features inside of a forward use torchvision's "
    "create_feature_extractor(vitrewrite.capture(model).flat(), [NODE]), or forward hooks"
)
_NO_ENTRY = f"its forward is not forward_head(forward_features(x)) and no more; {_INSIDE}"
_EARLIER = "its classes are built: change the model itself, and capture or rewrite it then"
ELSEWHERE: Mapping[str, str] = {
    **dict.fromkeys(ENTRIES, _NO_ENTRY),
    **dict.fromkeys(("forward_intermediates", "get_intermediate_layers"), _INSIDE),
    "prune_intermediate_layers": _EARLIER,
    "reset_classifier": f"{_EARLIER} (model.reset_classifier, or num_classes=)",
    "set_input_size": f"{_EARLIER} (model.set_input_size, or img_size=)",
}
"""What captured models do not have, and what to do instead."""


def helpers_of(model: nn.Module) -> dict[str, Any]:
    """What a model says of itself that is data, by name; of its classifier, where it is."""
    found = {name: getattr(model, name) for name in NUMBERS if _is_plain(getattr(model, name, ...))}
    for name, calls in (("group_matcher", ((False,), (True,))), ("no_weight_decay", ((),))):
        values = [_called(model, name, arguments) for arguments in calls]
        if all(_is_plain(value) and value is not ... for value in values):
            found[name] = values
    head = _called(model, "get_classifier", ())
    heads = head if isinstance(head, tuple) else (head,)
    paths = {id(module): path for path, module in walk.named(model)}
    if heads and all(isinstance(h, nn.Module) and id(h) in paths for h in heads):
        found["get_classifier"] = [paths[id(h)] for h in heads]
    return found


def _called(model: nn.Module, name: str, arguments: tuple[Any, ...]) -> Any:
    method = getattr(model, name, None)
    if not callable(method) or isinstance(method, nn.Module):
        return ...
    try:
        return method(*arguments)
    except Exception:  # a method of somebody's own that means something else
        return ...


def _is_plain(value: Any) -> bool:
    if isinstance(value, dict):
        return all(map(_is_plain, (*value.keys(), *value.values())))
    if isinstance(value, (tuple, list, set, frozenset)):
        return all(map(_is_plain, value))
    return value is None or isinstance(value, (bool, int, float, str))


def repeated_units(root: nn.Module) -> list[str]:
    """Paths of the innermost units that stand in numbered lists: a model's blocks."""
    found = []
    for path, module in walk.named(root):
        name = path.rpartition(".")[2]
        inside = [k for k, m in walk.named(module) if k and isinstance(m, Unit)]
        below = any(k.rpartition(".")[2].isdigit() for k in inside)
        if isinstance(module, Unit) and name.isdigit() and module._modules and not below:
            found.append(path)
    return found
