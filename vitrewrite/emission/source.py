"""The text of all classes of a captured tree."""

from __future__ import annotations

import textwrap
from collections.abc import Iterable, Sequence
from dataclasses import dataclass

from torch import fx, nn

from ..errors import EmitError
from ..text import Told
from ..tracing import walk
from ..tracing.about import About, about, is_root
from ..tracing.leaves import is_torch_class, mentioned
from ..tracing.notes import HINT, OPTIONAL
from ..tracing.unit import Unit
from .classes import Care, Class, Classes
from .constructors import Constructors
from .copied import Copies
from .deriving import derived
from .fixed import fixed_arguments
from .forward import body_lines
from .functions import Functions
from .literals import docstring, quoted
from .names import CALLED, IMPORTED, RESERVED, NameScope, identifier, is_name
from .paths import run_lines, stitch_lines, table_lines
from .saying import told
from .unread import Agreed
from .wrap import WIDTH, wrap


@dataclass(frozen=True)
class Source(Told):
    """The classes of a model as text.

    Attributes:
        classes: the text of each.
        root: what the root is called.
        inserted: the classes that passes insert, and what they are called.
        made: ids of the modules that the constructors make; what holds nothing and is never called
            is not.
    """

    classes: tuple[str, ...]
    root: str
    inserted: dict[type[nn.Module], str]
    made: frozenset[int]

    @property
    def text(self) -> str:
        """All classes, two blank lines apart."""
        return "\n\n\n".join(self.classes)


def print_classes(root: nn.Module, care: Care | None = None) -> tuple[Source, Classes]:
    """Prints every class below and including `root`, which must be a unit with a template.

    Args:
        root: a tree.
        care: modules that are written with more care.

    Returns:
        The text, and whose class each module has.
    """
    inserted = _inserted(root)
    scope = NameScope(inserted.values())
    table = Classes(root, scope, care)
    functions = Functions(root, scope)
    asked = {name for cls in inserted for name in vars(cls)} if table.ways else set()
    copies = Copies(_known(root, inserted), asked)
    constructors = Constructors(table, functions, inserted, copies.arguments)
    texts, everywhere = [], list(table.paths.values())
    for cls in table.all:
        said = told(cls.units, [table.paths[id(u)] for u in cls.units], everywhere)
        texts.append(_class(cls, constructors.lines(cls), said))
    sources = copies.texts(inserted)
    parts = (*(f.text for f in functions.all), *sources, *derived(texts))
    made = frozenset(id(m) for m in walk.modules(root) if table.makes(m))
    return Source(parts, table.of[id(root)].name, inserted, made), table


def _inserted(root: nn.Module) -> dict[type[nn.Module], str]:
    """Classes of the modules that passes put in, in order of first use, and their names.

    Raises:
        EmitError: VR805 if a class has the name of something that it or others use.
    """
    found: dict[type[nn.Module], str] = {}
    scope = NameScope()
    modules = (type(m) for m in walk.modules(root) if not isinstance(m, Unit))
    made = dict.fromkeys(cls for cls in modules if not is_torch_class(cls))
    for cls in dict.fromkeys(c for own in made for c in (own, *mentioned(own))):
        if cls.__name__ in RESERVED or not is_name(cls.__name__):
            raise EmitError("VR805", f"a class that a pass inserts cannot be named {cls.__name__}")
        found[cls] = scope.take(cls.__name__, "Inserted")
    return found


def _known(root: nn.Module, inserted: Iterable[type[nn.Module]]) -> dict[type[nn.Module], Agreed]:
    """What is known of the modules of each class that passes insert."""
    modules = walk.modules(root)
    made: dict[type[nn.Module], Agreed] = {cls: Agreed([]) for cls in inserted}
    for module in modules:
        if type(module) in made:
            made[type(module)].modules.append(module)
    inner = {
        id(child) for m in modules if type(m) in made for child in m.modules() if child is not m
    }
    counts: dict[int, list[int | None]] = {}
    for unit in modules:
        graphs = unit.template.graphs if isinstance(unit, Unit) and unit.template else ()
        for node in (n for graph in graphs for n in graph.nodes if n.op == "call_module"):
            child = unit.get_submodule(str(node.target))
            counts.setdefault(id(child), []).append(None if node.kwargs else len(node.args))
    for known in made.values():
        known.inner = bool(known.modules) and all(id(m) in inner for m in known.modules)
        found = [n for m in known.modules for n in counts.get(id(m), [None])]
        told = not any(hasattr(m, "enters") or hasattr(m, "stitches") for m in known.modules)
        if found and None not in found and told:
            known.given = max(n for n in found if n is not None)
    return made


