"""The `ia3` pass: factors against a model multiplied by hand, properties, peft's own, bad input."""

from __future__ import annotations

import copy
from pathlib import Path
from typing import Any

import peft
import pytest
import timm
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import nn

import vitrewrite as vr
from tests.hf.zoo import ZOO as HF
from tests.models import DEAR, spread, tiny_vit
from tests.test_capture import tiny
from vitrewrite.folder.adapter import save_adapter
from vitrewrite.rewrite.rewritten import Rewritten
from vitrewrite.verification.numeric import lowering_error

IA3 = "insert ia3() at blocks[*].attn.{k, v} + blocks[*].mlp.fc2\ntrain head\n"
X = torch.randn(2, 3, 32, 32, generator=torch.Generator().manual_seed(1))


def moved(rewritten: Rewritten) -> Rewritten:
    """With a delta that is nowhere one or zero."""
    torch.manual_seed(3)
    for tensor in rewritten.delta().values():
        tensor.add_(torch.randn(tensor.shape) * 0.3)
    return rewritten


@torch.no_grad()
def test_factors_multiply_keys_values_and_hidden_units() -> None:
    model = tiny()
    rewritten = moved(vr.apply(IA3, model))
    delta, hand = rewritten.delta(), copy.deepcopy(model)
    for i, block in enumerate(hand.blocks):
        factor = torch.cat(
            [torch.ones(16), *(delta[f"blocks.{i}.attn.{s}.ia3.factor"] for s in "kv")]
        )
        block.attn.qkv.weight *= factor[:, None]
        block.attn.qkv.bias *= factor
        block.mlp.fc2.weight *= delta[f"blocks.{i}.mlp.fc2.ia3.factor"]
    hand.head.weight.copy_(delta["head.weight"])
    hand.head.bias.copy_(delta["head.bias"])
    torch.testing.assert_close(rewritten.module.eval()(X), hand(X), rtol=1e-5, atol=1e-5)
    lowered = vr.lower(rewritten).module
    assert lowered.state_dict().keys() == model.state_dict().keys()
    for name, tensor in hand.state_dict().items():
        torch.testing.assert_close(lowered.state_dict()[name], tensor, rtol=1e-6, atol=1e-7)
    assert torch.equal(
        lowered.state_dict()["blocks.0.attn.qkv.weight"][:16], model.blocks[0].attn.qkv.weight[:16]
    )


@DEAR
@given(data=st.data())
def test_properties_over_random_vits(data: st.DataObject) -> None:
    model = data.draw(tiny_vit())
    sites = data.draw(
        st.sampled_from(
            ["blocks[*].attn.{k, v} + blocks[*].mlp.fc2", "every linear in blocks",
             "blocks[0].attn.{q, proj} + head", "blocks[*].mlp.{fc1, fc2}"]
        )
    )  # fmt: skip
    rewritten = vr.apply(f"insert ia3() at {sites}\n", model)
    seats: list[Any] = [i.site for i in rewritten.result.editor.insertions]
    parts = [(seat, p) for seat in seats for p in seat.parts]
    count = sum(p.in_features if site.ends_mlp else p.out_features for site, p in parts)
    assert rewritten.report["params"]["trainable"] == count
    assert all(tensor.eq(1).all() for tensor in rewritten.delta().values())
    vr.verify(rewritten, graphs=False)


def test_counts_on_vit_base() -> None:
    plan = vr.plan("ia3")
    assert plan.measures.params.trainable_without_head == 55_296
    assert plan.measures.macs_lowered == plan.measures.macs_base == 17_563_828_224


@pytest.mark.parametrize("order", [1, -1])
def test_beside_lora_and_behind_ssf(order: int) -> None:
    clauses = [
        "insert lora(rank=2, dropout=0) at blocks[*].attn.v + blocks[*].mlp.fc2",
        "insert ia3() at blocks[*].attn.{k, v} + blocks[*].mlp.fc2",
        "insert ssf() at blocks[*].mlp.fc2",
    ]
    rewritten = moved(vr.apply("\n".join(clauses[::order]) + "\n", tiny()))
    vr.verify(rewritten, graphs=False)
    assert lowering_error(rewritten) < 2e-5


