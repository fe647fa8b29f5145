"""SynQT: synthesised queries read what a frozen model knows, and the head reads what they found.

What it does
    In every block T trained queries, made anew of what the queries of the block before found, ask
    the frozen attention for what the tokens know, and pass the block's frozen layers. The head
    reads averages of what they become, and nothing of the tokens. Nothing in the model is trained,
    and no gradient enters the stream of its tokens.

Source
    Zhang et al., "Parameter-Efficient and Memory-Efficient Tuning for Vision Transformer: A
    Disentangled Approach", ECCV 2024.

Attaches to
    Blocks over one sequence of tokens of one width, an attention and then a feed-forward part, in
    front of one head. A block that is left out has no queries; blocks behind the last one go.
    Nothing in front may be trained, and no other clause have the head read anything.

Parameters
    Ad_b(x) = x + up GELU(down x), down [b, d] and up [d, b] with biases, as torch's linear layers
    are drawn. In every block: query [T, d], U(-1, 1); in_adapter and ffn_adapter, of width
    `hidden`; attn_q, attn_k, attn_v and attn_o, of width `narrow`; pre_attn_norm, attn_q_norm,
    attn_kv_norm and pre_ffn_norm; attn_scale and ffn_scale [1]. Once: feat_scale [1]. At the head:
    feature_norm and adapter (`hidden`), for all features; weight_fc [3 L, d] with bias; final_norm,
    which starts as the model's own norm. All trained; the head is, by `train head`. With `scale`
    the three scales are that number. With kem=trained every block has its own norm1, q, proj,
    norm2, fc1 and fc2 for queries, which start as the model's and are trained. As published the
    module has 18,469 parameters more, which nothing reads, and which are left out here: 2,622,866,
    2,650,514 and 2,761,106 for T = 1, 4 and 16, here 2,604,397, 2,632,045 and 2,742,637.

Forward
    p = Ad(query) in the first block, then Ad(query + feat_scale mean(H)) with H of the block
    before. u = pre_attn_norm(p), a = attn_q_norm(u), c = attn_kv_norm(u), and of one head
    p = p + attn_scale attn_o(softmax(attn_q(a) attn_k(c)^T / sqrt(d)) attn_v(c));
    p = p + ffn_scale ffn_adapter(pre_ffn_norm(p)).
    In the block A = what its attention makes of the queries of norm1(p), and of the tokens' keys
    and values; r = p + A; M = mlp(norm2(r)); H = r + M. With F the means over queries of
    [H_L, H_1 .. H_L, A_1 .. A_L, M_1 .. M_L] the head reads final_norm(mean(w g)), where n =
    feature_norm(F), g = F + Ad(n) and w = [1, tanh(GELU(weight_fc(g_0)))]. In training alone:
    dropout on queries, in and behind adapters of width `hidden`, on the weights and the output of
    the synthesis, and on the features' weights; of an image all g but the first may be dropped.
    Layer scales and drop paths of a block hold for queries too, and belong to A and M.

Exactness
    Another output from the start. The tokens' queries, what follows them in the last block, and
    the model's last norm are gone from the start. Lowered, the queries of the first block are a
    constant.

Example
    insert synqt(count=4) at blocks[*]
    train head
    adds 2,595,181 + 9,216 T parameters to ViT-B/16, which has 16.65 GMACs for T = 4, not 17.56.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import nn

from vitrewrite.authoring import BlockSite, HeadSite, OwnLayers, Pass, Value, option

from .modules import FeatureScale, FixedQueries, KnowledgeCopy, QueryReadout, QuerySynthesis

COPIED = {
    "norm1": "norm1", "q": "attn.q", "proj": "attn.proj", "norm2": "norm2", "fc1": "mlp.fc1",
    "fc2": "mlp.fc2",
}  # fmt: skip
"""The layers that queries have their own of with kem=trained, and those that they start as."""


@dataclass(frozen=True)
class SynQt(Pass):
    """Queries beside a frozen model, synthesised block by block."""

    verbs: ClassVar[tuple[str, ...]] = ("insert at",)
    attaches: ClassVar[tuple[str, ...]] = ("block",)
    source: ClassVar[str] = "Zhang et al., ECCV 2024"
    claims: ClassVar[tuple[str, ...]] = ()
    excludes: ClassVar[tuple[str, ...]] = ("res_tuning",)
    sole: ClassVar[str] = "readout"

    count: int = option(4, minimum=1, maximum=4096, help="queries per block, T")
    hidden: int = option(
        48, minimum=1, maximum=65536, help="width of the adapters of queries and of features"
    )
    narrow: int = option(
        8, minimum=1, maximum=65536, help="width of the adapters in the attention of the synthesis"
    )
    feat_scale: float = option(0.1, help="at first, on what the block before found")
    attn_scale: float = option(0.1, help="at first, on the attention of the synthesis")
    ffn_scale: float = option(0.1, help="at first, on the adapter behind that")
    scale: float | None = option(
        None, help="a number that the three scales are, in place of parameters"
    )
    kem: str = option(
        "frozen",
        choices=("frozen", "trained"),
        help="whether queries pass the frozen layers of the model, or copies of them that train",
    )
    dropout: float = option(0.1, minimum=0, below=1, help="in training")
    drop_path: float = option(
        0.3, minimum=0, below=1, help="how often all features but the first are dropped in training"
    )

    def rewrite(self, block: BlockSite) -> None:
        """H, A, M = block(synthesis(H before)); behind the last one the head reads all of them."""
        self.check(block)
        made = self.queries(block)
        block.hand_on(made[0])
        for name, value in zip("HAM", made, strict=True):
            block.collect(value, name)
        if block.ends:
            for head in block.heads:
                self.top(block, head)

    def queries(self, block: BlockSite) -> tuple[Value, ...]:
        """What the queries of a block become, and what its two parts add to them."""
        before = block.handed
        for name in ("feat_scale", "attn_scale", "ffn_scale") if self.scale is not None else ():
            block.idle(name, f"with scale={self.scale:g}")
        given: tuple[Value, ...] = () if before is None else (before,)
        if before is not None and self.scale is None:
            given += (block.shared("feat_scale", lambda: FeatureScale(self.feat_scale)),)
        synthesis = QuerySynthesis(
            self.count,
            block.dim,
            self.hidden,
            self.narrow,
            before is None,
            self.attn_scale,
            self.ffn_scale,
            self.scale,
            self.dropout,
        )
        if self.kem == "frozen":
            return block.attn.ask(synthesis, *given)
        keys, values = block.attn.asked()
        (queries,) = block.aside_all(synthesis, block.input.value, *given, names=("queries",))
        heads, (width, _) = block.attn.heads, block.attn.head_dim
        copy = KnowledgeCopy(block.dim, heads, width, block.hidden, block.norms[0].eps)
        return block.aside_all(copy, queries, keys, values, names=("asked", "attended", "fed"))

    def top(self, block: BlockSite, head: HeadSite) -> None:
        """The head reads what queries have become."""
        if head.in_features != block.dim:
            raise block.unfit(f"its head reads {head.in_features} channels, not {block.dim}")
        taps = [value for name in "HAM" for value in block.collected_as(name)]
        readout = QueryReadout(block.dim, self.hidden, len(taps), self.dropout, self.drop_path)
        head.feed(readout, *taps, pooled=False, last=True)
        kinds = ("queries", "attention", "mlp")
        head.reads(*(f"{role}.{kind}" for kind in kinds for role in block.siblings))

    def check(self, block: BlockSite) -> None:
        """Whether blocks are plain ones of one width, and adapters are narrower."""
        if any(each.dim != block.dim for each in block.together) or not block.has_patches:
            raise block.unfit("its blocks are not all over tokens of one width")
        for name in ("hidden", "narrow"):
            value = getattr(self, name)
            block.expect(
                value <= block.dim,
                name,
                f"{value} units are more than {block.dim} channels",
                notes=[f"valid: 1..{block.dim}"],
            )
        if block.leads:
            self.check_model(block)
        if self.kem == "trained":
            block.expect(
                block.plain,
                "kem",
                "the block has other layers than a plain one",
                suggestion="write kem=frozen",
            )

    def check_model(self, block: BlockSite) -> None:
        """Whether there is one head, and a norm that the new one can start as."""
        if len(block.heads) > 1:
            raise block.unfit("the model has several heads")
        if not block.last_norm:
            raise block.unfit(
                "the model has no norm behind its blocks, which the new one starts as"
            )
        block.start_from_model()
        if self.count == 1:
            block.warn(
                "synqt with one query: weights over a single one are 1, so that attn_q, attn_k and "
                "attn_q_norm get no gradient"
            )

    def initialise(self, module: nn.Module, generator: torch.Generator) -> None:
        """Layers and scales are as their modules make them; queries are drawn here."""
        super().initialise(module, generator)
        if isinstance(module, QuerySynthesis):
            nn.init.uniform_(module.query, -1, 1, generator=generator)

    def inherit(self, site: BlockSite | HeadSite, module: nn.Module, origin: OwnLayers) -> None:
        """The last norm, and with kem=trained the layers of the block."""
        if isinstance(module, QueryReadout):
            module.final_norm.weight.copy_(origin.weight("norm"))
            module.final_norm.bias.copy_(origin.bias("norm"))
        elif isinstance(module, KnowledgeCopy):
            for name, role in COPIED.items():
                layer = f"{site.role}.{role}"
                module.get_parameter(f"{name}.weight").copy_(origin.weight(layer))
                module.get_parameter(f"{name}.bias").copy_(origin.bias(layer))

    def weights(
        self, module: nn.Module, given: Sequence[torch.Tensor]
    ) -> dict[str, torch.Tensor | None]:
        """The lengths of the weights of features, which hang on the image."""
        if not isinstance(module, QueryReadout):
            return {}
        return {"|w|": module.weights(module.features(*given)).abs() if given else None}

    def lower(self, block: BlockSite, module: nn.Module) -> bool:
        """The queries of the first block do not hang on the image."""
        if isinstance(module, QuerySynthesis) and module.first:
            fixed = FixedQueries(module.count, module.dim)
            with torch.no_grad():
                made = module.eval()(module.query[None])[0]
            fixed.query = nn.Parameter(made, requires_grad=False)
            block.swap(fixed)
        return False
