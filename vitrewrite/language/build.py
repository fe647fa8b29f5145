"""What the parser does at each rule: makes the nodes of `model`, `selectors` and `expressions`.

Lark calls it while it parses, so no tree is built in between and nothing here is recursive.
"""

from __future__ import annotations

from dataclasses import replace
from itertools import groupby
from pathlib import Path
from typing import Any

from lark import Transformer, v_args

from vitrewrite.errors import Span, SpecError
from vitrewrite.text import did_you_mean, shown

from . import conditions, declarations, expressions, selectors
from . import model as nodes
from .conditions import Condition
from .expressions import Expression
from .factors import Factor
from .references import ModelRef
from .selectors import Selector
from .tokens import Lexeme
from .values import CONSTANTS, read_number, read_string
from .words import Word

_NOWHERE = Span("", 1, 1, 1, 1)
ALTERNATIONS = 8  # of + and - in one selector: they nest, while a sum of any length does not


def _join(first: Any, last: Any) -> Span:
    a, b = first.span, last.span
    return Span(a.file, a.line, a.column, b.end_line, b.end_column, a.text)


def _pairs(rest: tuple[Any, ...]) -> tuple[tuple[str, Any], ...]:
    return tuple((str(sign), node) for sign, node in zip(rest[::2], rest[1::2], strict=True))


@v_args(inline=True)
class _Expressions(Transformer[Word, Any]):
    def number(self, token: Word) -> expressions.Literal:
        return expressions.Literal(read_number(token, token.span), token.span)

    def string(self, token: Word) -> expressions.Literal:
        plain = token[0].isdigit()  # a shape, which needs no quotes
        return expressions.Literal(
            str(token) if plain else read_string(token, token.span), token.span
        )

    def name(self, token: Word) -> Expression:
        if token in CONSTANTS:
            return expressions.Literal(CONSTANTS[token], token.span)
        return expressions.Name(str(token), token.span)

    def list_of(self, opening: Word, *items: Any) -> expressions.ListOf:
        elements = tuple(item for item in items[:-1] if item is not None)
        return expressions.ListOf(elements, _join(opening, items[-1]))

    def unary(self, *parts: Any) -> Expression:
        *signs, operand = parts
        if len(signs) % 2 == 0:
            return operand  # type: ignore[no-any-return]
        return expressions.Negate(operand, _join(signs[0], operand))

    def product(self, first: Expression, *rest: Any) -> Expression:
        if not rest:
            return first
        return expressions.Arithmetic(first, _pairs(rest), _join(first, rest[-1]))

    sum = product


@v_args(inline=True)
class _Conditions(_Expressions):
    def compare(self, sign: Word, bound: Expression) -> conditions.Compare:
        return conditions.Compare(str(sign), bound, None, _join(sign, bound))

    def within(self, tolerance: Expression, bound: Expression) -> conditions.Compare:
        return conditions.Compare("within", bound, tolerance, _join(tolerance, bound))

    def test(self, name: Word, compare: conditions.Compare | None) -> conditions.Test:
        return conditions.Test(str(name), compare, name.span)

    def negated(self, operand: conditions.Condition) -> conditions.Condition:
        if isinstance(operand, conditions.Not):  # two of them cancel, so a row of them stays flat
            return operand.operand
        return conditions.Not(operand, operand.span)

    def both(self, *parts: conditions.Condition) -> conditions.Condition:
        return parts[0] if len(parts) == 1 else conditions.Both(parts, _join(parts[0], parts[-1]))

    def condition(self, *parts: conditions.Condition) -> conditions.Condition:
        return parts[0] if len(parts) == 1 else conditions.Either(parts, _join(parts[0], parts[-1]))


