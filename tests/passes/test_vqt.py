"""The `vqt` pass: the authors' numbers, other heads, selection of features, counts, bad input."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import pytest
import timm
import torch
import torch.nn.functional as F
from vitrewrite.passes.vqt.selection import longest

import vitrewrite as vr
from tests import goldens
from tests.lowering.models import fill, vit
from tests.refusal import expect_refusal
from vitrewrite.tuning import Settings, tune

VQT = "prepend vqt({}) to blocks[*]\ntrain head\n"
CASES = {
    "vqt-vit-concat": "count=2, normalise=false, dropout=0",
    "vqt-vit-concat-l2norm": "count=2, dropout=0",
    "vqt-vit-pool": "count=3, combine=pool, normalise=false, dropout=0",
}
DATA = "digits?images=60"
IMAGES = torch.randn(3, 3, 16, 16, generator=torch.Generator().manual_seed(1))


def golden_name(name: str) -> str:
    """The case's name of a tensor of a delta."""
    found = re.fullmatch(r"blocks\.(\d+)\.vqt\.query", name)
    return f"query.{found[1]}" if found else name.replace("vqt.", "")


@pytest.mark.parametrize("name", CASES)
def test_golden(name: str) -> None:
    case = goldens.case(name)
    rewritten = vr.apply(VQT.format(CASES[name]), case.base())
    for key, tensor in rewritten.delta().items():
        tensor.copy_(case.tensors[f"method.{golden_name(key)}"])
    x, head = case.tensors["input"], dict[str, torch.Tensor]()
    with torch.no_grad():
        case.close(rewritten.base(x), "output_base")
        case.close(rewritten.module.eval()(x), "output")
        case.close(vr.lower(rewritten).module(x), "output")
        pieces = features(rewritten, x)
        case.close(pieces, "features")
    head |= {golden_name(k): v for k, v in case.gradients_of(rewritten).items()}
    case.gradients_close(head)


def features(rewritten: vr.Rewritten, x: torch.Tensor) -> torch.Tensor:
    """What the head multiplies, read off a head of the identity."""
    head: Any = rewritten.module.get_submodule("head")
    weight, bias = head.weight.clone(), head.bias.clone()
    count = weight.shape[1]
    head.weight.data, head.bias.data = torch.eye(count), torch.zeros(count)
    found: torch.Tensor = rewritten.module.eval()(x)
    head.weight.data, head.bias.data = weight, bias
    return found


def by_hand(model: Any, delta: dict[str, torch.Tensor], x: torch.Tensor) -> list[torch.Tensor]:
    """What the rows become in each block of a timm ViT."""
    x, found = model.norm_pre(model._pos_embed(model.patch_embed(x))), []
    for i, block in enumerate(model.blocks):
        rows = delta.get(f"blocks.{i}.vqt.query")
        if rows is not None:
            attn, z = block.attn, rows.expand(len(x), -1, -1)
            y, keys = block.norm1(z), block.norm1(x)
            heads = (attn.num_heads, -1)
            q = attn.q_norm(attn.qkv(y).chunk(3, -1)[0].unflatten(-1, heads).transpose(1, 2))
            k, v = (t.unflatten(-1, heads).transpose(1, 2) for t in attn.qkv(keys).chunk(3, -1)[1:])
            asked = F.scaled_dot_product_attention(q, attn.k_norm(k), v)
            z = z + block.ls1(attn.proj(attn.norm(asked.transpose(1, 2).flatten(2))))
            found.append(z + block.ls2(block.mlp(block.norm2(z))))
        x = block(x)
    return found


@pytest.mark.parametrize("combine", ["concat", "pool", "weighted"])
@pytest.mark.parametrize("where", ["blocks[*]", "blocks[1:]"])
def test_mae_heads_and_weighted_sums(combine: str, where: str) -> None:
    """The first piece is fc_norm(mean of patches); blocks without queries have no piece."""
    options = {"global_pool": "avg", "qk_norm": True, "init_values": 0.3}
    model = vit(**options).eval()
    spec = f"prepend vqt(count=2, combine={combine}, readout=pooled) to {where}\n"
    rewritten = fill(vr.apply(spec, model))
    delta = rewritten.delta()
    with torch.no_grad():
        pieces = [model.forward_head(model.forward_features(IMAGES), pre_logits=True)]
        for i, rows in enumerate(by_hand(model, delta, IMAGES)):
            if combine == "weighted":
                assert delta["head.vqt.combine"].shape == (3 if where == "blocks[*]" else 2, 2)
                pieces.append((rows * delta["head.vqt.combine"][i][:, None]).sum(1))
            else:
                pieces.append(rows.flatten(1) if combine == "concat" else rows.mean(1))
        read = torch.cat([F.normalize(piece, dim=-1) for piece in pieces], -1)
        expected = F.linear(read, delta["head.vqt.weight"], delta["head.vqt.bias"])
        found = rewritten.module(IMAGES)
        torch.testing.assert_close(found, expected, rtol=1e-4, atol=1e-5)
    vr.verify(rewritten, graphs=False)


def test_tokens_are_those_of_the_model() -> None:
    rewritten = fill(vr.apply(VQT.format("count=3"), vit()))
    seen = []
    for module in (rewritten.base, rewritten.module):
        module.get_submodule("norm").register_forward_hook(lambda _m, _x, y: seen.append(y))
        module.eval()(IMAGES)
    assert torch.equal(*seen)