def _class(cls: Class, made: list[str], said: str) -> str:
    lines = [f"class {cls.name}(nn.Module):"]
    if said:
        lines += [*_indent(docstring(_broken(said)).split("\n"), 1), ""]
    if cls.paths is not None:
        lines += [*_indent(table_lines(cls.paths), 1), ""]
    stored = [
        f"self.{name} = {name}" for name in cls.parameters.ordered if name in cls.parameters.stored
    ]
    if made or stored:
        signature = ", ".join(("self", *cls.parameters.head))
        lines += _indent(wrap(f"def __init__({signature}):", WIDTH - 4), 1)
        lines += _indent(["super().__init__()", *stored, *made], 2)
    if cls.sample.kept:
        lines += ["", *_indent(_keeping(cls.sample), 1)]
    if cls.template is not None:
        if made or stored:
            lines.append("")
        lines += _indent([*_forward(cls), *_asked(cls)], 1)
    return "\n".join(lines if len(lines) > 1 else [*lines, "    pass"])


def _broken(said: str) -> str:
    """What a class says of itself, on more than one line where it is too long for one."""
    if len(said) <= WIDTH - 10:
        return said
    lines = textwrap.wrap(said, WIDTH - 7, break_long_words=False, break_on_hyphens=False)
    return "\n".join([*lines, ""])


def _keeping(unit: Unit) -> list[str]:
    """The method through which casts and moves go, where buffers stay as exact as they are."""
    names = ", ".join(quoted(name) for name in unit.kept)
    body = [
        *wrap(f"kept = {{name: self._buffers[name] for name in ({names},)}}", WIDTH - 8),
        "super()._apply(*args, **kwargs)",
        "for name, exact in kept.items():  # which a cast would make less so",
        "    if self._buffers[name].itemsize < exact.itemsize:",
        "        self._buffers[name] = exact.to(self._buffers[name].device)",
        "return self",
    ]
    return ["def _apply(self, *args, **kwargs):", *_indent(body, 1)]


def _forward(cls: Class) -> list[str]:
    names = _arguments(cls.graphs[0])
    known = about(cls.sample) if is_root(cls.sample) else About(example=None)
    more, checks = fixed_arguments(known.constants, known.example, _NO_ARGUMENT)
    heads = _optional(names, cls.graphs[0])
    arguments = ", ".join(("self", *heads, *more))
    if cls.entries:
        return _composed(cls, arguments, ", ".join((*names, *_passed_on(more))), checks)
    called, checkpointing = _checkpoint(cls, names)
    own = ", ".join(("self", *heads))
    head = wrap(f"def {called}({own if checkpointing else arguments}):", WIDTH - 4)
    body = _body(cls, cls.graphs, names)
    if not checkpointing:
        return [*head, *_indent([*checks, *body], 1)]
    forward = wrap(f"def forward({arguments}):", WIDTH - 4)
    return [*forward, *_indent([*checks, *checkpointing], 1), "", *head, *_indent(body, 1)]


def _asked(cls: Class) -> list[str]:
    """The entries that clauses ask for, each a method of its own."""
    lines: list[str] = []
    for name, graphs in cls.asked:
        names = _arguments(graphs[0])
        lines += ["", *wrap(f"def {name}({', '.join(('self', *names))}):", WIDTH - 4)]
        lines += _indent(_body(cls, graphs, names), 1)
    if cls.runs:
        lines += ["", *run_lines(cls.sample, cls.runs)]
    if cls.paths is not None:
        checked = _body(cls, cls.checks, ["x"])[:-1]
        lines += ["", *stitch_lines(checked, cls.sample, cls.paths)]
    return lines


def _arguments(graph: fx.Graph) -> list[str]:
    """The names of a program's inputs."""
    nodes = [n for n in graph.nodes if n.op == "placeholder"]
    return _distinct([str(HINT.get(n) or n.name) for n in nodes])


def _optional(names: list[str], graph: fx.Graph) -> list[str]:
    """The inputs as a head has them: some modules are not given the last ones."""
    nodes = (n for n in graph.nodes if n.op == "placeholder")
    return [f"{k}=None" if OPTIONAL.get(n) else k for k, n in zip(names, nodes, strict=True)]


