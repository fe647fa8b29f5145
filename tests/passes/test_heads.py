"""The `heads` pass: models narrowed by hand, the card's figures, other families, bad input."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import timm
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import nn

import vitrewrite as vr
from tests.hf.zoo import ZOO as HF
from tests.lowering.models import applied
from tests.models import DEAR, spread, tiny_vit
from tests.passes.by_hand import images, small
from vitrewrite.folder.reading import load_folder, unlowered_folder
from vitrewrite.rewrite.rewritten import Rewritten

SEARCH = "replace blocks[*].attn with heads()\n"
KEPT = "replace blocks[*].attn with heads(keep=[[0, 2, 3], [1]])\n"
UNITS = "replace blocks[*].mlp with uffn()\n"
X = torch.randn(2, 3, 32, 32, generator=torch.Generator().manual_seed(1))


def four(**options: Any) -> Any:
    """A tiny ViT with four heads of width four."""
    torch.manual_seed(0)
    sizes = {"img_size": 32, "patch_size": 8, "embed_dim": 16, "depth": 2, "num_heads": 4}
    model = timm.models.vision_transformer.VisionTransformer(**sizes, num_classes=5, **options)
    return spread(model).eval()


def closed(rewritten: Rewritten) -> Rewritten:
    """With gates of which at least one is closed at each site, and one open."""
    generator = torch.Generator().manual_seed(3)
    for module in rewritten.inserted("heads"):
        logits: Any = module.logits
        with torch.no_grad():
            logits.copy_(torch.randn(logits.shape, generator=generator))
            logits[0], logits[-1] = -1.0, 1.0
    return rewritten


@torch.no_grad()
def test_gates_multiply_what_heads_yield() -> None:
    model, hand = four(), four()
    rewritten = vr.apply(SEARCH, model)
    for i, (block, module) in enumerate(zip(hand.blocks, rewritten.inserted("heads"), strict=True)):
        logits: Any = module.logits
        logits[i] = -1
        block.attn.proj.weight[:, 4 * i : 4 * i + 4] = 0
    torch.testing.assert_close(rewritten.module(X), hand(X), rtol=1e-5, atol=1e-6)
    lowered = vr.lower(rewritten)
    torch.testing.assert_close(lowered.module(X), hand(X), rtol=1e-5, atol=1e-6)
    state = lowered.module.state_dict()
    assert state.keys() == model.state_dict().keys()
    assert state["blocks.0.attn.qkv.weight"].shape == (36, 16)
    assert state["blocks.1.attn.proj.weight"].shape == (16, 12)


@torch.no_grad()
def test_named_heads_stay() -> None:
    model, hand = four(), four()
    rewritten = vr.apply(KEPT, model)
    for block, gone in zip(hand.blocks, ([1], [0, 2, 3]), strict=True):
        for head in gone:
            block.attn.proj.weight[:, 4 * head : 4 * head + 4] = 0
    torch.testing.assert_close(rewritten.module(X), hand(X), rtol=1e-5, atol=1e-6)
    own = rewritten.module.state_dict()
    rows = torch.cat([16 * third + torch.arange(4, 8) for third in range(3)])
    assert torch.equal(own["blocks.1.attn.qkv.weight"], model.blocks[1].attn.qkv.weight[rows])
    assert torch.equal(own["blocks.1.attn.qkv.bias"], model.blocks[1].attn.qkv.bias[rows])
    assert torch.equal(own["blocks.1.attn.proj.bias"], model.blocks[1].attn.proj.bias)
    assert rewritten.delta().keys() == {
        f"blocks.{i}.attn.{k}" for i in (0, 1) for k in ("qkv.weight", "qkv.bias", "proj.weight")
    }
    vr.verify(rewritten, graphs=False)


def test_of_a_number_those_with_the_largest_norms_stay() -> None:
    model = four()
    attn = model.blocks[0].attn
    v, proj = attn.qkv.weight[32:].unflatten(0, (4, 4)), attn.proj.weight.unflatten(1, (4, 4))
    weight = v.flatten(1).norm(dim=1) * proj.transpose(0, 1).flatten(1).norm(dim=1)
    keep = sorted(weight.topk(2).indices.tolist())
    one = vr.apply("replace blocks[0].attn with heads(keep=2)\n", model)
    two = vr.apply(f"replace blocks[0].attn with heads(keep=[{keep}])\n", model)
    for name, tensor in one.module.state_dict().items():
        assert torch.equal(tensor, two.module.state_dict()[name])


def test_a_head_of_deit_tiny_costs_what_the_card_says() -> None:
    text = "model deit_tiny_patch16_224\nreplace blocks[0].attn with heads({})\n"
    dense, plan = (vr.plan(text.format(o)).measures for o in ("", "keep=2"))
    width, head, tokens = 192, 64, 197
    assert plan.params.total == 5_717_416 - (4 * width * head + 3 * head) == 5_717_416 - 49_344
    macs = 4 * tokens * width * head + 2 * tokens**2 * head
    assert dense.macs - plan.macs == macs == 14_650_496


@DEAR
@given(data=st.data())
def test_properties_over_random_vits(data: st.DataObject) -> None:
    rewritten = vr.apply(SEARCH, data.draw(tiny_vit()))
    vr.verify(rewritten, graphs=False)
    assert rewritten.report["params"]["trainable"] == sum(
        a.heads for b in rewritten.result.anatomy.blocks if (a := b.attn) is not None
    )


FAMILIES = (
    "beit_base_patch16_224", "eva02_tiny_patch14_224", "pvt_v2_b0", "swin_tiny_patch4_window7_224",
    "swinv2_tiny_window8_256", "vit_small_patch14_reg4_dinov2", "vit_small_patch16_dinov3",
)  # fmt: skip


@torch.no_grad()
@pytest.mark.parametrize("name", FAMILIES)
def test_other_models(name: str) -> None:
    """Biases by position, rotary positions, windows, norms of queries, keys of fewer tokens."""
    model = small(name, **({"depths": (1, 1, 1, 1)} if name == "pvt_v2_b0" else {}))
    every = name.startswith(("swin", "pvt"))
    sites = "every attention" if every else "blocks[*].attn"
    if name == "pvt_v2_b0":
        sites = "(every attention) where heads > 1"
    rewritten = closed(vr.apply(f"replace {sites} with heads()\n", model))
    lowered, x = vr.lower(rewritten), images(model)
    torch.testing.assert_close(lowered.module(x), rewritten.module.eval()(x), rtol=1e-4, atol=1e-5)
    assert not lowered.inserted("heads")
    method, modules = rewritten.result.methods[0], rewritten.inserted("heads")
    saved = 0.0
    for insertion, module in zip(rewritten.result.editor.insertions, modules, strict=True):
        shut = module.priced() < 0.5  # type: ignore[operator]
        saved += float((torch.tensor(method.prices(insertion.site, module)) * shut).sum())
    others = 0 if name != "swinv2_tiny_window8_256" else None  # its biases are made by an MLP
    if others is not None:
        assert rewritten.report["macs"] - lowered.report["macs"] == saved
    vr.verify(vr.apply(f"replace {sites} with heads(keep=1)\n", model), graphs=False)


@torch.no_grad()
def test_without_heads_every_token_gets_the_bias() -> None:
    rewritten = vr.apply(SEARCH, four())
    for module in rewritten.inserted("heads")[:1]:
        nn.init.constant_(module.logits, -1.0)  # type: ignore[arg-type]
    lowered = vr.lower(rewritten)
    torch.testing.assert_close(lowered.module(X), rewritten.module.eval()(X))
    names = {k for k in lowered.module.state_dict() if k.startswith("blocks.0.attn")}
    assert names == {"blocks.0.attn.proj.bias"}
    told = lowered.report["keys"]["blocks.0.attn.qkv.weight"]
    assert told["clause"] == SEARCH.strip()
    made = vr.apply("replace blocks[*].attn with heads(keep=[[], [0, 3]], skip=true)\n", four())
    assert made.delta()["blocks.0.attn.proj.heads.bias"].equal(four().blocks[0].attn.proj.bias)
    vr.verify(made, graphs=False)
    with pytest.raises(vr.VitrewriteError, match=r"VR403.*no head would stay"):
        vr.plan("replace blocks[*].attn with heads(keep=[[], [0, 3]])\n", four())


@torch.no_grad()
@pytest.mark.parametrize("order", [1, -1])
def test_other_clauses_see_what_is_left(order: int) -> None:
    clauses = [KEPT, "insert lora(rank=2) at blocks[*].attn.{q, v, proj}\n",
               "prepend kv_prompt(n=2) to blocks[*].attn\n",
               "replace blocks[*].mlp with uffn(keep=9)\n"]  # fmt: skip
    rewritten = vr.apply("".join(clauses[::order]), four())
    delta = rewritten.delta()
    assert delta["blocks.1.attn.v.lora.up"].shape == (4, 2)
    assert delta["blocks.0.attn.proj.lora.down"].shape == (2, 12)
    vr.verify(rewritten, graphs=False)


@torch.no_grad()
def test_what_folds_goes_into_the_weights_before_heads_go() -> None:
    clauses = [SEARCH, "insert lora(rank=2) at blocks[*].attn.{q, v, proj}\n",
               "insert ssf() at blocks[*].attn.qkv\n", UNITS]  # fmt: skip
    for order in (clauses, clauses[::-1]):
        rewritten = closed(vr.apply("".join(order), four()))
        lowered = vr.lower(rewritten)
        assert lowered.report["macs"] < rewritten.report["macs"]
        vr.verify(rewritten, graphs=False)


@torch.no_grad()
def test_a_folder_has_one_class_for_all_widths(tmp_path: Path) -> None:
    rewritten = vr.apply(KEPT + "replace blocks[*].mlp with uffn(keep=[5, 9])\n", four())
    vr.emit(rewritten, tmp_path / "out")
    text = (tmp_path / "out" / "model.py").read_text()
    assert text.count("class Attention") == text.count("class Block") == 1
    assert "num_heads" in text
    again = load_folder(tmp_path / "out")
    assert torch.equal(again.module(X), rewritten.module.eval()(X))
    lowered = vr.lower(closed(vr.apply(SEARCH, four())))
    vr.emit(lowered, tmp_path / "lowered")
    assert torch.equal(load_folder(tmp_path / "lowered").module(X), lowered.module.eval()(X))
    unlowered_folder(tmp_path / "lowered")
    (tmp_path / "lowered" / "originals.safetensors").unlink()  # as who ships it may do
    assert torch.equal(load_folder(tmp_path / "lowered").module(X), lowered.module.eval()(X))


@torch.no_grad()
def test_a_layer_behind_the_heads_may_be_in_another_module() -> None:
    model = spread(HF["vit"].build()).eval()
    rewritten = closed(vr.apply(SEARCH, model))
    lowered = vr.lower(rewritten)
    assert not lowered.inserted("heads")
    x = torch.randn(2, 3, 32, 32)
    (found,), (made,) = (m(x).values() for m in (lowered.module, rewritten.module.eval()))
    torch.testing.assert_close(found, made, rtol=1e-4, atol=1e-5)
    vr.verify(vr.apply("replace blocks[*].attn with heads(keep=1)\n", model), graphs=False)


def test_heads_that_another_clause_reads_stay_and_it_is_told() -> None:
    clauses = [SEARCH, "insert merge.tome(r=2) after blocks[0].attn\n"]
    for order in (clauses, clauses[::-1]):
        rewritten = closed(vr.apply("".join(order), four()))
        waived = rewritten.result.steps[order.index(SEARCH)].waived["lowers_exactly"]
        assert list(waived) == ["blocks[0].attn"]
        assert "heads cannot be taken out" in waived["blocks[0].attn"]
        assert len(vr.lower(rewritten).inserted("heads")) == 1
        vr.verify(rewritten, graphs=False)


def test_what_a_search_is_told() -> None:
    rewritten = vr.apply(SEARCH, four())
    module, method = rewritten.inserted("heads")[0], rewritten.result.methods[0]
    assert method.found(module, [False, True, True, False]) == {"keep": [1, 2]}
    assert method.found(module, [False] * 4) == {"keep": [], "skip": True}
    assert module.priced().tolist() == [1.0] * 4  # type: ignore[operator]


@torch.no_grad()
def test_one_draw_for_images_and_tokens() -> None:
    rewritten = vr.apply(SEARCH, four())
    module = rewritten.inserted("heads")[0].train()
    found = module(torch.ones(3, 5, 16)).unflatten(-1, (4, 4))
    assert bool((found == found[:1, :1, :, :1]).all())
    assert found.unique().tolist() in ([0.0, 1.0], [1.0], [0.0])


@pytest.mark.parametrize(
    ("options", "code"),
    [
        ("keep=[[0, 0], [1]]", "VR485"), ("keep=[[4], [1]]", "VR485"), ("keep=5", "VR486"),
        ("keep=0", "VR403"), ("keep=[1, 2, 3]", "VR403"), ("keep=[[-1], [1]]", "VR203"),
        ("keeep=1", "VR202"), ("start=-1", "VR203"),
    ],
)  # fmt: skip
def test_bad_options(options: str, code: str) -> None:
    with pytest.raises(vr.VitrewriteError, match=code):
        vr.plan(f"replace blocks[*].attn with heads({options})\n", four())


@pytest.mark.parametrize("clauses", [KEPT + SEARCH, SEARCH + KEPT, SEARCH * 2, KEPT * 2])
def test_once_at_a_place(clauses: str) -> None:
    with pytest.raises(vr.VitrewriteError, match="VR402"):
        vr.plan(clauses, four())


class Shared(nn.Module):
    """Four heads of queries, two of keys and values."""

    def __init__(self) -> None:
        super().__init__()
        self.q, self.kv, self.proj = nn.Linear(16, 16), nn.Linear(16, 16), nn.Linear(16, 16)

    def forward(
        self, x: torch.Tensor, attn_mask: Any = None, is_causal: bool = False
    ) -> torch.Tensor:
        B, N, C = x.shape  # noqa: N806
        q = self.q(x).view(B, N, 4, 4).transpose(1, 2)
        k, v = self.kv(x).view(B, N, 2, 2, 4).permute(2, 0, 3, 1, 4).unbind(0)
        y = nn.functional.scaled_dot_product_attention(q, k, v, enable_gqa=True)
        return self.proj(y.transpose(1, 2).reshape(B, N, C))  # type: ignore[no-any-return]


@pytest.mark.parametrize("options", ["", "keep=2"])
def test_heads_that_share_keys_stay(options: str) -> None:
    model = four()
    for block in model.blocks:
        block.attn = spread(Shared())
    with pytest.raises(vr.VitrewriteError, match=r"VR488.*share"):
        vr.apply(f"replace blocks[*].attn with heads({options})\n", model)


@torch.no_grad()
def test_closed_attention_goes_with_what_others_put_into_it() -> None:
    """Lowered keys and values stand in the attention itself, which then goes whole."""
    both = applied(
        "replace blocks[*].attn with heads()", "prepend kv_prompt(n=2) to blocks[*].attn"
    )
    for name, tensor in both.module.named_parameters():
        if name.endswith(".gates.logits"):
            tensor.fill_(-1 if name.startswith("blocks.1.") else 1)
    x = torch.randn(2, 3, 16, 16, generator=torch.Generator().manual_seed(2))
    lowered = vr.lower(both).module.eval()
    torch.testing.assert_close(lowered(x), both.module.eval()(x), rtol=0, atol=1e-6)
    assert not any("blocks.1.attn.kv_prompt" in name for name in lowered.state_dict())
    assert any("blocks.0.attn.kv_prompt" in name for name in lowered.state_dict())
