"""One attention, and the node of its graph that attends."""

from __future__ import annotations

import math
import operator
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import fx

from ..anatomy.canonical import canonicalise_at
from ..anatomy.sites import Attention, Block, Place
from ..editing import attended
from ..editing.facts import Facts
from ..tracing.notes import ASIDE, VALUE
from .core import of_tokens, operand_of
from .replacing import ReplacedSite

_SOFTMAX = ("softmax", torch.softmax, F.softmax)
_PRODUCTS = (
    *("transpose", "permute", "matmul", "unsqueeze", "squeeze", "masked_fill", "to", getattr),
    *(torch.matmul, torch.bmm, operator.matmul, operator.mul, operator.add, operator.getitem),
)


@dataclass(frozen=True, eq=False)
class AttendingSite(ReplacedSite):
    """One softmax attention, softmax(q k^T * scale + bias) v over heads."""

    attention: Attention
    owner: Block | None = None

    @property
    def role(self) -> str:
        """The site in words."""
        return self.attention.role

    @property
    def path(self) -> str:
        """The module that the attention is."""
        return self.attention.path

    @property
    def windowed(self) -> bool:
        """Whether tokens attend within windows only."""
        return self.attention.windows is not None

    @property
    def plain(self) -> bool:
        """Whether it has queries, keys, values and what follows them, each a linear layer."""
        found = self.attention
        layers = (found.q, found.k, found.v, found.proj)
        widths = {None if s is None else s.out_features for s in layers}
        return None not in widths and len(widths) == 1

    @property
    def heads(self) -> int:
        """Number of heads."""
        return self.attention.heads

    @property
    def over(self) -> str:
        """What its weights are over: `tokens` or `channels`."""
        return self.attention.over

    @property
    def value_width(self) -> int:
        """Width of the values of one head, as the layer of the values makes them.

        Raises:
            RewriteError: VR410 if its heads do not have as much of that layer each.
        """
        rows = 0 if self.attention.v is None else self.attention.v.out_features
        if not rows or rows % self.heads:
            raise self.unfit(f"its {self.heads} heads have no values of their own")
        return rows // self.heads

    @property
    def over_tokens(self) -> bool:
        """Whether every head attends over tokens: keys of shape [batch, heads, tokens, width]."""
        return self.attention.over == "tokens" and len(self._shape(1)) == 4

    @property
    def length(self) -> int:
        """How many tokens it attends to at once, at the size that the model was captured with."""
        return self._shape(1)[-2]

    @property
    def head_dim(self) -> tuple[int, int]:
        """Width of the keys and of the values of one head."""
        return self._shape(1)[-1], self._shape(2)[-1]

    @property
    def macs(self) -> int:
        """Multiply-accumulates for one image: of its layers, of scores, and of what they weigh.

        At the size that the model was captured with, and with tokens as clauses have them.
        """
        found = self.attention
        layers = [s for s in (found.q, found.k, found.v, found.proj) if s is not None]
        matrices = sum(s.in_features * s.out_features for s in layers)
        source = self._source(self._layers)
        batch, *others, _ = self.shape_at(
            Place(self.editor.where(layers[0].call).unit, source.name)
        )
        images = batch
        if self.owner is not None:  # a batch of windows is that of many images
            images = self.shape_at(self.owner.input)[0]
        known, keys = self.context.stream.known(self.position), math.prod(others)
        places = keys * batch // images
        first = self.owner is None or self.owner.stage == 0  # those that the stream knows of
        if first and places == keys and known.patches is not None:
            keys = places = known.prefix + known.patches
        values = sum(s.out_features for s in (found.q, found.v) if s is not None)
        return places * (matrices + keys * values)

    @property
    def position(self) -> int:
        """The position in the stream of what it attends to."""
        return 0 if self.owner is None else 2 * self.owner.index

    @property
    def tokens(self) -> Facts:
        """What is known of the tokens that it attends to."""
        return self.context.stream.at(self.position)

    # -- the node that attends ------------------------------------------------------------------

    @property
    def _unit(self) -> str:
        return self.editor.where(self.attention.core).unit

    def _core(self) -> fx.Node:
        """The call of scaled_dot_product_attention, in a graph that may be edited."""
        core = self._found()
        if core is None:
            raise self.unfit("its scores are not softmax(q k^T * scale + bias)")
        return core

    def _scored(self) -> fx.Node:
        """That call, if its scores are as many as there are queries and keys.

        Raises:
            RewriteError: VR410 if it says by a flag which keys a query sees, or shares keys.
        """
        core = self._core()
        given = attended.given(core)
        if given.get("is_causal"):
            raise self.unfit("each query sees the keys in front of it only")
        if given.get("enable_gqa"):
            raise self.unfit("several heads share their keys")
        return core

    def _alone(self) -> fx.Node:
        """That call, if its scores are the only ones that are made of its keys.

        Raises:
            RewriteError: VR410 if other weights are, which would not see what its scores become:
                such as the row of one query that an earlier rewrite has put beside it.
        """
        core = self._scored()
        seen, left = set[fx.Node](), [of_tokens(operand_of(core, 1))]
        while left:
            node = left.pop()
            for user in node.users:
                if user.target in _SOFTMAX:
                    what = "other weights are made of its keys, by the model or an earlier rewrite"
                    raise self.unfit(what, suggestion="put both clauses into one spec")
                if user not in seen and user.target in _PRODUCTS:
                    seen.add(user)
                    left.append(user)
        return core

    def _found(self) -> fx.Node | None:
        """That call, if the attention is of its form."""
        place = self.editor.where(self.attention.core)
        node = self.editor.node(place)
        if node.target is F.scaled_dot_product_attention:
            if ASIDE.on(node):
                attended.take_back(self.editor, place, of_tokens)
            return node
        written = attended.gather(self.editor, place, of_tokens)
        if written is not None:
            return written
        found = canonicalise_at(self.editor.unit(place.unit), node)
        if found is not None:
            self.editor.moved[place] = Place(place.unit, found.name)
        return found

    def _shape(self, operand: int) -> tuple[int, ...]:
        value = VALUE.get(of_tokens(operand_of(self._core(), operand)))
        return tuple(value.shape) if isinstance(value, torch.Tensor) else ()