def test_side_of_its_own() -> None:
    model = tiny()
    rewritten = vr.apply("insert ia3(side=input) at blocks[0].mlp.fc1\n", model)
    assert {k: len(v) for k, v in rewritten.delta().items()} == {"blocks.0.mlp.fc1.ia3.factor": 16}
    rewritten = vr.apply("insert ia3(side=output) at blocks[0].mlp.fc2\n", model)
    assert {k: len(v) for k, v in rewritten.delta().items()} == {"blocks.0.mlp.fc2.ia3.factor": 16}
    for spec, code in [
        ("insert ia3(side=input) at blocks[*].attn.{q, v}\n", "VR403"),
        ("insert ia3(side=both) at blocks[*].attn.v\n", "VR20"),
        ("insert ia3() at blocks[0]\n", "VR406"),
        ("insert ia3() at blocks[0].attn.v\ninsert ia3() at blocks[*].attn.{k, v}\n", "VR40"),
    ]:
        with pytest.raises(vr.VitrewriteError, match=code):
            vr.apply(spec, model)


@pytest.mark.parametrize("name", ["timm", "timm swin", "transformers"])
@pytest.mark.filterwarnings("ignore:`is_gradient_checkpointing`:FutureWarning")  # peft asks for it
def test_peft_computes_the_same_and_gives_the_tensors_back(name: str, tmp_path: Path) -> None:
    torch.manual_seed(0)
    models: dict[str, Any] = {
        "timm": tiny, "transformers": lambda: spread(HF["vit"].build()).eval(),
        "timm swin": lambda: spread(timm.create_model(
            "swin_tiny_patch4_window7_224", img_size=32, window_size=4, embed_dim=8,
            depths=(1, 1), num_heads=(1, 2),
        )).eval(),
    }  # fmt: skip
    model = models[name]()
    rewritten = moved(vr.apply(IA3, model))
    save_adapter(rewritten, tmp_path / "out")
    loaded = peft.PeftModel.from_pretrained(copy.deepcopy(model), tmp_path / "out").eval()
    with torch.no_grad():
        expected, found = rewritten.module.eval()(X), loaded(X)
    torch.testing.assert_close(tensor(found), tensor(expected), rtol=1e-5, atol=1e-5)
    loaded.save_pretrained(tmp_path / "peft")
    for folder in ("out", "peft"):
        again = vr.load(vr.apply(IA3, model), tmp_path / folder).delta()
        assert all(torch.equal(v, again[k]) for k, v in rewritten.delta().items())


def tensor(found: Any) -> torch.Tensor:
    return found if isinstance(found, torch.Tensor) else next(iter(found.values()))


def test_factors_of_other_rows_are_refused(tmp_path: Path) -> None:
    model = tiny()
    config = peft.IA3Config(target_modules=["qkv"], feedforward_modules=[], init_ia3_weights=False)
    made = peft.get_peft_model(copy.deepcopy(model), config)
    for parameter in (p for p in made.parameters() if p.requires_grad):
        nn.init.normal_(parameter)
    made.save_pretrained(tmp_path)
    with pytest.raises(vr.VitrewriteError, match="VR772"):
        vr.load(vr.apply("insert ia3() at blocks[*].attn.{k, v}\n", model), tmp_path)
    whole = vr.load(vr.apply("insert ia3() at blocks[*].attn.qkv\n", model), tmp_path)
    with torch.no_grad():
        torch.testing.assert_close(whole.module.eval()(X), made.eval()(X), rtol=1e-5, atol=1e-5)


def test_mixed_with_lora_it_has_no_words_in_peft(tmp_path: Path) -> None:
    spec = "insert ia3() at blocks[*].attn.v\ninsert lora(rank=2) at blocks[*].mlp.fc1\n"
    with pytest.raises(vr.VitrewriteError, match="VR770"):
        save_adapter(vr.apply(spec, tiny()), tmp_path / "out")
    twice = "insert ia3(side=[input, output]) at blocks[*].mlp.fc1\n"
    save_adapter(vr.apply(twice, tiny()), tmp_path / "out")  # of two layers, one each


def test_it_can_be_banked() -> None:
    rewritten = vr.apply(IA3, tiny())
    held = {}
    for name in "ab":
        held[name] = {k: torch.randn(v.shape) for k, v in rewritten.delta().items()}
    bank = vr.bank(rewritten, held)
    with torch.no_grad():
        mixed = bank.module(X, ["b", "a"])
        for i, name in enumerate("ba"):
            for key, value in rewritten.delta().items():
                value.copy_(held[name][key])
            assert torch.equal(mixed[i], rewritten.module.eval()(X)[i])
