"""The passes of `bi`: the authors' numbers, counts, dtypes, lowering, bad input, composition."""

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import Any

import pytest
import timm
import torch
import torch.nn.functional as F
from hypothesis import given, settings
from hypothesis import strategies as st

import vitrewrite as vr
from tests import goldens
from tests.lowering.models import fill, vit
from tests.models import spread, tiny_vit
from vitrewrite.rewrite.rewritten import Rewritten

OPTIONS = "scale=0.8, dropout=0"
SPECS = {
    "bi-lora-bit1": f"insert bi.lora(rank=8, {OPTIONS}) at blocks[*].attn.{{q, v}}\ntrain head\n",
    "bi-adaptformer-bit1": (
        f"insert bi.adaptformer(hidden=8, {OPTIONS}) at blocks[*].mlp_branch\ntrain head\n"
    ),
}
IMAGES = torch.randn(2, 3, 16, 16, generator=torch.Generator().manual_seed(1))


def golden_name(name: str) -> str:
    """The case's name of a tensor of a delta."""
    return name.replace("attn.", "").replace("bi.lora.", "").replace("bi.adaptformer.", "")


def from_case(name: str) -> tuple[Rewritten, goldens.Case]:
    case = goldens.case(name)
    rewritten = vr.apply(SPECS[name], case.base())
    given = {k.removeprefix("method."): v for k, v in case.tensors.items() if "method." in k}
    own = {golden_name(k): v for k, v in rewritten.delta().items()}
    assert given.keys() == {n for n in own if not n.startswith("head.")}
    for key, tensor in given.items():
        own[key].copy_(tensor)
    return rewritten, case


@pytest.mark.parametrize("name", SPECS)
def test_golden_outputs_and_gradients(name: str) -> None:
    rewritten, case = from_case(name)
    with torch.no_grad():
        case.close(rewritten.base(case.tensors["input"]), "output_base")
        case.close(rewritten.module.eval()(case.tensors["input"]), "output")
        case.close(vr.lower(rewritten).module(case.tensors["input"]), "output_reloaded")
    case.gradients_close({golden_name(k): v for k, v in case.gradients_of(rewritten).items()})


# -- the model of the card ------------------------------------------------------------------------


@functools.cache
def levels(bits: int) -> torch.Tensor:
    """The levels, by another way than the code: bisection of the normal distribution."""
    normal = torch.distributions.Normal(
        torch.zeros((), dtype=torch.float64), torch.ones((), dtype=torch.float64)
    )
    found = torch.zeros(2**bits, dtype=torch.float64)
    for _ in range(500):
        edges = normal.cdf((found[1:] + found[:-1]) / 2)
        edges = torch.cat([edges.new_zeros(1), edges, edges.new_ones(1)])
        found = normal.icdf((edges[1:] + edges[:-1]) / 2)
    return found.float()


def used(weight: torch.Tensor, bits: int) -> torch.Tensor:
    if bits == 32:
        return weight
    mean, std = weight.mean(), weight.std()
    n = (weight - mean) / (std + 1e-5)
    book = levels(bits)
    return book[(n[..., None] - book).abs().argmin(-1)] * std + mean


def by_hand(model: Any, delta: dict[str, torch.Tensor], scale: float, bits: int) -> Any:
    """The user's own model, its weights updated, and its blocks hooked."""
    for name in [n for n in delta if n.endswith(".down")]:
        stem, kind = name.removesuffix(".down").split(".bi.")
        down, up = (used(delta[f"{stem}.bi.{kind}.{n}"], bits) for n in ("down", "up"))
        if kind == "lora":
            qkv = model.get_submodule(stem.rpartition(".")[0]).qkv
            width = qkv.in_features
            start = {"q": 0, "v": 2 * width}[stem[-1]]
            qkv.weight.data[start : start + width] += scale * up @ down
        else:
            biases = [delta[f"{stem}.bi.{kind}.{n}_bias"] for n in ("down", "up")]
            streams: list[Any] = []
            block = model.get_submodule(stem)
            block.norm2.register_forward_pre_hook(lambda _, a, kept=streams: kept.append(a[0]))
            block.register_forward_hook(
                lambda _, a, y, kept=streams, down=down, up=up, b=biases: (
                    y + scale * F.linear(F.relu(F.linear(kept.pop(), down, b[0])), up, b[1])
                )
            )
    return model.eval()


