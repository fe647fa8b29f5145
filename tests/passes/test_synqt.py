"""The `synqt` pass: the authors' numbers, queries by hand, counts, memory, other models."""

from __future__ import annotations

import re
from typing import Any

import pytest
import timm
import torch
import torch.nn.functional as F
from safetensors.torch import load_file
from timm.models.vision_transformer import VisionTransformer

import vitrewrite as vr
from tests import goldens
from tests.lowering.models import fill, vit

SPEC = "insert synqt({}) at {}\ntrain head\n"
SMALL = "hidden=12, narrow=6"
IMAGES = torch.randn(3, 3, 16, 16, generator=torch.Generator().manual_seed(1))


def golden_name(name: str) -> str:
    """The case's name of a tensor of a delta."""
    if found := re.fullmatch(r"blocks\.(\d+)\.synqt\.query", name):
        return f"query_tokens.{found[1]}"
    name = re.sub(r"^blocks\.(\d+)\.synqt\.", r"qsm.\1.", name)
    return name.replace("head.synqt.", "head.").replace("synqt.scale", "feat_scale")


def given(tensors: dict[str, torch.Tensor], kind: str, name: str) -> torch.Tensor:
    """What a case has of a tensor of a delta."""
    name = golden_name(name)
    if name.startswith("query_tokens"):
        return tensors[f"{kind}.query_tokens"][int(name.rpartition(".")[2])]
    return tensors[f"{kind}.{name}"]


@pytest.mark.parametrize("name", ["synqt", "synqt-t1"])
def test_golden(name: str) -> None:
    case = goldens.case(name)
    model = VisionTransformer(**case.about["base_model"])
    state = load_file(goldens.FOLDER / case.about["base_file"])
    model.load_state_dict({k.removeprefix("base."): v for k, v in state.items()})
    count = case.about["hyper"]["num_query_tokens"]
    options = f"count={count}, {SMALL}, dropout=0, drop_path=0"
    rewritten = vr.apply(SPEC.format(options, "blocks[*]"), model.eval())
    delta = rewritten.delta()
    assert torch.equal(delta["head.synqt.final_norm.weight"], state["base.norm.weight"])
    own = {k for k in delta if "synqt" in k}
    for key in own:
        delta[key].copy_(given(case.tensors, "method", key))
    x = case.tensors["input"]
    with torch.no_grad():
        made = (rewritten.base(x), rewritten.module.eval()(x), vr.lower(rewritten).module(x))
        for found, wanted in zip(made, ("output_base", "output", "output"), strict=True):
            torch.testing.assert_close(found, case.tensors[wanted], rtol=0, atol=1e-4)
    gradients = case.gradients_of(rewritten)
    expected = {k: given(case.tensors, "grad", k) for k in own}
    largest = max(float(v.abs().max()) for v in expected.values())
    for key, value in expected.items():
        torch.testing.assert_close(
            gradients[key], value, rtol=1e-3, atol=1e-6 * largest, msg=lambda m, key=key: key + m
        )
