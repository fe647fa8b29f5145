"""Puts the statements of included specs where the `include` stands."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

from vitrewrite.catalog import Catalog
from vitrewrite.errors import SpecError
from vitrewrite.text import did_you_mean, listing, shown

from .check import check_repeated
from .declarations import Include, Param
from .model import AnyStatement
from .parse import parse_source
from .problems import Problems
from .source import SpecSource, read_source

DEPTH_LIMIT = 8
COUNT_LIMIT = 100  # files that include two others each grow fast


class Expansion:
    """The statements of a source and of all it includes.

    Attributes:
        statements: each with its depth: 0 for the spec itself, 1 for what it includes.
        doubtful: names whose definitions are malformed.
        incomplete: whether an included spec has errors, so that names may be missing.
    """

    def __init__(self, source: SpecSource, catalog: Catalog, problems: Problems) -> None:
        self.statements: list[tuple[int, AnyStatement]] = []
        self.doubtful: set[str] = set()
        self.incomplete = False
        self._catalog = catalog
        self._problems = problems
        self._count = 0
        self._expand(source, (_real(source.path),) if source.path else (Path(),))

    def _expand(self, source: SpecSource, chain: tuple[Path, ...]) -> None:
        for node in parse_source(source, self._problems, self.doubtful):
            if isinstance(node, Include):
                self._include(node, source, chain)
            else:
                self.statements.append((len(chain) - 1, node))

    def _include(self, node: Include, source: SpecSource, chain: tuple[Path, ...]) -> None:
        before = len(self._problems.errors)
        with self._problems.catch():
            path = self._find(node, source)
            self._check(node, _real(path), chain)
            first = len(self.statements)
            self._expand(_read(node, path), (*chain, _real(path)))
            if len(self._problems.errors) == before:
                with self._problems.catch():
                    self._set(node, first)
                return
        self.incomplete = True  # also where the same error was there before, so none was added

    def _set(self, node: Include, first: int) -> None:
        """Gives params of an included spec the values that the `include` states."""
        check_repeated(node.options)
        given = {option.name: option for option in node.options}
        known = []
        for number, (depth, statement) in enumerate(self.statements[first:], first):
            if isinstance(statement, Param):
                known.append(statement.name)
                if option := given.pop(statement.name, None):
                    stated = replace(statement, default=option.value)
                    self.statements[number] = depth, stated
        for name, option in given.items():
            message = f"{shown(node.target)} has no param {shown(name)}"
            notes = [f"params of it: {listing(known) or 'none'}"]
            near = did_you_mean(name, known)
            self._problems.add(
                SpecError("VR218", message, span=option.span, notes=notes, suggestion=near)
            )

    def _find(self, node: Include, source: SpecSource) -> Path:
        if not node.target.endswith(".peft"):
            try:
                return self._catalog.spec_path(node.target)
            except SpecError as error:
                raise _not_found(node, error) from None
        if source.path is None and not Path(node.target).is_absolute():
            message = f"cannot include {shown(node.target)} from a text that is no file"
            suggestion = "include a shipped spec by name, without .peft"
            raise SpecError("VR220", message, span=node.span, suggestion=suggestion)
        return source.path.parent / node.target if source.path else Path(node.target)

    def _check(self, node: Include, path: Path, chain: tuple[Path, ...]) -> None:
        self._count += 1
        if path in chain:
            names = " -> ".join(each.name for each in (*chain[chain.index(path) :], path))
            message = f"{shown(node.target)} includes itself"
            raise SpecError("VR221", message, span=node.span, notes=[names])
        if len(chain) > DEPTH_LIMIT or self._count > COUNT_LIMIT:
            message = f"includes are nested deeper than {DEPTH_LIMIT}"
            if self._count > COUNT_LIMIT:
                message = f"there are more than {COUNT_LIMIT} includes"
            raise SpecError("VR222", message, span=node.span)


def _real(path: Path) -> Path:
    try:
        return path.resolve()
    except (OSError, RuntimeError, ValueError):  # a loop of links, a NUL; reading will tell
        return path


def _read(node: Include, path: Path) -> SpecSource:
    try:
        shipped = not node.target.endswith(".peft")
        return read_source(path, f"{node.target}.peft" if shipped else None)
    except SpecError as error:
        raise _not_found(node, error) from None


def _not_found(node: Include, error: SpecError) -> SpecError:
    message = f"cannot include {shown(node.target)}: {error.message}"
    place = [f"at {error.span}"] if error.span else []
    notes = (*error.notes, *place)
    return SpecError("VR220", message, span=node.span, notes=notes, suggestion=error.suggestion)