BOTH = (
    "insert bi.lora(rank=3, scale=0.5, bits={bits}) at blocks[*].attn.{{q, v}}\n"
    "insert bi.adaptformer(hidden=3, scale=0.5, bits={bits}, bias=true) at blocks[*].mlp_branch\n"
)


@pytest.mark.parametrize("bits", [1, 2, 4, 8, 32])
@torch.no_grad()
def test_the_users_own_model_with_quantised_matrices(bits: int) -> None:
    rewritten = fill(vr.apply(BOTH.format(bits=bits), vit()))
    expected = by_hand(vit(), rewritten.delta(), 0.5, bits)(IMAGES)
    assert not torch.allclose(expected, vit().eval()(IMAGES), atol=1e-2)
    torch.testing.assert_close(rewritten.module.eval()(IMAGES), expected, rtol=1e-4, atol=1e-5)
    torch.testing.assert_close(vr.lower(rewritten).module(IMAGES), expected, rtol=1e-4, atol=1e-5)


@settings(max_examples=max(2, settings().max_examples // 8))
@given(data=st.data(), seed=st.integers(0, 99))
def test_properties_over_random_vits(data: st.DataObject, seed: int) -> None:
    model = data.draw(tiny_vit())
    width, bits = data.draw(st.integers(1, 9)), data.draw(st.sampled_from([1, 2, 4, 8, 32]))
    spec = (
        f"insert bi.lora(rank={width}, bits={bits}) at blocks[*].attn.{{q, v}}\n"
        f"insert bi.adaptformer(hidden={width}, bits={bits}) at blocks[*].mlp_branch\n"
        "replace head with bi.head()\n"
    )
    rewritten = vr.apply(spec, model, seed=seed)
    params = rewritten.report["params"]
    assert params["trainable_without_head"] == 6 * 16 * width * len(model.blocks)
    assert params["trainable"] - params["trainable_without_head"] == 16 * model.num_classes
    vr.verify(rewritten, graphs=False)


def levit() -> Any:
    """Rows of q, k and v by head, in 1x1 convolutions."""
    small = {"embed_dim": (32, 48, 64), "num_heads": (2, 3, 4), "depth": (1, 1, 1)}
    torch.manual_seed(0)
    return spread(timm.create_model("levit_conv_128s", num_classes=5, **small)).eval()


@pytest.mark.parametrize(("make", "size"), [(vit, 16), (levit, 224)], ids=["vit", "levit"])
def test_with_32_bits_it_is_lora(make: Callable[[], Any], size: int) -> None:
    spec = "insert {}(rank=3, scale=0.5{}) at stages[*].blocks[*].attn.{{q, v}}\n"
    spec = spec.replace("stages[*].", "") if make is vit else spec
    own = vr.apply(f"{spec}require identity at init\n".format("bi.lora", ", bits=32"), make())
    other = fill(vr.apply(spec.format("lora", ""), make()))
    values = {k.replace(".lora.", ".bi.lora."): v for k, v in other.delta().items()}
    for name, tensor in own.delta().items():
        tensor.copy_(values[name])
    x = torch.randn(2, 3, size, size, generator=torch.Generator().manual_seed(2))
    with torch.no_grad():
        expected = other.module.eval()(x)
        assert not torch.allclose(other.base.eval()(x), expected, atol=1e-3)
        torch.testing.assert_close(own.module.eval()(x), expected, rtol=1e-4, atol=1e-5)


def test_q_and_v_have_means_of_their_own() -> None:
    """What changes q alone leaves v as it is: they are not quantised together."""
    rewritten = fill(vr.apply("insert bi.lora(rank=3) at blocks[0].attn.{q, v}\n", vit()))
    module = rewritten.module.get_submodule("blocks.0.attn.qkv_bi_lora").eval()
    x, y = torch.randn(2, 5, 16), torch.randn(2, 5, 48)
    before = module(x, y)
    rewritten.delta()["blocks.0.attn.q.bi.lora.down"].mul_(100.0)
    after = module(x, y)
    assert torch.equal(after[..., 16:], before[..., 16:])
    assert torch.equal(after[..., 16:32], y[..., 16:32])
    assert not torch.allclose(after[..., :16], before[..., :16])


def test_dropout_acts_in_training_only() -> None:
    for spec in BOTH.format(bits=1).replace("scale=0.5", "dropout=0.5").splitlines():
        module = fill(vr.apply(f"{spec}\n", vit())).module
        assert not torch.equal(module.train()(IMAGES), module(IMAGES))
        assert torch.equal(module.eval()(IMAGES), module(IMAGES))


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16, torch.float64])
def test_latents_are_as_exact_as_float32(dtype: torch.dtype) -> None:
    spec = BOTH.format(bits=1) + "replace head with bi.head()\n"
    rewritten = fill(vr.apply(spec, vit().to(dtype)))
    exact = torch.promote_types(dtype, torch.float32)
    latent = {k: v for k, v in rewritten.delta().items() if "_bias" not in k}
    assert {v.dtype for v in latent.values()} == {exact}
    module = rewritten.module
    output = module.train()(IMAGES.to(dtype))
    assert output.dtype == dtype
    output.sum().backward()
    assert all(p.grad.isfinite().all() for p in module.parameters() if p.requires_grad)  # type: ignore[union-attr]
    kept = {k: v.clone() for k, v in latent.items()}
    module.half().bfloat16()
    latent = {k: v for k, v in rewritten.delta().items() if k in kept}
    assert all(torch.equal(v, kept[k].to(v.dtype)) for k, v in latent.items())
    assert {v.dtype for v in latent.values()} <= {exact, torch.float32}


