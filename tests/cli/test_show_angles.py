"""`show angles`: how gradients of stitches point is what autograd says of each of them."""

from __future__ import annotations

import json
import math
from pathlib import Path
from typing import Any
from xml.etree import ElementTree

import pytest
import torch
import torch.nn.functional as F

import vitrewrite as vr
from tests.cli.invoke import invoke
from tests.passes.test_snnet import STITCH
from vitrewrite.profiling.angles import Angles, angles_of

SPEC = f"{STITCH}ends=inner)\ntrain every base.head\n"


def test_an_angle_is_that_of_what_two_stitches_share() -> None:
    made = vr.apply(SPEC)
    images = torch.randn(4, 3, 32, 32, generator=torch.Generator().manual_seed(0))
    labels = torch.arange(4)
    found = angles_of(made, images, labels)
    angles = {(i, j): angle for i, j, angle in found.pairs}
    module: Any = made.module.eval().requires_grad_(True)
    gradients = {}
    for number in (0, 2, 7):
        module.zero_grad()
        F.cross_entropy(module.stitch(images, number), labels).backward()
        gradients[number] = {
            n: p.grad.clone()
            for n, p in module.named_parameters()
            if n.endswith("qkv.weight") and p.grad is not None
        }
    for i, j in ((0, 2), (2, 7)):
        shared = gradients[i].keys() & gradients[j].keys()
        one, other = (
            torch.cat([gradients[k][n].flatten() for n in sorted(shared)]) for k in (i, j)
        )
        cosine = float(F.cosine_similarity(one, other, dim=0, eps=1e-30))
        assert angles[i, j] == pytest.approx(math.degrees(math.acos(cosine)), abs=0.05)
    assert (0, 1) not in angles  # the two models share nothing
    assert len(angles) == 27
    assert found.stitches == 8


def test_shares_of_angles() -> None:
    found = Angles(((0, 1, 30.0), (0, 2, 180.0), (1, 2, 91.0), (1, 3, 90.0)), 8, 4)
    assert found.shares(90) == [0.25, 0.75]
    assert found.above == 0.5
    assert found.mean == pytest.approx(97.75)


def test_the_picture_has_an_outline_for_each_target(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    Path("one.peft").write_text(SPEC)
    Path("two.peft").write_text(SPEC + "# the same\n")
    given = ("show", "angles", "one.peft", "two.peft", "--out", "a.svg", "--batch", "4")
    done = invoke(*given, "--data", "digits")
    assert done.status == 0, done.err
    assert done.out.count("of 27 angles above 90 degrees") == 2
    drawing = ElementTree.fromstring(Path("a.svg").read_text())
    texts = [each.text for each in drawing if each.tag.endswith("text")]
    assert sum("above 90" in str(text) for text in texts) == 2
    shown = invoke(*given, "--data", "digits", "--json")
    models = json.loads(shown.out)["models"]
    assert models[0]["degrees"] == models[1]["degrees"]
    assert "VR907" in invoke(*given).err
    Path("lora.peft").write_text("model test_vit(num_classes=10)\ntrain head\n")
    again = invoke("show", "angles", "lora.peft", "--out", "a.svg", "--data", "digits")
    assert "VR542" in again.err
