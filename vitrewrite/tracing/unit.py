"""The captured tree: real `nn.Module`s that hold state, run by their template's graph."""

from __future__ import annotations

import copy
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from contextvars import ContextVar
from typing import Any, ClassVar

import torch
from torch import fx, nn

from ..errors import UsageError
from ..text import brief
from . import walk
from .kept import keeping, kept_buffers
from .leaves import is_inserted
from .packing import PLAIN, Packing
from .template import Template

# Whether a module is printed inside another one, which cuts the text as a whole.
_WHOLE = ContextVar("whole", default=False)


@contextmanager
def _whole() -> Iterator[None]:
    token = _WHOLE.set(True)
    try:
        yield
    finally:
        _WHOLE.reset(token)


class Unit(nn.Module):
    """An instance of a template.

    `realise` (in `emit`) later swaps its class for the one printed from the template; until then
    `forward` walks the graph.

    Attributes:
        template: the program, or None for a module that only holds state or children.
        kind: the class name of the original module.
        settings: its numeric attributes, which lend their names to constants.
        kept: its buffers that no cast makes less exact.
        checkpointing: whether, in training, it is computed again in backward.
        printed: of a class that is printed, its source.
        packing: of a class that is printed, which inputs its forward takes as one.
    """

    printed: ClassVar[object] = None
    packing: ClassVar[Packing] = PLAIN
    template: Template | None
    kind: str
    settings: dict[str, int | float]
    kept: tuple[str, ...] = ()
    checkpointing: bool

    def __init__(
        self,
        template: Template | None = None,
        kind: str = "Module",
        settings: dict[str, int | float] | None = None,
    ) -> None:
        super().__init__()
        self.__dict__.update(template=template, kind=kind, settings=settings or {})
        self.__dict__["checkpointing"] = False

    def forward(self, *args: Any) -> Any:
        """Runs the graph node by node."""
        assert self.template is not None, "a container is never called"
        return run_graph(self.program, self, args)

    @property
    def program(self) -> fx.Graph:
        """The graph that it runs in the mode that it is in."""
        assert self.template is not None
        if self.training and self.template.training is not None:
            return self.template.training
        return self.template.graph

    def __repr__(self) -> str:
        """The tree of its modules as torch prints it, or the first lines of it."""
        with _whole():
            whole = nn.Module.__repr__(self)
        return whole if _WHOLE.get() else brief(whole)

    def __str__(self) -> str:
        with _whole():
            return nn.Module.__repr__(self)

    def _apply(self, *args: Any, **kwargs: Any) -> Any:
        return keeping(self, self.kept, super()._apply, *args, **kwargs)

    def __deepcopy__(self, memo: dict[int, Any]) -> Unit:
        new = memo[id(self)] = type(self).__new__(type(self))
        new.__dict__.update(copy.deepcopy(self.__dict__, memo))
        return new

    def __prepare_scriptable__(self) -> nn.Module:
        """What `torch.jit.script` asks for first.

        Raises:
            UsageError: VR909; its language has no way to say what a captured model is.
        """
        raise UsageError(
            "VR909",
            f"torch.jit.script cannot compile a captured or rewritten model ({self.kind})",
            suggestion="use torch.export.export(module, (x,)) or torch.compile(module)",
        )

    def get_submodule(self, target: str) -> nn.Module:
        """The module at a dotted path, also where a name is that of an attribute as well."""
        module: nn.Module = self
        for name in target.split(".") if target else ():
            found = module._modules.get(name)
            if found is None:
                raise AttributeError(f"{type(self).__name__} has no module {target!r}")
            module = found
        return module


def run_graph(
    graph: fx.Graph,
    module: nn.Module,
    args: Sequence[Any],
    call: Callable[[fx.Node, tuple[Any, ...]], Any] | None = None,
    note: Callable[[fx.Node, dict[fx.Node, Any]], None] | None = None,
) -> Any:
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
        child = module.get_submodule(str(node.target))
        if isinstance(child, Unit) and child.packing:
            args = child.packing.packed(args)
        return child(*args, **kwargs)
    if node.op == "call_method":
        return getattr(args[0], str(node.target))(*args[1:], **kwargs)
    assert callable(node.target)
    return node.target(*args, **kwargs)


