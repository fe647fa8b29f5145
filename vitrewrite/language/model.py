"""Statements of a spec, and the spec itself: typed, immutable, printable as language text."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, TypeAlias

from vitrewrite.errors import Span, SpecError
from vitrewrite.text import brief

from .conditions import Compare, Condition
from .declarations import Include, Let, Param, written
from .expressions import Literal
from .factors import Factor
from .references import ModelRef, arguments_of, input_of
from .selectors import Option, Selector, values_of
from .values import Number, Value, show


@dataclass(frozen=True)
class PassUse:
    """A pass with options, as a clause names it; after checking the options have their types.

    Attributes:
        name: of the pass; of one in a file that of the file.
        file: `./gate.py:Gate`, for a class in a file that the spec names itself.
        folder: what such a file is relative to: that of the spec.
    """

    name: str
    options: tuple[Option, ...]
    span: Span = field(compare=False, repr=False)
    file: str = ""
    folder: Path = field(default=Path(), compare=False, repr=False)

    def __str__(self) -> str:
        return written(self.file or self.name, self.options)

    @property
    def key(self) -> str:
        """What a catalog finds the pass by: its name, or file and class."""
        return str(self.folder / self.file) if self.file else self.name

    @property
    def values(self) -> dict[str, Value]:
        """The options that a resolved spec sets; the others have the defaults of the pass."""
        return values_of(self.options)


def _only_if(condition: Condition | None) -> str:
    return f" if {condition}" if condition else ""


_LONG = 240
_LIST = re.compile(r"\[([^\[\]]{60,})\]")


def _cut(found: re.Match[str]) -> str:
    items = found[1].split(", ")
    return f"[{', '.join(items[:3])}, ... {len(items)} in all]" if len(items) > 6 else found[0]


@dataclass(frozen=True)
class Clause:
    """A statement that changes the model.

    Attributes:
        verb: insert, prepend, replace, stitch, add, drop, train or freeze.
        place: at, before or after, for insert.
        use: the pass, for all but train and freeze; with drop, what chooses among the sites.
        sites: where, for all but stitch.
        models: what to stitch.
        condition: the clause is there only if it holds; None once that is known.
    """

    verb: str
    place: str | None
    use: PassUse | None
    sites: Selector | None
    models: tuple[ModelRef, ...]
    span: Span = field(compare=False, repr=False)
    condition: Condition | None = None

    @property
    def bases(self) -> dict[str, ModelRef]:
        """What is stitched by name; one without a name has a letter."""
        return {ref.label or "abc"[i]: ref for i, ref in enumerate(self.models[:3])}

    @property
    def form(self) -> str:
        """The verb with its place, such as `insert at`, as passes list them in `verbs`."""
        return f"{self.verb} {self.place}" if self.place else self.verb

    def __str__(self) -> str:
        return f"{self._said}{_only_if(self.condition)}"

    @property
    def brief(self) -> str:
        """It with long lists cut, such as those of the hidden units that stay."""
        text = str(self)
        return text if len(text) <= _LONG else _LIST.sub(_cut, text)

    @property
    def _said(self) -> str:
        if self.verb == "stitch":
            return f"stitch {', '.join(map(str, self.models))} with {self.use}"
        if self.verb == "replace":
            return f"replace {self.sites} with {self.use}"
        if self.use is None:
            return f"{self.verb} {self.sites}"
        if self.verb == "drop":
            return f"drop {self.sites} by {self.use}"
        return f"{self.verb} {self.use} {self.place or 'to'} {self.sites}"


@dataclass(frozen=True)
class Claim:
    """What `require` asks for: a metric, where it is measured, and how it must compare.

    `identity at init` and `lowers exactly` are metrics `identity` and `lowers` with no comparison:
    they hold or not.
    """

    metric: str
    site: Selector | None
    compare: Compare | None
    excluding: Selector | None
    span: Span = field(compare=False, repr=False)
    options: tuple[Option, ...] = ()

    def __str__(self) -> str:
        if self.compare is None:
            return STATED.get(self.metric, self.metric)
        site = f"({', '.join(map(str, self.options))})" if self.options else ""
        site += f" at {self.site}" if self.site else ""
        without = f" excluding {self.excluding}" if self.excluding else ""
        return f"{self.metric}{site} {self.compare}{without}"

    @property
    def values(self) -> dict[str, Value]:
        """The options of the metric that a resolved claim sets."""
        return values_of(self.options)

    def holds(self, measured: Number | bool) -> bool:
        """Whether the claim is true of a measured value; a NaN makes every claim false."""
        if self.compare is None:
            return bool(measured)
        return measured == measured and self.compare.holds(measured)  # a NaN is not


# Claims without a number, as they are written.
STATED: Mapping[str, str] = {"identity": "identity at init", "lowers": "lowers exactly"}


@dataclass(frozen=True)
class Model:
    """`model NAME(arguments)`."""

    ref: ModelRef
    span: Span = field(compare=False, repr=False)

    def __str__(self) -> str:
        return f"model {self.ref}"


@dataclass(frozen=True)
class Require:
    """`require CLAIM`, perhaps `if CONDITION`."""

    claim: Claim
    span: Span = field(compare=False, repr=False)
    condition: Condition | None = None

    def __str__(self) -> str:
        return f"require {self.claim}{_only_if(self.condition)}"


@dataclass(frozen=True)
class Row:
    """`row "TABLE: ROW"`: a row of a paper's table that the spec stands for."""

    table: str
    name: str
    span: Span = field(compare=False, repr=False)

    def __str__(self) -> str:
        return f"row {show(f'{self.table}: {self.name}')}"


