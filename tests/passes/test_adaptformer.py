"""The `adaptformer` pass: the authors' numbers, properties, bad input, lowering, composition."""

from __future__ import annotations

from itertools import permutations
from typing import Any

import pytest
import timm
import torch
import torch.nn.functional as F
from hypothesis import given
from hypothesis import strategies as st
from torch import nn

import vitrewrite as vr
from tests import goldens
from tests.lowering.models import fill, vit
from tests.models import DEAR, spread, tiny_vit
from vitrewrite.rewrite.rewritten import Rewritten

SPEC = "insert adaptformer(hidden=8, scale=0.6, dropout=0) at blocks[*].mlp_branch\ntrain head\n"
IMAGES = torch.randn(2, 3, 16, 16, generator=torch.Generator().manual_seed(1))


def test_golden_outputs_and_gradients() -> None:
    case = goldens.case("adaptformer")
    rewritten = vr.apply(SPEC, case.base())
    names = {name: name.replace(".adaptformer.", ".") for name in rewritten.delta()}
    methods = {k.removeprefix("method.") for k in case.tensors if k.startswith("method.")}
    assert methods == {n for n in names.values() if not n.startswith("head.")}
    for name, tensor in rewritten.delta().items():
        if names[name] in methods:
            tensor.copy_(case.tensors[f"method.{names[name]}"])
    with torch.no_grad():
        case.close(rewritten.module.eval()(case.tensors["input"]), "output")
        case.close(vr.lower(rewritten).module(case.tensors["input"]), "output")
    case.gradients_close({names[k]: v for k, v in case.gradients_of(rewritten).items()})


# -- properties -----------------------------------------------------------------------------------


def adapted(x: torch.Tensor, delta: dict[str, torch.Tensor], path: str, s: float) -> torch.Tensor:
    down, up = (delta[f"{path}.adaptformer.{n}"] for n in ("down", "up"))
    biases = (delta.get(f"{path}.adaptformer.{n}_bias") for n in ("down", "up"))
    first, second = biases
    return s * F.linear(F.relu(F.linear(x, down, first)), up, second)


def beside_mlp(model: Any, norm: str, delta: dict[str, torch.Tensor], s: float) -> Any:
    """The user's own model: what enters a norm is the stream, what leaves the block is changed."""
    for path in [n.removesuffix(".adaptformer.down") for n in delta if n.endswith(".down")]:
        streams: list[Any] = []
        block = model.get_submodule(path)
        block.get_submodule(norm).register_forward_pre_hook(
            lambda _, args, kept=streams: kept.append(args[0])
        )
        block.register_forward_hook(
            lambda _, args, y, path=path, kept=streams: (
                y + adapted(kept.pop(), delta, path, s).view_as(y)
            )
        )
    return model.eval()


FAMILIES = {
    "swin_tiny_patch4_window7_224": {"depths": (1, 1, 2, 1)},
    "deit3_small_patch16_224": {"depth": 2, "embed_dim": 48, "num_heads": 3},
    "beit_base_patch16_224": {"depth": 1, "embed_dim": 48, "num_heads": 3},
    "vit_small_patch14_reg4_dinov2": {"depth": 2, "img_size": 224},
}


@pytest.mark.parametrize("name", FAMILIES)
@torch.no_grad()
def test_it_reads_the_stream_before_the_norm(name: str) -> None:
    """Outside of layer scale, where the model has one; widths are those of each stage."""
    torch.manual_seed(0)
    model = spread(timm.create_model(name, num_classes=5, **FAMILIES[name])).eval()
    spec = "insert adaptformer(hidden=3, scale=0.5, bias=true) at blocks[*].mlp_branch\n"
    rewritten = fill(vr.apply(spec, model))
    x = torch.randn(2, 3, 224, 224, generator=torch.Generator().manual_seed(1))
    expected = beside_mlp(model, "norm2", rewritten.delta(), 0.5)(x)
    torch.testing.assert_close(rewritten.module.eval()(x), expected, rtol=1e-4, atol=1e-5)


@torch.no_grad()
def test_on_maps_of_channels() -> None:
    torch.manual_seed(0)
    model = spread(timm.create_model("convnext_atto", depths=(1, 1, 1, 1), num_classes=5)).eval()
    rewritten = fill(vr.apply("insert adaptformer(scale=1) at every branch\n", model))
    delta = rewritten.delta()
    for path in [n.removesuffix(".adaptformer.down") for n in delta if n.endswith(".down")]:
        model.get_submodule(path).register_forward_hook(
            lambda _, args, y, path=path: (
                y + adapted(args[0].movedim(1, -1), delta, path, 1.0).movedim(-1, 1)
            )
        )
    x = torch.randn(2, 3, 64, 64)
    torch.testing.assert_close(rewritten.module.eval()(x), model(x), rtol=1e-4, atol=1e-5)