@v_args(inline=True)
class _Selectors(_Conditions):
    def everything(self, star: Word) -> selectors.Slice:
        return selectors.Slice(None, None, None, star.span)

    def pick(self, position: Expression) -> selectors.Pick:
        return selectors.Pick(position, position.span)

    def slice(self, *parts: Any) -> selectors.Slice:
        start, _, stop, _, step = parts
        written = [part for part in parts if part is not None]
        return selectors.Slice(start, stop, step, _join(written[0], written[-1]))

    def index(self, opening: Word, *items: Any) -> selectors.Index:
        return selectors.Index(items[:-1], _join(opening, items[-1]))

    def step(self, name: Word, index: selectors.Index | None) -> selectors.PathStep:
        return selectors.PathStep((str(name),), index, _join(name, index or name))

    def group(self, *names: Word) -> selectors.PathStep:
        return selectors.PathStep(tuple(map(str, names)), None, _join(names[0], names[-1]))

    def path(self, *steps: selectors.PathStep) -> selectors.Path:
        return selectors.Path(steps, _join(steps[0], steps[-1]))

    def option(self, name: Word, value: Expression) -> selectors.Option:
        return selectors.Option(str(name), value, name.span)

    def options(self, *options: selectors.Option | None) -> tuple[selectors.Option, ...]:
        return tuple(option for option in options if option is not None)

    def call(self, name: Word, *arguments: Any) -> Selector:
        given = [argument for argument in arguments if argument is not None]
        options = tuple(each for each in given if isinstance(each, selectors.Option))
        if name == "module":
            return _module_glob(name, given)
        if len(options) < len(given):
            unnamed = next(each for each in given if not isinstance(each, selectors.Option))
            raise _unnamed(str(name), unnamed)
        return selectors.Call(str(name), options, name.span)

    def every(self, kind: Word, within: Selector | None) -> selectors.Every | selectors.EveryBase:
        if kind == selectors.BASE and within is None:
            return selectors.EveryBase(None, kind.span)
        return selectors.Every(str(kind), within, _join(kind, within or kind))

    def every_path(self, kind: Word, path: selectors.Path) -> selectors.EveryBase:
        if kind != selectors.BASE:
            message = f"'every {kind}' is followed by no path: only 'every base' is"
            suggestion = f"write 'every {kind} in ...'"
            raise SpecError("VR505", message, span=kind.span, suggestion=suggestion)
        return selectors.EveryBase(path, _join(kind, path))

    def common(self, *parts: Selector) -> Selector:
        if len(parts) == 1:
            return parts[0]
        whole = _flat(parts, selectors.Intersection)
        return selectors.Intersection(whole, _join(parts[0], parts[-1]))

    def several(self, first: Selector, *rest: Any) -> Selector:
        runs = [
            (sign, tuple(node for _, node in run))
            for sign, run in groupby(_pairs(rest), lambda pair: pair[0])
        ]
        if len(runs) > ALTERNATIONS:
            message = f"'+' and '-' alternate more than {ALTERNATIONS} times"
            help_text = "put all that is added first, then all that is taken away"
            raise SpecError("VR110", message, span=_join(first, rest[-1]), suggestion=help_text)
        for sign, run in runs:
            first = _joined(first, sign, run)
        return first

    def where(self, selector: Selector, condition: conditions.Condition) -> selectors.Where:
        return selectors.Where(selector, condition, _join(selector, condition))

    def optional(self, selector: Selector) -> selectors.Optional:
        return selectors.Optional(selector, selector.span)


def _arguments(options: tuple[selectors.Option, ...]) -> tuple[tuple[str, Expression], ...]:
    return tuple((option.name, option.value) for option in options)


def _joined(first: Selector, sign: str, run: tuple[Selector, ...]) -> Selector:
    span = _join(first, run[-1])
    if sign == "+":
        return selectors.Union(_flat((first, *run), selectors.Union), span)
    if isinstance(first, selectors.Difference):
        return selectors.Difference(first.start, (*first.removed, *run), span)
    return selectors.Difference(first, run, span)


def _flat(
    parts: tuple[Selector, ...], kind: type[selectors.Union] | type[selectors.Intersection]
) -> tuple[Selector, ...]:
    """The parts, with those of the same kind opened: parentheses there mean nothing."""
    return tuple(
        inner for part in parts for inner in (part.parts if isinstance(part, kind) else (part,))
    )


def _module_glob(name: Word, given: list[Any]) -> selectors.ModuleGlob:
    if len(given) != 1 or isinstance(given[0], selectors.Option):
        message = "module() takes one pattern"
        suggestion = 'such as module("blocks.*.attn.qkv")'
        raise SpecError("VR215", message, span=name.span, suggestion=suggestion)
    return selectors.ModuleGlob(given[0], name.span)


def _unnamed(name: str, value: Expression) -> SpecError:
    message = f"{name}() takes options as name=value"
    return SpecError("VR115", message, span=value.span)