# -- counts ---------------------------------------------------------------------------------------


def test_counts_of_the_card_on_vit_base() -> None:
    lora = vr.plan("insert bi.lora(dropout=0.1) at blocks[*].attn.{q, v}\n", "vit_base").measures
    assert lora.params.trainable == 1_179_648
    assert lora.macs - lora.macs_base == 1_179_648 * 197
    assert lora.run_lowered.macs == lora.macs_base
    adapter = vr.plan("insert bi.adaptformer() at blocks[*].mlp_branch\n", "vit_base").measures
    assert adapter.params.trainable == 589_824
    assert adapter.macs - adapter.macs_base == 589_824 * 197
    biased = vr.plan("insert bi.adaptformer(bias=true) at blocks[*].mlp_branch\n", "vit_base")
    assert biased.measures.params.trainable == 599_424


# -- bad input ------------------------------------------------------------------------------------

BAD = [
    ("insert bi.lora(bits=3) at blocks[0].attn.q\n", "VR205", "1, 2, 4, 8, 32"),
    ("insert bi.lora(bits=0) at blocks[0].attn.q\n", "VR205", "1, 2, 4, 8, 32"),
    ("insert bi.adaptformer(bits=16) at blocks[0].mlp_branch\n", "VR205", "1, 2, 4, 8, 32"),
    ("replace head with bi.head(bits=5)\n", "VR205", "1, 2, 4, 8, 32"),
    ("insert bi.lora(rank=17) at blocks[0].attn.q\n", "VR403", "rank 17 is above the size 16x16"),
    ("insert bi.lora(rank=0) at blocks[0].attn.q\n", "VR203", "rank"),
    ("insert bi.adaptformer() at blocks[0].attn.q\n", "VR406", "attaches to branch"),
    ("insert bi.lora(rank=2) at blocks[0].attn.q\ninsert bi.lora(rank=3) at blocks[0].attn.q\n",
     "VR401", "two clauses put bi.lora at 'blocks[0].attn.q'"),
    ("replace head with bi.head()\ninsert bi.lora(rank=2) at head\n", "VR4", "head"),
]  # fmt: skip


@pytest.mark.parametrize(("spec", "code", "message"), BAD, ids=[b[2][:25] for b in BAD])
def test_bad_input_is_one_clear_error(spec: str, code: str, message: str) -> None:
    with pytest.raises(vr.VitrewriteError) as caught:
        vr.apply(spec, vit())
    assert caught.value.code.startswith(code)
    assert message in caught.value.render()


