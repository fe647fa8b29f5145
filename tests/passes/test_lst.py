"""The `lst` pass: the golden case and its pruning, a ladder by hand, profiles, bad input."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import pytest
import timm
import torch
import torch.nn.functional as F
from safetensors.torch import load_file
from timm.models.vision_transformer import VisionTransformer
from vitrewrite.passes.lst.pruning import best, count, walked

import vitrewrite as vr
from tests import goldens
from tests.lowering.models import fill, profile, vit
from tests.refusal import expect_refusal
from vitrewrite.folder.reading import load_folder
from vitrewrite.profiling.run import _way, measure
from vitrewrite.sensitivity.profile import Profile
from vitrewrite.tuning import Settings, tune

SPEC = "insert lst({}) at {}\ntrain head\n"
ALL = "blocks[*]"
IMAGES = torch.randn(3, 3, 16, 16, generator=torch.Generator().manual_seed(1))


def golden() -> tuple[goldens.Case, vr.Rewritten]:
    """The case, and its ladder with the values that the pass starts with."""
    case = goldens.case("lst")
    about = case.about["base_model"]
    model = VisionTransformer(**about)
    state = load_file(goldens.FOLDER / case.about["base_file"])
    model.load_state_dict({k.removeprefix("base."): v for k, v in state.items()})
    known = {k: v for k, v in case.tensors.items() if k.startswith("importance.")}
    measured = Profile({k.replace("importance.", "sensitivity."): v for k, v in known.items()})
    spec = SPEC.format("reduction=4, init=fisher", ALL)
    return case, vr.apply(spec, model.eval(), profile=measured)


def golden_name(name: str) -> str:
    """The case's name of a tensor of a delta."""
    name = re.sub(r"^blocks\.\d+\.lst\.(first_down\.)", r"\1", name)
    name = re.sub(r"^blocks\.(\d+)\.lst\.(down|gate|side)", r"\2.\1", name)
    name = name.replace("head.lst.", "")
    return f"base.{name}" if name.startswith("head.") else name


def test_golden() -> None:
    """Side blocks and their norm are rows and columns of the model's; the rest is as given."""
    case, rewritten = golden()
    for name, tensor in rewritten.delta().items():
        neutral = golden_name(name)
        if neutral.startswith("base."):
            continue
        if neutral.startswith("side"):
            assert torch.equal(tensor, case.tensors[f"method.{neutral}"]), name
        tensor.copy_(case.tensors[f"method.{neutral}"])
    x = case.tensors["input"]
    with torch.no_grad():
        found = (rewritten.base(x), rewritten.module.eval()(x), vr.lower(rewritten).module(x))
        for made, name in zip(found, ("output_base", "output", "output"), strict=True):
            torch.testing.assert_close(made, case.tensors[name], rtol=0, atol=1e-4)
    gradients = {golden_name(k): v for k, v in case.gradients_of(rewritten).items()}
    names = [k.removeprefix("grad.") for k in case.tensors if k.startswith("grad.")]
    largest = max(float(case.tensors[f"grad.{n}"].abs().max()) for n in names)
    for name in names:
        expected = case.tensors[f"grad.{name}"]
        torch.testing.assert_close(gradients[name], expected, rtol=1e-3, atol=1e-6 * largest)
    assert gradients.keys() == {*names}


def test_rows_of_the_golden_case() -> None:
    case, rewritten = golden()
    origin = rewritten.result.editor.origins[0]
    kept = walked(origin, [f"blocks[{i}]" for i in range(4)], 4)
    assert torch.equal(kept["blocks[0]"].before, case.tensors["keep.embed"])
    for i in range(4):
        for part in ("qkv", "proj", "fc1", "fc2"):
            found = getattr(kept[f"blocks[{i}]"], part)
            assert torch.equal(found, case.tensors[f"keep.{i}.{part}"]), (i, part)


def test_rows() -> None:
    assert [count(n, 8) for n in (768, 3072, 7)] == [96, 384, 1]
    rows = torch.tensor([[1.0], [-5], [3], [3]])
    assert best(rows, 2).tolist() == [1, 3]  # of equal ones the first is dropped
    assert best(rows, 2, groups=2).tolist() == [1, 3]
    assert best(torch.tensor([[4.0], [5], [1], [2]]), 2, groups=2).tolist() == [1, 3]