@dataclass(frozen=True)
class Tune:
    """`tune { key = value ... }`: hyperparameters of training, and factors of them for parts."""

    settings: tuple[Option, ...]
    span: Span = field(compare=False, repr=False)
    factors: tuple[Factor, ...] = ()

    def __str__(self) -> str:
        settings = [f"{each.name} = {_bare(each)}" for each in self.settings]
        lines = ", ".join([*settings, *map(str, self.factors)])
        return f"tune {{ {lines} }}" if lines else "tune {}"

    @property
    def values(self) -> dict[str, Value]:
        """The settings of a resolved spec."""
        return values_of(self.settings)


_CALLED = re.compile(r"[A-Za-z_]\w*(\.\w+)*(\(.*\))?", re.ASCII)


def _bare(setting: Option) -> str:
    """The value of a setting; a model that has a plain name without quotes."""
    value = setting.value.value if isinstance(setting.value, Literal) else None
    if setting.name == "teacher" and isinstance(value, str) and _CALLED.fullmatch(value):
        return value
    return str(setting.value)


@dataclass(frozen=True)
class Absent:
    """A clause or claim that is not there, and the values that make its condition false."""

    statement: Clause | Require
    values: Mapping[str, Value]

    def to_json(self) -> dict[str, Any]:
        """It as data."""
        line = self.statement.span.line
        return {"clause": str(self.statement), "line": line, "values": dict(self.values)}

    def __str__(self) -> str:
        values = ", ".join(f"{name} = {show(value)}" for name, value in self.values.items())
        return f"not there  line {self.statement.span.line}: {self.statement} ({values})"


AnyStatement: TypeAlias = Model | Param | Let | Include | Clause | Require | Row | Tune


