"""Verbs of residual blocks; those of the points of their stream are in `point`."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING, TypeVar

from torch import fx, nn

from ..anatomy.sites import Place
from ..editing import wiring
from ..editing.leaving import cannot_leave_out, leave_out
from ..editing.value import Value, shape_of
from ..tracing.notes import HELD, HINT
from .attention import AttentionSite
from .channels import NormSite
from .handing import Handing
from .mlp import MlpSite
from .point import Point
from .roomy import RoomySite
from .rows import Gated

if TYPE_CHECKING:
    from .head import HeadSite

_M = TypeVar("_M", bound=nn.Module)
_LAYOUTS = ("reshape", "view", "permute", "transpose", "contiguous", "flatten", "unflatten")


@dataclass(frozen=True, eq=False)
class BlockSite(RoomySite, Handing):
    """A residual block: `input` + branch = `mid`, + branch = `output`."""

    @property
    def role(self) -> str:
        """The site in words."""
        return self.block.role

    @property
    def dim(self) -> int:
        """Channels of the stream."""
        return self.block.dim

    @property
    def axis(self) -> int:
        """The axis of the channels: -1, or 1 for maps [batch, channels, height, width]."""
        return self.block.branches[-1].axis if self.block.branches else -1

    @property
    def stem_dim(self) -> int:
        """Channels of the stream as it enters the first block."""
        return self.context.anatomy.blocks[0].dim

    @property
    def index(self) -> int:
        """Which block it is."""
        return self.block.index

    @property
    def depth(self) -> int:
        """How many blocks the model has, those included that a clause drops."""
        return sum(map(len, self.context.anatomy.stages)) + len(self.context.anatomy.gone)

    @property
    def hidden(self) -> int:
        """Hidden units of its feed-forward part; 0 without one."""
        mlp = self.block.mlp
        return mlp.fc1.out_features if mlp is not None and mlp.fc1 is not None else 0

    @property
    def gated(self) -> bool:
        """Whether a second matrix multiplies the hidden units of its feed-forward part."""
        return self.block.mlp is not None and self.block.mlp.gate is not None

    @property
    def attn(self) -> AttentionSite:
        """Its attention."""
        if self.block.attn is None:
            raise self.unfit("the block has no attention")
        return AttentionSite(self.context, self.block.attn, self.block)

    @property
    def mlp(self) -> MlpSite:
        """Its feed-forward part."""
        if self.block.mlp is None:
            raise self.unfit("the block has no feed-forward part")
        return MlpSite(self.context, self.block.mlp)

    @property
    def plain(self) -> bool:
        """Whether it has two norms, an attention and two layers behind it, and nothing else."""
        block, mlp = self.block, self.block.mlp
        if len(block.norms) != 2 or mlp is None or block.attn is None or not self.attn.plain:
            return False
        layers = [block.attn.q, block.attn.k, block.attn.v, block.attn.proj, mlp.fc1, mlp.fc2]
        known = {layer.weight.rpartition(".")[0] for layer in layers if layer is not None}
        known |= {norm.path for norm in block.norms}
        module = self.editor.root.get_submodule(self.path)
        names = (f"{self.path}.{name}" for name, _ in module.named_parameters())
        return None not in layers and all(name.rpartition(".")[0] in known for name in names)

    @property
    def last_norm(self) -> str | None:
        """The path of the norm behind all blocks, if there is one."""
        return self.context.anatomy.norm

    @property
    def norms(self) -> tuple[NormSite, ...]:
        """Its norms, in order of use."""
        return tuple(NormSite(self.context, norm) for norm in self.block.norms)

    @property
    def following(self) -> tuple[BlockSite, ...]:
        """The blocks behind this one."""
        behind = (b for b in self.context.anatomy.blocks if b.index > self.index)
        return tuple(BlockSite(self.context, b) for b in behind)

    def beside(self, module: nn.Module) -> None:
        """`y = block(x)` becomes `y = module(x, block(x))`, with x and y as clauses leave them.

        Raises:
            RewriteError: VR410 if the block changes the shape of the stream.
        """
        self.expect_kept(self.input)
        point = self.leaving
        place = self.editor.where(point.place)
        x, y = self.input.value.read(self.editor, place.unit), self.editor.node(place)
        hint = str(HINT.get(y) or "x")
        (made,) = self.put(module, place.unit, (x, y), (hint,), changed=(1,), around=True)
        self.editor.stacks.setdefault(self.output.place, []).append(self.editor.insertions[-1])
        point._passes(y, made, made)

    @property
    def _start(self) -> tuple[str, fx.Node]:
        unit = self.editor.where(self.leaving.place).unit
        return unit, self.input.value.read(self.editor, unit)

    @property
    def _position(self) -> int:
        return 2 * self.index

    @property
    def _delta_owner(self) -> str:
        return self.path

    @property
    def _attending(self) -> AttentionSite | None:
        return None if self.block.attn is None else self.attn

    def _gate(self, gate: Value) -> None:
        """`y = block(x)` becomes `x + gate * (block(x) - x)`."""
        self.expect_kept(self.input)
        point, (unit, x) = self.leaving, self._start
        y, number = self.editor.node(self.editor.where(point.place)), gate.read(self.editor, unit)
        hint = str(HINT.get(y) or "x")
        (made,) = self._call(unit, Gated(onto=True), "gated", (y, number, x), (hint,))
        point._passes(y, made, made)

    def aside(self, module: nn.Module, *values: Value, name: str) -> Value:
        """`name = module(*values)`, in the block behind all that it does to its stream.

        Args:
            module: what is called; it makes something new.
            values: what it is given.
            name: of the variable.
        """
        (made,) = self.aside_all(module, *values, names=(name,))
        return made

    def aside_all(
        self, module: nn.Module, *values: Value, names: tuple[str, ...]
    ) -> tuple[Value, ...]:
        """The same for a module with several results, by their names."""
        unit = self.editor.where(self.leaving.place).unit
        given = [value.read(self.editor, unit) for value in values]
        made = self.put(module, unit, given, names)
        return tuple(Value(Place(unit, node.name)) for node in made)

    def outside(self, value: Value, name: str) -> Value:
        """A value as it is where the blocks of the clause are called, if they are given it."""
        place = self.editor.where(value.place)
        if place.unit != self._above and self.editor.node(place).op != "placeholder":
            return value
        node = value.read(self.editor, self._above)
        HINT.put(node, name)
        return Value(Place(self._above, node.name))

    @property
    def _above(self) -> str:
        """The unit that calls the blocks of the clause; of a single block it is the block's."""
        return wiring.common(self.editor, self.context.scope)

    @property
    def heads(self) -> tuple[HeadSite, ...]:
        """The layers that make the classes, for a clause about blocks and head together.

        Raises:
            RewriteError: VR410 if the model has none, VR401 if another clause replaced one.
        """
        from .head import HeadSite

        if not self.context.anatomy.head:
            raise self.unfit("the model has no head that makes classes")
        found = tuple(HeadSite(self.context, (layer,)) for layer in self.context.anatomy.head)
        for head in found:
            if (other := self.editor.taken(head._layer)) is not None:
                raise self.clause.without(head.role, other, "replaced")
        return found

    @property
    def together(self) -> tuple[BlockSite, ...]:
        """All blocks of the clause."""
        blocks = {b.role: b for b in self.context.anatomy.blocks}
        return tuple(BlockSite(self.context, blocks[role]) for role in self.siblings)

    @property
    def stretch(self) -> tuple[BlockSite, ...]:
        """This block and those behind it, up to the next one of the clause."""
        later = [b.index for b in self.together if b.index > self.index]
        stop = min(later, default=self.depth)
        return (self, *(b for b in self.following if b.index < stop))

    def mask_behind(self, module: Callable[[], nn.Module], *values: Value) -> None:
        """Attentions up to the next site of the clause make their weights by `module()` of values.

        Raises:
            RewriteError: at the end VR410, if a clause makes the tokens of one of them fewer: those
                that are only masked in training would merge with the others.
        """
        for block in self.stretch:
            block.attn.softmax(module(), *values)
        self.at_end(self._expect_masked)

    def _expect_masked(self) -> None:
        for block in self.stretch:
            if by := block.cause("size"):
                raise self.unfit(
                    "tokens are regrouped behind it, and training masks some of them",
                    notes=[f"regrouped by: {by}"],
                )

    @property
    def entering(self) -> int | None:
        """Tokens that are no prefix in front of what clauses do at its input; see `tokens`."""
        return self.context.stream.known(2 * self.index - 1).patches

    @property
    def ends(self) -> bool:
        """Whether it is the last block of the clause."""
        return self.role == self.siblings[-1]

    def expect_kept(self, start: Point) -> None:
        """Raises VR410 unless it yields as many tokens and channels as there are at a point."""
        points = start, self.leaving
        shapes = ["x".join(map(str, shape_of(self.editor.node(p.place))[1:])) for p in points]
        if shapes[0] != shapes[1]:
            raise self.unfit(
                f"the stream is {shapes[0]} where '{start.site.role}' starts, and {shapes[1]} here"
            )
        known = [self.context.stream.known(point.position) for point in points]
        if (known[0].prefix, known[0].patches) == (known[1].prefix, known[1].patches):
            return
        found = (self.context.stream.cause(points[1].position, f) for f in ("patches", "prefix"))
        raise self.unfit(
            f"the tokens change in number behind where '{start.site.role}' starts",
            notes=[f"changed by: {cause.origin}" for cause in found if cause],
        )

    def beside_it(self, kind: type[_M]) -> _M:
        """At lowering: the module of a kind that the same clause put into the block, too."""
        found = (i for i in self.editor.insertions if i.clause == self.clause.number)
        return next(i.module for i in found if i.site.role == self.role and type(i.module) is kind)

    @property
    def given(self) -> int:
        """At lowering: how many values the module is called with."""
        return len(self.call_of(self.insertion).args)

    def leave_out(self) -> None:
        """Takes the block out: what follows reads the stream as it enters the block.

        Raises:
            RewriteError: VR410 if the block changes the stream's shape, or cannot be told apart.
        """
        if reason := cannot_leave_out(self.editor, self.block):
            raise self.unfit(reason)
        leave_out(self.editor, self.block, self.clause)

    def cause(self, fact: str) -> str | None:
        """Another clause that changed a fact of the tokens up to here, in words."""
        cause = self.context.stream.cause(2 * self.index + 1, fact)
        return None if cause is None or cause.number == self.clause.number else cause.origin

    @property
    def observed(self) -> bool:
        """Whether a clause reads the weights of its attention, or makes them."""
        return self.block.attn is not None and self.attn.observed

    @property
    def has_patches(self) -> bool:
        """Whether patches run through it; CaiT's last blocks have the class token alone."""
        return not self.block.tokens == 1 < (self.context.anatomy.blocks[0].tokens or 1)

    @property
    def reaches_end(self) -> bool:
        """Whether the clause is at all blocks from its first one on, with patches in each.

        What one site puts into the stream, and the next one replaces, is then read by nothing in
        between.
        """
        blocks = self.context.anatomy.blocks[-len(self.siblings) :]
        same = tuple(b.role for b in blocks) == self.siblings
        return same and all(BlockSite(self.context, b).has_patches for b in blocks)

    @property
    def told_apart(self) -> int:
        """How many tokens in front the head tells by their position."""
        return max(self.context.anatomy.stream.bounds, default=0)

    @property
    def own_prefix(self) -> int:
        """How many tokens stand in front of the patches in the model as it was."""
        return self.context.anatomy.stream.prefix_tokens

    @property
    def all_blocks(self) -> tuple[BlockSite, ...]:
        """All blocks of the model."""
        return tuple(BlockSite(self.context, b) for b in self.context.anatomy.blocks)

    def accompany(self, module: nn.Module, *values: Value, pooled: str = "all") -> None:
        """`rows = module(x, *values)` go along with the map x from here on.

        They pass all that channels pass: norms, layers, residual sums, merging of patches, where
        the same rows stand for each of the merged ones. In an attention they stand in front of the
        tokens of every window, and are the mean over the windows of their image behind it. At a
        further site of the clause new ones are in their place.

        Args:
            module: yields [batch, count, channels] from the map as it enters the block; it has
                `count`, which may differ between the sites of the clause.
            values: what it is given besides.
            pooled: what the mean that the head reads is over: `all`, `rows` or the `map`.

        Raises:
            RewriteError: VR410 if the block attends to no windows that fill its map, or something
                on the way does more than move the map and compute with its channels.
        """
        from . import alongside

        alongside.check(self, module.count)  # type: ignore[arg-type]
        place = self.editor.where(self.input.place)
        given = [value.read(self.editor, place.unit) for value in values]
        (rows,) = self.put(
            module, place.unit, (self.editor.node(place), *given), ("rows",), owner=self.path
        )
        HELD.put(rows, True)
        if self.ends:
            # Behind what other clauses leave for the end: rows pass what they put in.
            kind = type(module)
            self.at_end(lambda: self.at_end(lambda: alongside.go(self, kind, pooled)))

    @property
    def in_windows(self) -> bool:
        """Whether blocks of the model attend within windows, or to a map [.., channels]."""
        known = [b.attn for b in self.context.anatomy.blocks if b.attn is not None]
        nhwc = self.context.anatomy.stream.layout == "nhwc"
        return any(attn.windows is not None or nhwc for attn in known)

    @property
    def leaving(self) -> Point:
        """Its output in the layout in which the next block gets it."""
        node = self.editor.node(self.output.place)
        while len(node.users) == 1 and (user := next(iter(node.users))).target in _LAYOUTS:
            node = user
        place = self.editor.where(self.output.place)
        return Point(self, Place(place.unit, node.name), self.output.position)

    @property
    def input(self) -> Point:
        """Where the stream enters."""
        return Point(self, self.block.input, 2 * self.index)

    @property
    def mid(self) -> Point:
        """Behind the attention, before the feed-forward part."""
        if self.block.mid is None:
            raise self.unfit("its attention and its feed-forward part run side by side")
        return Point(self, self.block.mid, 2 * self.index + 1)

    @property
    def output(self) -> Point:
        """Where the stream leaves."""
        return Point(self, self.block.output, 2 * self.index + 2)