@DEAR
@given(data=st.data(), seed=st.integers(0, 99))
def test_properties_over_random_vits(data: st.DataObject, seed: int) -> None:
    model = data.draw(tiny_vit())
    hidden = data.draw(st.integers(1, 9), label="hidden")
    bias = data.draw(st.booleans(), label="bias")
    branch = data.draw(st.sampled_from(["mlp_branch", "attn_branch"]))
    options = f"hidden={hidden}, bias={str(bias).lower()}"
    rewritten = vr.apply(f"insert adaptformer({options}) at blocks[*].{branch}\n", model, seed=seed)
    each = 2 * 16 * hidden + (hidden + 16 if bias else 0)
    assert rewritten.report["params"]["trainable"] == each * len(model.blocks)
    vr.verify(rewritten, graphs=False)


def test_dropout_acts_in_training_only() -> None:
    rewritten = fill(vr.apply("insert adaptformer(dropout=0.5) at blocks[*].mlp_branch\n", vit()))
    assert not torch.equal(rewritten.module.train()(IMAGES), rewritten.module(IMAGES))
    assert torch.equal(rewritten.module.eval()(IMAGES), rewritten.module(IMAGES))


@pytest.mark.parametrize(
    ("options", "count"),
    [
        ("", 147_456), (", bias=true", 156_768), (", form=original", 156_768),
        (", form=original, bias=false", 147_456), (", form=peer", 156_768 + 12 * 1536),
    ],
)  # fmt: skip
def test_counts_of_the_card_on_vit_base(options: str, count: int) -> None:
    spec = f"insert adaptformer(hidden=8{options}) at blocks[*].mlp_branch\n"
    plan = vr.plan(spec, "vit_base")
    assert plan.measures.params.trainable == count
    assert plan.measures.macs - plan.measures.macs_base == 12 * 2 * 768 * 8 * 197


@pytest.mark.parametrize(
    ("options", "hidden", "scale", "bias", "norm"),
    [
        ("", 8, 1.0, False, False),
        ("form=original", 64, 0.1, True, False),
        ("form=peer", 64, 0.1, True, True),
        ("form=peer, hidden=4, scale=0.5, bias=false", 4, 0.5, False, True),
        ("form=original, norm=true", 64, 0.1, True, True),
    ],
)
def test_a_form_sets_what_is_not_set(
    options: str, hidden: int, scale: float, bias: bool, norm: bool
) -> None:
    model = timm.create_model("vit_tiny_patch16_224", depth=1)
    rewritten = vr.apply(f"insert adaptformer({options}) at blocks[0].mlp_branch\n", model)
    made: Any = rewritten.module.get_submodule("blocks.0.adaptformer")
    assert (made.hidden, made.scale, made.bias, made.norm is not None) == (
        hidden, scale, bias, norm,
    )  # fmt: skip


@torch.no_grad()
def test_a_norm_of_its_own_reads_the_stream_first() -> None:
    """Its eps is that of torch's, not that of the model."""
    model = vit().eval()
    rewritten = fill(
        vr.apply("insert adaptformer(form=peer, hidden=3) at blocks[1].mlp_branch\n", model)
    )
    delta = rewritten.delta()
    weight, bias = (delta[f"blocks.1.adaptformer.norm.{n}"] for n in ("weight", "bias"))
    kept: list[torch.Tensor] = []
    block: Any = model.blocks[1]
    block.norm2.register_forward_pre_hook(lambda _, args: kept.append(args[0]))
    block.register_forward_hook(
        lambda _, args, y: (
            y + adapted(F.layer_norm(kept.pop(), (16,), weight, bias, 1e-5), delta, "blocks.1", 0.1)
        )
    )
    for module in (rewritten.module.eval(), vr.lower(rewritten).module):
        torch.testing.assert_close(module(IMAGES), model(IMAGES), rtol=1e-4, atol=1e-5)
        kept.clear()


# -- bad input ------------------------------------------------------------------------------------

BAD = [
    ("insert adaptformer(hidden=0) at blocks[0].mlp_branch\n", "VR203", "hidden"),
    ("insert adaptformer() at blocks[0].mlp.fc1\n", "VR406", "attaches to branch"),
    ("insert adaptformer() at blocks[0].conv_branch\n", "VR301", "has no site 'conv_branch'"),
    ("insert adaptformer() at blocks[*].mlp_branch + every branch\n", "VR303", "selected twice"),
    ("insert adaptformer() at every branch\ninsert adaptformer() at blocks[1].mlp_branch\n",
     "VR401", "two clauses put adaptformer at 'blocks[1].mlp_branch'"),
    ("insert adaptformer() at every branch where dim > 99\n", "VR302", "matches nothing"),
]  # fmt: skip


