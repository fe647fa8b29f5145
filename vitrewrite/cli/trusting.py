"""Python files that a spec names: their code runs only if the same command names it, too."""

from __future__ import annotations

from collections.abc import Iterator
from typing import TYPE_CHECKING

import click

from ..errors import Span, SpecError, raise_all

if TYPE_CHECKING:
    from ..language.model import Spec

_TRUST = "vitrewrite.trust"
_HELP = "Run the Python files that a spec names, or that those of a folder name or hold."


def _keep(context: click.Context, parameter: click.Parameter, value: bool) -> bool:
    context.meta[_TRUST] = value
    return value


trust_option = click.option("--trust", is_flag=True, callback=_keep, help=_HELP)


def trust_unseen() -> click.Option:
    """The option, for commands that read specs and no folders: `refuse_code` asks for it."""
    told = "Run the Python files that a spec names."
    return click.Option(["--trust"], is_flag=True, callback=_keep, expose_value=False, help=told)


def refuse_code(spec: Spec) -> None:
    """Refuses code in files that a spec names and the command that runs does not.

    What stands in the command itself, an override or a spec as text, is named there.

    Raises:
        SpecError: VR585, one for each place.
    """
    context = click.get_current_context(silent=True)
    if context is None or context.meta.get(_TRUST):
        return
    code = [each for each in _code(spec, context.info_name or "") if _foreign(each[1])]
    raise_all([_refused(*each) for each in code])


def _foreign(span: Span) -> bool:
    from ..language.overrides import COMMAND_LINE  # completion goes without the parser
    from ..language.source import TEXT

    return span.file not in (COMMAND_LINE, TEXT)


def _code(spec: Spec, command: str) -> Iterator[tuple[str, Span, str]]:
    """What runs, where the spec names it, and how to; a teacher only where one is asked."""
    for ref in spec.models:
        if ".py:" in ref.name:
            itself = "" if spec.bases else f", and model={ref.name} names it"
            yield ref.name, ref.span, f"--trust runs it{itself}"
    for clause in spec.clauses:
        if clause.use is not None and clause.use.file:
            yield clause.use.file, clause.use.span, "--trust runs it"
    for setting in spec.tune.settings if command == "tune" else ():
        teacher = spec.tune.values.get(setting.name) if setting.name == "teacher" else None
        if isinstance(teacher, str) and ".py:" in teacher:
            yield teacher, setting.span, f"--trust runs it, and tune.teacher={teacher} names it"


def _refused(name: str, span: Span, help_: str) -> SpecError:
    message = f"the spec names the code '{name}', which runs only if the command says so"
    return SpecError("VR585", message, span=span, suggestion=help_)
