"""The source of classes that passes insert, written for the modules of one model."""

from __future__ import annotations

import ast
import io
import linecache
import re
import tokenize
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from torch import nn

from ..catalog.own_code import classes_in
from ..errors import EmitError
from .literals import constant, quoted
from .specialised import RECORDS, specialise
from .unread import (
    Agreed,
    arguments_left,
    drop_arguments,
    drop_empty,
    drop_methods,
    drop_unread,
    drop_unread_stores,
    methods_of,
)
from .wrap import WIDTH, wrap


@dataclass
class Copy:
    """A class as it is printed.

    Attributes:
        tree: its syntax.
        comments: by line of the file that it is from.
        alone: lines that are comments as a whole.
    """

    tree: ast.ClassDef
    comments: dict[int, str]
    alone: set[int]

    def text(self, names: Mapping[str, str]) -> str:
        """Its source, with other names for classes."""
        tree = _Renamed(names).visit(self.tree)
        return "\n".join(_Scribe(self.comments, self.alone).statement(tree, 0))


class Copies:
    """The classes that passes insert, as they are printed.

    Args:
        classes: with what is known of their modules.
        asked: methods that other classes call.
    """

    def __init__(self, classes: Mapping[type[nn.Module], Agreed], asked: set[str]) -> None:
        self.made = {cls: _read(cls) for cls in classes}
        trees = {cls: copy.tree for cls, copy in self.made.items()}
        for cls, tree in trees.items():
            specialise(tree, classes[cls])
        self.needed = {cls for cls, known in classes.items() if known.modules}
        before: object = None
        while before != (before := [ast.unparse(t) for t in trees.values()]):
            needed = [tree for cls, tree in trees.items() if cls in self.needed]
            drop_methods(needed, asked)
            named = {n.id for t in needed for n in ast.walk(t) if isinstance(n, ast.Name)}
            for cls, tree in trees.items():
                if cls.__name__ not in named:  # else others make some
                    drop_arguments(tree, classes[cls])
                if cls in self.needed:
                    drop_unread_stores(tree, needed, classes[cls])
                for method in methods_of(tree):  # what was an argument's alone
                    drop_unread(method)
            self.needed |= {cls for cls in trees if cls.__name__ in named}
        for tree in trees.values():
            drop_empty(tree)
        self.arguments = {cls: set(arguments_left(tree)) for cls, tree in trees.items()}

    def texts(self, names: Mapping[type[nn.Module], str]) -> list[str]:
        """The source of those that are needed.

        Args:
            names: what they are called.
        """
        made = ((cls, copy) for cls, copy in self.made.items() if cls in self.needed)
        return [copy.text(_names_beside(cls, names)) for cls, copy in made]


def _names_beside(cls: type[nn.Module], inserted: Mapping[type[nn.Module], str]) -> dict[str, str]:
    """What a class and those that its file has or imports, and may hold, are called here."""
    space = {**cls.forward.__globals__, cls.__name__: cls}
    classes = {name: c for name, c in space.items() if isinstance(c, type)}
    return {name: inserted[c] for name, c in classes.items() if c in inserted}


def records(names: Mapping[type[nn.Module], str]) -> list[str]:
    """The statements that tell the compiler of classes what passes say of them."""
    made = []
    for cls, name in names.items():
        told = {k: getattr(cls, k) for k in RECORDS if hasattr(cls, k)}
        if told:
            targets = ", ".join(f"{name}.{key}" for key in told)
            made.append(f"{targets} = {', '.join(map(constant, told.values()))}")
    return made


def _read(cls: type[nn.Module]) -> Copy:
    """The class, from the file that defines its forward.

    Unlike `inspect.getsource` this also finds classes of modules that `sys.modules` does not know,
    which is how emitted files are often imported.
    """
    text = "".join(linecache.getlines(cls.forward.__code__.co_filename))
    node = classes_in(text).get(cls.__name__)
    if node is None:
        raise EmitError("VR801", f"the source of {cls.__name__} cannot be read")
    lines = text.splitlines(keepends=True)[node.lineno - 1 : node.end_lineno]
    own = "".join(lines)
    tokens = tokenize.generate_tokens(io.StringIO(own).readline)
    comments = {t.start[0]: t.string for t in tokens if t.type == tokenize.COMMENT}
    tree = ast.parse(own).body[0]
    assert isinstance(tree, ast.ClassDef)
    shown = {n: c for n, c in comments.items() if not re.match(r"# (type:|noqa|fmt:)", c)}
    alone = {n for n in shown if lines[n - 1].lstrip().startswith("#")}
    return Copy(tree, shown, alone)


class _Renamed(ast.NodeTransformer):
    def __init__(self, names: Mapping[str, str]) -> None:
        self.names = names

    def visit_Name(self, node: ast.Name) -> ast.Name:
        """Attributes of these names stay."""
        return ast.copy_location(ast.Name(self.names.get(node.id, node.id), node.ctx), node)

    def visit_ClassDef(self, node: ast.ClassDef) -> Any:
        """The class itself has one, too."""
        node.name = self.names.get(node.name, node.name)
        return self.generic_visit(node)


