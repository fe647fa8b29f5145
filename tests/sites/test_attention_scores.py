"""Biases and own softmaxes of attention, against timm's attention written out by hand."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
import torch.nn.functional as F

import vitrewrite as vr
from tests.authored import install
from tests.lowering.models import fill
from tests.sites.by_hand import (
    IMAGES,
    KV,
    MERGE,
    PAIRS,
    PASS,
    RECEIVED,
    ByHand,
    agree,
    emitted,
    in_both_orders,
    peaked,
    reached,
    swin,
    vit,
)
from vitrewrite.editing.editor import units

MASKED = (
    """
class KeepModule(nn.Module):
    '''How much a token counts, in [0, 1].'''

    inserted_by = "{name}"
    changes = (0, None)

    def __init__(self, width: int) -> None:
        super().__init__()
        self.width = width
        self.vector = nn.Parameter(torch.zeros(width))

    def forward(self, x: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        return x, torch.sigmoid(x @ self.vector)


class MaskedModule(nn.Module):
    '''DynamicViT's: e_ij P_ij / sum_k e_ik P_ik, with P_ij = d_j but P_ii = 1.'''

    inserted_by = "{name}"
    changes = (0,)

    def forward(self, scores: torch.Tensor, kept: torch.Tensor) -> torch.Tensor:
        count = scores.shape[-2]
        same = torch.eye(count, dtype=scores.dtype, device=scores.device)
        policy = kept[:, None, None, :] * (1 - same) + same
        rows = policy.new_ones(*policy.shape[:3], scores.shape[-1] - count)
        e = (scores - scores.amax(-1, keepdim=True)).exp() * torch.cat([rows, policy], -1)
        return (e + 1e-6 / count) / (e.sum(-1, keepdim=True) + 1e-6)
"""
    + PASS.replace("{cls}", "Masked")
    + """
    def rewrite(self, attn: Any) -> None:
        _, kept = attn.block.input.insert(KeepModule(attn.dim), also=("kept",))
        attn.softmax(MaskedModule(), kept)
"""
)
PLAIN = (
    """
class PlainModule(nn.Module):
    inserted_by = "{name}"
    changes = (0,)

    def forward(self, scores: torch.Tensor) -> torch.Tensor:
        e = (scores - scores.amax(-1, keepdim=True)).exp()
        return e / e.sum(-1, keepdim=True)
"""
    + PASS.replace("{cls}", "Plain")
    + """
    claims: ClassVar[tuple[str, ...]] = ("lowers_exactly",)

    def rewrite(self, attn: Any) -> None:
        attn.softmax(PlainModule())

    def lower(self, attn: Any, module: Any) -> bool:
        attn.drop()
        return True
"""
)
SHORT = (
    """
class ShortModule(nn.Module):
    inserted_by = "{name}"
    changes = (0,)

    def forward(self, scores: torch.Tensor) -> torch.Tensor:
        return torch.softmax(scores, -1)[..., :-1]
"""
    + PASS.replace("{cls}", "Short")
    + """
    def rewrite(self, attn: Any) -> None:
        attn.softmax(ShortModule())
"""
)


def test_a_bias_of_pairs(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Rows beside keys get zeros, whichever clause is first."""
    install(monkeypatch, tmp_path, pairs=PAIRS.replace("{name}", "pairs"))
    mine = "insert pairs() at blocks[1].attn"
    for spec in (f"{mine}\n{KV}", f"{KV}\n{mine}"):
        rewritten = fill(vr.apply(f"{spec}\n", vit()))
        model, delta = vit(), rewritten.delta()
        bias = delta["blocks.1.attn.pairs.bias"]
        for i, block in enumerate(model.blocks):
            ByHand(block.attn, bias if i else None, rows=delta[f"blocks.{i}.attn.kv_prompt.kv"])
        agree(rewritten, model)
    reached(rewritten)
    vr.verify(vr.apply(f"{mine}\n", vit()), graphs=False)
    emitted(rewritten, tmp_path / "out")


def test_a_bias_of_pairs_grows_with_prompts(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    install(monkeypatch, tmp_path, twos=PAIRS.replace("{name}", "twos"))
    mine, prompts = "insert twos() at blocks[1].attn", "prepend prompt(count=2) to blocks[0]"
    for spec in (f"{mine}\n{prompts}", f"{prompts}\n{mine}"):
        rewritten = fill(vr.apply(f"{spec}\n", vit()))
        model, delta = vit(), rewritten.delta()
        rows, bias = delta["blocks.0.prompt.prompt"], delta["blocks.1.attn.twos.bias"]
        grown, kept = torch.zeros(1, 2, 19, 19), torch.tensor([0, *range(3, 19)])
        grown[:, :, kept[:, None], kept] = bias
        for i, block in enumerate(model.blocks):
            ByHand(block.attn, grown if i else None)

        def prompted(_m: Any, args: Any, rows: torch.Tensor = rows) -> Any:
            x = args[0]
            return torch.cat([x[:, :1], rows.expand(len(x), -1, -1), x[:, 1:]], 1)

        model.blocks[0].register_forward_pre_hook(prompted)
        agree(rewritten, model)


def test_an_own_softmax(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """DynamicViT's, read by a tap."""
    install(
        monkeypatch,
        tmp_path,
        masked=MASKED.replace("{name}", "masked"),
        told=RECEIVED.format(name="told", tap="weights"),
    )
    clauses = ["insert masked() at blocks[*].attn", "insert told() at blocks[*].attn"]
    outputs = []
    for order in (clauses, clauses[::-1]):
        rewritten = fill(vr.apply("\n".join(order) + "\n", vit()))
        outputs.append(rewritten.module.eval()(IMAGES).detach())
    torch.testing.assert_close(*outputs)
    model, delta = vit(), rewritten.delta()
    hands = []
    for i, block in enumerate(model.blocks):
        kept: list[torch.Tensor] = []
        vector = delta[f"blocks.{i}.masked.vector"]

        def note(_m: Any, args: Any, kept: list[Any] = kept, vector: Any = vector) -> None:
            kept[:] = [torch.sigmoid(args[0] @ vector)]

        def softmax(scores: torch.Tensor, kept: list[Any] = kept) -> torch.Tensor:
            same = torch.eye(scores.shape[-1])
            policy = kept[0][:, None, None] * (1 - same) + same
            e = (scores - scores.amax(-1, keepdim=True)).exp() * policy
            return (e + 1e-6 / len(same)) / (e.sum(-1, keepdim=True) + 1e-6)

        block.register_forward_pre_hook(note)
        hands.append(ByHand(block.attn, softmax=softmax))
    peaked(model.blocks, delta, "told", hands, mean=True)
    agree(rewritten, model)
    vr.verify(rewritten, graphs=False)
    reached(rewritten)
    emitted(rewritten, tmp_path / "out")


def test_an_own_softmax_with_rows_and_merges(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    install(monkeypatch, tmp_path, own=MASKED.replace("{name}", "own"))
    for other in (KV, MERGE):
        in_both_orders("insert own() at blocks[*].attn", other)


def test_an_own_softmax_is_dropped_at_lowering(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    texts = {"plain": PLAIN.replace("{name}", "plain")}
    install(monkeypatch, tmp_path, **texts, heard=RECEIVED.format(name="heard", tap="weights"))
    one = "insert plain() at every attention\ninsert heard() at {}blocks[0].attn\n{}\n"
    for make, spec, size in (
        (vit, one.format("", KV), 16), (swin, one.format("stages[0].", ""), 32),
    ):  # fmt: skip
        rewritten = fill(vr.apply(spec, make()))
        lowered = vr.lower(rewritten)
        images = torch.randn(2, 3, size, size)
        found = [m.module.eval()(images) for m in (rewritten, lowered)]
        torch.testing.assert_close(*found, rtol=1e-4, atol=1e-5)
        programs = [u.template.graph for _, u in units(lowered.module) if u.template is not None]
        called = [n.target for g in programs for n in g.nodes]
        assert called.count(F.scaled_dot_product_attention) == 1
    vr.verify(rewritten, graphs=False)


@pytest.mark.parametrize(
    ("spec", "message"),
    [
        ("insert wry(queries=16) at blocks[0].attn", "1x2x16x17 is no bias of its scores, 2x17x17"),
        ("insert wry(queries=3) at blocks[0].attn", "1x2x3x17 is no bias"),
        ("insert brief() at blocks[0].attn", "VR426 .*yields .x2x17x16 for scores .x2x17x17"),
        ("insert one() at blocks[0].attn\ninsert two() at blocks[*].attn",
         "VR412 two and one exclude each other at 'blocks.0..attn'"),
    ],
)  # fmt: skip
def test_what_does_not_fit_is_refused(
    spec: str, message: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    passes = {"wry": PAIRS, "brief": SHORT, "one": MASKED, "two": MASKED}
    install(monkeypatch, tmp_path, **{k: v.replace("{name}", k) for k, v in passes.items()})
    with pytest.raises(vr.VitrewriteError, match=message) as caught:
        vr.apply(f"{spec}\n", vit())
    if "two" in spec:
        assert "insert one() at blocks[0].attn" in caught.value.render()


def test_pairs_and_policies_in_windows_are_refused(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    passes = {"wpairs": PAIRS, "wmasked": MASKED}
    install(monkeypatch, tmp_path, **{k: v.replace("{name}", k) for k, v in passes.items()})
    for name in passes:
        with pytest.raises(vr.VitrewriteError, match=r"VR410 .*one sequence of tokens"):
            vr.apply(f"insert {name}() at every attention\n", swin())