MODEL = "model vit_base_patch16_224(num_classes=100)\n"


def test_figures_of_the_card() -> None:
    for combine, width in (("concat", 768 + 12 * 2 * 768), ("pool", 768 + 12 * 768)):
        spec = VQT.format(f"count=2, combine={combine}")
        measures = vr.plan(MODEL + spec).measures
        assert measures.params.trainable_without_head == 2 * 9216
        assert measures.params.trainable == 2 * 9216 + 100 * width + 100
    one = vr.plan(MODEL + VQT.format("")).measures
    assert one.params.trainable == 9216 + 998_500
    head = 100 * (9984 - 768)
    assert one.macs - one.macs_base - head == 12 * (10 * 768**2 + 2 * 197 * 768)  # no k, v of it
    assert round((one.macs - head) / 1e9, 2) == 17.64


def test_initial_values() -> None:
    delta = vr.apply(VQT.format("count=60, combine=weighted"), vit()).delta()
    bound = (6 / (3 * 16 + 16)) ** 0.5
    rows = delta["blocks.1.vqt.query"]
    assert float(rows.abs().max()) <= bound
    assert float(rows.std()) == pytest.approx(bound / 3**0.5, rel=0.05)
    assert torch.equal(delta["head.vqt.combine"], torch.ones(3, 60))


def test_dropout_is_on_queries_in_training_only() -> None:
    rewritten = fill(vr.apply(VQT.format("count=2, dropout=0.5"), vit()))
    module = rewritten.module.eval()
    assert torch.equal(module(IMAGES), module(IMAGES))
    module.train()
    assert not torch.equal(module(IMAGES), module(IMAGES))


@pytest.mark.parametrize("options", ["normalise=false", "normalise=true", "combine=weighted"])
def test_features_that_are_not_kept_go(options: str) -> None:
    options = f"count=2, {options}, keep=0.5"
    rewritten = fill(vr.apply(VQT.format(options), vit()))
    kept = rewritten.delta()["head.vqt.kept"]
    kept.zero_()
    kept[:5] = kept[20:23] = 1  # of the class token, and of the first query in the first block
    kept[-2:] = 1
    lowered = vr.lower(rewritten)
    with torch.no_grad():
        expected = rewritten.module.eval()(IMAGES)
        torch.testing.assert_close(lowered.module.eval()(IMAGES), expected, rtol=1e-4, atol=1e-5)
    delta = lowered.delta()
    assert delta["head.vqt.weight"].shape == (5, 10)
    rows = [len(delta[f"blocks.{i}.vqt.query"]) for i in range(3)]
    assert rows == ([1, 1, 1] if "false" in options else [2, 2, 2])
    vr.verify(lowered, graphs=False)


def test_longest_columns() -> None:
    assert longest(torch.tensor([1.0, 3.0, 2.0, 3.0]), 0.5).tolist() == [0, 1, 0, 1]
    assert longest(torch.tensor([1.0, 1.0, 1.0]), 0.4).tolist() == [1, 0, 0]


def test_selection_of_features(tmp_path: Path) -> None:
    model = vit(num_classes=10, in_chans=1)
    rewritten = vr.apply(VQT.format("keep=0.25"), model)
    result = tune(rewritten, DATA, Settings(steps=1, batch=16, lr=1e-2), out=tmp_path / "run")
    assert list(result.training["phases"]) == [
        "train",
        "train with penalty on the head's columns",
        "train a head on what is kept",
    ]
    delta = result.delta()
    assert int(delta["head.vqt.kept"].sum()) == 16 * 4 // 4
    assert vr.lower(result).delta()["head.vqt.weight"].shape == (10, 16)


BAD: dict[str, tuple[str, dict[str, Any], str, str]] = {
    "no queries": ("count=0", {}, "VR203", "count"),
    "pooling": ("readout=class", {"global_pool": "avg"}, "VR403", "readout=pooled"),
    "no pooling": ("readout=pooled", {}, "VR403", "readout=class"),
    "no head": ("", {"num_classes": 0}, "VR410", "no head"),
    "share": ("keep=0", {}, "VR203", "keep"),
}


@pytest.mark.parametrize("name", BAD)
def test_bad_input(name: str) -> None:
    options, model, code, words = BAD[name]
    expect_refusal(f"prepend vqt({options}) to blocks[*]\n", vit(**model), code, words)


@pytest.mark.parametrize(
    ("name", "words"),
    [
        ("swin_tiny_patch4_window7_224", "one sequence of tokens"),
        ("beit_base_patch16_224", "differs between queries"),
    ],
)
def test_models_that_tell_tokens_by_position_are_refused(name: str, words: str) -> None:
    small: dict[str, Any] = {"depth": 2} if name.startswith("beit") else {}
    model = timm.create_model(name, **small)
    with pytest.raises(vr.VitrewriteError, match=words):
        vr.plan("prepend vqt(readout=pooled) to blocks[*]\n", model)


TWICE = "prepend vqt() to blocks[0]\nprepend vqt() to blocks[1:]\n"


def test_another_head_is_refused() -> None:
    spec = "prepend vqt() to blocks[*]\nreplace head with mlp_head()\n"
    for text in (spec, "\n".join(spec.splitlines()[::-1])):
        with pytest.raises(vr.VitrewriteError, match=r"VR455 .* are both a readout"):
            vr.plan(text, vit())
    with pytest.raises(vr.VitrewriteError, match="VR401 'head' is replaced by another clause"):
        vr.plan(TWICE, vit())
