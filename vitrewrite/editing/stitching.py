"""What clauses say of paths through several models, until the models are as they stay."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field

from torch import fx

from ..anatomy.sites import Anatomy, Block
from ..errors import RewriteError
from ..text import listing
from ..tracing.about import tell
from ..tracing.paths import Between, LineError, Way, Ways, ending, pieces_of
from .clause import ClauseRef
from .editor import Editor, relative


@dataclass(frozen=True)
class WantedWay:
    """A path by blocks: those of the front up to one, a layer, those of the end from one on.

    Attributes:
        after: the position of the last block of the front that runs.
        before: that of the first block of the end; behind the last one none of it runs.
        between: of a third model behind the front: a layer, its name, first and last block.
    """

    front: str
    after: int
    layer: int | None
    end: str
    before: int
    between: tuple[int, str, int, int] | None = None

    def runs(self, base: str, block: int) -> bool:
        """Whether it runs a block of a model."""
        if self.front == base and block <= self.after:
            return True
        if self.layer is not None and self.end == base and block >= self.before:
            return True
        mid = self.between
        return mid is not None and mid[1] == base and mid[2] <= block <= mid[3]


@dataclass
class Stitches:
    """The paths that a clause asks for, in order."""

    clause: ClauseRef
    samples: int = 100  # images that layers are solved from
    final_norm: bool = True  # whether a path through two models has that of its end
    wanted: list[WantedWay] = field(default_factory=list)
    taken: int | None = None  # at lowering, the one path that is to stay


def numbers(editor: Editor, base: str, block: int) -> tuple[int, ...]:
    """Numbers of the paths that run a block of a model, first that of the model by itself."""
    assert editor.stitches is not None
    alone, joined = [], []
    for number, way in enumerate(editor.stitches.wanted):
        if way.layer is None:
            alone += [number] * (way.front == base)
        elif way.runs(base, block):
            joined.append(number)
    return (*alone, *joined)


def settle_paths(editor: Editor, bases: Mapping[str, Anatomy]) -> None:
    """Has the root know the paths, once all other clauses are carried out.

    Raises:
        RewriteError: VR509 for a base whose blocks are no line.
    """
    stitches = editor.stitches
    if stitches is None:
        return
    pieces: dict[str, tuple[str, ...]] = {}
    left_out: dict[str, str] = {}
    for name, anatomy in bases.items():
        blocks = [relative(block_path(block, stitches.clause), name) for block in anatomy.blocks]
        unit = editor.unit(name)
        try:
            pieces[name] = pieces_of(unit, blocks)
            assert unit.template is not None
            for graph in unit.template.graphs:
                ending(graph, pieces[name])
                if not stitches.final_norm:
                    left_out[name] = _norm(graph, anatomy, name, stitches.clause)
        except LineError as error:
            raise _no_line(stitches.clause, name, str(error), editor) from error
    table = tuple(_path(each, pieces, bases, editor) for each in stitches.wanted)
    tell(editor.root, paths=Ways(table, pieces, left_out), helpers={})


def _norm(graph: fx.Graph, anatomy: Anatomy, base: str, clause: ClauseRef) -> str:
    """The final norm of a model, where its own program calls it.

    Raises:
        RewriteError: VR511 if it does not.
    """
    path = relative(anatomy.norm, base) if anatomy.norm is not None else None
    found = [n for n in graph.nodes if n.op == "call_module" and n.target == path]
    if path is None or len(found) != 1 or len(found[0].all_input_nodes) != 1:
        message = f"'{base}' calls no final norm by itself behind its blocks"
        raise clause.error("VR511", f"{clause.pass_name}: {message}", "final_norm")
    return path


def block_path(block: Block, clause: ClauseRef) -> str:
    """The module that a block is.

    Raises:
        RewriteError: VR509 if it is none.
    """
    if block.unit is None:
        raise clause.error("VR509", f"{clause.pass_name}: '{block.role}' is no module of its own")
    return block.unit


def _no_line(clause: ClauseRef, name: str, why: str, editor: Editor) -> RewriteError:
    others = {i.site.clause.origin for i in editor.insertions if i.clause != clause.number}
    notes = [f"other clauses: {listing(sorted(others), 3)}"] if others else []
    return clause.error(
        "VR509",
        f"{clause.pass_name}: the blocks of '{name}' cannot be cut: {why}",
        notes=notes,
        suggestion="stitch models whose blocks take the stream alone, and change them inside",
    )


def _path(
    wanted: WantedWay,
    pieces: Mapping[str, tuple[str, ...]],
    bases: Mapping[str, Anatomy],
    editor: Editor,
) -> Way:
    """A path by pieces."""

    def place(base: str, number: int) -> int:
        assert editor.stitches is not None
        block = bases[base].blocks[number]
        return pieces[base].index(relative(block_path(block, editor.stitches.clause), base))

    count = len(bases[wanted.end].blocks)
    last = wanted.before == count
    start = place(wanted.end, count - 1) + 1 if last else place(wanted.end, wanted.before)
    stop = place(wanted.front, wanted.after) + 1
    between = None
    if wanted.between is not None:
        layer, base, low, high = wanted.between
        between = Between(layer, base, place(base, low), place(base, high) + 1)
    return Way(wanted.front, stop, wanted.layer, wanted.end, start, between)
