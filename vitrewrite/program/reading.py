"""A captured tree read back from data."""

from __future__ import annotations

import inspect
from collections.abc import Mapping
from types import SimpleNamespace
from typing import Any

import torch
from torch import nn

from ..tracing.about import About, write
from ..tracing.pre_logits import HOW, WHOLE
from ..tracing.template import Template
from ..tracing.unit import Unit
from .graphs import from_json, template_from_json
from .targets import CONTAINERS, layers
from .values import ProgramError, decode, dtype, identifier, line, path, sizes
from .writing import FORMAT

_MOST = 1_000_000  # modules, tensors: far more than any model has


def read_program(
    data: Any, tensors: Mapping[str, torch.Tensor], *, strict: bool = True
) -> nn.Module:
    """The tree of `write_program`, in eval mode.

    Args:
        data: what it wrote.
        tensors: parameters and buffers by name; the tree has these very tensors.
        strict: whether each has to be there; otherwise those that are not are zero.

    Raises:
        DataError: for anything that `write_program` does not write, and for missing tensors.
    """
    try:
        if data["format"] != FORMAT:
            raise ProgramError(f"its format is {data['format']!r}")
        return _Reader(data, tensors, strict).root()
    except ProgramError:
        raise
    except RecursionError as error:
        raise ProgramError("it is nested too deeply") from error
    except Exception as error:  # whatever a value of the wrong kind makes Python or torch say
        reason = f"{type(error).__name__} {error}".splitlines()[0]
        raise ProgramError(f"it is malformed: {reason}") from error


def _pre_logits(data: Any) -> dict[str, tuple[str, ...]]:
    """How the model yields what its head reads, as `tracing.pre_logits` told it."""
    if data is None:
        return {}
    how, *rest = data
    if how not in ("", WHOLE, *HOW) or (not how and len(rest) != 1):
        raise ProgramError(f"{data!r} is no way to read a head")
    return {"pre_logits": (how, *(path(p) if how else line(p) for p in rest))}


class _Reader:
    def __init__(self, data: Any, tensors: Mapping[str, torch.Tensor], strict: bool) -> None:
        self.data, self.given, self.strict = data, tensors, strict
        self.templates = [template_from_json(t) for t in data["templates"]]
        self.specs = data["tensors"]
        if len(self.specs) > _MOST or len(data["modules"]) > _MOST:
            raise ProgramError("it has too many parts")
        self.tensors: dict[int, Any] = {}
        self.modules: dict[int, nn.Module] = {}

    def root(self) -> nn.Module:
        """The whole tree."""
        # Each module comes behind its children, and the root is the last.
        for number, data in enumerate(self.data["modules"]):
            self.modules[number] = self._module(data, number)
        root = self.modules[len(self.modules) - 1]
        programs = {path(k): from_json(g) for k, g in self.data["programs"].items()}
        constants = decode(self.data["constants"], []) if "constants" in self.data else {}
        config = decode(self.data["config"], [])
        known = About(
            example=decode(self.data["example"], []),
            constants={identifier(k): v for k, v in constants.items()},
            notes=tuple(line(note) for note in self.data["notes"]),
            helpers=_pre_logits(self.data.get("pre_logits")),
            programs=programs,
            pretrained_cfg=decode(self.data["pretrained_cfg"], []),
            config=None if config is None else SimpleNamespace(**config),
        )
        write(root, known)
        _check_paths(root)
        return root.eval()

    def _module(self, data: Any, number: int) -> nn.Module:
        module = self._shell(data)
        module._parameters.clear()
        module._buffers.clear()
        module._non_persistent_buffers_set.clear()
        for name, index in data.get("parameters", {}).items():
            self._register(module, path(name), index)
        for name, (index, persistent) in data.get("buffers", {}).items():
            value = None if index is None else self._tensor(index)
            module.register_buffer(path(name), value, persistent=persistent is True)
        for name, child in data.get("children", {}).items():
            if child is not None and not (type(child) is int and 0 <= child < number):
                raise ProgramError(f"{name!r} is no child")
            module._modules[path(name)] = None if child is None else self.modules[child]
        return module

    def _shell(self, data: Any) -> nn.Module:
        if "unit" in data:
            template: Template | None = None
            if data["unit"] is not None:
                template = self.templates[data["unit"]]
            settings = {identifier(k): decode(v, []) for k, v in data["settings"].items()}
            if not all(isinstance(v, (int, float)) for v in settings.values()):
                raise ProgramError("a setting is no number")
            unit = Unit(template, identifier(data["kind"]), settings)
            unit.__dict__["checkpointing"] = data.get("checkpointing") is True
            unit.__dict__["kept"] = tuple(map(path, data.get("kept", ())))
            return unit
        if "container" in data:
            return CONTAINERS[data["container"]]()
        cls = layers()[data["layer"]]
        options = {identifier(k): decode(v, []) for k, v in data["options"].items()}
        takes = inspect.signature(cls.__init__).parameters
        if "device" in takes:
            options["device"] = "meta"
        return cls(**options)

    def _register(self, module: nn.Module, name: str, index: Any) -> None:
        parameter = None if index is None else self._tensor(index)
        if parameter is not None and not isinstance(parameter, nn.Parameter):
            raise ProgramError(f"{name!r} is no parameter")
        module._parameters[name] = parameter
        if hasattr(module, "_flat_weights_names"):  # recurrent layers keep a list besides
            setattr(module, name, parameter)

    def _tensor(self, index: int) -> torch.Tensor:
        """The tensor of a number, which several modules may share."""
        if index not in self.tensors:
            spec = self.specs[index]
            name, shape, kind = spec["name"], sizes(spec["shape"]), dtype(spec["dtype"])
            value = self.given.get(name)
            fits = value is not None and value.shape == shape and value.dtype == kind
            if not fits and self.strict:
                what = "is missing" if value is None else "has another shape or dtype"
                raise ProgramError(f"the tensor '{name}' {what}")
            if value is None or not fits:
                value = torch.zeros(shape, dtype=kind)
            if "grad" in spec:
                value = nn.Parameter(value, requires_grad=spec["grad"] is True)
            self.tensors[index] = value
        found: torch.Tensor = self.tensors[index]
        return found


def _check_paths(root: nn.Module) -> None:
    """Every name that a graph reads or calls is there."""
    for module in root.modules():
        if not isinstance(module, Unit) or module.template is None:
            continue
        for graph in module.template.graphs:
            graph.lint()
            for node in graph.nodes:
                if node.op == "call_module":
                    module.get_submodule(str(node.target))
                if node.op == "get_attr":
                    _check_attribute(module, str(node.target))


def _check_attribute(module: nn.Module, target: str) -> None:
    """A graph reads parameters, buffers and the mode; nothing else of a module."""
    owner, _, name = target.rpartition(".")
    found = module.get_submodule(owner)
    if name != "training" and name not in found._parameters and name not in found._buffers:
        raise ProgramError(f"it reads {target!r}, which is no tensor")
