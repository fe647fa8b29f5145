"""The captured tree: real `nn.Module`s that hold state, run by their template's graph."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import fx, nn

from .template import Template


class Unit(nn.Module):
    """An instance of a template.

    `realise` (in `emit`) later swaps its class for the one printed from the template; until then
    `forward` walks the graph.

    Attributes:
        template: the program, or None for a module that only holds state or children.
        kind: the class name of the original module.
        settings: its numeric attributes, which lend their names to constants.
    """

    template: Template | None
    kind: str
    settings: dict[str, int | float]

    def __init__(
        self,
        template: Template | None = None,
        kind: str = "Module",
        settings: dict[str, int | float] | None = None,
    ) -> None:
        super().__init__()
        self.__dict__.update(template=template, kind=kind, settings=settings or {})

    def forward(self, *args: Any) -> Any:
        """Runs the graph node by node."""
        assert self.template is not None, "a container is never called"
        graph = self.template.graph
        if self.training and self.template.training is not None:
            graph = self.template.training
        return run_graph(graph, self, args)


def run_graph(
    graph: fx.Graph, module: nn.Module, args: Sequence[Any],
    call: Callable[[fx.Node, tuple[Any, ...]], Any] | None = None,
    note: Callable[[fx.Node, dict[fx.Node, Any]], None] | None = None,
) -> Any:  # fmt: skip
    """Evaluates `graph` with the state and children of `module`.

    Args:
        graph: a program.
        module: whose.
        args: what it is called with.
        call: runs a child instead of the child itself, given its node and arguments.
        note: is told of each node once its value is known, with all values so far.
    """
    values: dict[fx.Node, Any] = {}
    inputs = iter(args)
    for node in graph.nodes:
        if node.op == "placeholder":
            values[node] = next(inputs)
        elif node.op == "output":
            return fx.node.map_arg(node.args[0], lambda n: values[n])
        elif call is not None and node.op == "call_module" and not node.kwargs:
            values[node] = call(node, fx.node.map_arg(node.args, lambda n: values[n]))
        else:
            values[node] = run_node(node, module, values)
        if note is not None:
            note(node, values)
    return None


def run_node(node: fx.Node, module: nn.Module, values: dict[fx.Node, Any]) -> Any:
    """Evaluates one node that is neither an input nor the output."""
    if node.op == "get_attr":
        return attribute(module, node.target)
    args = fx.node.map_arg(node.args, lambda n: values[n])
    kwargs = fx.node.map_arg(node.kwargs, lambda n: values[n])
    if node.op == "call_module":
        return module.get_submodule(str(node.target))(*args, **kwargs)
    if node.op == "call_method":
        return getattr(args[0], str(node.target))(*args[1:], **kwargs)
    assert callable(node.target)
    return node.target(*args, **kwargs)


def attribute(module: nn.Module, target: Any) -> Any:
    """The parameter, buffer or setting at a dotted path."""
    *path, name = str(target).split(".")
    return getattr(module.get_submodule(".".join(path)), name)


def copy_tree(
    model: nn.Module, assignments: dict[str, Any], constants: dict[str, torch.Tensor]
) -> nn.Module:
    """The tree of units for a traced model: shares storage of parameters, copies buffers."""
    return _Copier(assignments, constants).copy(model, "")


class _Copier:
    def __init__(self, assignments: dict[str, Any], constants: dict[str, torch.Tensor]) -> None:
        self.assignments = assignments
        self.constants = constants
        self.modules: dict[int, nn.Module] = {}
        self.tensors: dict[int, Any] = {}

    def copy(self, module: nn.Module, path: str) -> nn.Module:
        if id(module) in self.modules:
            return self.modules[id(module)]
        result = self._shell(module, path)
        self.modules[id(module)] = result
        result.training = module.training
        for name, parameter in module._parameters.items():
            result.register_parameter(name, self._parameter(parameter))
        for name, buffer in module._buffers.items():
            keep = name not in module._non_persistent_buffers_set
            result.register_buffer(name, self._buffer(buffer), persistent=keep)
        for full, constant in self.constants.items():
            if full.rpartition(".")[0] == path:
                name = full.rpartition(".")[2]
                result.register_buffer(name, self._buffer(constant), persistent=False)
        for name, child in module._modules.items():
            below = f"{path}.{name}" if path else name
            result._modules[name] = None if child is None else self.copy(child, below)
        return result

    def _shell(self, module: nn.Module, path: str) -> nn.Module:
        """The new module without its state."""
        assigned = self.assignments.get(path)
        cls = assigned or (type(module) if _is_torch(type(module)) else None)
        if type(module) is nn.Module:  # how `fx.GraphModule` keeps what is above its leaves
            numbered = list(module._modules) == [str(i) for i in range(len(module._modules))]
            cls = nn.ModuleList if numbered and module._modules else None
        if isinstance(assigned, Template) or cls is None:
            return Unit(assigned, _kind(module, path), _settings(module))
        shell: nn.Module = cls.__new__(cls)
        nn.Module.__init__(shell)
        own = {k: v for k, v in module.__dict__.items() if k not in shell.__dict__}
        shell.__dict__.update(own)
        return shell

    def _parameter(self, parameter: nn.Parameter | None) -> nn.Parameter | None:
        if parameter is None:
            return None
        if id(parameter) not in self.tensors:
            shared = nn.Parameter(parameter.detach(), requires_grad=parameter.requires_grad)
            self.tensors[id(parameter)] = shared
        result: nn.Parameter = self.tensors[id(parameter)]
        return result

    def _buffer(self, buffer: torch.Tensor | None) -> torch.Tensor | None:
        if buffer is None:
            return None
        if id(buffer) not in self.tensors:
            self.tensors[id(buffer)] = buffer.detach().clone()
        result: torch.Tensor = self.tensors[id(buffer)]
        return result


def _is_torch(cls: type) -> bool:
    return cls.__module__.startswith("torch.nn.modules.")


def _kind(module: nn.Module, path: str) -> str:
    if type(module) is not nn.Module:
        return type(module).__name__
    name = [part for part in path.split(".") if not part.isdigit()][-1]
    return "".join(word.capitalize() for word in name.split("_"))


def _settings(module: nn.Module) -> dict[str, int | float]:
    """Numeric attributes; a pair such as a window size counts as its two parts."""
    found: dict[str, int | float] = {}
    for name, value in module.__dict__.items():
        if name.startswith("_") or isinstance(value, bool):
            continue
        if isinstance(value, (int, float)):
            found[name] = value
        elif isinstance(value, tuple) and len(value) == 2 and all(type(v) is int for v in value):
            found.setdefault(name, value[0])
    return found


def duplicate(
    root: nn.Module,
    parameter: Callable[[nn.Parameter], nn.Parameter],
    buffer: Callable[[torch.Tensor], torch.Tensor],
) -> nn.Module:
    """A tree of the same modules and templates with other tensors; ties and sharing stay."""
    modules: dict[int, nn.Module] = {}
    tensors: dict[int, Any] = {}

    def tensor(value: Any, make: Callable[[Any], Any]) -> Any:
        if value is None:
            return None
        if id(value) not in tensors:
            tensors[id(value)] = make(value)
        return tensors[id(value)]

    def copy(module: nn.Module) -> nn.Module:
        if id(module) in modules:
            return modules[id(module)]
        new = type(module).__new__(type(module))
        nn.Module.__init__(new)
        state = ("_parameters", "_buffers", "_modules")
        new.__dict__.update({k: v for k, v in module.__dict__.items() if k not in state})
        modules[id(module)] = new
        new._parameters = {k: tensor(v, parameter) for k, v in module._parameters.items()}
        new._buffers = {k: tensor(v, buffer) for k, v in module._buffers.items()}
        new._modules = {k: None if v is None else copy(v) for k, v in module._modules.items()}
        return new

    return copy(root)


def own_templates(root: nn.Module) -> None:
    """Gives a tree copies of its templates, where another tree has the same ones."""
    copies: dict[int, Template] = {}
    for module in root.modules():
        if isinstance(module, Unit) and module.template is not None:
            known = copies.get(id(module.template)) or module.template.clone()
            copies[id(module.template)] = known
            module.__dict__["template"] = known


def on_meta(root: nn.Module) -> nn.Module:
    """The same tree without weights, in float32; the tree itself if it has none."""
    if all(t.is_meta for t in (*root.parameters(), *root.buffers())):
        return root

    def meta(tensor: torch.Tensor) -> torch.Tensor:
        dtype = torch.float32 if tensor.is_floating_point() else tensor.dtype
        return torch.empty(tensor.shape, dtype=dtype, device="meta")

    return duplicate(root, lambda p: nn.Parameter(meta(p), requires_grad=p.requires_grad), meta)