@pytest.mark.parametrize(("spec", "code", "message"), BAD, ids=[b[1] + b[2][:12] for b in BAD])
def test_bad_input_is_one_clear_error(spec: str, code: str, message: str) -> None:
    with pytest.raises(vr.VitrewriteError) as caught:
        vr.apply(spec, vit())
    assert caught.value.code == code
    assert message in caught.value.render()


def test_side_by_side_there_is_no_stream_in_between() -> None:
    block = timm.models.vision_transformer.ParallelThingsBlock
    model = timm.models.vision_transformer.VisionTransformer(
        img_size=16, patch_size=4, embed_dim=16, depth=1, num_heads=2, block_fn=block
    )
    spec = "insert adaptformer() at every branch\n"
    assert vr.apply(spec, model).report["params"]["trainable"] > 0  # two halves, each of two


class Beside(nn.Module):
    """x + attn(norm(x)) + mlp(norm(x))."""

    def __init__(self, block: Any) -> None:
        super().__init__()
        self.norm1, self.attn, self.mlp = block.norm1, block.attn, block.mlp

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        y = self.norm1(x)
        return x + self.attn(y) + self.mlp(y)


def test_attention_and_mlp_side_by_side_are_refused() -> None:
    model = vit()
    model.blocks[0] = Beside(model.blocks[0])
    with pytest.raises(vr.VitrewriteError, match=r"VR410 .*not made of the stream"):
        vr.apply("insert adaptformer() at blocks[0].mlp_branch\n", model)


def test_no_bottleneck_is_warned_about() -> None:
    rewritten = vr.apply("insert adaptformer(hidden=16) at blocks[0].mlp_branch\n", vit())
    assert any("no bottleneck of 16 channels" in w for w in rewritten.report["warnings"])


def test_applying_twice_is_detected() -> None:
    once = vr.apply("insert adaptformer() at blocks[*].mlp_branch\n", vit())
    example = torch.zeros(1, 3, 16, 16)
    with pytest.raises(vr.VitrewriteError, match="VR402"):
        vr.apply("insert adaptformer() at blocks[0].mlp_branch\n", once.module, example=example)
    other = vr.apply(
        "insert adaptformer() at blocks[0].attn_branch\n", once.module, example=example
    )
    assert list(other.delta()) == [f"blocks.0.attn_branch.adaptformer.{n}" for n in ("down", "up")]


# -- lowering -------------------------------------------------------------------------------------


@torch.no_grad()
def test_lowering_takes_the_scale_into_up() -> None:
    spec = "insert adaptformer(scale=0.25, bias=true) at blocks[*].mlp_branch\n"
    rewritten = fill(vr.apply(spec, vit()))
    lowered = vr.lower(rewritten)
    torch.testing.assert_close(lowered.module(IMAGES), rewritten.module.eval()(IMAGES))
    before, after = rewritten.delta(), lowered.delta()
    for name, tensor in before.items():
        factor = 0.25 if ".up" in name else 1.0
        assert torch.equal(after[name], factor * tensor)
    vr.verify(lowered, graphs=False)


@torch.no_grad()
def test_nothing_is_left_of_a_branch_of_scale_zero() -> None:
    rewritten = fill(vr.apply("insert adaptformer(scale=0) at every branch\n", vit()))
    lowered = vr.lower(rewritten)
    assert torch.equal(lowered.module(IMAGES), vit().eval()(IMAGES))
    assert lowered.module.state_dict().keys() == vit().state_dict().keys()


# -- other clauses beside it ----------------------------------------------------------------------

CLAUSES = (
    "insert adaptformer(hidden=3, scale=1, dropout=0) at blocks[*].mlp_branch",
    "insert lora(rank=2, dropout=0) at blocks[*].mlp.fc2",
    "insert ssf() at blocks[*].mlp.{fc1, fc2} + blocks[*].norm2",
    "insert merge.bdm(dropout=0) after blocks[1].attn",
)


def together(order: tuple[int, ...]) -> Rewritten:
    return fill(vr.apply("\n".join(CLAUSES[i] for i in order) + "\n", vit()))


@pytest.mark.parametrize("order", list(permutations(range(4)))[1::4])
@torch.no_grad()
def test_every_order_is_the_same_model(order: tuple[int, ...]) -> None:
    """It reads merged tokens where a merge is, and what is in the MLP is none of its business."""
    first, other = together(tuple(range(4))), together(order)
    result = first.module.eval()(IMAGES)
    assert first.delta().keys() == other.delta().keys()
    torch.testing.assert_close(other.module.eval()(IMAGES), result, rtol=1e-4, atol=1e-5)
    torch.testing.assert_close(vr.lower(other).module(IMAGES), result, rtol=1e-4, atol=1e-4)


@pytest.mark.slow
def test_all_together_verifies() -> None:
    vr.verify(together((0, 1, 2, 3)))
