"""What no clause can be carried out on, and inserted modules that fail when the model runs.

The latter is told to the author of their pass.
"""

from __future__ import annotations

import re

from torch import nn

from ..anatomy.sites import Anatomy
from ..anatomy.twice import rows_beside
from ..catalog.own_code import file_of, line_in, told
from ..editing.clause import ClauseRef
from ..editing.editor import Editor
from ..editing.inserted import MisfitError
from ..editing.measure import BrokenError
from ..errors import RewriteError
from ..language.model import Spec

_BLOCKS = re.compile(r"\b(blocks|stages|every|sensitive|random)\b")
"""What names places within blocks, in the text of a clause."""


def refuse_rows(spec: Spec, anatomy: Anatomy, root: nn.Module) -> None:
    """Whether blocks can be told: not where rows pass their layers beside the tokens.

    Raises:
        RewriteError: VR560 for a clause that is about blocks of such a model.
    """
    clause = next((c for c in spec.clauses if c.sites and _BLOCKS.search(str(c))), None)
    beside = rows_beside(anatomy, root) if clause else None
    if clause and beside:
        what, (name, path) = clause.use.name if clause.use else clause.verb, beside
        raise RewriteError(
            "VR560",
            f"{what} finds no blocks: by an earlier rewrite rows of {name} pass the layers of "
            f"'{path}' too, so that tokens and rows cannot be told apart",
            span=clause.span,
            suggestion=f"write it and {name} in one spec, for the model as it was before",
        )


def refuse_misfit(editor: Editor, error: BrokenError, *, only_told: bool = False) -> None:
    """Raises if it is a module of a pass that broke.

    Args:
        editor: of the rewritten model.
        error: where it broke.
        only_told: only for what no other clause can be the cause of.

    Raises:
        RewriteError: VR424, VR426 or VR427 for what breaks a rule, VR420 for any other exception.
    """
    found = next((i for i in editor.insertions if i.path == error.path), None)
    cause = _root(error)
    if found is None or (only_told and not isinstance(cause, MisfitError)):
        return
    clause, cls = found.site.clause, type(found.module)
    where = f"pass {found.pass_name} at '{found.site.role}': {cls.__name__}"
    if isinstance(cause, MisfitError):
        note = f"in {file_of(cls)}"
        raise clause.error(cause.code, f"{where} {cause}", notes=[note]) from error
    raise _failed(clause, where, cls, cause) from error


def _failed(clause: ClauseRef, where: str, cls: type, cause: BaseException) -> Exception:
    message = f"{where} fails in forward(): {told(cause)}"
    return clause.error("VR420", message, notes=line_in(cls, cause))


def _root(error: BaseException) -> BaseException:
    while error.__cause__ is not None:
        error = error.__cause__
    return error