class _Scribe:
    """Writes statements as ruff would, with the comments that stood before or behind them."""

    def __init__(self, comments: Mapping[int, str], alone: set[int]) -> None:
        self.comments, self.alone = comments, alone

    def statement(self, node: ast.stmt, depth: int) -> list[str]:
        """The lines of a statement."""
        above = self._above(node)
        if isinstance(node, (ast.FunctionDef, ast.ClassDef)):
            lines = self._defined(node, depth)
        elif isinstance(node, ast.If):
            lines = self._if(node, depth)
        elif isinstance(node, (ast.For, ast.While, ast.With, ast.Try)):
            lines = self._block(node, depth)
        else:
            lines = self._simple(node, depth)
        return [*(f"{'    ' * depth}{c}" for c in above), *lines]

    def _above(self, node: ast.stmt) -> list[str]:
        """The comment right above a statement."""
        line = min([node.lineno, *(d.lineno for d in getattr(node, "decorator_list", ()))]) - 1
        found: list[str] = []
        while line in self.alone:
            found.insert(0, self.comments[line])
            line -= 1
        return found

    def _behind(self, line: str, first: int, last: int, width: int) -> str:
        """A line with the comment that stands behind it."""
        numbers = [n for n in range(first, last + 1) if n in self.comments and n not in self.alone]
        with_it = "  ".join((line, *(self.comments[n] for n in numbers)))
        return with_it if len(with_it) <= width else line

    def _simple(self, node: ast.stmt, depth: int) -> list[str]:
        lines, width = wrap(_code(node), WIDTH - 4 * depth), WIDTH - 4 * depth
        lines[0] = self._behind(lines[0], node.lineno, node.end_lineno or node.lineno, width)
        return [f"{'    ' * depth}{line}" for line in lines]

    def _head(self, node: Any, depth: int) -> list[str]:
        """The first line of a compound statement."""
        kept = {f: getattr(node, f, None) for f in node._fields}
        empty = type(node)(**{**kept, "body": [ast.Pass()]})
        if "orelse" in node._fields:
            empty.orelse = []
        if isinstance(node, (ast.FunctionDef, ast.ClassDef)):
            empty.decorator_list = []
        text = _code(ast.fix_missing_locations(ast.copy_location(empty, node)))
        head = text.rpartition("\n")[0]
        lines = wrap(head, WIDTH - 4 * depth)
        lines[0] = self._behind(lines[0], node.lineno, node.lineno, WIDTH - 4 * depth)
        return [f"{'    ' * depth}{line}" for line in lines]

    def _defined(self, node: Any, depth: int) -> list[str]:
        lines = [f"{'    ' * depth}@{_code(d)}" for d in node.decorator_list]
        lines += self._head(node, depth)
        before: ast.stmt | None = None
        for each in node.body:
            if isinstance(node, ast.FunctionDef) and _is_text(each):
                continue  # it speaks of all that the method can do
            told = _is_text(each) and [f"{'    ' * (depth + 1)}{_docstring(each, node)}"]
            inner = told or self.statement(each, depth + 1)
            functions = isinstance(each, ast.FunctionDef) or isinstance(before, ast.FunctionDef)
            if (functions and before is not None) or (
                isinstance(node, ast.ClassDef) and before is node.body[0] and _is_text(before)
            ):
                lines.append("")
            lines += inner
            before = each
        return lines

    def _if(self, node: ast.If, depth: int, word: str = "if") -> list[str]:
        lines = self._head(node, depth)
        lines[0] = lines[0].replace("if ", f"{word} ", 1) if word != "if" else lines[0]
        lines += [line for each in node.body for line in self.statement(each, depth + 1)]
        if len(node.orelse) == 1 and isinstance(node.orelse[0], ast.If):
            return lines + self._if(node.orelse[0], depth, "elif")
        if node.orelse:
            lines.append(f"{'    ' * depth}else:")
            lines += [line for each in node.orelse for line in self.statement(each, depth + 1)]
        return lines

    def _block(self, node: Any, depth: int) -> list[str]:
        if isinstance(node, ast.Try) or getattr(node, "orelse", None):
            text = _code(node)
            return [f"{'    ' * depth}{line}" for line in text.splitlines()]
        lines = self._head(node, depth)
        return lines + [line for each in node.body for line in self.statement(each, depth + 1)]


def _is_text(node: ast.stmt) -> bool:
    held = node.value if isinstance(node, ast.Expr) else None
    return isinstance(held, ast.Constant) and isinstance(held.value, str)


def _docstring(node: Any, tree: ast.AST) -> str:
    """The first sentence or line: the rest is for whoever writes the pass."""
    text: str = node.value.value
    first = " ".join(text.split("\n\n")[0].split())
    if len(first) > WIDTH - 16:
        first = text.strip().split("\n")[0].strip()
    cut = len(first) if len(first) > WIDTH - 10 else 0
    while cut > 0 and (len(first) > WIDTH - 10 or _is_open(first)):
        cut = max(first.rfind(", "), first.rfind(": "))
        first = f"{first[:cut]}." if cut > 0 else first
    return f'"""{_of_what_is_there(first, tree)}"""'


