"""Modules are pickled, saved, copied and sent to other processes."""

from __future__ import annotations

import copy
import io
import os
import pickle
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from timm.models.vision_transformer import VisionTransformer
from torch import nn

import vitrewrite as vr

SPEC = "insert lora(rank=2) at blocks[*].attn.{q, v}\ninsert merge.bdm() after blocks[1].attn\n"
IMAGES = torch.randn(2, 3, 16, 16, generator=torch.Generator().manual_seed(0))


def vit() -> nn.Module:
    torch.manual_seed(0)
    return VisionTransformer(
        16, 4, embed_dim=16, depth=3, num_heads=2, num_classes=2, drop_path_rate=0.2
    )


@pytest.fixture(scope="module")
def rewritten() -> Any:
    found = vr.apply(SPEC, vit())
    with torch.no_grad():
        for parameter in found.module.parameters():
            parameter.add_(torch.randn_like(parameter) * 0.1)
    return found


def hook(module: nn.Module, inputs: Any, output: torch.Tensor) -> torch.Tensor:
    return output + 1


def through_torch(module: Any) -> Any:
    file = io.BytesIO()
    torch.save(module, file)
    file.seek(0)
    return torch.load(file, weights_only=False)


WAYS = {
    "pickle": lambda m: pickle.loads(pickle.dumps(m)),
    "torch.save": through_torch,
    "deepcopy": copy.deepcopy,
}


@pytest.mark.parametrize("way", WAYS)
@pytest.mark.parametrize("kind", ["captured", "rewritten", "lowered"])
def test_round_trip(way: str, kind: str, rewritten: Any) -> None:
    made = {
        "captured": lambda: vr.capture(vit()), "rewritten": lambda: copy.deepcopy(rewritten.module),
        "lowered": lambda: vr.lower(rewritten).module,
    }  # fmt: skip
    module = made[kind]()
    module.get_submodule("blocks.1").eval()
    module.get_submodule("norm").weight.requires_grad_(False)
    module.get_submodule("norm").register_forward_hook(hook)
    twin = WAYS[way](module)
    same_module(module, twin)
    assert list(twin.graphs) == list(module.graphs)
    assert [str(g) for g in twin.graphs.values()] == [str(g) for g in module.graphs.values()]
    assert torch.equal(twin.flat().eval()(IMAGES), module.eval()(IMAGES))


def same_module(module: Any, twin: Any) -> None:
    assert type(twin).__name__ == type(module).__name__
    assert [n for n, _ in twin.named_modules()] == [n for n, _ in module.named_modules()]
    assert [m.training for m in twin.modules()] == [m.training for m in module.modules()]
    for (name, a), (other, b) in zip(
        (*module.named_parameters(), *module.named_buffers()),
        (*twin.named_parameters(), *twin.named_buffers()),
        strict=True,
    ):
        assert (name, a.requires_grad, a.dtype) == (other, b.requires_grad, b.dtype)
        assert torch.equal(a, b)
        assert a.data_ptr() != b.data_ptr() or not a.numel()
    assert list(twin.state_dict()) == list(module.state_dict())
    for mode in (True, False):
        results = []
        for each in (module, twin):
            torch.manual_seed(1)
            kept = [m.training for m in each.modules()]
            results.append(each.train(mode)(IMAGES))
            for m, training in zip(each.modules(), kept, strict=True):
                m.training = training
        assert torch.equal(*results)


def test_equal_blocks_share_a_class_and_ties_stay() -> None:
    module = vr.capture(vit())
    module.head.weight = module.get_submodule("head").weight
    for twin in (copy.deepcopy(module), pickle.loads(pickle.dumps(module))):
        kinds = {type(block) for block in twin.blocks}
        assert len(kinds) == 1
        assert kinds == {type(module.blocks[0])}
    alone = pickle.loads(pickle.dumps(module.blocks[0]))
    x = torch.randn(1, 5, 16)
    assert torch.equal(alone.eval()(x), module.blocks[0].eval()(x))


def test_a_rewritten_goes_on_after_a_round_trip(rewritten: Any, tmp_path: Path) -> None:
    twin = pickle.loads(pickle.dumps(rewritten))
    assert twin.report == rewritten.report
    assert twin.delta().keys() == rewritten.delta().keys()
    assert all(torch.equal(v, rewritten.delta()[k]) for k, v in twin.delta().items())
    folder, other = vr.emit(twin, tmp_path / "a"), vr.emit(rewritten, tmp_path / "b")
    assert (folder / "model.py").read_bytes() == (other / "model.py").read_bytes()
    lowered = vr.lower(twin).module.eval()
    assert torch.equal(lowered(IMAGES), vr.lower(rewritten).module.eval()(IMAGES))
    with torch.no_grad():
        next(iter(twin.delta().values())).add_(1)
    assert not torch.equal(twin.module.eval()(IMAGES), rewritten.module.eval()(IMAGES))


_ELSEWHERE = """
import sys, torch
found = torch.load(sys.argv[1], weights_only=False)
outputs = [m.eval()(found["x"]) for m in (found["captured"], found["rewritten"])]
torch.save([o.detach() for o in outputs], sys.argv[2])
"""


def test_another_process(rewritten: Any, tmp_path: Path) -> None:
    captured = vr.capture(vit())
    torch.save({"captured": captured, "rewritten": rewritten.module, "x": IMAGES}, tmp_path / "in")
    command = [sys.executable, "-c", _ELSEWHERE, str(tmp_path / "in"), str(tmp_path / "out")]
    subprocess.run(command, check=True, env={**os.environ, "OMP_NUM_THREADS": "1"})
    first, second = torch.load(tmp_path / "out")
    assert torch.equal(first, captured.eval()(IMAGES))
    assert torch.equal(second, rewritten.module.eval()(IMAGES))


def test_weights_only_refuses(rewritten: Any) -> None:
    file = io.BytesIO()
    torch.save(rewritten.module, file)
    file.seek(0)
    with pytest.raises(pickle.UnpicklingError):
        torch.load(file)


def test_a_hook_on_one_model_is_on_that_alone() -> None:
    found = vr.apply(SPEC, vit())
    wanted = found.module.eval()(IMAGES)
    lowered = vr.lower(found).module
    lowered.get_submodule("norm").register_forward_hook(hook)
    found.base.get_submodule("norm").register_forward_hook(hook)
    assert torch.equal(found.module.eval()(IMAGES), wanted)


@pytest.mark.filterwarnings("ignore")
def test_scripting_is_refused_in_one_line() -> None:
    with pytest.raises(vr.VitrewriteError, match=r"VR607 VisionTransformer was captured"):
        torch.jit.script(vr.capture(vit()))