@dataclass(frozen=True)
class Spec:
    """A spec with all names resolved, overrides applied and passes checked.

    Attributes:
        name: the file's name without suffix, or `spec` for a text.
        text: what was read.
        model: what to rewrite, if the spec or an override says so.
        model_overrides: constructor arguments that overrides set; they hold for any model.
        clauses: what to change, in order.
        requires: its claims.
        tune: all hyperparameters.
        params: the values of its params.
        defaults: the option values of each clause's pass that the spec leaves out.
        absent: clauses and claims that are not there, because their conditions do not hold.
        rows: of papers' tables, that it stands for itself; those of specs it includes are theirs.
        warnings: what is odd but not wrong.
    """

    name: str
    text: str
    model: ModelRef | None
    model_overrides: tuple[Option, ...]
    clauses: tuple[Clause, ...]
    requires: tuple[Require, ...]
    tune: Tune
    params: Mapping[str, Value]
    warnings: tuple[SpecError, ...] = field(default=(), compare=False, repr=False)
    defaults: tuple[Mapping[str, Value], ...] = field(default=(), compare=False, repr=False)
    absent: tuple[Absent, ...] = field(default=(), compare=False, repr=False)
    rows: tuple[Row, ...] = ()

    def __str__(self) -> str:
        model = (*map(str, self.rows), *([f"model {self.model}"] if self.model else []))
        tune = (str(self.tune),) if self.tune.settings or self.tune.factors else ()
        groups = (model, map(str, self.clauses), map(str, self.requires), tune)
        blocks = ("\n".join(lines) for lines in groups)
        return "\n\n".join(block for block in blocks if block) + "\n"

    def __repr__(self) -> str:
        return brief(f"# {self.name}\n{self}".rstrip())

    @property
    def absent_json(self) -> dict[str, Any]:
        """What is not there, as data under the key `not_there`; no key if all is."""
        return {"not_there": [each.to_json() for each in self.absent]} if self.absent else {}

    @property
    def model_arguments(self) -> dict[str, Value]:
        """Constructor arguments that overrides set."""
        return arguments_of(self.model_overrides)

    @property
    def bases(self) -> dict[str, ModelRef]:
        """The models that are stitched, by name; empty where the spec is about one model."""
        return next((c.bases for c in self.clauses if c.verb == "stitch"), {})

    @property
    def models(self) -> tuple[ModelRef, ...]:
        """The models that it is about."""
        return (*((self.model,) if self.model else ()), *self.bases.values())

    @property
    def input(self) -> str | None:
        """What any model is called with, if an override states it."""
        return input_of(self.model_overrides)

    def renamed(self, name: str) -> Spec:
        """The same spec under another name."""
        return replace(self, name=name)

    @property
    def places(self) -> list[tuple[str, int]]:
        """The file, without its folders, and the line of each clause."""
        return [(c.span.file.rpartition("/")[2], c.span.line) for c in self.clauses]

    def placed(self, places: Sequence[tuple[str, int]]) -> Spec:
        """The same spec with clauses that stand elsewhere, as comments in the source say.

        Args:
            places: file and line of each clause.
        """
        clauses = tuple(
            replace(c, span=replace(c.span, file=file, line=line, end_line=line))
            for c, (file, line) in zip(self.clauses, places, strict=True)
        )
        return replace(self, clauses=clauses)

    @property
    def hash(self) -> str:
        """Identifies the model that the spec makes: its clauses with all values and defaults.

        Layout and comments are left out, and so are claims and hyperparameters of training: a delta
        fits whatever it was trained with and however it is checked.
        """
        import hashlib

        clauses = tuple(map(_canonical, self.clauses, self.defaults))
        tune = replace(self.tune, settings=(), factors=())
        bare = replace(self, clauses=clauses, requires=(), tune=tune)
        return hashlib.sha256(str(bare).encode()).hexdigest()


def _canonical(clause: Clause, defaults: Mapping[str, Value]) -> Clause:
    """The clause with all options of its pass, by name."""
    if clause.use is None:
        return clause
    span = clause.use.span
    left_out = (Option(name, Literal(value, span), span) for name, value in defaults.items())
    options = sorted((*clause.use.options, *left_out), key=lambda option: option.name)
    return replace(clause, use=replace(clause.use, options=tuple(options)))
