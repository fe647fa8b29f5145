"""A class that has what another one has and more, written as one that derives from it.

A rewrite gives some blocks something besides: `BlockWithMerge` is a `Block`, and says what it adds.
"""

from __future__ import annotations

import ast
from collections.abc import Sequence
from dataclasses import dataclass, field

from .wrap import WIDTH, wrap

_PLAIN = (ast.Constant, ast.Name, ast.Load, ast.Tuple, ast.UnaryOp, ast.USub, ast.BinOp,
          ast.operator)  # fmt: skip
"""What an argument may be made of that is handed on: it may be computed twice, and elsewhere."""


@dataclass
class _Printed:
    """A class as text and as syntax."""

    text: str
    tree: ast.ClassDef = field(init=False)

    def __post_init__(self) -> None:
        (tree,) = ast.parse(self.text).body
        assert isinstance(tree, ast.ClassDef)
        self.tree = tree

    @property
    def name(self) -> str:
        return self.tree.name

    @property
    def methods(self) -> dict[str, ast.FunctionDef]:
        return {s.name: s for s in self.tree.body if isinstance(s, ast.FunctionDef)}

    @property
    def is_simple(self) -> bool:
        """Whether it has a constructor, and nothing but methods and what it says of itself."""
        others = [s for s in self.tree.body if not isinstance(s, ast.FunctionDef)]
        return "__init__" in self.methods and all(isinstance(s, ast.Expr) for s in others)

    def lines(self, first: int, last: int) -> list[str]:
        return self.text.split("\n")[first - 1 : last]


def derived(texts: Sequence[str]) -> list[str]:
    """The classes, those that derive from others right behind these at the earliest."""
    known = [_Printed(text) for text in texts]
    out = [cls.text for cls in known]
    bases: dict[str, str] = {}
    for i, cls in enumerate(known):
        names = [c for c in known if cls.name.startswith(f"{c.name}With")]
        for base in sorted(names, key=lambda c: len(c.name), reverse=True):
            if (text := _from(cls, base)) is not None:
                out[i], bases[cls.name] = text, base.name
                break
    by_name = dict(zip((cls.name for cls in known), out, strict=True))
    order: dict[str, str] = {}
    for cls in known:
        chain = [cls.name]
        while chain[-1] in bases:
            chain.append(bases[chain[-1]])
        order |= {name: by_name[name] for name in reversed(chain) if name not in order}
    return list(order.values())


def _from(cls: _Printed, base: _Printed) -> str | None:
    """The text of a class that derives from another one, or None if that one has anything else."""
    if not cls.is_simple or not base.is_simple or not base.methods.keys() <= cls.methods.keys():
        return None
    made = _constructor(cls, base)
    if made is None:
        return None
    lines = [f"class {cls.name}({base.name}):"]
    parts = [made] if made else []
    for statement in cls.tree.body:
        own = cls.lines(statement.lineno, statement.end_lineno or statement.lineno)
        if isinstance(statement, ast.Expr):
            parts.insert(0, own)
        elif isinstance(statement, ast.FunctionDef) and statement.name != "__init__":
            theirs = base.methods.get(statement.name)
            if theirs is None or ast.dump(theirs) != ast.dump(statement):
                parts.append(own)
    for part in parts or [["    pass"]]:
        lines += [*part, ""]
    return "\n".join(lines[:-1])


