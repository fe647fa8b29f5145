"""LoRA on rows that heads take in turns, on 1x1 convolutions, and on a layer of q, k, v and MLP.

The reference is the user's own model with the update merged into its weights by hand, from what its
source says of the rows.
"""

from __future__ import annotations

import copy
from collections.abc import Callable, Sequence
from typing import Any

import pytest
import timm
import torch
from torch import nn

import vitrewrite as vr
from vitrewrite.anatomy import analyse
from vitrewrite.anatomy.sites import Linear

RANK = 2
Rows = Callable[[Any], dict[str, Sequence[int]]]


def of_heads(heads: int, widths: Sequence[int]) -> dict[str, list[int]]:
    """Rows of q, k and v where each head has its own, one after the other."""
    found: dict[str, list[int]] = {"q": [], "k": [], "v": []}
    row = 0
    for _ in range(heads):
        for name, width in zip("qkv", widths, strict=True):
            found[name] += range(row, row + width)
            row += width
    return found


def one_after_the_other(widths: Sequence[int], start: int = 0) -> dict[str, list[int]]:
    """Rows of q, k and v as wholes."""
    ends = [start]
    for width in widths:
        ends.append(ends[-1] + width)
    return {n: list(range(ends[i], ends[i + 1])) for i, n in enumerate("qkv")}


CASES: dict[str, tuple[str, dict[str, Any], int, Callable[[Any], Any], Callable[[Any], Any]]] = {
    # the model, options, the size of its images, its layer of q, k and v in a block, the rows
    "tiny_vit": (
        "tiny_vit_5m_224", {"depths": (1, 1, 1, 1), "embed_dims": (16, 32, 48, 64),
                            "num_heads": (1, 2, 3, 4)}, 224,
        lambda b: b.attn.qkv, lambda a: of_heads(a.num_heads, (a.key_dim,) * 3),
    ),
    "levit": (
        "levit_128s", {"embed_dim": (32, 48, 64), "num_heads": (2, 3, 4), "depth": (1, 1, 1)}, 224,
        lambda b: b.attn.qkv.linear, lambda a: of_heads(a.num_heads, [a.key_dim] * 2 + [a.val_dim]),
    ),
    "levit, convolutions": (
        "levit_conv_128s", {"embed_dim": (32, 48, 64), "num_heads": (2, 3, 4), "depth": (1, 1, 1)},
        224, lambda b: b.attn.qkv.linear,
        lambda a: of_heads(a.num_heads, (a.key_dim, a.key_dim, a.val_dim)),
    ),
    "visformer": (
        "visformer_tiny", {"embed_dim": 48, "depth": (1, 1, 1), "num_heads": 3, "img_size": 64}, 64,
        lambda b: b.attn.qkv, lambda a: one_after_the_other([a.num_heads * a.head_dim] * 3),
    ),
    "coatnet": (
        "coatnet_nano_rw_224", {"depths": (1, 1, 2, 1), "embed_dim": (32, 32, 64, 64),
                                "img_size": 64}, 64,
        lambda b: b.attn.qkv, lambda a: of_heads(a.num_heads, (a.dim_head,) * 3)
        if a.head_first else one_after_the_other([a.num_heads * a.dim_head] * 3),
    ),
    "maxvit": (
        "maxvit_rmlp_pico_rw_256", {"depths": (1, 1, 1, 1), "embed_dim": (32, 64, 64, 64),
                                    "img_size": 64}, 64,
        lambda b: b.attn.qkv, lambda a: of_heads(a.num_heads, (a.dim_head,) * 3)
        if a.head_first else one_after_the_other([a.num_heads * a.dim_head] * 3),
    ),
    "parallel": (
        "vit_base_patch16_xp_224", {"depth": 2, "embed_dim": 48, "num_heads": 3, "img_size": 32},
        32, lambda b: b.in_proj, lambda b: one_after_the_other([48] * 3, 192),
    ),
}  # fmt: skip


def build(name: str) -> Any:
    model, options, size, *_ = CASES[name]
    torch.manual_seed(0)
    made = timm.create_model(model, num_classes=5, **options).eval()
    for module in made.modules():  # not those of an untrained model, which can be 0
        if isinstance(module, nn.BatchNorm2d | nn.BatchNorm1d):
            module.weight.data.uniform_(0.5, 1.5)
            module.running_mean.normal_(0, 0.1)  # type: ignore[union-attr, operator]
            module.running_var.uniform_(0.5, 1.5)  # type: ignore[union-attr, operator]
    return made.requires_grad_(False), torch.randn(2, 3, size, size)


