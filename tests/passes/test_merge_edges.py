"""What holds of every pass that makes tokens fewer: batches, export, half precision, refusals."""

from __future__ import annotations

import functools
from typing import Any

import pytest
import timm
import torch

import vitrewrite as vr
from tests.passes.test_merge_tome import image, vit

TOME = "insert merge.tome(r=4) after blocks[*].attn\n"
SPECS = {
    "tome": TOME,
    "bdm": "insert merge.bdm(dropout=0) after blocks[1].attn\n",
    "bsm": "insert merge.bdm(match=bsm) after blocks[1].attn\n",
    "pool": "insert merge.pool(prop_attn=true) after blocks[1].attn\n",
    "unmerge": TOME.replace("*", "0:2") + "insert unmerge() after blocks[2]\n",
}


@pytest.mark.parametrize("name", SPECS)
@torch.no_grad()
def test_batches_of_one_and_of_none(name: str) -> None:
    rewritten, x = vr.apply(SPECS[name], vit(global_pool="avg").eval()), image(batch=3)
    for module in (rewritten.module.eval(), vr.lower(rewritten).module.eval()):
        torch.testing.assert_close(module(x[:1]), module(x)[:1], rtol=1e-4, atol=1e-5)
        assert module(x[:0]).shape == (0, 5)


@pytest.mark.parametrize(
    "name", [pytest.param(n, marks=[] if n == "pool" else pytest.mark.slow) for n in SPECS]
)
@torch.no_grad()
def test_one_graph_and_any_batch(name: str) -> None:
    spec = SPECS[name].replace("blocks[2]", "blocks[1]")
    module: Any = vr.lower(vr.apply(spec, vit(depth=2).eval())).module.eval()
    batch = torch.export.Dim("batch", min=2, max=64)
    exported = torch.export.export(module, (image(batch=3),), dynamic_shapes=({0: batch},)).module()
    compiled = torch.compile(module, backend="eager", fullgraph=True)
    for count in (2, 5):
        torch.testing.assert_close(exported(image(batch=count)), module(image(batch=count)))
    torch.testing.assert_close(compiled(image()), module(image()))


def _noted(sums: list[torch.Tensor], _: Any, given: Any, made: Any) -> None:
    sums.append(made[1].sum(1))


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
@pytest.mark.parametrize("name", ["tome", "bdm", "pool"])
@torch.no_grad()
def test_no_token_is_lost_in_half_precision(name: str, dtype: torch.dtype) -> None:
    """Tokens that stand for more patches than the dtype can count are counted right."""
    spec = SPECS[name].replace("r=4", "r=400")
    if name == "pool":
        spec += TOME.replace("*", "2:").replace("4", "400")
    for options in ({}, {"global_pool": "avg"}):
        rewritten = vr.apply(spec, vit(img_size=144, **options).to(dtype).eval())
        for module in (rewritten.module, vr.lower(rewritten).module):
            sums: list[torch.Tensor] = []
            for each in module.eval().modules():
                if str(getattr(each, "inserted_by", "")).startswith("merge"):
                    each.register_forward_hook(functools.partial(_noted, sums))
            y = module(image(144, 144).to(dtype))
            assert y.dtype == dtype
            assert sums
            assert all(torch.equal(s, torch.full((2,), 1297.0)) for s in sums)


REFUSED = {
    "windows": ("swin_tiny_patch4_window7_224", "within windows of 7x7, which need the whole grid"),
    "a map": ("samvit_base_patch16", "to a map of the patches, which other blocks need whole"),
    "a bias": ("beit_base_patch16_224", "adds a relative position bias"),
}


@pytest.mark.parametrize("name", sorted(REFUSED))
def test_models_that_need_all_tokens(name: str) -> None:
    model, words = REFUSED[name]
    small = {"depths": (1, 1, 1, 1)} if name == "windows" else {"depth": 2}
    base = timm.create_model(model, **small)
    for spec in (SPECS["bdm"], TOME, SPECS["unmerge"].replace("[2]", "[1]")):
        with pytest.raises(vr.VitrewriteError) as caught:
            vr.plan(spec.replace("blocks[1].attn", "blocks[0].attn"), base)
        told = caught.value.render()
        assert "VR410 merge." in told
        assert words in told


@pytest.mark.parametrize("name", ["bdm", "pool"])
def test_patches_that_training_drops(name: str) -> None:
    """What needs the grid is refused; what takes any tokens is not."""
    base = vit(patch_drop_rate=0.5)
    with pytest.raises(vr.VitrewriteError, match=r"VR416 merge.* changes the tokens in training"):
        vr.plan(SPECS[name], base)
    module = vr.apply(SPECS["unmerge"], base).module.train()
    assert module(image()).shape == (2, 5)