def _passed_on(more: list[str]) -> list[str]:
    """Arguments with defaults as a call has them that hands them on."""
    names = [argument.partition("=")[0] for argument in more]
    by_name = names[1:] if names[:1] == ["*"] else []
    return [f"{name}={name}" for name in by_name] or names


def _body(cls: Class, graphs: Sequence[fx.Graph], names: list[str]) -> list[str]:
    """The statements of a program, or of that of eval and that of training."""
    body = body_lines(graphs[0], cls.units, names, plain=cls.plain)
    if len(graphs) == 1:
        return body
    training = body_lines(graphs[1], cls.units, names, plain=cls.plain)
    if len(body) == 1:  # "return x": nothing happens outside training
        return ["if not self.training:", f"    {body[0]}", *training]
    return ["if self.training:", *_indent(training, 1), *body]


def _composed(cls: Class, arguments: str, given: str, checks: list[str]) -> list[str]:
    """The entries as methods, and the forward that calls them in turn."""
    lines: list[str] = []
    count = len(cls.graphs) // len(cls.entries)
    call = given
    for i, name in enumerate(cls.entries):
        graphs = cls.graphs[i * count : (i + 1) * count]
        names = _arguments(graphs[0])
        head = ", ".join(("self", *names)) if i else arguments
        body = _body(cls, graphs, names)
        if name == cls.entries[-1] and (cls.before or cls.odd):
            head += ", pre_logits=False"
            body = _with_pre_logits(cls, names, body)
        lines += wrap(f"def {name}({head}):", WIDTH - 4)
        lines += [*_indent([*([] if i else checks), *body], 1), ""]
        call = f"self.{name}({call})"
    forward = wrap(f"def forward({arguments}):", WIDTH - 4)
    return [*lines, *forward, *_indent(wrap(f"return {call}", WIDTH - 8), 1)]


def _with_pre_logits(cls: Class, names: list[str], body: list[str]) -> list[str]:
    """The statements of an entry that is asked for what the layers of its head read, or not."""
    if cls.odd:
        refused = wrap(f"raise NotImplementedError({quoted(cls.odd)})", WIDTH - 12)
        return ["if pre_logits:", *_indent(refused, 1), *body]
    *lines, last = _body(cls, cls.before, names)
    count, value = len(lines), last.removeprefix("return ")
    name, _, assigned = body[count].partition(" = ") if count < len(body) else ("", "", "")
    if body[:count] == lines and is_name(name) and assigned == value and value != last:
        asked = ["if pre_logits:", f"    return {name}"]
        after = body[count + 1 :]
        if len(after) == 1 and after[0].startswith("return "):
            return [*body[: count + 1], f"return {name} if pre_logits else {after[0][7:]}"]
        return [*body[: count + 1], *asked, *after]
    if not lines and len(body) == 1:
        short = f"{last} if pre_logits else {body[0].removeprefix('return ')}"
        if len(short) <= WIDTH - 8:
            return [short]
    return ["if pre_logits:", *_indent([*lines, last], 1), *body]


def _checkpoint(cls: Class, names: list[str]) -> tuple[str, list[str]]:
    """What the method that computes is called, and the `forward` that checkpoints it, if any."""
    if cls.checkpointed is None:
        return "forward", []
    called, given = "compute", ", ".join(names)
    while called in cls.parameters.members or called in cls.parameters.vectors:
        called += "_"
    condition = f" and {cls.checkpointed}" if cls.checkpointed else ""
    lines = [f"if self.training{condition}:"]
    call = f"return checkpoint({', '.join((f'self.{called}', *names))}, use_reentrant=False)"
    lines += _indent(wrap(call, WIDTH - 12), 1)
    return called, [*lines, *wrap(f"return self.{called}({given})", WIDTH - 8)]


_NO_ARGUMENT = CALLED | IMPORTED | {"self"}  # else the body could not use them


def _distinct(names: list[str]) -> list[str]:
    out: list[str] = []
    for wish in names:
        stem, number = identifier(wish, "x"), 2
        name = stem
        while name in out or name in _NO_ARGUMENT:
            name, number = f"{stem}{number}", number + 1
        out.append(name)
    return out


def _indent(lines: list[str], depth: int) -> list[str]:
    return [f"{'    ' * depth}{line}" if line else line for line in lines]
