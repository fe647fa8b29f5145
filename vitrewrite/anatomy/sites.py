"""Sites: places of a captured model that have a role, found by dataflow and not by name.

Paths are module paths in the captured tree, as in `state_dict`. A `Place` is a node in the graph
of one unit, so a site can be edited where it is.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING, Any

from ..text import Several, Told

if TYPE_CHECKING:
    from .decoder import Decoder, PixelDecoder


@dataclass(frozen=True)
class Place:
    """A value in the model: the output of `node` in the graph of the unit at `unit`."""

    unit: str  # path of the unit whose graph holds the node; "" is the root
    node: str  # name of the fx node in that graph


@dataclass(frozen=True)
class Linear(Told):
    """A matrix that can be adapted: a linear layer, or the rows of a fused one.

    `q`, `k` and `v` of a fused `qkv` are three sites with the same `weight` and different `rows`.
    """

    role: str  # "blocks[3].attn.q"
    call: Place  # where it is applied first; the node is an `nn.Linear` call or an `F.linear`
    weight: str  # path of the weight, "blocks.3.attn.qkv.weight"
    in_features: int
    out_features: int  # number of rows of this site
    rows: tuple[int, int] | None = None  # half-open range of a fused weight, None for all of it
    offset: int = 0  # the first row that the call applies, where it applies a piece of the weight
    pieces: tuple[tuple[int, int], ...] = ()  # the rows where they have gaps, as of heads in turn
    axis: int = -1  # of the features in what goes in and out: 1 for a pointwise convolution

    @property
    def ranges(self) -> tuple[tuple[int, int], ...]:
        """All rows of this site as half-open ranges, in order."""
        return self.pieces or (self.rows or (0, self.out_features),)

    @property
    def path(self) -> str:
        """The name of the site in a delta: the layer's path, or `...attn.q` for rows of one."""
        layer = self.weight.removesuffix(".weight")
        if self.rows is None:
            return layer
        return f"{layer.rpartition('.')[0]}.{self.role.rpartition('.')[2]}".lstrip(".")


@dataclass(frozen=True)
class Classifier(Linear):
    """A linear layer that makes the classes: all that holds of linear layers holds of it."""


@dataclass(frozen=True)
class ChannelLayer(Told):
    """A layer that has a row of its weight, or a number, for each channel that it yields."""

    role: str  # "blocks[3].norm1"; the module's own path where it has no other role
    path: str  # of the module
    calls: tuple[Place, ...]  # where it is applied
    width: int  # channels that it yields
    axis: int  # of the channels in what it yields

    @property
    def call(self) -> Place:
        """Where it is applied first."""
        return self.calls[0]


@dataclass(frozen=True)
class Norm(ChannelLayer):
    """A norm over channels, groups of them or positions, such as `blocks[3].norm1`."""


@dataclass(frozen=True)
class Conv(ChannelLayer):
    """A convolution, but for those of kernel one that are matrices of an attention or MLP."""


@dataclass(frozen=True)
class Branch(Told):
    """What a residual sum adds to its stream: `sum = stream + branch`.

    All of it: norm, attention or MLP, layer scale, drop path.
    """

    role: str  # "blocks[3].mlp_branch"
    owner: str  # what names it in a delta: its block for the last one, else "blocks.3.attn_branch"
    sum: Place  # the node that adds
    index: int  # which argument of the sum the branch is; the stream is the other
    dim: int  # channels
    axis: int  # of the channels
    starts: bool  # whether the branch is made of that stream, not of what it was before
    first_norm: Place | None = None  # the norm of that stream that it starts with
    last_norm: Place | None = None  # the norm that it ends in