def attribute(module: nn.Module, target: Any) -> Any:
    """The parameter, buffer or setting at a dotted path."""
    *path, name = str(target).split(".")
    owner = module.get_submodule(".".join(path))
    for table in (owner._parameters, owner._buffers):
        if name in table:
            return table[name]
    return getattr(owner, name)


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

    def copy(self, module: nn.Module, path: str, *, inserted: bool = False) -> nn.Module:
        if id(module) in self.modules:
            return self.modules[id(module)]
        inserted = inserted or is_inserted(module)  # opaque with all that is below it
        result = self._shell(module, path, type(module) if inserted else None)
        self.modules[id(module)] = result
        result.training = module.training
        for name, parameter in module._parameters.items():
            result._parameters[name] = self._parameter(parameter)
        for name, buffer in module._buffers.items():
            result._buffers[name] = self._buffer(buffer)
        result._non_persistent_buffers_set |= module._non_persistent_buffers_set
        kept = list(kept_buffers(module))
        for full, constant in self.constants.items():
            if full.rpartition(".")[0] == path:
                name = full.rpartition(".")[2]
                result.register_buffer(name, self._buffer(constant), persistent=False)
                if constant.is_floating_point():  # no cast reaches a plain attribute
                    kept.append(name)
        if kept:
            result.__dict__["kept"] = tuple(kept)
        for name, child in module._modules.items():
            below = f"{path}.{name}" if path else name
            made = None if child is None else self.copy(child, below, inserted=inserted)
            result._modules[name] = made
        return result

    def _shell(self, module: nn.Module, path: str, known: type[nn.Module] | None) -> nn.Module:
        """The new module without its state; of a class that is known, or as it was traced."""
        assigned: Any = known or self.assignments.get(path)
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
            data = parameter.detach()
            # What was made in inference mode can never be trained, unless it is copied.
            data = data.clone() if data.is_inference() else data
            shared = nn.Parameter(data, requires_grad=parameter.requires_grad)
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


def checkpoint(root: nn.Module, paths: Iterable[str]) -> None:
    """Lets the units at some paths be computed again in backward, and no others."""
    chosen = {id(root.get_submodule(path)) for path in paths}
    for module in walk.modules(root):
        if isinstance(module, Unit):
            module.__dict__["checkpointing"] = id(module) in chosen


def checkpointed(root: nn.Module) -> tuple[str, ...]:
    """Paths of the units that are computed again in backward."""
    return tuple(k for k, m in walk.named(root) if isinstance(m, Unit) and m.checkpointing)


_STATE = ("_parameters", "_buffers", "_modules")
_TABLES = tuple(
    k for k, v in vars(nn.Module()).items() if isinstance(v, (dict, set)) and k not in _STATE
)


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
        # Tables of hooks, and which buffers no state dict holds, are a copy's own; not under FSDP2,
        # whose hooks give a module's memory back and have to stay with it.
        sharded = torch.distributed.is_available() and torch.distributed.is_initialized()
        table = new.__dict__
        table.update(module.__dict__)
        for key in () if sharded else _TABLES:
            full = table[key]
            table[key] = full.copy() if full else type(full)()  # to copy nothing is slow, too
        modules[id(module)] = new
        table["_parameters"] = {k: tensor(v, parameter) for k, v in module._parameters.items()}
        table["_buffers"] = {k: tensor(v, buffer) for k, v in module._buffers.items()}
        below = {k: None if v is None else copy(v) for k, v in module._modules.items()}
        table["_modules"] = below
        return new

    return copy(root)


def own_templates(root: nn.Module) -> None:
    """Gives a tree copies of its templates, where another tree has the same ones."""
    copies: dict[int, Template] = {}
    for module in walk.modules(root):
        if isinstance(module, Unit) and module.template is not None:
            known = copies.get(id(module.template)) or module.template.clone()
            copies[id(module.template)] = known
            module.__dict__["template"] = known


def bare(root: nn.Module) -> tuple[nn.Module, list[tuple[torch.Tensor, torch.Tensor]]]:
    """The same tree without weights, in its own dtypes and modes.

    Returns:
        The tree, and each of its tensors with the one that it stands for.
    """
    pairs: list[tuple[torch.Tensor, torch.Tensor]] = []

    def meta(tensor: torch.Tensor) -> torch.Tensor:
        new = torch.empty_like(tensor, device="meta")
        pairs.append((new, tensor))
        return new

    def parameter(old: nn.Parameter) -> nn.Parameter:
        data = torch.empty_like(old, device="meta", requires_grad=False)
        new = nn.Parameter(data, requires_grad=old.requires_grad)
        pairs.append((new, old))
        return new

    return duplicate(root, parameter, meta), pairs


def _is_bare(tensor: torch.Tensor) -> bool:
    floating = tensor.is_floating_point()
    return tensor.is_meta and (not floating or tensor.dtype == torch.float32)


def on_meta(root: nn.Module) -> nn.Module:
    """The same tree without weights, in float32 and eval mode; the tree itself if it is such."""
    tensors = (*root.parameters(), *root.buffers())
    if all(map(_is_bare, tensors)) and not any(m.training for m in walk.modules(root)):
        return root

    def meta(tensor: torch.Tensor) -> torch.Tensor:
        dtype = torch.float32 if tensor.is_floating_point() else tensor.dtype
        return torch.empty(tensor.shape, dtype=dtype, device="meta")

    bare_root = duplicate(
        root, lambda p: nn.Parameter(meta(p), requires_grad=p.requires_grad), meta
    )
    return bare_root.eval()
