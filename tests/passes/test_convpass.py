"""The `convpass` pass: the authors' numbers, grids, tokens in front, training, bad input."""

from __future__ import annotations

from typing import Any

import pytest
import torch
import torch.nn.functional as F
from timm.models.vision_transformer import VisionTransformer
from torch import nn

import vitrewrite as vr
from tests.lowering.models import fill, vit
from tests.passes.by_hand import golden, images, small, tensors
from vitrewrite.rewrite.rewritten import Rewritten

SPEC = "insert convpass(hidden=3, scale=0.5, dropout=0) at every branch\n"
IMAGES = torch.randn(2, 3, 16, 16, generator=torch.Generator().manual_seed(1))


def test_golden() -> None:
    def named(name: str) -> str:
        return name.replace(".attn_branch.convpass.", ".attn.").replace(".convpass.", ".mlp.")

    spec = "insert convpass(hidden=8, scale=0.7, dropout=0) at every branch\ntrain head\n"
    golden("convpass", spec, named)


def gelu(x: torch.Tensor) -> torch.Tensor:
    return x * torch.sigmoid(1.702 * x)


def bypass(z: torch.Tensor, delta: dict[str, torch.Tensor], grid: tuple[int, int]) -> torch.Tensor:
    """By hand: every token in front is an image of 1x1."""
    code = gelu(F.linear(z, delta["down.weight"], delta["down.bias"]))
    kernel = delta["conv.weight"], delta["conv.bias"]
    patches = code[:, -grid[0] * grid[1] :].transpose(1, 2)
    patches = patches.reshape(*patches.shape[:2], *grid)
    made = [
        F.conv2d(code[:, i, :, None, None], *kernel, padding=1)[:, :, 0, 0]
        for i in range(code.shape[1] - grid[0] * grid[1])
    ]
    made += F.conv2d(patches, *kernel, padding=1).flatten(2).unbind(2)
    return 0.5 * F.linear(gelu(torch.stack(made, 1)), delta["up.weight"], delta["up.bias"])


def with_bypasses(model: Any, rewritten: Rewritten, grids: dict[str, tuple[int, int]]) -> Any:
    """The user's own model: what a norm yields is added behind the drop path of its branch."""
    for block, grid in grids.items():
        held = model.get_submodule(block)
        for number, path in ((1, f"{block}.attn_branch.convpass"), (2, f"{block}.convpass")):
            kept: list[torch.Tensor] = []
            delta = tensors(rewritten, path)

            def add(
                _m: Any, _x: Any, y: torch.Tensor, kept: Any = kept, d: Any = delta, g: Any = grid
            ) -> torch.Tensor:
                z = kept.pop()
                flat = z.flatten(1, 2) if z.dim() == 4 else z
                return y + bypass(flat, d, g).view_as(y)

            held.get_submodule(f"norm{number}").register_forward_hook(
                lambda _m, _x, z, kept=kept: kept.append(z)
            )
            held.get_submodule(f"drop_path{number}").register_forward_hook(add)
    return model


GRIDS = {
    "deit_tiny_distilled_patch16_224": {"blocks.0": (4, 4), "blocks.1": (4, 4)},
    "beit_base_patch16_224": {"blocks.0": (4, 4), "blocks.1": (4, 4)},
    "vit_small_patch14_reg4_dinov2": {"blocks.0": (4, 4), "blocks.1": (4, 4)},
    "vit_small_patch16_dinov3": {"blocks.0": (4, 4), "blocks.1": (4, 4)},
    "eva02_tiny_patch14_224": {"blocks.0": (4, 4), "blocks.1": (4, 4)},
    "swin_tiny_patch4_window7_224": {
        "layers.0.blocks.0": (16, 16), "layers.1.blocks.0": (8, 8), "layers.1.blocks.1": (8, 8),
    },
    "pvt_v2_b0": {
        f"stages.{s}.blocks.{i}": (side, side)
        for s, side in enumerate((16, 8, 4, 2))
        for i in range(2)
    },
}  # fmt: skip


