"""The `res_tuning` pass: the authors' numbers, both forms by hand, gradients, bad input."""

from __future__ import annotations

from typing import Any

import pytest
import torch
import torch.nn.functional as F
from timm.models.vision_transformer import VisionTransformer

import vitrewrite as vr
from tests.lowering.models import fill, vit
from tests.passes.by_hand import bottleneck, golden, images, small, tensors

BYPASS = "insert res_tuning(form=bypass, hidden=3, vertical_hidden=2) at blocks[*]\n"
BASE = "insert res_tuning(hidden=3) at blocks[*] + blocks[*].attn + blocks[*].mlp\n"
IMAGES = torch.randn(2, 3, 16, 16, generator=torch.Generator().manual_seed(1))


def test_golden() -> None:
    spec = "insert res_tuning(form=bypass, hidden=5, vertical_hidden=3) at blocks[*]\n"
    rewritten = golden(
        "res-tuning-bypass",
        f"{spec}train norm\ntrain head\n",
        lambda name: name.replace("res_tuning", "restuning"),
    )
    reached = {n for n, p in rewritten.module.named_parameters() if p.grad is not None}
    assert {n for n in reached if "res_tuning" not in n} == {
        "norm.weight", "norm.bias", "head.weight", "head.bias",
    }  # fmt: skip


# -- the bypass -----------------------------------------------------------------------------------


def tuned(z: torch.Tensor, delta: dict[str, torch.Tensor], which: str, axis: int) -> torch.Tensor:
    """z + w * up(gelu(down(z)))."""
    own = {k.removeprefix(f"{which}."): v for k, v in delta.items() if k.startswith(which)}
    z = z.movedim(axis, -1)
    made = bottleneck(z, own, F.gelu)
    if "scale" in own:
        made = made * own["scale"]
    if "gate.weight" in own:
        gate = torch.sigmoid(F.linear(made, own["gate.weight"], own["gate.bias"]))
        made = made * gate.flatten(1).mean(1).view(-1, *(1,) * (made.dim() - 1))
    return (z + made).movedim(-1, axis)


def bypassed(model: Any, rewritten: Any, paths: list[str], axis: int = -1) -> Any:
    """The user's own model: the last block yields the bypass of them all."""
    kept: list[torch.Tensor] = []

    def hook(number: int, path: str) -> Any:
        delta = tensors(rewritten, f"{path}.res_tuning")

        def step(_m: Any, _x: Any, y: torch.Tensor) -> torch.Tensor:
            lateral = tuned(y, delta, "lateral", axis)
            vertical = tuned(kept.pop(), delta, "vertical", axis)
            share = torch.sigmoid(delta["mix"]) if "mix" in delta else None
            made = lateral + vertical
            if share is not None:
                made = share * lateral + (1 - share) * vertical
            kept.append(made)
            return made if number == len(paths) - 1 else y

        return step

    first = model.get_submodule(paths[0])
    first.register_forward_pre_hook(lambda _m, x: kept.append(x[0]))
    for number, path in enumerate(paths):
        model.get_submodule(path).register_forward_hook(hook(number, path))
    return model