@dataclass(frozen=True)
class Attention(Told):
    """One softmax attention.

    The rows of `q`, `k`, `v` are those of `qkv` when it is fused; a role the model does not have
    is None (XCiT-like channel attention is marked by `over="channels"`).
    """

    role: str
    core: Place  # the node that yields the attended values: SDPA, or the second matmul
    form: str  # "sdpa" or "manual"
    heads: int
    q: Linear | None
    k: Linear | None
    v: Linear | None
    qkv: Linear | None  # the fused layer as a whole, if there is one
    proj: Linear | None
    over: str = "tokens"
    windows: tuple[int, int] | None = None  # attention inside windows of this size

    @property
    def path(self) -> str:
        """The module that the attention is: its unit, or in a flat graph what its layers share."""
        layers = [s.weight for s in (self.qkv, self.q, self.k, self.v, self.proj) if s is not None]
        return self.core.unit or _shared_path(layers)


@dataclass(frozen=True)
class Mlp(Told):
    """The feed-forward part of a block; a gated one has `gate` beside `fc1`."""

    role: str
    fc1: Linear | None
    act: Place | None
    fc2: Linear | None
    gate: Linear | None = None


@dataclass(frozen=True)
class Cut(Told):
    """Where a block cuts its tokens at a fixed number, or takes one out: the prefix, as a rule."""

    place: Place  # an index, a `narrow` or a `split`
    axis: int  # of the tokens, in what is cut


@dataclass(frozen=True)
class Block(Told):
    """A residual block: `input` + branch = `mid`, + branch = `output`.

    `unit` is the path of the module that is the block, or None in a flat graph.
    """

    role: str  # "blocks[3]"
    index: int  # counted over the whole model, from zero
    stage: int
    unit: str | None
    dim: int  # channels of its stream
    input: Place
    mid: Place | None
    output: Place
    attn: Attention | None
    mlp: Mlp | None
    norm1: str | None  # module paths
    norm2: str | None
    linears: tuple[Linear, ...] = ()  # every matrix in the block, in order of use
    tokens: int | None = None  # how many its stream has, if that is a sequence
    map: Place | None = None  # a map [batch, channels, h, w] of as many positions as a sequence has
    cuts: tuple[Cut, ...] = ()  # where it cuts them at fixed numbers
    norms: tuple[Norm, ...] = ()
    convs: tuple[Conv, ...] = ()
    branches: tuple[Branch, ...] = ()

    @property
    def path(self) -> str:
        """The module that the block is; in a flat graph what its layers share."""
        return self.unit or _shared_path([s.weight for s in self.linears])


@dataclass(frozen=True)
class Mean(Told):
    """A mean over tokens behind the blocks, or a linear layer that reads them."""

    place: Place
    pieces: tuple[tuple[int | None, int | None], ...]  # which tokens: one range of another


@dataclass(frozen=True)
class StreamFacts(Told):
    """Facts about the sequence that runs through the blocks."""

    layout: str  # "sequence" (B, N, C), "nhwc" or "nchw"
    prefix: tuple[str, ...]  # names of the parameters put before the patches, in order
    tokens: int | None  # N at the first block, prefix included
    grid: tuple[int, int] | None  # height and width in patches at the first block
    prefix_tokens: int = 0  # how many tokens the prefix is
    suffix_tokens: int = 0  # how many tokens stand behind the patches
    readout: tuple[int, ...] | None = None  # the tokens that the head reads; None: others too
    bounds: tuple[int, ...] = ()  # where what is behind the blocks cuts the tokens, by position
    patches: Place | None = None  # a map of the patches, in the layout of convolutions or NHWC
    means: tuple[Mean, ...] = ()  # how tokens are pooled
    readers: tuple[Mean, ...] = ()  # linear layers that read the tokens, as those of a pool do
    peaks: bool = False  # whether tokens are pooled by their largest, which no size changes


