"""Reads what a pass declares from its source, without running it.

The file of a pass holds one public class that derives from `Pass`. Its annotated fields are its
options; defaults and the arguments of `option(...)` are literals.
"""

from __future__ import annotations

import ast
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from vitrewrite.catalog.needs import names_in
from vitrewrite.errors import Span, SpecError
from vitrewrite.text import did_you_mean, listing, shown

_TYPES = ("int", "float", "str", "bool")
_DETAILS = (
    *("default", "minimum", "maximum", "above", "below", "choices", "words"),
    *("needs", "rest", "help"),
)
_FACTS = ("prefix", "grid", "size")
CLAIMS = ("same_output_at_init", "lowers_exactly")
SIZES_KEPT = "sizes of merged tokens sum to the number before"
"""The claim of a merge that no patch gets lost or counted twice; `Pass.errors` measures it."""
"""What can be checked of any pass; its own `errors` measures what else it claims."""
KNOWN: Mapping[str, tuple[str, ...]] = {
    "verbs": (
        *("insert at", "insert before", "insert after", "insert", "prepend", "replace", "stitch"),
        *("add", "drop"),
    ),
    "attaches": (
        *("linear", "head", "attention", "mlp", "norm", "conv", "branch", "block", "entries"),
        *("decoder", "bases"),
    ),
    "claims": (*CLAIMS, SIZES_KEPT),
    "reads": _FACTS,
    "writes": (*_FACTS, "layers"),
}
_CLASS_VALUES = (*KNOWN, "source")


@dataclass(frozen=True)
class OptionInfo:
    """An option of a pass.

    Attributes:
        type: int, float, str or bool: of the value, or of each item if `many`.
        many: whether the value is a list.
        either: whether it may be a list besides.
        nullable: whether it may be `none`.
        required: whether a spec must set it; else `default` holds.
        minimum: smallest value allowed; `maximum` the largest.
        above: what a value must be larger than; `below` what it must be smaller than.
        words: strings that need no quotes, beside others; of a number what it may be instead.
        needs: when it has an effect, or "" for always; see `needs`.
        rest: its value at the sites that a list of values by site is too short for, if it may be.
    """

    name: str
    type: str
    many: bool
    nullable: bool
    required: bool
    default: Any = None
    minimum: float | None = None
    maximum: float | None = None
    above: float | None = None
    below: float | None = None
    choices: tuple[Any, ...] | None = None
    words: tuple[str, ...] = ()
    needs: str = ""
    rest: Any = None
    help: str = ""
    either: bool = False

    def __str__(self) -> str:
        kind = f"list of {self.type}" if self.many else self.type
        kind = f"{kind} or list of {self.type}" if self.either else kind
        return f"{kind} or none" if self.nullable else kind


@dataclass(frozen=True)
class PassInfo:
    """What a pass declares.

    Attributes:
        module: what to import; "" if only its file is known.
        doc: the docstring of its module.
        verbs: the forms of clause it can stand in, such as `insert at`.
    """

    name: str
    path: Path
    module: str
    class_name: str
    doc: str
    options: Mapping[str, OptionInfo]
    verbs: tuple[str, ...] = ()
    attaches: tuple[str, ...] = ()
    source: str = ""
    claims: tuple[str, ...] = ()
    reads: tuple[str, ...] = ()
    writes: tuple[str, ...] = ()


class _Malformed(Exception):  # noqa: N818 - becomes a SpecError as soon as the file is known
    def __init__(self, message: str, node: ast.AST) -> None:
        super().__init__(message)
        self.node = node


def read_signature(name: str, module: str, path: Path, class_name: str = "") -> PassInfo:
    """What the file of a pass declares.

    Args:
        name: of the pass.
        module: what to import; "" for a file alone.
        path: the file.
        class_name: the class, where the file may have several.

    Raises:
        SpecError: VR240 if it does not declare a pass as it should.
    """
    try:
        text = path.read_text(encoding="utf-8")
        tree = ast.parse(text)
    except (OSError, ValueError) as error:
        raise SpecError("VR240", f"cannot read pass {shown(name)}: {error}") from None
    except SyntaxError as error:
        span = Span(str(path), error.lineno or 1, error.offset or 1, 1, 1, error.text or "")
        message = f"pass {shown(name)} is not Python: {error.msg}"
        raise SpecError("VR240", message, span=span) from None
    try:
        return _signature(name, module, path, tree, class_name)
    except _Malformed as error:
        where = _span(path, error.node, text)
        raise SpecError("VR240", f"pass {shown(name)}: {error}", span=where) from None


def _span(path: Path, node: ast.AST, text: str) -> Span | None:
    if not isinstance(node, (ast.stmt, ast.expr)):
        return Span(str(path), 1, 1, 1, 1)
    line = text.splitlines()[node.lineno - 1]
    end_line, end = node.end_lineno or node.lineno, node.end_col_offset or 0
    return Span(str(path), node.lineno, node.col_offset + 1, end_line, end + 1, line)


def _signature(name: str, module: str, path: Path, tree: ast.Module, class_name: str) -> PassInfo:
    found = _pass_class(tree, class_name)
    options: dict[str, OptionInfo] = {}
    values: dict[str, Any] = {}
    lines: dict[str, ast.stmt] = {}
    for item in found.body:
        target, annotation, value = _assignment(item)
        if target in _CLASS_VALUES:
            values[target] = _class_value(target, value, item)
            own = _measured(found) if target == "claims" else ()
            _check_known(target, values[target], own, item)
        elif annotation is not None and "ClassVar" not in ast.unparse(annotation):
            options[target] = _option(target, annotation, value)
            lines[target] = item
    for option in options.values():
        _check_needs(option, options, lines[option.name])
    doc = ast.get_docstring(tree) or ""
    return PassInfo(name, path, module, found.name, doc, options, **values)


