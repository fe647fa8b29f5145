"""`drop`: a model without some of its blocks is the user's own with those taken out by hand."""

from __future__ import annotations

import copy
from collections import OrderedDict
from pathlib import Path
from typing import Any

import pytest
import timm
import torch
from torch import nn

import vitrewrite as vr
from tests.emission.emitted import loaded
from tests.models import spread
from tests.test_capture import same

IMAGES = torch.randn(2, 3, 32, 32, generator=torch.Generator().manual_seed(0))
SWIN = {"embed_dim": 16, "depths": (1, 1, 4, 1), "num_heads": (1, 1, 2, 2)}


def vit(depth: int = 6) -> Any:
    torch.manual_seed(0)
    small = {"img_size": 32, "patch_size": 8, "embed_dim": 16, "num_heads": 2, "num_classes": 5}
    model = timm.models.vision_transformer.VisionTransformer(
        **small, depth=depth, drop_path_rate=0.3
    )
    return spread(model).eval()


def by_hand(model: nn.Module, owner: str, gone: set[int]) -> nn.Module:
    """A copy of the user's model in which the container has the other children, by their names."""
    twin = copy.deepcopy(model)
    kept = OrderedDict(
        (name, child)
        for name, child in twin.get_submodule(owner).named_children()
        if int(name) not in gone
    )
    above, _, name = owner.rpartition(".")
    setattr(twin.get_submodule(above), name, nn.Sequential(kept))
    return twin


@pytest.mark.parametrize(
    ("sites", "gone"),
    [
        ("blocks[4:]", {4, 5}),
        ("blocks[2:4]", {2, 3}),
        ("blocks[::2]", {0, 2, 4}),
        ("blocks[-1]", {5}),
        ("blocks where index >= 2 and index < 5", {2, 3, 4}),
        ("optional blocks[1] + blocks[3]", {1, 3}),
    ],
)
def test_outputs_keys_and_modes_are_those_of_the_model_without_the_blocks(
    sites: str, gone: set[int]
) -> None:
    model = vit()
    rewritten = vr.apply(f"drop {sites}\ntrain head\n", model)
    expected = by_hand(model, "blocks", gone)
    assert list(rewritten.module.state_dict()) == list(expected.state_dict())
    assert same(rewritten.module.eval(), expected.eval(), IMAGES)
    assert same(rewritten.module.train(), expected.train(), IMAGES)


def test_stages_keep_their_numbers() -> None:
    torch.manual_seed(0)
    model = timm.create_model("swin_tiny_patch4_window7_224", img_size=64, window_size=4, **SWIN)
    images = torch.randn(2, 3, 64, 64)
    rewritten = vr.apply("drop stages[2].blocks[1]\ntrain stages[2].blocks[3]\n", model.eval())
    assert same(rewritten.module.eval(), by_hand(model, "layers.2.blocks", {1}).eval(), images)
    trained = {n for n, p in rewritten.module.named_parameters() if p.requires_grad}
    assert trained
    assert all(name.startswith("layers.2.blocks.3.") for name in trained)


