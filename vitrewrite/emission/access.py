"""How a module's children and tensors are written: `self.blocks[0].attn`, whatever their names.

What is called as nothing can be called after a dot is reached by its name as a string.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator

from torch import fx, nn

from ..tracing.about import is_root
from ..tracing.notes import CALLEE, ORIGIN, PLACE
from ..tracing.unit import Unit
from .captured import Captured
from .literals import quoted
from .names import is_name

_CONTAINERS = (nn.Sequential, nn.ModuleList, nn.ModuleDict)
# Attributes that every module has, and those that our own modules have besides.
_HIDDEN = frozenset(
    {
        *dir(nn.Module()),
        *(n for c in (Captured, Unit) for n in (*vars(c), *c.__annotations__)),
        "about",
    }
)


def is_hidden(name: str, owner: nn.Module | None = None) -> bool:
    """Whether `owner.name` is an attribute of all such modules, rather than a child or tensor."""
    methods = dir(type(owner)) if isinstance(owner, _CONTAINERS) else ()
    return name in _HIDDEN or name in methods


def is_chain(unit: Unit) -> bool:
    """Whether the unit just calls its numbered children in turn: an `nn.Sequential`.

    Numbers may be left out, of children that a spec took out.
    """
    if unit.template is None or unit.template.training or unit._parameters or unit._buffers:
        return False
    if unit.checkpointing or is_root(unit):  # the root is a class of its own
        return False
    nodes = [n for n in unit.template.graph.nodes if n.op != "output"]
    if not is_listed(unit) or len(nodes) != len(unit._modules) + 1:
        return False
    return nodes[0].op == "placeholder" and all(
        n.op == "call_module" and n.target == name and n.args == (before,) and not ORIGIN.get(n)
        for before, n, name in zip(nodes, nodes[1:], unit._modules, strict=False)
    )


def is_numbered(module: nn.Module) -> bool:
    """Whether the children are called 0, 1, 2, ... in this order."""
    return list(module._modules) == [str(i) for i in range(len(module._modules))]


def is_listed(module: nn.Module) -> bool:
    """Whether the children are called by numbers that ascend, some of which may be left out."""
    names = list(module._modules)
    found = [int(name) for name in names if name.isdecimal()]
    return [str(n) for n in found] == names and found == sorted(found)


def is_sequence(module: nn.Module | None) -> bool:
    """Whether what is printed for the module can be indexed, by position, and gone through."""
    if isinstance(module, Unit):
        return is_chain(module)
    if isinstance(module, nn.ModuleList):  # finds its children by name
        return is_numbered(module)
    return isinstance(module, nn.Sequential) and is_listed(module)


def position(module: nn.Module, name: str) -> int:
    """Where a child of a sequence stands."""
    return list(module._modules).index(name)


def child_of(module: nn.Module, path: str) -> nn.Module:
    """The module at a dotted path, also where a name hides behind an attribute."""
    for name in path.split(".") if path else ():
        found = module._modules[name]
        assert found is not None
        module = found
    return module


def children_at(units: Iterable[nn.Module], path: str) -> list[nn.Module]:
    """The modules at a dotted path below those that have one."""
    found: list[nn.Module] = []
    for unit in units:
        module: nn.Module | None = unit
        for name in path.split(".") if path else ():
            module = module and module._modules.get(name)
        if module is not None:
            found.append(module)
    return found


def access(module: nn.Module, target: str, owner: str = "self") -> str:
    """The expression for a child, parameter or buffer at a dotted path below `owner`."""
    text, current = owner, module
    for name in target.split("."):
        following = current._modules.get(name)
        text = _step(text, current, name)
        current = following if following is not None else nn.Module()
    return text


def _step(text: str, module: nn.Module, name: str) -> str:
    if is_sequence(module):
        return f"{text}[{position(module, name)}]"
    if isinstance(module, nn.ParameterList) and name.isdigit():
        return f"{text}[{name}]"
    held = _table(module, name)
    if held is None:  # a setting, or the mode
        return f"{text}.{name}"
    if is_hidden(name, module):
        return f"{text}.{held}[{quoted(name)}]"
    if is_name(name):
        return f"{text}.{name}"
    if isinstance(module, nn.ModuleDict):
        return f"{text}[{quoted(name)}]"
    return f"getattr({text}, {quoted(name)})"


def _table(module: nn.Module, name: str) -> str | None:
    tables = ("_modules", "_parameters", "_buffers")
    return next((t for t in tables if name in getattr(module, t)), None)


def set_child(module: nn.Module, name: str, value: str, owner: str = "self") -> str:
    """The statement that makes `value` a child."""
    if is_hidden(name, module):
        return f"{owner}._modules[{quoted(name)}] = {value}"
    if is_name(name):
        return f"{owner}.{name} = {value}"
    return f"{owner}.add_module({quoted(name)}, {value})"


def set_parameter(module: nn.Module, name: str, value: str, owner: str = "self") -> str:
    """The statement that makes `value` a parameter."""
    if is_hidden(name, module):
        return f"{owner}._parameters[{quoted(name)}] = {value}"
    if is_name(name):
        return f"{owner}.{name} = {value}"
    return f"{owner}.register_parameter({quoted(name)}, {value})"


def set_buffer(name: str, value: str, *, persistent: bool) -> list[str]:
    """The statements that make `value` a buffer."""
    key = quoted(name)
    if not hasattr(nn.Module, name):
        kept = "" if persistent else ", persistent=False"
        return [f"self.register_buffer({key}, {value}{kept})"]
    fixed = [] if persistent else [f"self._non_persistent_buffers_set.add({key})"]
    return [f"self._buffers[{key}] = {value}", *fixed]


def written(graph: fx.Graph, module: nn.Module) -> None:
    """Notes in the nodes how they name what they call or read, and where in a list that stands."""
    for node in graph.nodes:
        if node.op not in ("call_module", "get_attr"):
            continue
        target = str(node.target)
        CALLEE.put(node, access(module, target))
        PLACE.drop(node)
        container, _, name = target.rpartition(".")
        owner = child_of(module, container) if container else None
        if node.op == "call_module" and owner is not None and is_sequence(owner):
            PLACE.put(node, (container, position(owner, name)))


def repeated(root: nn.Module, made: frozenset[int]) -> Iterator[tuple[str, str]]:
    """Paths of modules, parameters and buffers that are one with another's, and that other path.

    Args:
        root: a tree.
        made: ids of the modules that count, and with them what lists of theirs hold.
    """
    modules: dict[int, str] = {}
    tensors: dict[int, str] = {}

    def walk(module: nn.Module, path: str) -> Iterator[tuple[str, str]]:
        modules[id(module)] = path
        for name, tensor in (*module._parameters.items(), *module._buffers.items()):
            # Tables that no checkpoint holds are constants: nobody can tell whether they are one.
            if tensor is not None and name not in module._non_persistent_buffers_set:
                below = f"{path}.{name}".lstrip(".")
                first = tensors.setdefault(id(tensor), below)
                if first != below:
                    yield below, first
        for name, child in module._modules.items():
            below = f"{path}.{name}".lstrip(".")
            if child is None or (id(child) not in made and not is_sequence(module)):
                continue
            if id(child) in modules:
                yield below, modules[id(child)]
            else:
                yield from walk(child, below)

    return walk(root, "")


def tie(root: nn.Module, path: str, first: str) -> str:
    """The statement that makes what is at a path of `model` what is at another."""
    owner, _, name = path.rpartition(".")
    module, text = child_of(root, owner), access(root, owner, "model") if owner else "model"
    value = access(root, first, "model") if first else "model"
    if name in module._modules:
        if is_sequence(module):
            return f"{text}[{position(module, name)}] = {value}"
        return set_child(module, name, value, text)
    if name in module._parameters:
        return set_parameter(module, name, value, text)
    return f"{text}._buffers[{quoted(name)}] = {value}"
