"""From statements to a spec: names get their values, overrides apply, everything is checked."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from functools import singledispatchmethod

from vitrewrite.catalog import Catalog
from vitrewrite.catalog.signatures import OptionInfo, PassInfo
from vitrewrite.errors import Span, SpecError
from vitrewrite.language.settings import options as settings_of_tune
from vitrewrite.text import listing, shown

from .bases import check_starts, check_stitch
from .check import (
    check_form,
    check_models,
    check_options,
    check_repeated,
    check_required,
    default,
    find_pass,
    without_effect,
)
from .claims import METRICS, check_claim
from .declarations import Include, Let, Param
from .expressions import Expression, Literal, Name, NodeT, map_expressions
from .factors import Factor, checked
from .include import Expansion
from .inputs import INPUT
from .keys import MODEL_ARGUMENTS
from .model import Absent, AnyStatement, Claim, Clause, Model, PassUse, Require, Row, Spec, Tune
from .only_if import OF_VALUES, false_for
from .overrides import LIST, Overrides
from .params import check_new, param_value
from .problems import Problems
from .references import ModelRef, stated
from .scope import Scope
from .selectors import Option, Selector
from .sites import check_selector, words_of
from .source import SpecSource
from .teachers import teacher_ref
from .values import Value, python_value

_NOWHERE = Span("", 1, 1, 1, 1)


class Resolver:
    """Takes the statements of a spec in order."""

    def __init__(
        self, expansion: Expansion, catalog: Catalog, overrides: Overrides, problems: Problems
    ) -> None:
        self._catalog = catalog
        self._overrides = overrides
        self._problems = problems
        self._scope = Scope(expansion.doubtful, expansion.incomplete)
        self._depth = 0
        self._model: tuple[int, Model] | None = None
        self._params: list[Param] = []
        self._clauses: list[Clause] = []
        self._defaults: list[Mapping[str, Value]] = []
        self._requires: list[Require] = []
        self._rows: list[Row] = []
        self._settings: dict[str, tuple[int, Option]] = {}
        self._factors: list[tuple[int, Factor]] = []
        self._idle: list[SpecError] = []
        self._out: list[Absent] = []
        for depth, statement in expansion.statements:
            self._depth = depth
            with problems.catch():
                self._take(statement)

    @singledispatchmethod
    def _take(self, statement: AnyStatement) -> None:
        assert isinstance(statement, Include), statement  # already replaced by its statements

    @_take.register
    def _(self, statement: Model) -> None:
        ref = self._resolved_model(statement.ref)
        if self._model and self._model[0] == self._depth:
            message = "the spec names a second model"
            notes = [f"the first is at {self._model[1].span}"]
            raise SpecError("VR211", message, span=statement.span, notes=notes)
        # What a spec says itself holds over what it includes.
        if self._model is None or self._depth < self._model[0]:
            self._model = self._depth, dataclasses.replace(statement, ref=ref)

    def _resolved_model(self, ref: ModelRef) -> ModelRef:
        with self._problems.catch():
            check_repeated(ref.options)
        with self._problems.catch():
            return self._resolved(ref).stated()
        return ref

    @_take.register
    def _(self, param: Param) -> None:
        check_new(param.name, param.name_span, self._scope)
        self._scope.doubtful.add(param.name)  # until it is known to be right
        self._params.append(param)
        value = param_value(param, self._scope, self._overrides, self._problems)
        if value is not None:
            self._scope.define(param.name, value.value, param.name_span)

    @_take.register
    def _(self, statement: Let) -> None:
        check_new(statement.name, statement.name_span, self._scope)
        value = self._scope.resolve(statement.value, self._problems)
        if isinstance(value, Literal):
            self._scope.define(statement.name, value.value, statement.name_span)
        else:
            self._scope.doubtful.add(statement.name)

    @_take.register
    def _(self, clause: Clause) -> None:
        if self._absent(clause):
            return
        use, defaults = self._resolved_use(clause) if clause.use else (None, {})
        self._clauses.append(self._resolved_clause(clause, use))
        self._defaults.append(defaults)

    def _resolved_clause(self, clause: Clause, use: PassUse | None) -> Clause:
        with self._problems.catch():
            check_models(clause)
            if clause.verb == "stitch":
                check_stitch(clause, self._clauses, self._model and self._model[1])
        sites = self._resolved_sites(clause.sites)
        models = tuple(self._resolved_model(ref) for ref in clause.models)
        return dataclasses.replace(clause, use=use, sites=sites, models=models, condition=None)

    def _absent(self, statement: Clause | Require) -> bool:
        """Whether a condition keeps a statement out; what is wrong with it whatever the params are
        is an error all the same.
        """
        values = false_for(statement.condition, self._scope, self._problems)
        if values is None:
            return False
        self._out.append(Absent(statement, values))
        problems, self._problems, idle = self._problems, Problems(), [*self._idle]
        if isinstance(statement, Require):
            with self._problems.catch():
                self._resolved_claim(statement.claim)
        else:
            use = self._resolved_use(statement)[0] if statement.use else None
            self._resolved_clause(statement, use)
        found, self._problems, self._idle = self._problems, problems, idle
        for error in found.errors:
            if error.code not in OF_VALUES:
                problems.add(error)
        return True

    def _resolved_sites(self, sites: Selector | None) -> Selector | None:
        if sites is None:
            return None
        words = words_of(sites)
        resolved = map_expressions(sites, lambda e: self._scope.resolve(e, self._problems, words))
        check_selector(resolved, self._problems)
        return resolved

    def _resolved_use(self, clause: Clause) -> tuple[PassUse, Mapping[str, Value]]:
        use, info = clause.use, None
        assert use is not None
        with self._problems.catch():
            info = find_pass(use, self._catalog)
            check_form(clause, info)
        with self._problems.catch():
            check_repeated(use.options)
        options = self._overridden(use, info)
        known = info.options if info else {}
        resolved = [self._resolved_option(option, known) for option in options]
        if info is None:
            return dataclasses.replace(use, options=tuple(resolved)), {}
        sited = clause.sites is not None
        checked = check_options(
            tuple(resolved), info.options, use.name, self._problems, sited=sited
        )
        self._idle += without_effect(checked, info.options, use.name)
        with self._problems.catch():
            check_required(options, info.options, use.name, use.span)
        given = {option.name for option in checked}
        defaults = {k: default(v) for k, v in info.options.items() if k not in given}
        return dataclasses.replace(use, options=checked), defaults

    def _overridden(self, use: PassUse, info: PassInfo | None) -> tuple[Option, ...]:
        """The options with what overrides say about this pass."""
        known: Mapping[str, OptionInfo] = info.options if info else {}
        asked = [*known] if info else [*self._overrides.under(f"{use.name}.")]
        given = []
        for name in asked:
            kind = (LIST if known[name].many else known[name].type) if info else ""
            if value := self._overrides.use(f"{use.name}.{name}", kind):
                given.append(Option(name, value, value.span))
        replaced = {option.name for option in given}
        return (*(option for option in use.options if option.name not in replaced), *given)

    def _resolved_option(self, option: Option, infos: Mapping[str, OptionInfo]) -> Option:
        known = infos.get(option.name)
        words = (known.choices or known.words) if known else ()
        value = self._scope.resolve(option.value, self._problems, words)
        return dataclasses.replace(option, value=value)

    @_take.register
    def _(self, statement: Require) -> None:
        if not self._absent(statement):
            claim = self._resolved_claim(statement.claim)
            self._requires.append(dataclasses.replace(statement, claim=claim, condition=None))

    @_take.register
    def _(self, row: Row) -> None:
        if self._depth == 0:  # what is included stands for its own
            if row in self._rows:
                raise SpecError("VR232", f"{row} stands there twice", span=row.span)
            self._rows.append(row)

    def _resolved_claim(self, claim: Claim) -> Claim:
        with self._problems.catch():
            check_repeated(claim.options)
        known = METRICS[claim.metric].options if claim.metric in METRICS else {}
        options = tuple(self._resolved_option(option, known) for option in claim.options)
        bare = self._resolved(dataclasses.replace(claim, options=()))
        claim = dataclasses.replace(bare, options=options)
        for sites in (claim.site, claim.excluding):
            if sites is not None:
                check_selector(sites, self._problems)
        check_claim(claim)
        checked = check_options(options, known, claim.metric, self._problems)
        check_required(options, known, claim.metric, claim.span)
        return dataclasses.replace(claim, options=checked)

    @_take.register
    def _(self, statement: Tune) -> None:
        for given in statement.settings:
            with self._problems.catch():
                setting = self._resolved_option(_worded(given), settings_of_tune())
                self._set(setting)
        for factor in statement.factors:
            with self._problems.catch():
                sites = self._resolved_sites(factor.sites) or factor.sites
                value = self._resolve(factor.value)
                resolved = checked(dataclasses.replace(factor, sites=sites, value=value))
                self._factors.append((self._depth, resolved))

    def _set(self, setting: Option) -> None:
        """Takes a setting; what a spec says itself holds over what it includes."""
        depth, _ = self._settings.get(setting.name, (None, setting))
        if depth == self._depth:
            message = f"setting {shown(setting.name)} is given twice"
            raise SpecError("VR225", message, span=setting.span)
        if depth is None or self._depth < depth:
            self._settings[setting.name] = self._depth, setting

    def _resolved(self, node: NodeT) -> NodeT:
        return map_expressions(node, self._resolve)

    def _resolve(self, expression: Expression) -> Expression:
        return self._scope.resolve(expression, self._problems)

    def spec(self, source: SpecSource) -> Spec:
        """The spec, after all statements; errors may be waiting in `problems`."""
        settings, known = self._tuned(), settings_of_tune()
        bases = self._bases()
        model, arguments = self._final_model()
        if bases and model is not None:
            message = "the spec stitches models that it names itself"
            notes = [f"bases: {listing(bases)}"]
            self._problems.add(SpecError("VR507", message, span=model.span, notes=notes))
        if not self._scope.incomplete:
            for error in self._overrides.unused():
                self._problems.add(error)
        values = self._scope.values
        return Spec(
            name=source.path.stem if source.path else "spec",
            text=source.text,
            model=model,
            model_overrides=arguments,
            clauses=tuple(_extended(clause, arguments) for clause in self._clauses),
            requires=tuple(self._requires),
            tune=Tune(settings, _NOWHERE, self._own_first()),
            params={p.name: python_value(values[p.name]) for p in self._params if p.name in values},
            warnings=(
                *self._unused_params(),
                *self._idle,
                *without_effect(settings, known, "tune"),
            ),
            defaults=tuple(self._defaults),
            absent=tuple(self._out),
            rows=tuple(self._rows),
        )

    def _bases(self) -> Mapping[str, ModelRef]:
        """The models that are stitched, by name; selectors are to start at one of them."""
        bases = next((c.bases for c in self._clauses if c.verb == "stitch"), {})
        factors = [factor for _, factor in self._factors]
        for error in check_starts(bases, self._clauses, self._requires, factors):
            self._problems.add(error)
        return bases

    def _own_first(self) -> tuple[Factor, ...]:
        """The factors: what a spec says itself holds over what it includes."""
        return tuple(factor for _, factor in sorted(self._factors, key=lambda pair: pair[0]))

    def _tuned(self) -> tuple[Option, ...]:
        known = settings_of_tune()
        settings = {name: setting for name, (_, setting) in self._settings.items()}
        for name in [*settings, *self._overrides.under("tune.")]:
            kind = known[name].type if name in known else ""
            if value := self._overrides.use(f"tune.{name}", kind):
                settings[name] = Option(name, value, value.span)
        checked = check_options(tuple(settings.values()), known, "tune", self._problems)
        return tuple(self._teacher(each) if each.name == "teacher" else each for each in checked)

    def _teacher(self, setting: Option) -> Option:
        """The setting with its model in the one form that is printed."""
        value = setting.value
        with self._problems.catch():
            if isinstance(value, Literal) and isinstance(value.value, str):
                ref = teacher_ref(value.value, value.span)
                return dataclasses.replace(setting, value=Literal(str(ref), value.span))
        return setting

    def _final_model(self) -> tuple[ModelRef | None, tuple[Option, ...]]:
        arguments: dict[str, Option] = {}
        params = {param.name for param in self._params}
        for name in self._overrides.under("model."):
            if value := self._overrides.use(f"model.{name}"):
                arguments[name] = Option(name, value, value.span)
        for name in MODEL_ARGUMENTS:
            if name in self._overrides and name not in params:
                value = self._overrides.use(name)
                assert value is not None
                arguments[name] = Option(name, value, value.span)
        given = None
        with self._problems.catch():
            given = self._overrides.model()
        model = self._resolved_model(given) if given else self._model and self._model[1].ref
        with self._problems.catch():
            if INPUT in self._overrides and (value := self._overrides.use(INPUT, "str")):
                arguments[INPUT] = stated(Option(INPUT, value, value.span))
        if model is not None:
            model = model.extended(tuple(arguments.values()))
        return model, tuple(arguments.values())

    def _unused_params(self) -> tuple[SpecError, ...]:
        unused = [param for param in self._params if param.name not in self._scope.used]
        return tuple(
            SpecError("VR228", f"param {shown(p.name)} is never used", span=p.name_span)
            for p in unused
        )


def _extended(clause: Clause, arguments: tuple[Option, ...]) -> Clause:
    """A clause whose models, if it has any, have further arguments."""
    models = tuple(ref.extended(arguments) for ref in clause.models)
    return dataclasses.replace(clause, models=models)


def _worded(setting: Option) -> Option:
    """A name alone is a text where a setting takes any, as in `teacher = base`."""
    info, value = settings_of_tune().get(setting.name), setting.value
    if info is None or info.type != "str" or info.choices or not isinstance(value, Name):
        return setting
    return dataclasses.replace(setting, value=Literal(value.id, value.span))