@dataclass(frozen=True)
class Anatomy(Told):
    """What each place of a model is. Absent roles are None or empty, never guessed."""

    model: str
    blocks: tuple[Block, ...]
    stream: StreamFacts
    patch_embed: str | None  # module path
    norm: str | None  # the final norm
    head: tuple[Linear, ...]  # classifiers; two for distilled models
    linears: tuple[Linear, ...] = ()  # every matrix of the model, in order of use
    norms: tuple[Norm, ...] = ()  # and every norm
    convs: tuple[Conv, ...] = ()  # and every convolution
    notes: tuple[str, ...] = field(default=())  # what could not be told, and why
    pool: Attention | None = None  # an attention outside of the blocks, such as a pooling head
    pixel_decoder: PixelDecoder | None = None  # of a segmentation model, as is its decoder
    decoder: Decoder | None = None
    calls: Mapping[tuple[str, int], tuple[Place, ...]] = field(default_factory=dict)
    """Where each layer is applied, by the name of its weight and the first row that is applied."""
    fused: tuple[
        str, ...
    ] = ()  # units whose attention is one call, the parts of which are no sites
    gone: Mapping[str, tuple[Block, str]] = field(default_factory=dict)
    """Blocks that a clause took out, by role, each with that clause in words."""
    base: str = ""  # path of the model in a tree that holds several
    bases: Mapping[str, Anatomy] = field(default_factory=dict)
    """The anatomy of each model, where it is that of a tree that holds several."""

    def __post_init__(self) -> None:
        for name in ("blocks", "head", "linears", "norms", "convs", "notes", "fused"):
            object.__setattr__(self, name, Several(getattr(self, name)))

    def without(self, blocks: Sequence[Block], clause: str) -> Anatomy:
        """What is left when a clause takes blocks out; the others keep their numbers."""
        gone = {b.role: (b, clause) for b in blocks}
        layers = {s.weight for b in blocks for s in b.linears}
        others = {s.path for b in blocks for s in (*b.norms, *b.convs)}
        return replace(
            self,
            blocks=tuple(b for b in self.blocks if b.role not in gone),
            linears=tuple(s for s in self.linears if s.weight not in layers),
            norms=tuple(s for s in self.norms if s.path not in others),
            convs=tuple(s for s in self.convs if s.path not in others),
            gone={**self.gone, **gone},
        )

    @property
    def end(self) -> int:
        """The position in the stream of what leaves the last block."""
        return 2 * self.blocks[-1].index + 2 if self.blocks else 0

    @property
    def stages(self) -> tuple[tuple[Block, ...], ...]:
        """Blocks by stage."""
        known = (*self.blocks, *(block for block, _ in self.gone.values()))
        count = 1 + max((b.stage for b in known), default=-1)
        return Several(Several(b for b in self.blocks if b.stage == s) for s in range(count))

    def roles(self) -> Iterator[tuple[str, Any]]:
        """Every site with its role, in model order."""
        for block in self.blocks:
            yield block.role, block
            for piece in (block.attn, block.mlp):
                if piece is not None:
                    yield piece.role, piece
            yield from ((s.role, s) for s in _distinct(block.attn, block.mlp, *block.linears))
        if self.pool is not None:
            yield self.pool.role, self.pool
            yield from ((s.role, s) for s in _distinct(self.pool))
        for part in (self.pixel_decoder, self.decoder):
            if part is not None:
                yield from part.roles()
        for linear in self.head:
            yield linear.role, linear


def _shared_path(weights: list[str]) -> str:
    """The longest module path that all weights lie under."""
    paths = [w.split(".")[:-2] for w in weights]
    shared: list[str] = []
    for parts in zip(*paths, strict=False):
        if len(set(parts)) > 1:
            break
        shared.append(parts[0])
    return ".".join(shared)


def _distinct(*parts: Attention | Mlp | Linear | None) -> list[Linear]:
    """The linear sites of parts, rows of fused layers too, each role once."""
    found: dict[str, Linear] = {}
    for part in parts:
        if isinstance(part, Attention):
            sites = [part.qkv, part.q, part.k, part.v, part.proj]
        elif isinstance(part, Mlp):
            sites = [part.fc1, part.gate, part.fc2]
        else:
            sites = [part]
        found.update((s.role, s) for s in sites if s is not None)
    return list(found.values())
