"""Pooling by the patches that tokens stand for: timm's own, on each token as often as that."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import timm
import torch

import vitrewrite as vr
from tests.authored import install
from tests.models import spread

SMALL = {"img_size": 32, "patch_size": 8, "embed_dim": 16, "depth": 2, "num_heads": 2,
         "num_classes": 3}  # fmt: skip
MERGE = "insert merge.tome(r=3, prop_attn=false) after blocks[*].attn\n"
POOLS: dict[str, dict[str, Any]] = {
    "attention": {"global_pool": "map", "class_token": False},
    "attention, others cut off": {"global_pool": "map", "class_token": True, "reg_tokens": 2},
    "mean": {"global_pool": "avg"},
    "mean and maximum": {"global_pool": "avgmax"},
    "maximum": {"global_pool": "max"},
}


def vit(**options: Any) -> Any:
    torch.manual_seed(0)
    return spread(timm.create_model("vit_tiny_patch16_224", **{**SMALL, **options})).eval()


def image() -> torch.Tensor:
    return torch.randn(1, 3, 32, 32, generator=torch.Generator().manual_seed(1))


@torch.no_grad()
def both(spec: str, model: Any) -> tuple[torch.Tensor, torch.Tensor]:
    """What a rewritten model yields, and timm's head of its tokens as often as they count."""
    module: Any = vr.apply(spec, model).module.eval()
    seen: list[Any] = []
    merges = [m for m in module.modules() if hasattr(m, "match")]
    for each in (merges[-1], module.blocks[-1]):
        each.register_forward_hook(lambda _m, _x, y: seen.append(y))
    found = module(image())
    (_, size), last = seen
    tokens = model.norm(last[0] if isinstance(last, tuple) else last)[0]
    joined = torch.ones(len(tokens) - size.shape[1], dtype=torch.long)
    size = torch.cat([joined, size[0].long()])
    return found, model.forward_head(tokens.repeat_interleave(size, 0)[None])


@pytest.mark.parametrize("name", POOLS)
def test_a_merged_token_weighs_as_the_patches_that_it_stands_for(name: str) -> None:
    model = vit(**POOLS[name])
    torch.testing.assert_close(*both(MERGE, model), rtol=1e-4, atol=1e-5)
    said = MERGE.replace("=false", "=false, prop_pool=true")
    assert not vr.plan(said, model).warnings


@pytest.mark.parametrize("name", ["attention", "mean"])
def test_prompts_that_join_later_count_once(name: str) -> None:
    spec = MERGE.replace("*", "0") + "prepend prompt(count=2) to blocks[1]\n"
    torch.testing.assert_close(*both(spec, vit(**POOLS[name])), rtol=1e-4, atol=1e-5)


@torch.no_grad()
def test_behind_blocks_that_are_gone() -> None:
    spec = "drop blocks[0]\n" + MERGE.replace("*", "1")
    whole, half = vit(**POOLS["mean"]), vit(**POOLS["mean"])
    del half.blocks[0]
    same = vr.apply(MERGE.replace("*", "0"), half).module.eval()(image())
    assert torch.equal(vr.apply(spec, whole).module.eval()(image()), same)


STATES = """
from vitrewrite.authoring import HeadSite

@dataclass(frozen=True)
class States{number}(Pass):
    verbs: ClassVar[tuple[str, ...]] = ("insert at",)
    attaches: ClassVar[tuple[str, ...]] = ("head",)
    value: bool = True

    def rewrite(self, head: HeadSite) -> None:
        assert head.pooling == ("mean",)
        head.state("in_pooling", self.value, "value")
"""


def test_any_pass_may_say_it(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    install(monkeypatch, tmp_path, states=STATES.format(number=""))
    model = vit(global_pool="avg")
    bdm = "insert merge.bdm(prop_attn=false) after blocks[0].attn\n"  # prop_pool is false there
    plans = {}
    for says in ("", "insert states() at head\n", "insert states(value=false) at head\n"):
        plan = vr.plan(bdm + says, model)
        plans[says] = plan.to_json()["sizes"]["in_pooling"], str(plan)
    assert [value for value, _ in plans.values()] == [False, True, False]
    assert "count in pooling (line 2, by default)" in plans["insert states() at head\n"][1]
    said = "insert states(value=true) at head\n"
    with pytest.raises(vr.VitrewriteError, match=r"VR418.*sizes of tokens count in pooling") as got:
        vr.plan(bdm.replace("false", "false, prop_pool=false") + said, model)
    assert "merge.bdm" in str(got.value)
    assert "states(value=true)" in str(got.value)


def test_a_pooling_that_is_not_known_is_refused_by_name() -> None:
    class Summed(torch.nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.model = vit()

        def forward(self, x: torch.Tensor) -> Any:
            tokens = self.model.forward_features(x)
            return self.model.head(tokens.sum(1) / tokens.norm(dim=(1, 2))[:, None])

    said = MERGE.replace("=false", "=false, prop_pool=true")
    with pytest.raises(vr.VitrewriteError, match=r"VR410 merge\.tome has sizes of tokens") as got:
        vr.plan(said, Summed().eval(), example=image())
    assert "how Summed pools its tokens is not known" in got.value.message
    assert "prop_pool=false" in str(got.value)
    (warning,) = vr.plan(MERGE, Summed().eval(), example=image()).warnings
    assert "how Summed pools its tokens is not known, and merged ones count once" in warning