def test_a_list_of_blocks_that_a_model_goes_through_keeps_its_names() -> None:
    class Listed(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            known = vit()
            self.embed, self.head = known.patch_embed, known.head
            self.blocks = nn.ModuleList(known.blocks)

        def forward(self, x: torch.Tensor) -> Any:
            x = self.embed(x)
            for block in self.blocks:
                x = block(x)
            return self.head(x.mean(1))

    model = Listed().eval()
    spec = "drop blocks[1:5:3]\ninsert lora() at blocks[5].attn.q\n"
    rewritten = vr.apply(spec, model, example=IMAGES[:1])
    assert same(rewritten.module.eval(), by_hand(model, "blocks", {1, 4}), IMAGES)


def test_the_others_see_what_is_left_under_its_old_numbers() -> None:
    """Wherever the clause stands: `[*]` is what is left, and 5 is what was 5."""
    text = "insert lora(rank=2) at blocks[*].attn.q\ndrop blocks[1:4]\ntrain blocks[5].norm1\n"
    plan = vr.plan(text, vit())
    assert [(step.change, step.sites) for step in plan.steps] == [
        ("+", tuple(f"blocks[{i}].attn.q" for i in (0, 4, 5))),
        ("-", tuple(f"blocks[{i}]" for i in (1, 2, 3))),
        ("~", ("blocks[5].norm1",)),
    ]
    block = sum(p.numel() for p in vit().blocks[0].parameters())
    assert [step.parameters for step in plan.steps] == [3 * 2 * (16 + 16), 3 * block, 32]
    assert len(plan.measures.tokens) == 3 + 1
    assert "-  2  drop blocks[1:4]" in str(plan)
    assert any(
        "36 tensors of the base left out: blocks.1.*, blocks.2.*, blocks.3.*" in warning
        for warning in plan.warnings
    )


def test_counts_are_those_of_the_model_without_the_blocks() -> None:
    model = vit()
    plan = vr.plan("drop blocks[2:4]\ntrain head\nrequire tokens at blocks[5] == 17\n", model)
    own = vr.plan("train head\n", by_hand(model, "blocks", {2, 3}), example=IMAGES[:1])
    assert plan.measures.params == own.measures.params
    assert plan.measures.macs == own.measures.macs
    assert plan.measures.macs_base > own.measures.macs
    assert plan.claims[0].holds


def test_with_other_passes_everything_is_verified() -> None:
    spec = (
        "drop blocks[1, 3]\ninsert lora(rank=2) at blocks[*].attn.{q, v}\n"
        "insert merge.bdm() after blocks[2].attn\ntrain head\nrequire lowers exactly\n"
    )
    checks = vr.verify(vr.apply(spec, vit()), graphs=False)
    assert not [check for check in checks if not check.holds]
    assert "emitted source = rewritten" in {c.name for c in checks}


def test_what_is_emitted_has_the_names_in_a_loop_and_is_a_fixed_point(tmp_path: Path) -> None:
    rewritten = vr.apply("drop blocks[1:8:6]\ntrain head\n", vit(12))
    folder = vr.emit(rewritten, tmp_path / "first")
    source = (folder / "model.py").read_text()
    assert "self.blocks = nn.Sequential(" in source
    assert "for key, p in (" in source
    assert '("11", 0.3' in source
    assert "return self.norm(self.blocks(x + self.pos_embed))" in source
    twin = loaded(folder)
    assert same(twin.eval(), rewritten.module.eval(), IMAGES)
    again = vr.emit(vr.apply("train head\n", twin), tmp_path / "second")
    start = "import torch"
    assert (again / "model.py").read_text().partition(start)[2] == source.partition(start)[2]


def test_a_second_rewrite_counts_what_is_left() -> None:
    model = vit()
    first = vr.apply("drop blocks[1:4]\ntrain head\n", model)
    second = vr.apply("drop blocks[1]\ninsert lora() at blocks[2].attn.q\n", first.module)
    assert list(second.delta()) == ["blocks.5.attn.q.lora.down", "blocks.5.attn.q.lora.up"]
    expected = by_hand(model, "blocks", {1, 2, 3, 4})
    assert same(second.module.eval(), expected.eval(), IMAGES)


def test_a_delta_and_a_lowered_model_without_blocks(tmp_path: Path) -> None:
    spec = "drop blocks[2:4]\ninsert lora(rank=2, dropout=0) at blocks[*].attn.{q, v}\ntrain head\n"
    model = vit()
    rewritten = vr.apply(spec, model)
    with torch.no_grad():
        for tensor in rewritten.delta().values():
            tensor.normal_(std=0.1)
    vr.save(rewritten, tmp_path / "d.safetensors")
    other = vr.apply(spec, model)
    vr.load(other, tmp_path / "d.safetensors")
    assert same(other.module.eval(), rewritten.module.eval(), IMAGES)
    lowered = vr.lower(rewritten).module
    assert list(lowered.state_dict()) == list(by_hand(model, "blocks", {2, 3}).state_dict())
    expected, found = rewritten.module.eval()(IMAGES), lowered.eval()(IMAGES)
    torch.testing.assert_close(found, expected, rtol=1e-4, atol=1e-5)


def test_checkpointing_survives() -> None:
    model = vit()
    model.set_grad_checkpointing()
    rewritten = vr.apply("drop blocks[2:4]\ntrain head\n", model)
    assert rewritten.report["checkpointing"] == [f"blocks.{i}" for i in (0, 1, 4, 5)]
    expected = by_hand(model, "blocks", {2, 3})
    assert same(rewritten.module.train(), expected.train(), IMAGES)


@pytest.mark.parametrize(
    ("spec", "code", "message"),
    [
        ("drop blocks", "VR409", "'drop blocks' leaves no block of VisionTransformer"),
        ("drop blocks[:3]\ndrop blocks[3:]", "VR409", "'drop blocks[3:]' leaves no block"),
        ("drop blocks[0].attn", "VR409", "drop takes out blocks, and 'blocks[0].attn' is an"),
        ("drop head", "VR409", "drop takes out blocks, and 'head' is a head"),
        ("drop blocks[9]", "VR304", "index 9 is out of range"),
        ("drop blocks[1]\ntrain blocks[1].norm1", "VR401", "'blocks[1]' is taken out by"),
        ("insert lora() at blocks[0:2].attn.q\ndrop blocks[1]", "VR401", "'blocks[1]' is taken"),
        ("drop blocks[1]\ndrop blocks[1:3]", "VR401", "'blocks[1]' is taken out by another"),
        ("drop blocks[4:]\nfreeze blocks[3:]", "VR401", "'blocks[4]' and 1 more is taken out by"),
    ],
)
def test_what_cannot_be_dropped_or_is_gone(spec: str, code: str, message: str) -> None:
    with pytest.raises(vr.VitrewriteError) as caught:
        vr.plan(f"{spec}\n", vit())
    assert caught.value.code == code
    assert message in caught.value.message
    if code == "VR401":
        dropping = next(line for line in spec.splitlines() if line.startswith("drop"))
        assert any(dropping in note for note in caught.value.notes)


def test_a_claim_about_a_block_that_is_gone_shows_both() -> None:
    with pytest.raises(vr.VitrewriteError, match=r"VR401 'blocks\[1\]'") as caught:
        vr.plan("drop blocks[1]\nrequire tokens at blocks[1] == 17\n", vit())
    assert "drop blocks[1]" in str(caught.value)
    assert "tokens at blocks[1]" in str(caught.value)


def test_a_block_that_changes_the_stream_stays() -> None:
    torch.manual_seed(0)
    config = timm.models.mvitv2.MultiScaleVitCfg(
        depths=(1, 2), embed_dim=(16, 32), num_heads=(1, 2), stride_q=((1, 1), (2, 2))
    )
    model = timm.models.mvitv2.MultiScaleVit(config, img_size=32, num_classes=5).eval()
    with pytest.raises(vr.VitrewriteError, match=r"VR410 drop at 'blocks\[1\]': it turns a stream"):
        vr.plan("drop blocks[1]\n", model, example=IMAGES[:1])
    assert vr.plan("drop blocks[2]\n", model, example=IMAGES[:1]).steps[0].change == "-"


def test_a_module_that_runs_twice_is_no_block_to_drop() -> None:
    class Twice(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            known = vit()
            self.embed, self.head, self.blocks = known.patch_embed, known.head, known.blocks[:2]

        def forward(self, x: torch.Tensor) -> Any:
            x = self.blocks[0](self.blocks[1](self.blocks[0](self.embed(x))))
            return self.head(x.mean(1))

    with pytest.raises(vr.VitrewriteError, match="its module runs 2 times"):
        vr.plan("drop blocks[0]\n", Twice().eval(), example=IMAGES[:1])
