"""The text of all classes of a captured tree."""

from __future__ import annotations

import ast
import linecache
from dataclasses import dataclass

from torch import nn

from ..errors import EmitError
from ..tracing.leaves import is_torch_class
from ..tracing.unit import Unit
from .classes import Class, Classes
from .constructors import Constructors
from .forward import body_lines
from .functions import Functions
from .wrap import WIDTH, wrap


@dataclass(frozen=True)
class Source:
    """The classes of a model as text, and what the root is called."""

    classes: tuple[str, ...]
    root: str
    table: Classes
    inserted: tuple[type[nn.Module], ...]

    @property
    def text(self) -> str:
        """All classes, two blank lines apart."""
        return "\n\n\n".join(self.classes)


def print_classes(root: nn.Module) -> Source:
    """Prints every class below and including `root`, which must be a unit with a template."""
    table = Classes(root)
    functions = Functions(root)
    constructors = Constructors(table, functions)
    texts = []
    for cls in table.all:
        texts.append(_class(cls, constructors.lines(cls)))
    inserted = _inserted(root)
    sources = tuple(map(class_source, inserted))
    return Source(
        (*(f.text for f in functions.all), *sources, *texts),
        table.of[id(root)].name,
        table,
        inserted,
    )


def class_source(cls: type[nn.Module]) -> str:
    """The text of a class, from the file that defines its forward.

    Unlike `inspect.getsource` this also finds classes of modules that `sys.modules` does not know,
    which is how emitted files are often imported.
    """
    lines = linecache.getlines(cls.forward.__code__.co_filename)
    for node in ast.parse("".join(lines)).body:
        if isinstance(node, ast.ClassDef) and node.name == cls.__name__:
            return "".join(lines[node.lineno - 1 : node.end_lineno]).rstrip()
    raise EmitError("VR801", f"the source of {cls.__name__} cannot be read")


def _inserted(root: nn.Module) -> tuple[type[nn.Module], ...]:
    """Classes of the modules that passes put in, in order of first use."""
    found = [
        type(m) for m in root.modules() if not isinstance(m, Unit) and not is_torch_class(type(m))
    ]
    return tuple(dict.fromkeys(found))


def _class(cls: Class, made: list[str]) -> str:
    lines = [f"class {cls.name}(nn.Module):"]
    stored = [
        f"self.{name} = {name}" for name in cls.parameters.vectors if name in cls.parameters.stored
    ]
    if made or stored:
        signature = ", ".join(("self", *cls.parameters.vectors))
        lines += _indent(wrap(f"def __init__({signature}):", WIDTH - 4), 1)
        lines += _indent(["super().__init__()", *stored, *made], 2)
    if cls.template is not None:
        if made or stored:
            lines.append("")
        lines += _indent(_forward(cls), 1)
    return "\n".join(lines if len(lines) > 1 else [*lines, "    pass"])


def _forward(cls: Class) -> list[str]:
    graph = cls.graphs[0]
    names = [str(n.meta.get("hint") or n.name) for n in graph.nodes if n.op == "placeholder"]
    names = _distinct(names)
    head = wrap(f"def forward({', '.join(('self', *names))}):", WIDTH - 4)
    body = body_lines(graph, cls.sample, names)
    if len(cls.graphs) == 2:
        training = body_lines(cls.graphs[1], cls.sample, names)
        if len(body) == 1:  # "return x": nothing happens outside training
            body = ["if not self.training:", f"    {body[0]}", *training]
        else:
            body = ["if self.training:", *_indent(training, 1), *body]
    return [*head, *_indent(body, 1)]


def _distinct(names: list[str]) -> list[str]:
    out: list[str] = []
    for name in names:
        stem, number = name, 2
        while name in out or name in ("torch", "F", "nn", "math", "self"):
            name, number = f"{stem}{number}", number + 1
        out.append(name)
    return out


def _indent(lines: list[str], depth: int) -> list[str]:
    return [f"{'    ' * depth}{line}" if line else line for line in lines]