@pytest.mark.parametrize(
    ("name", "at", "paths"),
    [
        ("deit_tiny_distilled_patch16_224", "blocks[*]", ["blocks.0", "blocks.1"]),
        ("vit_small_patch16_dinov3", "blocks[*]", ["blocks.0", "blocks.1"]),
        (
            "swin_tiny_patch4_window7_224", "stages[1].blocks[*]",
            ["layers.1.blocks.0", "layers.1.blocks.1"],
        ),
        ("convnext_atto", "stages[1].blocks[*]", ["stages.1.blocks.0", "stages.1.blocks.1"]),
        ("pvt_v2_b0", "stages[2].blocks[*]", ["stages.2.blocks.0", "stages.2.blocks.1"]),
    ],
)  # fmt: skip
@torch.no_grad()
def test_the_bypass_is_what_follows_reads(name: str, at: str, paths: list[str]) -> None:
    model = small(name)
    rewritten = fill(vr.apply(f"insert res_tuning(form=bypass, hidden=3) at {at}\n", model))
    x = images(model)
    expected = bypassed(model, rewritten, paths, 1 if name == "convnext_atto" else -1)(x)
    torch.testing.assert_close(rewritten.module.eval()(x), expected, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize(
    "options", ["weight=scale", "weight=channels", "weight=gate, mix=weighted"]
)
@torch.no_grad()
def test_weights_of_tuners(options: str) -> None:
    model = vit().eval()
    spec = f"insert res_tuning(form=bypass, hidden=3, {options}) at blocks[*]\n"
    rewritten = fill(vr.apply(spec, model))
    vr.verify(rewritten, graphs=False)
    expected = bypassed(model, rewritten, [f"blocks.{i}" for i in range(3)])(IMAGES)
    torch.testing.assert_close(rewritten.module.eval()(IMAGES), expected, rtol=1e-4, atol=1e-5)


def test_no_gradient_flows_into_the_blocks() -> None:
    rewritten = fill(vr.apply(f"{BYPASS}train norm\ntrain head\n", vit()))
    for parameter in rewritten.module.parameters():
        parameter.requires_grad_(True)
    rewritten.module.train()(IMAGES).sum().backward()
    reached = {n for n, p in rewritten.module.named_parameters() if p.grad is not None}
    assert all("res_tuning" in n or n.startswith(("norm.", "head.")) for n in reached)
    assert sum("res_tuning" in n for n in reached) == 3 * 8


def test_what_it_cuts_off_is_told() -> None:
    """Clauses in the blocks change what the bypass reads, and are not trained."""
    clauses = "insert lora(rank=2) at blocks[*].attn.{q, v}\ntrain blocks[2].mlp.fc2 + norm\n"
    rewritten = vr.apply(BYPASS + clauses, vit())
    (told,) = [w for w in rewritten.report["warnings"] if "gets no gradient" in w]
    assert "8 trained tensors from nothing else: blocks.0.attn.qkv_lora.down, " in told
    cut = rewritten.result.unreached
    assert {name for name in cut if "lora" not in name} == {
        "blocks.2.mlp.fc2.weight",
        "blocks.2.mlp.fc2.bias",
    }
    (reached,) = [c for c in vr.verify(rewritten, graphs=False) if "gradients reach" in c.name]
    assert reached.note == "8 more are in front of what is read without gradient"
    assert not vr.apply(f"{BYPASS}train norm\n", vit()).result.unreached


def test_the_bypass_is_printed_as_a_loop() -> None:
    text = vr.apply(BYPASS, vit()).source.text
    assert "bypass = x.detach()\n" in text
    assert "x, bypass = block(x, bypass)" in text
    assert "return self.norm(bypass)" in text


@torch.no_grad()
def test_one_block_alone_and_some_of_them() -> None:
    for at, paths in (("blocks[1]", ["blocks.1"]), ("blocks[0:2]", ["blocks.0", "blocks.1"])):
        model = vit().eval()
        rewritten = fill(vr.apply(f"insert res_tuning(form=bypass, hidden=3) at {at}\n", model))
        vr.verify(rewritten, graphs=False)
        expected = bypassed(model, rewritten, paths)(IMAGES)
        torch.testing.assert_close(rewritten.module.eval()(IMAGES), expected, rtol=1e-4, atol=1e-5)


# -- beside parts ---------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "name",
    [
        "beit_base_patch16_224",
        "eva02_tiny_patch14_224",
        "swin_tiny_patch4_window7_224",
        "pvt_v2_b0",
    ],
)
@torch.no_grad()
def test_beside_parts(name: str) -> None:
    """Inside of layer scale at attention and MLP, around all at blocks."""
    model = small(name)
    x = images(model)
    rewritten = fill(vr.apply(BASE, model, example=x[:1]))
    if name != "pvt_v2_b0":  # which takes long
        vr.verify(rewritten, graphs=False)

    def beside(path: str) -> Any:
        own = tensors(rewritten, f"{path}.res_tuning.tuner")
        return lambda _m, x, y: y + bottleneck(x[0], own, F.gelu)

    paths = {n.partition(".res_tuning")[0] for n in rewritten.delta()}
    assert len(paths) == 3 * sum(p.endswith(".mlp") for p in paths)
    for path in paths:
        model.get_submodule(path).register_forward_hook(beside(path))
    torch.testing.assert_close(rewritten.module.eval()(x), model(x), rtol=1e-4, atol=1e-4)