@pytest.mark.parametrize("name", GRIDS)
@torch.no_grad()
def test_it_reads_the_norm_and_convolves_the_patches(name: str) -> None:
    model = small(name)
    rewritten = fill(vr.apply(SPEC, model))
    x = images(model)
    found = rewritten.module.eval()(x), vr.lower(rewritten).module(x)
    expected = with_bypasses(model, rewritten, GRIDS[name])(x)
    for made in found:
        torch.testing.assert_close(made, expected, rtol=1e-4, atol=1e-4)


def test_tokens_in_front_are_told() -> None:
    told = vr.plan(SPEC, small("vit_small_patch16_dinov3")).warnings
    assert any("5 tokens in front of the patches is convolved alone" in w for w in told)
    assert not any("in front" in w for w in vr.plan(SPEC, vit()).warnings)


@torch.no_grad()
def test_the_grid_follows_the_size_where_the_model_takes_any() -> None:
    torch.manual_seed(0)
    options: dict[str, Any] = {"img_size": 32, "patch_size": 8, "embed_dim": 16, "depth": 2}
    model = VisionTransformer(**options, num_heads=2, num_classes=5, dynamic_img_size=True).eval()
    rewritten = fill(vr.apply(SPEC, model))
    assert "grid=" not in rewritten.source.text.partition("class Block")[2]
    hooked: Any = None
    for sides in ((32, 32), (16, 48)):
        x = torch.randn(2, 3, *sides, generator=torch.Generator().manual_seed(0))
        found = rewritten.module.eval()(x), vr.lower(rewritten).module(x)
        grid = sides[0] // 8, sides[1] // 8
        hooked = VisionTransformer(
            **options, num_heads=2, num_classes=5, dynamic_img_size=True
        ).eval()
        hooked.load_state_dict(model.state_dict())
        expected = with_bypasses(hooked, rewritten, {"blocks.0": grid, "blocks.1": grid})(x)
        for made in found:
            torch.testing.assert_close(made, expected, rtol=1e-4, atol=1e-5)
    vr.verify(rewritten, graphs=False)


@torch.no_grad()
def test_the_drop_path_draws_anew_for_the_bypass() -> None:
    """Of a sample whose branch is dropped the bypass may stay, and the other way round."""
    model = VisionTransformer(
        img_size=16,
        patch_size=4,
        embed_dim=16,
        depth=2,
        num_heads=2,
        num_classes=5,
        drop_path_rate=0.5,
    )
    rewritten = fill(vr.apply(SPEC, model))
    last: Any = rewritten.module.get_submodule("blocks.1")
    draws: list[torch.Tensor] = []
    last.drop_path2.register_forward_hook(
        lambda _m, x, y: draws.append(y.flatten(1).abs().sum(1) == 0)
    )
    torch.manual_seed(0)
    rewritten.module.train()(torch.randn(32, 3, 16, 16))
    assert len(draws) == 2
    assert not torch.equal(*draws)
    assert all(0 < int(d.sum()) < 32 for d in draws)


@torch.no_grad()
def test_it_sees_what_is_behind_the_norm_whatever_the_order() -> None:
    """SSF on the norm is seen, and adapters inside of the branch are another thing."""
    clauses = (
        SPEC.strip(),
        "insert ssf() at blocks[*].{norm1, norm2}",
        "insert adapter(hidden=2) at every branch",
        "insert adaptformer(hidden=2, dropout=0) at blocks[*].mlp_branch",
    )
    found = [
        fill(vr.apply("\n".join(order) + "\n", vit())).module.eval()(IMAGES)
        for order in (clauses, clauses[::-1])
    ]
    torch.testing.assert_close(*found, rtol=1e-4, atol=1e-5)


def test_values_at_the_start() -> None:
    named = dict(
        vr.apply("insert convpass(conv=identity) at blocks[0].mlp_branch\n", vit()).delta()
    )
    prefix = "blocks.0.convpass"
    kernel = torch.zeros(8, 8, 3, 3)
    kernel[range(8), range(8), 1, 1] = 1
    assert torch.equal(named[f"{prefix}.conv.weight"], kernel)
    drawn = vr.apply("insert convpass() at blocks[0].mlp_branch\n", vit()).delta()
    for layer, bound in (("down", (6 / 24) ** 0.5), ("conv", (6 / 144) ** 0.5)):
        weight = drawn[f"{prefix}.{layer}.weight"]
        assert 0.9 * bound < float(weight.abs().max()) <= bound
    assert all(not drawn[f"{prefix}.{n}"].any() for n in ("up.weight", "up.bias", "conv.bias"))


