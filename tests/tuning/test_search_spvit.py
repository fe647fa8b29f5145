"""The search on SPViT's own space: costs against the authors' table, and against what is built."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import timm
import torch
from timm.models.vision_transformer import VisionTransformer

import vitrewrite as vr
from tests import goldens
from vitrewrite.folder.reading import load_folder
from vitrewrite.rewrite.deciding import recompiled
from vitrewrite.tuning import Settings, tune
from vitrewrite.tuning.draws import drawn
from vitrewrite.tuning.spaces import Space, space_of

BOTH = "replace blocks[*].attn with umsa({})\nreplace blocks[*].mlp with uffn()\n"
SPEC = BOTH.format("") + "train every parameter\n"
COMPLEX = BOTH.format("rule=complex") + "train every parameter\n"
HEADS = "replace blocks[*].mlp with uffn()\nreplace blocks[*].attn with heads()\n"


def vit() -> Any:
    torch.manual_seed(0)
    return timm.create_model(
        "vit_tiny_patch16_224",
        img_size=16,
        patch_size=4,
        embed_dim=16,
        depth=3,
        num_heads=2,
        num_classes=3,
        in_chans=1,
    )


def space(spec: str, model: Any, *, patches: bool = False) -> Space:
    found = space_of(vr.apply(spec, model), patches=patches)
    assert found is not None
    return found


def test_the_table_and_its_gradient() -> None:
    case = goldens.case("spvit-model")
    given = {"img_size": 32, "patch_size": 4, "embed_dim": 48, "depth": 4, "num_heads": 4}
    known = space(SPEC, VisionTransformer(**given, num_classes=10), patches=True)
    root, about = known.rewritten.module, case.about["hyperparameters"]
    names = [p.role.replace("[", ".").replace("]", "") for p in known.parts]
    with torch.no_grad():
        for part, name in zip(known.parts, names, strict=True):
            part.logits(root).copy_(case.tensors[f"method.{name}.gate_logits"])
    cost = known.cost(root)
    assert float(cost.detach()) == float(case.tensors["cost.total_macs"])
    loss = about["cost_weight"] * (about["target_gmacs"] - cost / 1e9) ** 2
    assert float(loss.detach()) == pytest.approx(float(case.tensors["cost.loss"]), rel=1e-6)
    loss.backward()  # type: ignore[no-untyped-call]
    for part, name in zip(known.parts, names, strict=True):
        wanted = case.tensors[f"grad.cost.{name}.gate_logits"]
        found = part.logits(root).grad
        assert found is not None
        assert (found - wanted).abs().max() <= 1e-5 * wanted.abs().max() + 1e-6


@pytest.mark.parametrize("spec", [SPEC, COMPLEX, HEADS], ids=["prefix", "complex", "heads"])
def test_costs_are_those_of_what_is_built(spec: str) -> None:
    known = space(spec, vit())
    low, high = known.ends
    for i in range(3):
        draw = torch.Generator().manual_seed(i)
        opened = drawn(known, low + (i + 1) / 4 * (high - low), draw).opened
        with torch.no_grad():
            for part, each in zip(known.parts, opened, strict=True):
                part.logits(known.rewritten.module).copy_(torch.tensor(each) * 2.0 - 1)
        built = recompiled(known.rewritten, known.found(opened)).measures.macs_lowered
        assert built == known.at(opened) == float(known.cost(known.rewritten.module).detach())


@pytest.mark.parametrize("spec", [SPEC, HEADS], ids=["umsa", "heads"])
def test_a_search_from_images_to_a_folder(spec: str, tmp_path: Path) -> None:
    low, high = space(spec, vit()).ends
    wanted = round(low + 0.5 * (high - low))
    settings = Settings(
        epochs=1, batch=20, lr=2e-3, macs=wanted, search_steps=6, gate_lr=0.5, teacher="base"
    )
    spec = spec if "train" in spec else f"{spec}train every parameter\n"
    result = tune(vr.apply(spec, vit()), "digits:0-2?images=60", settings, out=tmp_path / "run")
    assert abs(result.measures.macs_lowered - wanted) <= 0.01 * wanted
    lowered = vr.lower(load_folder(tmp_path / "run"))
    assert lowered.measures.macs == result.training["search"]["reached"]
    images = torch.randn(2, 1, 16, 16)
    again = vr.load(
        vr.apply(tmp_path / "run" / "architecture.peft", vit()),
        tmp_path / "run" / "delta.safetensors",
    )
    given = [each.module.eval()(images) for each in (result, again, lowered)]
    assert torch.equal(given[0], given[1])
    torch.testing.assert_close(given[0], given[2], rtol=1e-4, atol=1e-5)


def test_costs_of_stages() -> None:
    """Blocks of all stages share graphs, and not the number of their patches."""
    model = timm.create_model(
        "swin_tiny_patch4_window7_224",
        img_size=112,
        embed_dim=16,
        depths=(1, 1, 1),
        num_heads=(1, 2, 4),
        num_classes=3,
    )
    known = space(SPEC.replace("blocks", "stages[*].blocks"), model)
    found = drawn(known, sum(known.ends) / 2, torch.Generator().manual_seed(0))
    built = recompiled(known.rewritten, known.found(found.opened)).measures.macs_lowered
    assert built == found.cost
