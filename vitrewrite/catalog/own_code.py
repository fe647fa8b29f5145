"""Code of a pass that fails: told to its author, and not as a fault of vitrewrite."""

from __future__ import annotations

import ast
import sys
import traceback
from collections.abc import Iterator
from contextlib import contextmanager
from functools import lru_cache
from types import CodeType

from vitrewrite.errors import RewriteError, Span, VitrewriteError
from vitrewrite.text import did_you_mean, first_line


@contextmanager
def own_code(owner: type, name: str, doing: str, span: Span | None = None) -> Iterator[None]:
    """Errors of the body are those of a pass, unless they are told on purpose.

    Args:
        owner: the pass or the class of the module whose code runs.
        name: of the pass.
        doing: what runs, such as `rewrite() at 'blocks[0].mlp'`.
        span: the clause.

    Raises:
        RewriteError: VR420 with the line of the pass that failed.
    """
    try:
        yield
    except VitrewriteError:
        raise
    except Exception as error:
        raise RewriteError(
            "VR420",
            f"pass {name} fails in {doing}: {told(error)}",
            span=span,
            notes=line_in(owner, error),
            suggestion=_meant(error),
        ) from error


def told(error: BaseException) -> str:
    """An exception in one line."""
    return f"{type(error).__name__}: {first_line(error)}"


def line_in(owner: type, error: BaseException) -> list[str]:
    """The last line of the owner's file that an exception went through, as a note."""
    file = file_of(owner)
    frames = [f for f in traceback.extract_tb(error.__traceback__) if f.filename == file]
    return [f"{file}:{frames[-1].lineno}: {frames[-1].line}"] if frames else [f"in {file}"]


def file_of(owner: type) -> str:
    """The file in which a class was written."""
    for value in vars(owner).values():
        code = getattr(value, "__code__", None)
        if isinstance(code, CodeType) and not code.co_filename.startswith("<"):
            return code.co_filename
    return str(getattr(sys.modules.get(owner.__module__), "__file__", None) or owner.__module__)


@lru_cache(maxsize=64)
def classes_in(text: str) -> dict[str, ast.ClassDef]:
    """The classes of a file by name, as they are written: read once, and not to be changed.

    Raises:
        SyntaxError: if the text is not Python.
    """
    return {node.name: node for node in ast.parse(text).body if isinstance(node, ast.ClassDef)}


def _meant(error: Exception) -> str | None:
    """The nearest of the names that an object has."""
    if not isinstance(error, AttributeError) or not isinstance(error.name, str):
        return None
    return did_you_mean(error.name, [n for n in dir(error.obj) if not n.startswith("_")])