def sites_of(model: Any, x: torch.Tensor) -> list[Any]:
    return [b for b in analyse(vr.capture(model, x)).blocks if b.attn is not None]


@pytest.mark.parametrize("name", CASES)
def test_rows_and_counts(name: str) -> None:
    model, x = build(name)
    layer, rows = CASES[name][3:]
    for block in sites_of(model, x):
        module = model.get_submodule(block.unit)
        expected = rows(module if name == "parallel" else module.attn)
        weight = layer(module).weight
        for part in "qkv":
            site: Linear = getattr(block.attn, part)
            found = [row for start, stop in site.ranges for row in range(start, stop)]
            assert found == expected[part], f"{block.role}.attn.{part}"
            assert model.get_parameter(site.weight) is weight
            assert (site.in_features, site.out_features) == (weight.shape[1], len(found))


@pytest.mark.parametrize("name", CASES)
def test_lora_is_the_weight_merged_by_hand(name: str) -> None:
    model, x = build(name)
    layer, rows = CASES[name][3:]
    blocks = sites_of(model, x)
    spec = "insert lora(rank=2, dropout=0) at {} \n".format(
        " + ".join(f"{b.role}.attn.{{q, v}}" for b in blocks)
    )
    rewritten = vr.apply(spec, model, example=x)
    module = rewritten.module.eval()
    with torch.no_grad():
        assert torch.equal(module(x), model(x))  # the update starts at zero
    delta = rewritten.delta()
    count = 0
    for tensor in delta.values():
        with torch.no_grad():
            tensor.normal_(0, 0.2)
    found = iter(delta.values())
    downs_and_ups = list(zip(found, found, strict=True))
    pairs = iter(downs_and_ups)
    model = copy.deepcopy(model)  # the frozen weights are shared
    for block in blocks:
        unit = model.get_submodule(block.unit)
        expected = rows(unit if name == "parallel" else unit.attn)
        for part in "qv":
            down, up = next(pairs)
            weight = layer(unit).weight
            count += RANK * (weight.shape[1] + len(expected[part]))
            update = (up.detach() @ down.detach()).reshape(-1, *weight.shape[1:])
            weight[expected[part]] += update
    assert rewritten.report["params"]["trainable"] == count
    with torch.no_grad():
        torch.testing.assert_close(module(x), model(x), rtol=1e-4, atol=1e-4)
        lowered = vr.lower(rewritten)
        assert not any("lora" in key for key in lowered.module.state_dict())
        torch.testing.assert_close(lowered.module.eval()(x), model(x), rtol=1e-4, atol=1e-5)
    assert lowered.report["macs"] == rewritten.report["macs_lowered"]


@pytest.mark.parametrize("name", ["levit", "visformer", "coatnet", "parallel"])
def test_training_and_inference_agree_where_a_gradient_is_asked_for(name: str) -> None:
    model, x = build(name)
    blocks = sites_of(model, x)
    parts = ["attn.{q, k, v}", "attn.proj", *(["mlp.{fc1, fc2}"] if blocks[0].mlp else [])]
    spec = "insert lora(rank=2, dropout=0, convention=spt, drop_path=0) at {}\n".format(
        " + ".join(f"{b.role}.{p}" for b in blocks[:1] for p in parts)
    )
    rewritten = vr.apply(spec, model, example=x)
    for tensor in rewritten.delta().values():
        with torch.no_grad():
            tensor.normal_(0, 0.1)
    module = rewritten.module.eval()
    with torch.no_grad():
        without = module(x)
    found = module(x)
    torch.testing.assert_close(found, without, rtol=1e-4, atol=1e-5)
    found.sum().backward()
    assert all(
        p.grad is not None and bool(p.grad.abs().sum() > 0)
        for n, p in module.named_parameters()
        if p.requires_grad and n.endswith("up")
    )
    vr.verify(rewritten, graphs=False)


def test_passes_that_know_one_range_are_refused_by_name() -> None:
    model, x = build("levit")
    with pytest.raises(vr.VitrewriteError) as caught:
        vr.plan("insert adapter(hidden=4) at blocks[0].attn.q\n", model, example=x)
    assert (
        "adapter at 'blocks[0].attn.q': its rows have gaps, as q, k and v of the heads take turns"
        in str(caught.value)
    )
    model, x = build("visformer")
    with pytest.raises(vr.VitrewriteError) as caught:
        vr.plan(
            "insert adapter(hidden=4) at every block.attn.proj\n".replace(
                "every block", "blocks[1]"
            ),
            model,
            example=x,
        )
    assert "it works on the last axis, and the layer is a 1x1 convolution" in str(caught.value)