def side_block(x: torch.Tensor, delta: dict[str, torch.Tensor], path: str) -> torch.Tensor:
    """A plain block of two heads."""

    def norm(z: torch.Tensor, name: str) -> torch.Tensor:
        weight, bias = (delta[f"{path}.{name}.{k}"] for k in ("weight", "bias"))
        return F.layer_norm(z, weight.shape, weight, bias, 1e-6)

    def linear(z: torch.Tensor, name: str) -> torch.Tensor:
        return F.linear(z, *(delta[f"{path}.{name}.{k}"] for k in ("weight", "bias")))

    q, k, v = (
        t.unflatten(-1, (2, -1)).transpose(1, 2)
        for t in linear(norm(x, "norm1"), "attn.qkv").chunk(3, -1)
    )
    weights = (q @ k.transpose(-1, -2) * q.shape[-1] ** -0.5).softmax(-1)
    x = x + linear((weights @ v).transpose(1, 2).flatten(2), "attn.proj")
    return x + linear(F.gelu(linear(norm(x, "norm2"), "mlp.fc1")), "mlp.fc2")


@pytest.mark.parametrize("pool", ["token", "avg"])
@pytest.mark.parametrize("kept", [(0, 1, 2), (1,), (0, 2)])
@torch.no_grad()
def test_a_ladder_by_hand(pool: str, kept: tuple[int, ...]) -> None:
    model = vit(global_pool=pool).eval()
    where = f"blocks[{', '.join(map(str, kept))}]"
    rewritten = fill(vr.apply(SPEC.format("reduction=4", where), model))
    delta = rewritten.delta()

    def linear(z: torch.Tensor, name: str) -> torch.Tensor:
        return F.linear(z, *(delta[f"{name}.{k}"] for k in ("weight", "bias")))

    x = model.norm_pre(model._pos_embed(model.patch_embed(IMAGES)))
    h = linear(x, f"blocks.{kept[0]}.lst.first_down")
    for i, block in enumerate(model.blocks):
        x = block(x)
        if i in kept:
            path = f"blocks.{i}.lst"
            share = torch.sigmoid(delta[f"{path}.gate"] / 0.1)
            h = share * h + (1 - share) * linear(x, f"{path}.down")
            h = side_block(h, delta, f"{path}.side")
    weight, bias = (delta[f"head.lst.side_norm.{k}"] for k in ("weight", "bias"))
    h = F.layer_norm(h, (4,), weight, bias, 1e-6)
    h = h[:, 0] if pool == "token" else h[:, 1:].mean(1)
    expected = linear(linear(h, "head.lst.up"), "head")
    found = rewritten.module.eval()(IMAGES)
    torch.testing.assert_close(found, expected, rtol=1e-4, atol=1e-5)
    torch.testing.assert_close(rewritten.module.train()(IMAGES), found)
    lowered = vr.lower(rewritten).module.eval()(IMAGES)
    torch.testing.assert_close(lowered, found, rtol=1e-4, atol=1e-5)
    blocks: Any = rewritten.module.get_submodule("blocks")
    assert len(blocks) == kept[-1] + 1
    assert not any(n.startswith(("norm.", "fc_norm.")) for n in rewritten.module.state_dict())


def test_figures_of_the_card() -> None:
    model = "model vit_base_patch16_224\n"
    measures = vr.plan(model + SPEC.format("", ALL)).measures
    assert measures.params.trainable_without_head == 2_376_492
    assert round((measures.macs - measures.macs_base) / 1e9, 2) == 0.54
    short = vr.plan(model + SPEC.format("", "blocks[1:4] + blocks[5:8] + blocks[9:12]")).measures
    assert short.params.trainable_without_head == 2_376_492 - 3 * (111_840 + 73_824 + 1)


def test_gradients_reach_the_ladder_alone() -> None:
    rewritten = fill(vr.apply(SPEC.format("reduction=4", ALL), vit()))
    rewritten.module.train()(IMAGES).square().sum().backward()
    named = dict(rewritten.module.named_parameters())
    reached = {n for n, p in named.items() if p.grad is not None and p.grad.abs().sum() > 0}
    assert reached == {n for n in named if "lst" in n or n.startswith("head.")}
    vr.verify(rewritten, graphs=False)


