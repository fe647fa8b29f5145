"""Ways through several models, printed: one method over a table, and three of each model."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from torch import fx, nn

from ..tracing import paths
from ..tracing.about import about, is_root
from ..tracing.paths import RUNNING, STITCHES, Way, Ways, told
from .access import access
from .literals import constant
from .wrap import WIDTH, wrap

TABLE, METHOD = "STITCHES", "stitch"
BEGIN, RUN, FINISH, BARE = "begin", "run", "finish", "finish_bare"


def known_paths(root: nn.Module) -> Ways | None:
    """The paths of a tree, if it has any."""
    return about(root).paths if is_root(root) else None


def runs_by_id(root: nn.Module) -> dict[int, tuple[tuple[str, str], ...]]:
    """What the pieces of each model are, by the id of the model's root."""
    known = known_paths(root)
    if known is None:
        return {}
    units = ((root.get_submodule(name), pieces) for name, pieces in known.pieces.items())
    return {id(unit): tuple(paths.runs(unit, pieces)) for unit, pieces in units}


def parts(
    graphs: Sequence[fx.Graph], pieces: Sequence[str], left_out: str | None
) -> Mapping[str, tuple[fx.Graph, ...]]:
    """The programs of a model in front of its pieces and behind them, as methods by name.

    Args:
        graphs: those of the model.
        pieces: its pieces.
        left_out: the norm that stitches which end in it leave out.
    """
    found = {
        BEGIN: tuple(paths.beginning(graph, pieces) for graph in graphs),
        FINISH: tuple(paths.ending(graph, pieces) for graph in graphs),
    }
    if left_out is not None:
        found[BARE] = tuple(paths.ending(graph, pieces, left_out) for graph in graphs)
    return found


def run_lines(unit: nn.Module, runs: Sequence[tuple[str, str]]) -> list[str]:
    """The method that runs some of the pieces."""
    texts = [("*" if kind == "list" else "") + access(unit, path) for kind, path in runs]
    whole = texts[0][1:] if len(texts) == 1 and texts[0][0] == "*" else f"({', '.join(texts)},)"
    lines = [] if len(texts) == 1 else wrap(f"blocks = {whole}", WIDTH - 8)
    over = whole if len(texts) == 1 else "blocks"
    body = [*lines, f"for block in {over}[start:stop]:", "    x = block(x)", "return x"]
    return [f"def {RUN}(self, x, start, stop):", *(f"    {line}" for line in body)]


def table_lines(known: Ways) -> list[str]:
    """The table of all paths, several in a line."""
    rows = [f"{constant(path.row)}," for path in known.table]
    lines, line = [], ""
    for number, row in enumerate(rows):
        if line and (len(line) + len(row) + 1 > WIDTH - 12 or _begins(known.table, number)):
            lines.append(line)
            line = ""
        line = f"{line} {row}".lstrip()
    comment = ["# By number: front, how many of its blocks run, layer, end, first block of it."]
    if any(path.between for path in known.table):
        comment.append("# Through three models also: first layer, the one between, from, to.")
    return [*comment, f"{TABLE} = (", *(f"    {each}" for each in (*lines, line)), ")"]


def _begins(table: Sequence[Way], number: int) -> bool:
    """Whether a path is the first of those between two models."""
    before, here = table[number - 1], table[number]
    return (before.front, before.end) != (here.front, here.end) and here.layer is not None


def stitch_lines(checked: Sequence[str], root: nn.Module, known: Ways) -> list[str]:
    """The method that runs one path, after what the forward checks too.

    Args:
        checked: its first lines.
        root: of the tree; modules of it may hang on which path runs.
        known: the paths.
    """
    chains = any(path.between for path in known.table)
    steps = [f"x = front.{RUN}(front.{BEGIN}(x), 0, stop)"]
    if chains:
        steps += [
            "if between:",
            "    first, middle, low, high = between",
            f"    x = getattr(self, middle).{RUN}(self.{STITCHES}[first](x), low, high)",
        ]
    steps += ["if layer is not None:", f"    x = self.{STITCHES}[layer](x)"]
    if known.left_out:
        steps.append(f"    return end.{BARE}(end.{RUN}(x, start, None))")
    steps.append(f"return end.{FINISH}(end.{RUN}(x, start, None))")
    if any(told(root)):
        steps = [
            f'told = [module for module in self.modules() if hasattr(module, "{RUNNING}")]',
            "for module in told:",
            f"    module.{RUNNING} = number",
            "try:",
            *(f"    {step}" for step in steps),
            "finally:",
            "    for module in told:",
            f"        module.{RUNNING} = None",
        ]
    body = [
        *checked,
        f"front, stop, layer, end, start{', *between' if chains else ''} = self.{TABLE}[number]",
        "front, end = getattr(self, front), getattr(self, end)",
        *steps,
    ]
    return [f"def {METHOD}(self, x, number):", *(f"    {line}" for line in body)]