def _of_what_is_there(text: str, tree: ast.AST) -> str:
    """What is said of a class, up to where it speaks of an option that this class is without."""
    nodes = [n for n in ast.walk(tree) if isinstance(n, (ast.Name, ast.arg, ast.Attribute))]
    known = {getattr(n, key, None) for n in nodes for key in ("id", "arg", "attr")}
    missing = (m for m in re.finditer(r"`(\w+)`", text) if m[1] not in known)
    first = next(missing, None)
    if first is None:
        return text
    kept = re.split(r"[,;:.] (?=[^,;:.]*$)", text[: first.start()])[0]
    return f"{kept}." if kept != text[: first.start()] and not _is_open(kept) else text


def _is_open(text: str) -> bool:
    return any(text.count(a) != text.count(b) for a, b in ("()", "[]"))


def _code(node: ast.AST) -> str:
    """Source as ruff writes it: with double quotes, and no parentheses that it takes away."""
    text = _bare_targets(ast.unparse(node))
    value = getattr(node, "value", None)
    if isinstance(node, (ast.Assign, ast.Return)) and isinstance(value, ast.Tuple) and value.elts:
        whole = ast.unparse(value)
        if text.endswith(whole) and len(value.elts) > 1:
            text = text.removesuffix(whole) + whole[1:-1]
    text = re.sub(r"(?<![\w.)\]])([\w.]+) \*\* (?=-?[\w.]+(?![\w.(\[]))", r"\1**", text)
    text = re.sub(r"\b(and|or) \(not ([\w.]+)\)", r"\1 not \2", text)
    lines = _spaced(_undoubled(text)).split("\n")
    tokens = list(tokenize.generate_tokens(io.StringIO("\n".join(lines)).readline))
    for token in reversed(tokens):
        if token.type == tokenize.STRING and token.start[0] == token.end[0]:
            row = token.start[0] - 1
            line, start, stop = lines[row], token.start[1], token.end[1]
            lines[row] = line[:start] + _double(token.string) + line[stop:]
    return "\n".join(lines)


def _bare_targets(text: str) -> str:
    """Without the parentheses that Python 3.10 puts around `a, b` in front of `=` and `in`."""
    bare = re.sub(r"^( *|.*\bfor )\(([\w.]+(?:, [\w.]+)+)\)(?= = | in )", r"\1\2", text, flags=re.M)
    return bare if bare == text or ast.dump(_parsed(bare)) == ast.dump(_parsed(text)) else text


_SIMPLE = (ast.Name, ast.Constant, type(None))


def _spaced(text: str) -> str:
    """Writes `x[:, start + 1:]` as `x[:, start + 1 :]`."""
    slices = (n for n in ast.walk(_parsed(text)) if isinstance(n, ast.Slice))
    for node in slices if "[" in text and ":" in text else ():
        parts = [node.lower, node.upper, node.step]
        plain = all(isinstance(getattr(p, "operand", p), _SIMPLE) for p in parts)
        if plain or node.lineno != node.end_lineno:
            continue
        texts = ["" if p is None else ast.get_source_segment(text, p) or "" for p in parts]
        joined = " : ".join(texts[:2]) + (f" : {texts[2]}" if texts[2] else "")
        made, old = re.sub(r": +:", "::", joined).strip(), ast.get_source_segment(text, node)
        if made != old:
            lines = text.split("\n")
            line = lines[node.lineno - 1].encode()
            start, stop = node.col_offset, node.end_col_offset
            lines[node.lineno - 1] = (line[:start] + made.encode() + line[stop:]).decode()
            return _spaced("\n".join(lines))
    return text


def _parsed(text: str) -> ast.AST:
    """The syntax of a statement, of an expression, or of one that wants a body."""
    try:
        return ast.parse(text)
    except SyntaxError:
        return ast.Module([], [])


def _undoubled(text: str) -> str:
    """Writes `sum((a for a in b))` as `sum(a for a in b)`."""
    start = text.find("((")
    while start >= 0:
        depth = 0
        for stop in range(start + 1, len(text)):
            depth += (text[stop] == "(") - (text[stop] == ")")
            if depth == 0:
                break
        called = start > 0 and re.match(r"[\w\])]", text[start - 1])
        if called and text[stop + 1 : stop + 2] == ")" and " for " in text[start:stop]:
            text = text[: start + 1] + text[start + 2 : stop] + text[stop + 1 :]
        start = text.find("((", start + 1)
    return text


def _double(literal: str) -> str:
    prefix, body = re.match(r"(\w*)(.*)", literal, re.S).groups()  # type: ignore[union-attr]
    if prefix:
        inner = body[1:-1]
        return f'{prefix}"{inner}"' if body[0] == "'" and '"' not in inner else literal
    return quoted(ast.literal_eval(literal))
