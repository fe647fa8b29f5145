"""Rotary positions behind merges, against the user's own attentions with tables picked by hand."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
import timm
import torch
import torch.nn.functional as F

import vitrewrite as vr
from tests.authored import install
from tests.lowering.models import fill
from tests.models import spread
from tests.passes.test_merge_tome import groups, merged
from vitrewrite.emission.twin import emitted_twin
from vitrewrite.folder.writing import model_text

TOME = "insert merge.tome(r=2) after blocks[*].attn\n"
MODELS = {
    "vit_small_patch16_dinov3": 16,  # no class token's position, four registers, half rotations
    "eva02_tiny_patch14_224": 14,  # tables of the size that it was built for
    "vit_base_patch16_rope_mixed_224": 16,  # a table for each block and head
    "vit_medium_patch16_rope_reg1_gap_256": 16,
}


def build(name: str) -> Any:
    torch.manual_seed(0)
    options: dict[str, Any] = {"embed_dim": 24, "num_heads": 3, "depth": 3, "num_classes": 5}
    return spread(timm.create_model(name, img_size=4 * MODELS[name], **options)).eval()


def image(name: str, batch: int = 2) -> torch.Tensor:
    side = 4 * MODELS[name]
    return torch.randn(batch, 3, side, side, generator=torch.Generator().manual_seed(1))


@contextmanager
def keys() -> Iterator[list[torch.Tensor]]:
    """The keys of all attentions that run, as their scores see them."""
    seen: list[torch.Tensor] = []
    attend = F.scaled_dot_product_attention

    def noted(q: Any, k: torch.Tensor, *args: Any, **kwargs: Any) -> torch.Tensor:
        seen.append(k)
        return attend(q, k, *args, **kwargs)

    F.scaled_dot_product_attention = noted  # type: ignore[assignment]
    try:
        yield seen
    finally:
        F.scaled_dot_product_attention = attend


@torch.no_grad()
def reference(model: Any, x: torch.Tensor, r: int) -> torch.Tensor:
    """What a model of timm yields when each patch takes the position of the one that it was."""
    prefix = model.num_prefix_tokens
    x, tables = model._pos_embed(model.patch_embed(x))[:2]
    x = model.norm_pre(x)
    sizes = torch.ones(x.shape[:2])
    places = torch.arange(x.shape[1] - prefix).expand(len(x), -1)
    for number, block in enumerate(model.blocks):
        table = tables[number] if tables.dim() > 2 else tables
        rows = torch.stack([table[..., p, :] for p in places])
        rows = rows if rows.dim() == 4 else rows[:, None]
        bias = sizes.log()[:, None, None]
        with keys() as seen:
            made = block.attn(block.norm1(x), rope=rows, attn_mask=bias)
        x = x + (1 if block.gamma_1 is None else block.gamma_1) * made
        found = []
        for tokens, m, size, place in zip(x, seen[0].mean(1), sizes, places, strict=True):
            first = torch.tensor([g[0] - prefix for g in groups(m, r, prefix)[prefix:]])
            found.append((*merged(tokens, m, size, r, prefix), place[first]))
        x, sizes, places = (torch.stack(one) for one in zip(*found, strict=True))
        made = block.mlp(block.norm2(x))
        x = x + (1 if block.gamma_2 is None else block.gamma_2) * made
    x, weight = model.norm(x), sizes[:, prefix:, None]
    pooled = (x[:, prefix:] * weight).sum(1) / weight.sum(1)
    return model.head(model.fc_norm(x[:, 0] if model.global_pool == "token" else pooled))


@pytest.mark.parametrize("name", MODELS)
def test_patches_keep_their_positions(name: str) -> None:
    model, x = build(name), image(name)
    rewritten = vr.apply(TOME, model)
    expected = reference(model, x, 2)
    for made in (rewritten, vr.lower(rewritten)):
        with torch.no_grad():
            y = made.module.eval()(x)
            torch.testing.assert_close(y, expected, rtol=1e-4, atol=1e-5)
            twin = emitted_twin(model_text(made), made.module.state_dict())
            assert torch.equal(twin.eval()(x), y)
    assert rewritten.report["tokens"][-1] == rewritten.report["tokens"][0] - 6


def test_it_is_true_of_a_rewritten_model() -> None:
    rewritten = vr.apply(TOME + "train blocks[0]\n", build("vit_small_patch16_dinov3"))
    vr.verify(rewritten, graphs=False)
    training = rewritten.module.train()
    torch.testing.assert_close(
        training(image("vit_small_patch16_dinov3")),
        rewritten.module.eval()(image("vit_small_patch16_dinov3")),
    )


@torch.no_grad()
def test_at_another_image_size() -> None:
    name = "vit_small_patch16_dinov3"
    model, x = build(name), torch.randn(2, 3, 48, 96)
    module = vr.apply(TOME, model).module.eval()
    torch.testing.assert_close(module(x), reference(model, x, 2), rtol=1e-4, atol=1e-5)


@torch.no_grad()
def test_with_prompts_in_front() -> None:
    """They join behind a merge, and have no positions."""
    name = "vit_base_patch16_rope_mixed_224"
    spec = TOME.replace("*", "0") + "prepend prompt(count=2) to blocks[1:]\n"
    both, x = fill(vr.apply(spec, build(name))), image(name)
    assert both.report["tokens"] == [17, 15, 17, 17]
    lowered = vr.lower(both).module.eval()
    torch.testing.assert_close(lowered(x), both.module.eval()(x), rtol=1e-4, atol=1e-5)


class Sequential(torch.nn.Module):
    """An attention that turns its tokens by where they stand in the sequence it gets."""

    def __init__(self, attn: Any) -> None:
        super().__init__()
        self.qkv, self.proj, self.heads = attn.qkv, attn.proj, attn.num_heads

    def forward(self, x: torch.Tensor, *_: Any, **__: Any) -> torch.Tensor:
        b, t, c = x.shape
        q, k, v = self.qkv(x).reshape(b, t, 3, self.heads, c // self.heads).permute(2, 0, 3, 1, 4)
        turns = torch.arange(t, device=x.device)[:, None] * torch.ones(c // self.heads)
        y = F.scaled_dot_product_attention(q * turns.cos(), k * turns.cos(), v)
        return self.proj(y.transpose(1, 2).reshape(b, t, c))


def test_positions_that_are_made_for_as_many_tokens_as_there_are() -> None:
    model = timm.create_model("vit_tiny_patch16_224", img_size=64, depth=2, embed_dim=24)
    for block in model.blocks:
        block.attn = Sequential(block.attn)
    with pytest.raises(vr.VitrewriteError, match=r"VR451 .*'blocks.1..attn' makes positions for"):
        vr.plan(TOME, model)


@torch.no_grad()
def test_a_second_rewrite_on_top() -> None:
    name = "vit_small_patch16_dinov3"
    once, x = vr.apply(TOME, build(name)), image(name)
    lora = "insert lora(rank=2, dropout=0) at blocks[*].attn.{q, k, v}\n"
    twice = fill(vr.apply(lora, once.module, example=x[:1]))
    both = fill(vr.apply(TOME + lora, build(name)))
    torch.testing.assert_close(twice.module.eval()(x), both.module.eval()(x))


UNTRACED = """
class Halves(nn.Module):
    inserted_by = "NAME"
    changes = (0, None)

    def forward(self, x: torch.Tensor, size: torch.Tensor | None = None) -> object:
        return x[:, ::2], 2 * x.new_ones(x.shape[0], len(x[0, ::2]))


@dataclass(frozen=True)
class Halving(Pass):
    verbs: ClassVar[tuple[str, ...]] = ("insert after",)
    attaches: ClassVar[tuple[str, ...]] = ("block",)
    reads: ClassVar[tuple[str, ...]] = ("size",)
    writes: ClassVar[tuple[str, ...]] = ("grid", "size")

    def rewrite(self, block: Any) -> None:
        block.output.regroup(Halves(), patches=8)
"""


def test_a_module_that_does_not_tell_where_tokens_go(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    install(monkeypatch, tmp_path, halving=UNTRACED.replace("NAME", "halving"))
    spec = "insert halving() after blocks[0]\n"
    with pytest.raises(
        vr.VitrewriteError, match=r"VR450 .*Halves does not tell .*'blocks.1..attn'"
    ):
        vr.plan(spec, build("vit_small_patch16_dinov3"))
    plain = timm.create_model("vit_tiny_patch16_224", img_size=64, depth=2)
    assert vr.plan(spec, plain).measures.tokens == (17, 9, 9)
    with pytest.raises(vr.VitrewriteError, match=r"VR450 .*unmerge puts them back"):
        vr.plan(spec + "insert unmerge() after blocks[1]\n", plain)