def test_a_matrix_of_one_number_is_refused() -> None:
    model = timm.models.vision_transformer.VisionTransformer(
        img_size=16, patch_size=4, embed_dim=1, depth=1, num_heads=1, num_classes=1
    )
    for clause in (
        "insert bi.lora(rank=1{}) at blocks[0].attn.q\n",
        "insert bi.adaptformer(hidden=1{}) at blocks[0].mlp_branch\n",
        "replace head with bi.head({})\n",
    ):
        with pytest.raises(vr.VitrewriteError, match=r"VR403 .*one number has no deviation"):
            vr.apply(clause.format(""), model)
        more = "bits=32" if "(" + "{}" in clause else ", bits=32"
        assert vr.apply(clause.format(more), model).report["params"]["trainable"] > 0


def test_codes_that_end_within_a_byte_are_flagged() -> None:
    odd = vr.plan("insert bi.lora(rank=1, bits=1) at blocks[*].attn.{q, v}\n", vit(embed_dim=20))
    assert sum("pads the last one" in w for w in odd.warnings) == 1
    even = vr.plan("insert bi.lora(rank=1, bits=2) at blocks[*].attn.{q, v}\n", vit(embed_dim=20))
    assert not any("pads" in w for w in even.warnings)


# -- lowering and other clauses -------------------------------------------------------------------


@torch.no_grad()
def test_lowered_lora_is_the_plain_model() -> None:
    rewritten = fill(vr.apply(BOTH.format(bits=2).splitlines()[0] + "\n", vit()))
    lowered = vr.lower(rewritten)
    assert lowered.module.state_dict().keys() == vit().state_dict().keys()
    key = "blocks.0.attn.qkv.weight"
    assert torch.equal(lowered.module.state_dict()[key][16:32], vit().state_dict()[key][16:32])
    vr.verify(lowered, graphs=False)


@torch.no_grad()
def test_lowered_adapters_are_two_matrices_or_none() -> None:
    spec = "insert bi.adaptformer(hidden=3, scale={}, bits=2) at blocks[*].mlp_branch\n"
    rewritten = fill(vr.apply(spec.format(0.25), vit()))
    lowered = vr.lower(rewritten)
    torch.testing.assert_close(lowered.module(IMAGES), rewritten.module.eval()(IMAGES))
    assert {len(v.unique()) for v in lowered.delta().values()} == {4}
    assert not any(".levels" in n or ".scale" in n for n, _ in lowered.module.named_buffers())
    none = vr.lower(vr.apply(spec.format(0), vit()))
    assert none.module.state_dict().keys() == vit().state_dict().keys()


CLAUSES = (
    "insert bi.lora(rank=3, dropout=0) at blocks[*].attn.{q, v}",
    "insert bi.adaptformer(hidden=3, dropout=0, scale=0.5) at blocks[*].mlp_branch",
    "insert ssf() at blocks[*].attn.qkv",
    "insert lora(rank=2, dropout=0) at blocks[*].attn.{q, k}",
    "insert merge.bdm(dropout=0) after blocks[1].attn",
    "replace head with bi.head()",
)


@pytest.mark.parametrize("order", [(5, 4, 3, 2, 1, 0), (2, 0, 4, 1, 5, 3)])
@torch.no_grad()
def test_every_order_is_the_same_model(order: tuple[int, ...]) -> None:
    first = fill(vr.apply("\n".join(CLAUSES) + "\n", vit()))
    other = fill(vr.apply("\n".join(CLAUSES[i] for i in order) + "\n", vit()))
    assert first.delta().keys() == other.delta().keys()
    result = first.module.eval()(IMAGES)
    torch.testing.assert_close(other.module.eval()(IMAGES), result, rtol=1e-4, atol=1e-5)
    torch.testing.assert_close(vr.lower(other).module(IMAGES), result, rtol=1e-4, atol=1e-4)


@pytest.mark.slow
def test_all_together_verifies() -> None:
    vr.verify(fill(vr.apply("\n".join(CLAUSES) + "\n", vit())))


@torch.no_grad()
def test_on_maps_of_channels() -> None:
    torch.manual_seed(0)
    model = spread(timm.create_model("convnext_atto", depths=(1, 1, 1, 1), num_classes=5)).eval()
    rewritten = fill(vr.apply("insert bi.adaptformer(hidden=3) at every branch\n", model))
    x = torch.randn(2, 3, 64, 64)
    result = rewritten.module.eval()(x)
    assert not torch.allclose(result, model(x), atol=1e-3)
    torch.testing.assert_close(vr.lower(rewritten).module(x), result, rtol=1e-3, atol=1e-4)