@v_args(inline=True)
class _Statements(_Selectors):
    def dotted(self, *names: Word) -> Word:
        first, text = names[0], ".".join(names)
        return Word.of("NAME", Lexeme("name", text, first.start, names[-1].end), first.source)

    def use(self, name: Word, options: tuple[selectors.Option, ...] | None) -> nodes.PassUse:
        if name.type != "PASS_FILE":
            return nodes.PassUse(str(name), options or (), name.span)
        folder = name.source.folder
        stem = Path(name.rpartition(":")[0]).stem
        return nodes.PassUse(stem, options or (), name.span, str(name), folder)

    def place(self, word: Word) -> Word:
        return word

    def model_ref(self, name: Word, options: tuple[selectors.Option, ...] | None) -> ModelRef:
        text = read_string(name, name.span) if name.type == "STRING" else str(name)
        return ModelRef(text, options or (), name.span)

    def named(self, name: Word, ref: ModelRef) -> ModelRef:
        return replace(ref, label=str(name), span=_join(name, ref))

    def model(self, ref: ModelRef) -> nodes.Model:
        return nodes.Model(ref, ref.span)

    def range(self, low: Expression, high: Expression) -> declarations.Range:
        return declarations.Range(low, high, _join(low, high))

    def choices(self, *items: Expression) -> declarations.Choices:
        return declarations.Choices(items, _join(items[0], items[-1]))

    def param(self, *parts: Any) -> declarations.Param:
        name, _, kind, default, bounds = parts
        return declarations.Param(
            str(name), str(kind), default, bounds, name.span, name.span, kind.span
        )

    def let(self, name: Word, value: Expression) -> declarations.Let:
        return declarations.Let(str(name), value, name.span, name.span)

    def include(
        self, target: Word, options: tuple[selectors.Option, ...] | None
    ) -> declarations.Include:
        quoted = target.type == "STRING"
        text = read_string(target, target.span) if quoted else str(target)
        return declarations.Include(text, options or (), target.span)

    def setting(self, name: Word, value: Expression) -> selectors.Option:
        return selectors.Option(str(name), value, name.span)

    def called(
        self, name: Word, callee: Word, options: tuple[selectors.Option, ...]
    ) -> selectors.Option:
        value = expressions.Called(str(callee), _arguments(options), callee.span)
        return selectors.Option(str(name), value, name.span)

    def factor(self, name: Word, sites: Selector, value: Expression) -> Factor:
        return Factor(str(name), sites, value, name.span)

    def tune(self, *settings: selectors.Option | Factor) -> nodes.Tune:
        plain = tuple(each for each in settings if isinstance(each, selectors.Option))
        factors = tuple(each for each in settings if isinstance(each, Factor))
        return nodes.Tune(plain, _NOWHERE, factors)

    def only_if(self, condition: Condition) -> Condition:
        return condition

    def insert(
        self, use: nodes.PassUse, place: Word, sites: Selector, only: Condition | None
    ) -> nodes.Clause:
        return nodes.Clause("insert", str(place), use, sites, (), use.span, only)

    def prepend(self, use: nodes.PassUse, sites: Selector, only: Condition | None) -> nodes.Clause:
        return nodes.Clause("prepend", None, use, sites, (), use.span, only)

    def add(self, use: nodes.PassUse, sites: Selector, only: Condition | None) -> nodes.Clause:
        return nodes.Clause("add", None, use, sites, (), use.span, only)

    def replace(self, sites: Selector, use: nodes.PassUse, only: Condition | None) -> nodes.Clause:
        return nodes.Clause("replace", None, use, sites, (), use.span, only)

    def stitch(self, *parts: Any) -> nodes.Clause:
        *models, use, only = parts
        return nodes.Clause("stitch", None, use, None, tuple(models), use.span, only)

    def drop(
        self, sites: Selector, use: nodes.PassUse | None, only: Condition | None
    ) -> nodes.Clause:
        return nodes.Clause("drop", None, use, sites, (), (use or sites).span, only)

    def train(self, sites: Selector, only: Condition | None) -> nodes.Clause:
        return nodes.Clause("train", None, None, sites, (), sites.span, only)

    def freeze(self, sites: Selector, only: Condition | None) -> nodes.Clause:
        return nodes.Clause("freeze", None, None, sites, (), sites.span, only)

    def row(self, text: Word) -> nodes.Row:
        table, sign, name = read_string(text, text.span).partition(": ")
        if not (sign and table.strip() and name.strip()):
            message = f"a row is named by its table and its name, and {text} is not"
            suggestion = 'such as row "fpet-2: LoRA"'
            raise SpecError("VR118", message, span=text.span, suggestion=suggestion)
        return nodes.Row(table, name, text.span)

    def require(self, claim: nodes.Claim, only: Condition | None) -> nodes.Require:
        return nodes.Require(claim, claim.span, only)

    def metric(
        self, name: Word, options: tuple[selectors.Option, ...] | None
    ) -> tuple[Word, tuple[selectors.Option, ...]]:
        return name, options or ()

    def measured(
        self,
        metric: tuple[Word, tuple[selectors.Option, ...]],
        compare: Any,
        excluding: Selector | None,
    ) -> nodes.Claim:
        name, options = metric
        return nodes.Claim(str(name), None, compare, excluding, name.span, options)

    def measured_at(self, name: Word, site: Selector, compare: Any) -> nodes.Claim:
        if compare is None and (name, str(site)) == ("identity", "init"):
            return nodes.Claim("identity", None, None, None, name.span)
        return nodes.Claim(str(name), site, compare, None, name.span)

    def stated(self, name: Word, how: Word) -> nodes.Claim:
        if (name, how) != ("lowers", "exactly"):
            message = f"no claim {shown(f'{name} {how}')}"
            notes = ["claims without a number are 'identity at init' and 'lowers exactly'"]
            suggestion = did_you_mean(f"{name} {how}", nodes.STATED.values())
            span = _join(name, how)
            raise SpecError("VR117", message, span=span, notes=notes, suggestion=suggestion)
        return nodes.Claim("lowers", None, None, None, name.span)


class Build(_Statements):
    """One method per rule or alias of the grammar; `parse` gives statements their whole span."""
