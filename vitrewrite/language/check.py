"""Checks of passes and their options, against what the passes declare."""

from __future__ import annotations

from collections.abc import Mapping

from vitrewrite.catalog import Catalog
from vitrewrite.catalog.needs import holds, names_in
from vitrewrite.catalog.signatures import OptionInfo, PassInfo
from vitrewrite.errors import Span, SpecError
from vitrewrite.text import did_you_mean, listing, shown

from .expressions import Literal, literal
from .model import Clause, PassUse
from .problems import Problems
from .selectors import Option
from .types import first_repeated, is_per_site, typed, typed_per_site
from .values import PerSite, Value


def check_options(
    options: tuple[Option, ...],
    known: Mapping[str, OptionInfo],
    owner: str,
    problems: Problems,
    *,
    sited: bool = False,
) -> tuple[Option, ...]:
    """The options with their types; what is wrong with them goes to `problems`.

    Where they are those of a clause with sites (`sited`), one may be a list of values, one by site.

    Options whose values could not be resolved are wrong already and left as they are.
    """
    checked = []
    for option in options:
        with problems.catch():
            if option.name not in known:
                raise _unknown_option(option, known, owner)
            checked.append(_typed(option, known[option.name], owner, sited))
    return tuple(checked)


def without_effect(
    options: tuple[Option, ...], known: Mapping[str, OptionInfo], owner: str
) -> list[SpecError]:
    """VR230 for each option that is set, and does nothing as the others are.

    One that is set to its default is as if it were not there.
    """
    plain = [o for o in options if isinstance(o.value, Literal)]
    given = {o.name: o for o in plain if not isinstance(literal(o.value), PerSite)}
    doubtful = {o.name for o in options} - given.keys()
    values = {k: literal(given[k].value) if k in given else v.default for k, v in known.items()}
    found = []
    for name, option in given.items():
        info = known.get(name)
        if info is None or not info.needs or values[name] == info.default:
            continue
        if doubtful & names_in(info.needs) or _holds(info.needs, values):
            continue
        message = f"{owner}.{name} has no effect here: it needs {info.needs}"
        found.append(SpecError("VR230", message, span=option.span, suggestion="take it out"))
    return found


def _holds(needs: str, values: Mapping[str, object]) -> bool:
    try:
        return holds(needs, values)
    except TypeError:  # a value of a wrong type, which is an error of its own
        return True


def _unknown_option(option: Option, known: Mapping[str, OptionInfo], owner: str) -> SpecError:
    notes = [f"options of {owner}: {listing(known) or 'none'}"]
    suggestion = did_you_mean(option.name, known)
    message = f"{owner} has no option {shown(option.name)}"
    return SpecError("VR202", message, span=option.span, notes=notes, suggestion=suggestion)


def _typed(option: Option, info: OptionInfo, owner: str, sited: bool) -> Option:
    if not isinstance(option.value, Literal):
        return option
    given, span, label = option.value.value, option.value.span, f"{owner}.{option.name}"
    value: Value
    if sited and isinstance(given, tuple) and is_per_site(given, info):
        value = typed_per_site(given, info, label, span)
    else:
        value = typed(given, info, label, span)
    return Option(option.name, Literal(value, span), option.span)


def check_repeated(options: tuple[Option, ...]) -> None:
    """Raises VR207 if an option is given twice."""
    if name := first_repeated(option.name for option in options):
        repeated = [option for option in options if option.name == name][1]
        raise SpecError("VR207", f"{shown(name)} is given twice", span=repeated.span)


def check_required(
    options: tuple[Option, ...], known: Mapping[str, OptionInfo], owner: str, span: Span
) -> None:
    """Raises VR206 if an option without default is not given."""
    given = {option.name for option in options}
    missing = [info for info in known.values() if info.required and info.name not in given]
    if missing:
        names = listing(info.name for info in missing)
        message = f"{owner} needs a value for {names}"
        notes = [f"{info.name}: {info}. {info.help}".strip(" .") for info in missing]
        raise SpecError("VR206", message, span=span, notes=notes)


def default(info: OptionInfo) -> Value:
    """The default of an option, of the option's type: `scale: float = 1` means 1.0."""
    whole = info.type == "float" and isinstance(info.default, int)
    return float(info.default) if whole else info.default


def find_pass(use: PassUse, catalog: Catalog) -> PassInfo:
    """What the pass declares.

    Raises:
        SpecError: VR201 if there is none of this name.
    """
    try:
        return catalog.signature(use.key)
    except SpecError as error:
        error.span = error.span or use.span
        raise


def check_form(clause: Clause, info: PassInfo) -> None:
    """Raises VR208 if the pass does not stand in such a clause."""
    assert clause.use is not None
    if info.verbs and clause.form not in info.verbs and clause.verb not in info.verbs:
        message = f"{info.name} cannot be used with '{clause.form}'"
        notes = [f"it can with: {listing(info.verbs)}"]
        raise SpecError("VR208", message, span=clause.use.span, notes=notes)


def check_models(clause: Clause) -> None:
    """Raises VR227 unless two or three models are stitched."""
    if clause.verb == "stitch" and not 2 <= len(clause.models) <= 3:
        message = f"'stitch' takes two or three models, got {len(clause.models)}"
        raise SpecError("VR227", message, span=clause.models[-1].span)