def test_counts_of_the_card_on_vit_base() -> None:
    plan = vr.plan("insert convpass() at every branch\n", "vit_base")
    assert plan.measures.params.trainable == 327_552
    added = plan.measures.macs - plan.measures.macs_base
    assert added == 24 * (2 * 768 * 8 * 197 + 576 * 196 + 64)  # of the class token, the middle
    one = vr.plan("insert convpass() at blocks[*].attn_branch\n", "vit_base")
    assert one.measures.params.trainable == 163_776


@torch.no_grad()
def test_nothing_is_left_of_scale_zero() -> None:
    rewritten = fill(vr.apply("insert convpass(scale=0) at every branch\n", vit()))
    lowered = vr.lower(rewritten)
    assert torch.equal(lowered.module(IMAGES), vit().eval()(IMAGES))
    assert lowered.module.state_dict().keys() == vit().state_dict().keys()


class Unfolding(nn.Module):
    """Blocks on tokens that no map is made for."""

    def __init__(self) -> None:
        super().__init__()
        self.patch = nn.Linear(48, 16)
        self.blocks = nn.ModuleList(vit().blocks[:2])
        self.head = nn.Linear(16, 5)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        x = self.patch(F.unfold(x, 4, stride=4).transpose(1, 2))
        for block in self.blocks:
            x = block(x)
        result: torch.Tensor = self.head(x.mean(1))
        return result


def test_bad_input_is_one_clear_error() -> None:
    merge = "insert merge.bdm() after blocks[1].attn\n"
    cases: list[tuple[str, Any, str]] = [
        (SPEC + merge, vit(), r"VR410 .*'blocks\[1\].mlp_branch': no full grid of patches is left"),
        (SPEC, small("swinv2_tiny_window8_256"), "VR410 .*no norm reads the stream in front"),
        (SPEC, small("convnext_atto"), "VR410 .*no norm reads the stream in front"),
        (SPEC, Unfolding(), "VR410 .*no full grid of patches"),
        ("insert convpass(hidden=0) at every branch\n", vit(), "VR203 .*hidden"),
        ("insert convpass() at blocks[0].attn\n", vit(), "VR406 .*attaches to branch"),
        ("insert convpass(conv=zeros) at every branch\n", vit(), "VR20. .*zeros"),
    ]
    for spec, model, message in cases:
        with pytest.raises(vr.VitrewriteError, match=message) as caught:
            vr.apply(spec, model, example=images(model) if spec == SPEC else None)
        if merge in spec:
            assert "merged by" in caught.value.render()


def test_in_front_of_a_merge_and_with_prompts() -> None:
    """Before the merge the grid is whole; prompts are tokens in front, convolved alone."""
    merge = "insert merge.bdm(dropout=0) after blocks[2].attn\n"
    early = "insert convpass(hidden=3, dropout=0) at blocks[0:2].{attn_branch, mlp_branch}\n"
    vr.verify(fill(vr.apply(merge + early, vit())), graphs=False)
    prompts = "prepend prompt(count=3) to blocks[*]\n"
    rewritten = fill(vr.apply(SPEC + prompts, vit()))
    assert any("4 tokens in front" in w for w in rewritten.report["warnings"])
    vr.verify(rewritten, graphs=False)


def test_applying_twice_is_detected() -> None:
    once = vr.apply(SPEC, vit()).module
    example = torch.zeros(1, 3, 16, 16)
    with pytest.raises(vr.VitrewriteError, match="VR402"):
        vr.apply("insert convpass() at blocks[0].attn_branch\n", once, example=example)
    vr.apply("insert adapter() at every branch\n", once, example=example)


@pytest.mark.slow
def test_it_verifies() -> None:
    vr.verify(fill(vr.apply(SPEC, vit())))
    vr.verify(fill(vr.apply(SPEC, small("pvt_v2_b0"))), graphs=False)