def test_the_start() -> None:
    fresh = vr.apply("insert res_tuning(zero_up=true) at blocks[*].mlp\n", vit())
    with torch.no_grad():
        assert torch.equal(fresh.module.eval()(IMAGES), vit().eval()(IMAGES))
    drawn = vr.apply("insert res_tuning() at blocks[0].mlp\n", vit()).delta()
    prefix = "blocks.0.mlp.res_tuning.tuner"
    for name in ("down", "up"):
        bound = (6 / 26) ** 0.5
        assert 0.9 * bound < float(drawn[f"{prefix}.{name}.weight"].abs().max()) <= bound
        assert 0 < float(drawn[f"{prefix}.{name}.bias"].abs().max()) < 1e-5


def test_counts() -> None:
    plan = vr.plan("insert res_tuning(form=bypass, hidden=10) at blocks[*]\n", "vit_base")
    assert plan.measures.params.trainable == 24 * (2 * 768 * 10 + 10 + 768) == 387_312
    assert plan.measures.macs - plan.measures.macs_base == 24 * 2 * 768 * 10 * 197
    base = vr.plan("insert res_tuning() at blocks[*].attn + blocks[*].mlp\n", "vit_base")
    assert base.measures.params.trainable == 387_312


def test_bad_input_is_one_clear_error() -> None:
    merge = "insert merge.bdm() after blocks[1].attn\n"
    whole = "insert res_tuning(hidden=3) at blocks[*]\n"
    listed = "insert res_tuning(form=bypass, hidden=[3, 4, 5])"
    cases: list[tuple[str, Any, str]] = [
        (BYPASS, small("swin_tiny_patch4_window7_224"), "VR410 .*16x16x16 where .*8x8x32 here"),
        (BYPASS, small("pvt_v2_b0"), "VR410 .*'blocks.2.': the stream is 3136x32 where"),
        (BYPASS + merge, vit(), "VR410 .*'blocks.1.': the tokens change in number"),
        (whole + merge, vit(), "VR410 .*'blocks.1.': the tokens change in number"),
        ("insert res_tuning(hidden=16) at blocks[0].mlp\n", vit(), "VR403 .*not below the width"),
        ("insert res_tuning(form=bypass) at blocks[*].mlp\n", vit(), "VR403 .*whole blocks"),
        ("insert res_tuning(form=path) at blocks[*]\n", vit(), "VR20. .*path"),
        ("insert res_tuning() at blocks[0].mlp.fc1\n", vit(), "VR406"),
        (f"{listed} at blocks[*]\n", vit(), "VR403 .*differ"),
        (BYPASS + BYPASS, vit(), "VR401"),
    ]
    for spec, model, message in cases:
        with pytest.raises(vr.VitrewriteError, match=message):
            vr.apply(spec, model)


@torch.no_grad()
def test_beside_other_clauses() -> None:
    """Prompts are tokens like others; what stands in the blocks is seen by the bypass."""
    clauses = (
        "prepend prompt(count=2) to blocks[*]\n",
        "insert ssf() at blocks[*].{norm1, norm2}\n",
    )
    for clause in clauses:
        found = [
            fill(vr.apply(s, vit())).module.eval()(IMAGES)
            for s in (BYPASS + clause, clause + BYPASS)
        ]
        for other in found[1:]:
            torch.testing.assert_close(other, found[0], rtol=1e-4, atol=1e-5)
    lora = "insert lora(rank=2, dropout=0) at blocks[*].attn.{q, v}\n"
    found = [fill(vr.apply(s, vit())).module.eval()(IMAGES) for s in (BASE + lora, lora + BASE)]
    torch.testing.assert_close(*found, rtol=1e-4, atol=1e-5)


def test_applying_twice_is_detected() -> None:
    example = torch.zeros(1, 3, 16, 16)
    for spec in (BYPASS, BASE):
        once = vr.apply(spec, vit()).module
        with pytest.raises(vr.VitrewriteError, match="VR402"):
            vr.apply(spec, once, example=example)
        vr.apply("insert lora(rank=2) at blocks[*].attn.q\n", once, example=example)


@pytest.mark.slow
def test_it_verifies() -> None:
    model = VisionTransformer(
        img_size=16,
        patch_size=4,
        embed_dim=16,
        depth=4,
        num_heads=2,
        num_classes=5,
        init_values=0.1,
        drop_path_rate=0.3,
    )
    vr.verify(fill(vr.apply(BYPASS, model)))
    vr.verify(fill(vr.apply(BASE, model)))
