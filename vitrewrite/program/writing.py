"""A captured tree written as data."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import nn

from ..emission import layers
from ..tracing.about import about
from ..tracing.leaves import is_inserted, is_leaf, leaf_class
from ..tracing.unit import Unit
from .graphs import template_to_json, to_json
from .targets import CONTAINERS
from .targets import layers as known_layers
from .values import ProgramError, encode, identifier, path

FORMAT = "vitrewrite program 1"
# Of a model's records those that say what images it takes; the others name files and addresses.
_RECORDS = (
    *("input_size", "fixed_input_size", "min_input_size", "interpolation", "mean", "std"),
    *("crop_pct", "crop_mode", "test_input_size", "test_crop_pct", "num_classes", "pool_size"),
    *("label_names", "by_default"),
)


@dataclass(frozen=True)
class Program:
    """A captured model without its weights.

    Attributes:
        data: JSON: templates, modules, shapes of tensors, the example.
        tables: buffers that no state dict has, by name.
    """

    data: dict[str, Any]
    tables: dict[str, torch.Tensor]


def write_program(root: nn.Module) -> Program:
    """A captured tree as data.

    Args:
        root: what `trace` gave, realised or not.

    Raises:
        DataError: if it has something that is no data: a module of somebody else's code, a
            function that torch does not have.
    """
    writer = _Writer()
    writer.module(root, "")
    known = about(root)
    programs = {path(k): to_json(g) for k, g in known.programs.items()}
    records = known.pretrained_cfg or {}
    records = {k: records[k] for k in _RECORDS if k in records}
    before = known.helpers.get("pre_logits")
    data = {
        "format": FORMAT,
        "example": encode(known.example),
        "constants": encode(dict(known.constants)),
        "pretrained_cfg": encode(records) if records else None,
        "config": _config(known.config),
        "notes": list(known.notes),
        **({"pre_logits": list(before)} if before else {}),
        "templates": writer.templates,
        "programs": programs,
        "tensors": writer.tensors,
        "modules": writer.modules,
    }
    return Program(data, writer.tables)


class _Writer:
    """Numbers modules, templates and tensors in order of first use; shared ones are one."""

    def __init__(self) -> None:
        self.templates: list[Any] = []
        self.modules: list[dict[str, Any]] = []
        self.tensors: list[dict[str, Any]] = []
        self.tables: dict[str, torch.Tensor] = {}
        self.numbers: dict[int, int] = {}

    def module(self, module: nn.Module, place: str) -> int:
        """The number of a module that stands at `place`."""
        if id(module) in self.numbers:
            return self.numbers[id(module)]
        data = self._kind(module, place)
        hidden = module._non_persistent_buffers_set
        parameters = {
            path(k): self._tensor(v, _join(place, k)) for k, v in module._parameters.items()
        }
        buffers = {
            path(k): [self._tensor(v, _join(place, k), k in hidden), k not in hidden]
            for k, v in module._buffers.items()
        }
        children = {
            path(k): None if v is None else self.module(v, _join(place, k))
            for k, v in module._modules.items()
        }
        parts = {"parameters": parameters, "buffers": buffers, "children": children}
        # Behind its children, one of which may have been somebody else's before.
        self.numbers[id(module)] = len(self.modules)
        self.modules.append({**data, **{k: v for k, v in parts.items() if v}})
        return self.numbers[id(module)]

    def _kind(self, module: nn.Module, place: str) -> dict[str, Any]:
        if isinstance(module, Unit):
            settings = {identifier(k): encode(v) for k, v in module.settings.items()}
            template = None if module.template is None else self._template(module.template)
            more: dict[str, Any] = {"checkpointing": True} if module.checkpointing else {}
            if module.kept:
                more["kept"] = [path(name) for name in module.kept]
            return {
                "unit": template, "kind": identifier(module.kind), "settings": settings, **more,
            }  # fmt: skip
        for name, cls in CONTAINERS.items():
            if type(module) is cls:
                return {"container": name}
        if is_inserted(module) or not is_leaf(module):
            raise ProgramError(f"'{place}' is a {type(module).__name__}, which is code")
        return {"layer": leaf_class(module).__name__, "options": _options(module, place)}

    def _template(self, template: Any) -> int:
        if id(template) not in self.numbers:
            self.numbers[id(template)] = len(self.templates)
            self.templates.append(template_to_json(template))
        return self.numbers[id(template)]

    def _tensor(self, tensor: torch.Tensor | None, name: str, table: bool = False) -> int | None:
        if tensor is None:
            return None
        if id(tensor) not in self.numbers:
            self.numbers[id(tensor)] = len(self.tensors)
            kind = str(tensor.dtype).removeprefix("torch.")
            self.tensors.append({"name": path(name), "shape": list(tensor.shape), "dtype": kind})
            if isinstance(tensor, nn.Parameter):
                self.tensors[-1]["grad"] = tensor.requires_grad
            if table:
                self.tables[name] = tensor
        return self.numbers[id(tensor)]


def _join(place: str, name: str) -> str:
    return f"{place}.{name}" if place else name


def _options(layer: nn.Module, place: str) -> dict[str, Any]:
    """Constructor arguments of a layer, if they make one that is the same."""
    cls = known_layers().get(leaf_class(layer).__name__)
    if cls is not leaf_class(layer):
        raise ProgramError(f"'{place}' is a {type(layer).__name__}, which torch.nn has not")
    options = _recurrent(layer) if isinstance(layer, nn.RNNBase) else layers.arguments(layer)
    encoded = {identifier(k): encode(v) for k, v in options.items()}
    with torch.device("meta"):
        twin = cls(**options)
    again = _recurrent(twin) if isinstance(twin, nn.RNNBase) else layers.arguments(twin)
    if again != options:
        raise ProgramError(f"'{place}' was changed after it was made")
    return encoded


def _recurrent(layer: nn.RNNBase) -> dict[str, Any]:
    """Of recurrent layers, whose constructors do not name their arguments."""
    names = ["input_size", "hidden_size", "num_layers", "bias", "batch_first", "dropout"]
    names += ["bidirectional", *(["proj_size"] if isinstance(layer, nn.LSTM) else [])]
    more = {"nonlinearity": layer.nonlinearity} if isinstance(layer, nn.RNN) else {}
    return {**{name: getattr(layer, name) for name in names}, **more}


def _config(config: Any) -> Any:
    """The plain entries of a Hugging Face configuration."""
    if config is None:
        return None
    entries: Mapping[str, Any] = config.to_dict() if hasattr(config, "to_dict") else vars(config)
    plain = (bool, int, float, str, type(None))
    found = {k: v for k, v in entries.items() if isinstance(v, plain)}
    names = getattr(config, "id2label", None)
    return encode({**found, **({"id2label": dict(names)} if names else {})})