@pytest.mark.parametrize("options", ["", "rows=per_head", "init=random"])
def test_initial_values(options: str) -> None:
    """By the size of the weights, if nothing was measured."""
    model = vit()
    delta = vr.apply(SPEC.format(f"reduction=4, {options}", ALL), model).delta()
    found = delta["blocks.0.lst.side.attn.qkv.weight"]
    rows = model.blocks[0].attn.qkv.weight.detach()
    inside = [any(set(map(float, f)) <= set(map(float, r)) for r in rows) for f in found]
    assert all(inside) == (options != "init=random")
    assert float(delta["blocks.2.lst.gate"]) == 0
    assert delta["blocks.0.lst.side.mlp.fc1.weight"].shape == (16, 4)
    if options == "rows=per_head":
        chosen = [next(i for i, r in enumerate(rows) if float(f[0]) in r) for f in found[:4]]
        assert [i // 8 for i in chosen] == [0, 0, 1, 1]


def test_from_measurements_to_a_folder(tmp_path: Path) -> None:
    """What was measured is asked for once: what is written holds what was made of it."""
    model, spec = vit(num_classes=10, in_chans=1), SPEC.format("reduction=4, init=fisher", ALL)
    with pytest.raises(vr.VitrewriteError, match=r"VR521 .*nothing was measured"):
        vr.apply(spec, model)
    measured = measure(vr.parse(spec), model, data="digits?images=8")
    rewritten = vr.apply(spec, model, profile=measured)
    result = tune(rewritten, "digits?images=40", Settings(steps=2, batch=8), out=tmp_path / "run")
    again = load_folder(tmp_path / "run")
    images = torch.randn(2, 1, 16, 16)
    assert torch.equal(again.module.eval()(images), result.module.eval()(images))
    vr.verify(again, graphs=False)
    incomplete = Profile({k: v for k, v in measured.tensors.items() if "patch_embed" not in k})
    with pytest.raises(vr.VitrewriteError, match=r"VR521 .*'patch_embed.proj.weight' was not"):
        vr.apply(spec, model, profile=incomplete)


@pytest.mark.parametrize(("options", "count"), [("", 1024), (", samples=5", 5)])
def test_how_many_images_are_measured(options: str, count: int) -> None:
    """As published, unless the clause says; no more than there are."""
    spec = vr.parse(SPEC.format(f"reduction=4, init=fisher{options}", ALL))
    assert _way(spec) == {"samples": count, "per": "sample"}
    assert _way(vr.parse(SPEC.format("reduction=4", ALL)))["samples"] == 800


BAD: dict[str, tuple[str, dict[str, Any], str, str]] = {
    "reduction": (SPEC.format("reduction=3", ALL), {}, "VR403", "valid: 1, 2, 4, 8"),
    "no blocks": (SPEC.format("reduction=4", "blocks[7]"), {}, "VR30", "blocks[7]"),
    "no init": (SPEC.format("reduction=4, init=wieghts", ALL), {}, "VR20", "weights"),
    "no head": (SPEC.format("reduction=4", ALL), {"num_classes": 0}, "VR", "head"),
    "twice": (SPEC.format("reduction=4", "blocks[0]") + SPEC.format("reduction=4", "blocks[1]"),
              {}, "VR401", "taken out by another clause"),
    "merged": (SPEC.format("reduction=4", ALL) + "insert merge.tome(r=2) after blocks[*].attn\n",
               {}, "VR410", "change in number"),
    "lora": ("insert lora(rank=2) at blocks[*].attn.q\n" + SPEC.format("reduction=4", ALL), {},
             "VR520", "lora"),
    "head2toe": (SPEC.format("reduction=4", ALL) + "replace head with head2toe()\n", {}, "VR455",
                 "lst and head2toe"),
    "mlp": ("replace head with mlp_head()\n" + SPEC.format("reduction=4", ALL), {}, "VR455",
            "mlp_head and lst"),
}  # fmt: skip


@pytest.mark.parametrize("name", BAD)
def test_bad_input(name: str) -> None:
    spec, model, code, words = BAD[name]
    expect_refusal(spec, vit(**model), code, words)


def test_a_profile_of_another_model() -> None:
    with pytest.raises(vr.VitrewriteError, match="VR521"):
        vr.plan(SPEC.format("reduction=4, init=fisher", ALL), vit(depth=4), profile=profile())


def test_stages_are_refused() -> None:
    model = timm.create_model("swin_tiny_patch4_window7_224", depths=(1, 1, 1, 1))
    with pytest.raises(vr.VitrewriteError, match="sequence of tokens of one width"):
        vr.plan(SPEC.format("", ALL), model)