def _pass_class(tree: ast.Module, class_name: str) -> ast.ClassDef:
    found = [
        item
        for item in tree.body
        if isinstance(item, ast.ClassDef)
        and not item.name.startswith("_")
        and any(ast.unparse(base).split(".")[-1] == "Pass" for base in item.bases)
    ]
    if not found:
        message = "there is no public class that derives from Pass"
        raise _Malformed(message, tree)
    if class_name:
        names = listing(item.name for item in found)
        found = [item for item in found if item.name == class_name]
        if not found:
            raise _Malformed(f"no class {shown(class_name)} derives from Pass; {names} does", tree)
    if len(found) > 1:
        names = listing(item.name for item in found)
        message = f"there is more than one public class that derives from Pass: {names}"
        raise _Malformed(message, found[1])
    return found[0]


def _assignment(item: ast.stmt) -> tuple[str, ast.expr | None, ast.expr | None]:
    """The name, annotation and value of a line of a class body, or nothing."""
    if isinstance(item, ast.AnnAssign) and isinstance(item.target, ast.Name):
        return item.target.id, item.annotation, item.value
    if isinstance(item, ast.Assign) and isinstance(item.targets[0], ast.Name):
        return item.targets[0].id, None, item.value
    return "", None, None


def _class_value(name: str, value: ast.expr | None, item: ast.stmt) -> Any:
    found = _literal(value, item)
    wanted = str if name == "source" else tuple
    if not isinstance(found, wanted) or not all(isinstance(word, str) for word in found):
        message = f"{name} must be a {'string' if wanted is str else 'tuple of strings'}"
        raise _Malformed(message, item)
    return found


def _check_known(name: str, words: Sequence[str], own: Sequence[str], item: ast.stmt) -> None:
    """Raises for a word that nothing in vitrewrite knows, so that it would have no effect."""
    known = (*KNOWN.get(name, words), *own)
    for word in words:
        if word not in known:
            more = ", and what errors() of the pass measures" if name == "claims" else ""
            near = did_you_mean(word, known)
            message = f"{name} has {shown(word)}; known: {listing(known)}{more}"
            raise _Malformed(f"{message}; {near}" if near else message, item)


def _check_needs(option: OptionInfo, known: Mapping[str, OptionInfo], item: ast.stmt) -> None:
    try:
        names = names_in(option.needs) if option.needs else set()
    except ValueError as error:
        raise _Malformed(f"needs of {option.name} is no condition: {error}", item) from None
    if unknown := sorted(names - known.keys()):
        message = f"needs of {option.name} has {shown(unknown[0])}; options: {listing(known)}"
        raise _Malformed(message, item)


def _measured(found: ast.ClassDef) -> list[str]:
    """What `errors` of a pass can name: its text constants."""
    bodies = (f for f in found.body if isinstance(f, ast.FunctionDef) and f.name == "errors")
    nodes = (node for body in bodies for node in ast.walk(body))
    return [n.value for n in nodes if isinstance(n, ast.Constant) and isinstance(n.value, str)]


def _literal(node: ast.expr | None, place: ast.AST) -> Any:
    try:
        return ast.literal_eval(node) if node is not None else None
    except (ValueError, TypeError, SyntaxError, MemoryError, RecursionError):
        message = "must be a literal, because it is read without running the file"
        raise _Malformed(f"{ast.unparse(node) if node else 'it'} {message}", place) from None


def _option(name: str, annotation: ast.expr, value: ast.expr | None) -> OptionInfo:
    kind, many, nullable, words = _type(annotation)
    either = _is_either(annotation)
    details: dict[str, Any] = {}
    default, required = value, value is None
    if isinstance(value, ast.Call) and ast.unparse(value.func).split(".")[-1] == "option":
        details = {k.arg or "**": _literal(k.value, k.value) for k in value.keywords}
        default, required = (value.args[0] if value.args else None), not value.args
        if "default" in details:
            required = False
        if unknown := set(details) - set(_DETAILS):
            raise _Malformed(f"option() has no argument {shown(unknown.pop())}", value)
    result = details.pop("default", None) if default is None else _literal(default, annotation)
    details.setdefault("choices", words)
    return OptionInfo(name, kind, many, nullable, required, result, either=either, **details)


def _parts(node: ast.expr) -> list[str]:
    """The types that are written for an option, `None` included."""
    text = ast.unparse(node).strip("'\"").replace("typing.", "")
    return [part.strip() for part in text.split("|")]


def _is_either(node: ast.expr) -> bool:
    """Whether a value and a list of such are written, as `int | tuple[int, ...]`."""
    known = [part for part in _parts(node) if part != "None"]
    return len(known) == 2 and known[1] in (f"tuple[{known[0]}, ...]", f"list[{known[0]}]")


def _type(node: ast.expr) -> tuple[str, bool, bool, tuple[Any, ...] | None]:
    """The type of an option: name, whether a list, whether it may be none, and its choices."""
    parts = _parts(node)
    nullable = "None" in parts
    inner = [part for part in parts if part != "None"][: 1 if _is_either(node) else None]
    if len(inner) == 1:
        kind = inner[0]
        if kind.startswith("Literal["):
            words = _literal(ast.parse(f"({kind[8:-1]},)", mode="eval").body, node)
            return type(words[0]).__name__, False, nullable, words
        many = kind.startswith(("tuple[", "list["))
        if many:
            kind = kind[kind.index("[") + 1 : -1].removesuffix(", ...")
        if kind in _TYPES:
            return kind, many, nullable, None
    message = f"type {shown(' | '.join(parts))} is none that an option can have"
    raise _Malformed(f"{message}; use int, float, str, bool, X | None or tuple[X, ...]", node)