def _constructor(cls: _Printed, base: _Printed) -> list[str] | None:
    """The lines of its constructor, none if it needs none; None if it does not do what theirs does.

    What it does besides comes behind, so that must be where it registers it now.
    """
    mine, theirs = cls.methods["__init__"], base.methods["__init__"]
    given = {a.arg for a in theirs.args.args[1:]}
    found: dict[str, ast.expr] = {}
    own = {a.arg for a in mine.args.args[1:]}
    expected, more = list(theirs.body), []
    for statement in mine.body:
        tried = dict(found)
        if expected and _fits(statement, expected[0], given, tried):
            found = tried
            del expected[0]
        else:
            more.append(statement)
    handed = _handed_on(theirs.args, found)
    if expected or len(theirs.body) < 2 or handed is None or not _is_known(found, own):
        return None
    kept = [s for s in mine.body if s not in more] + more
    if _registered(kept) != _registered(mine.body):
        return None
    if not more and ast.dump(mine.args) == ast.dump(theirs.args) and _as_they_are(found):
        return []
    head = cls.lines(mine.lineno, mine.body[0].lineno - 1)
    call = f"super().__init__({', '.join(handed)})"
    lines = [*head, *(f"        {line}" for line in wrap(call, WIDTH - 8))]
    return lines + [line for s in more for line in cls.lines(s.lineno, s.end_lineno or s.lineno)]


def _fits(
    mine: ast.AST | object, theirs: ast.AST | object, given: set[str], found: dict[str, ast.expr]
) -> bool:
    """Whether a statement is another one with values in place of the arguments in `given`."""
    if isinstance(theirs, ast.Name) and theirs.id in given and isinstance(mine, ast.expr):
        known = found.setdefault(theirs.id, mine)
        return ast.dump(known) == ast.dump(mine)
    if isinstance(theirs, ast.IfExp) and not isinstance(mine, ast.IfExp):
        return _fits_a_way(mine, theirs, given, found)
    if type(mine) is not type(theirs):
        return False
    if isinstance(mine, ast.AST):
        return all(_fits(getattr(mine, f), getattr(theirs, f), given, found) for f in mine._fields)
    if isinstance(mine, list) and isinstance(theirs, list):
        return len(mine) == len(theirs) and all(
            _fits(a, b, given, found) for a, b in zip(mine, theirs, strict=True)
        )
    return repr(mine) == repr(theirs)  # -0.0 is not 0.0


def _fits_a_way(
    mine: ast.AST | object, choice: ast.IfExp, given: set[str], found: dict[str, ast.expr]
) -> bool:
    """Whether it is what `Drop(rate) if rate else nn.Identity()` makes of a number."""
    for way, branch in ((True, choice.body), (False, choice.orelse)):
        tried = dict(found)
        asked = choice.test.id if isinstance(choice.test, ast.Name) else ""
        if _fits(mine, branch, given, tried):
            value = tried.get(asked)
            if asked in given and isinstance(value, ast.Constant) and bool(value.value) == way:
                found |= tried
                return True
    return False


def _handed_on(arguments: ast.arguments, found: dict[str, ast.expr]) -> list[str] | None:
    """What the constructor of the other one is given; by name behind one that is left out."""
    names = [a.arg for a in arguments.args[1:]]
    needed = len(names) - len(arguments.defaults)
    defaults = [None] * needed + [ast.unparse(d) for d in arguments.defaults]
    handed: list[str] = []
    by_name = False
    for name, default in zip(names, defaults, strict=True):
        text = ast.unparse(found[name]) if name in found else default
        if text is None:
            return None
        by_name |= default is not None
        if text != default:
            handed.append(f"{name}={text}" if by_name else text)
    return handed


def _is_known(found: dict[str, ast.expr], own: set[str]) -> bool:
    """Whether all values are numbers, or made of the arguments of the class itself."""
    nodes = [n for value in found.values() for n in ast.walk(value)]
    names = {n.id for n in nodes if isinstance(n, ast.Name)}
    return names <= own and all(isinstance(n, _PLAIN) for n in nodes)


def _as_they_are(found: dict[str, ast.expr]) -> bool:
    return all(isinstance(v, ast.Name) and v.id == name for name, v in found.items())


def _registered(body: Sequence[ast.stmt]) -> dict[str, list[str]]:
    """What a constructor sets, in order: parameters, buffers and the rest, children among it."""
    found: dict[str, list[str]] = {}
    for statement in body:
        text = ast.unparse(statement)
        kind = next((k for k in ("nn.Parameter(", "self.register_buffer(") if k in text), "")
        found.setdefault(kind, []).append(text)
    return found
