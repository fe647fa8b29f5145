"""The `merge.bdm` pass: the authors' numbers, mass, grids, half precision, lowering, bad input."""

from __future__ import annotations

import importlib
from typing import Any

import pytest
import timm
import torch
from hypothesis import given
from hypothesis import strategies as st

import vitrewrite as vr
from tests import goldens
from tests.models import spread
from tests.refusal import expect_refusal
from vitrewrite.rewrite.rewritten import Rewritten

MERGE = importlib.import_module("vitrewrite.passes.merge.bdm").BipartiteMerge
LORA = "insert lora(rank=8, scale=0.5, dropout=0) at blocks[*].attn.{q, v}\n"
CASES = {
    "fpet-plain": "insert merge.bdm(hidden=8, bits=32, dropout=0) after blocks[2].attn\n",
    "fpet-plain-noprop": (
        "insert merge.bdm(hidden=8, bits=32, dropout=0, prop_attn=false) after blocks[2].attn\n"
    ),
    "fpet-lora": LORA + "insert merge.bdm(dropout=0) after blocks[2].attn\n",
    "fpet-adaptformer": (
        "insert adaptformer(scale=0.5, dropout=0) at blocks[*].mlp_branch\n"
        "insert merge.bdm(dropout=0) after blocks[2].attn\n"
    ),
    "fpet-block0": (LORA.replace("8", "6") + "insert merge.bdm(dropout=0) after blocks[0].attn\n"),
    "fpet-distilled": "insert merge.bdm(dropout=0) after blocks[1].attn\n",
    "fpet-nostop": "insert merge.bdm(dropout=0, stop=false) after blocks[2].attn\n",
    "fpet-oddeven": "insert merge.bdm(dropout=0, split=row) after blocks[2].attn\n",
}


def golden_name(name: str) -> str:
    """The case's name of a tensor of a delta."""
    if ".lora." in name:
        _, block, _, site, _, which = name.split(".")
        return f"blocks.{block}.attn.lora.{site}.{which}.weight"
    if ".adaptformer." in name:
        return f"{name}.weight"
    return name.replace("merge.bdm", "fpet")


def load(rewritten: Rewritten, case: goldens.Case) -> None:
    """Copies the case's method tensors in."""
    names = {golden_name(k): v for k, v in rewritten.delta().items()}
    given = {k.removeprefix("method."): v for k, v in case.tensors.items() if "method." in k}
    assert names.keys() == given.keys()
    for name, tensor in names.items():
        tensor.copy_(given[name])


def merged(rewritten: Rewritten, x: torch.Tensor) -> dict[str, torch.Tensor]:
    """What the merge of a model gets and yields."""
    seen: dict[str, torch.Tensor] = {}

    def hook(module: torch.nn.Module, args: Any, result: Any) -> None:
        seen.update(x=args[0], k=args[1], out=result[0], size=result[1])

    (module,) = (m for m in rewritten.module.modules() if hasattr(m, "merge_soft"))
    with torch.no_grad():
        handle = module.register_forward_hook(hook)
        rewritten.module.eval()(x)
        handle.remove()
    return seen


@pytest.mark.parametrize("name", CASES)
def test_golden(name: str) -> None:
    case = goldens.case(name)
    rewritten = vr.apply(CASES[name], case.base())
    load(rewritten, case)
    x, module = case.tensors["input"], rewritten.module
    with torch.no_grad():
        case.close(rewritten.base(x), "output_base")
        case.close(module.eval()(x), "output")
        case.close(vr.lower(rewritten).module(x), "output")
    seen, (merge,) = merged(rewritten, x), (m for m in module.modules() if hasattr(m, "merge_soft"))
    prefix = case.about["hyper"].get("prefix_tokens", 1)
    front = torch.arange(prefix)
    assert torch.equal(torch.cat([front, prefix + merge.b]), case.tensors["order_B"])
    assert torch.equal(prefix + merge.a, case.tensors["order_A"])
    case.close(seen["size"][..., None], "size")
    chosen = merge.match(seen["k"][:, :, prefix:]).argmax(-1)  # among patches
    assert torch.equal(chosen + prefix, case.tensors["assign"])
    frozen = [k.removeprefix("grad.base.") for k in case.tensors if k.startswith("grad.base.")]
    assert frozen
    for key in frozen:
        module.get_parameter(key).requires_grad_(True)
    output = module.train()(x)
    case.close(output.detach(), "output_train" if "output_train" in case.tensors else "output")
    (output * case.tensors["probe"]).sum().backward()
    gradients: dict[str, Any] = {f"base.{k}": module.get_parameter(k).grad for k in frozen}
    for parameter in module.parameters():
        if parameter.grad is not None:
            parameter.data = parameter.grad
    gradients |= {golden_name(k): v for k, v in rewritten.delta().items()}
    case.gradients_close(gradients)


def test_one_hard_match_of_every_other_patch() -> None:
    """A row of FPET's table 3, where ToMe's matching merges once: no parameters, no gradient."""
    case = goldens.case("fpet-bsm-once")
    spec = "insert merge.bdm(split=row, match=bsm) after blocks[2].attn\n"
    rewritten, x = vr.apply(spec, case.base()), case.tensors["input"]
    assert rewritten.report["params"]["trainable"] == 0
    assert not rewritten.delta()
    keys = [k.removeprefix("grad.base.") for k in case.tensors if k.startswith("grad.base.")]
    module = rewritten.module.eval()
    seen = merged(rewritten, x)
    case.close(seen["k"].mean(1), "metric.0")
    assert torch.equal(seen["size"][..., None], case.tensors["size"])
    parameters = [module.get_parameter(k).requires_grad_(True) for k in keys]
    output = module(x)
    case.close(output.detach(), "output")
    case.close(vr.lower(rewritten).module.eval()(x).detach(), "output")
    found = torch.autograd.grad((output * case.tensors["probe"]).sum(), parameters)
    case.gradients_close({f"base.{k}": g for k, g in zip(keys, found, strict=True)})
    (merge,) = (m for m in module.modules() if hasattr(m, "merge_soft"))
    merge.traced = True  # type: ignore[assignment]
    with torch.no_grad():
        into = merge(seen["x"], seen["k"])[2]
    assert torch.equal(into, case.tensors["group_of_token"])


ABLATIONS = {
    "one half of the rows": "split=row",
    "without the adapter": "refine=false",
    "a hard match": "match=bsm",
    "the gradient reaches the keys": "stop=false, refine=false",
}


@pytest.mark.parametrize("name", ABLATIONS)
def test_ablations(name: str) -> None:
    options = ABLATIONS[name]
    spec = f"insert merge.bdm({options}) after blocks[1].attn\ntrain blocks[0:2]\n"
    rewritten = vr.apply(spec, vit(img_size=(20, 28)))
    after = 19 if options == "split=row" else 18  # of 35 patches
    assert rewritten.report["tokens"] == [36, 36, after, after, after]
    own = {n for n, _ in rewritten.module.named_parameters() if "merge" in n}
    assert bool(own) == (options == "split=row")
    vr.verify(rewritten, graphs=False)


def test_the_gradient_stop() -> None:
    """Without the adapter, gradients are those of a run in which the matching is a constant."""
    case = goldens.case("fpet-plain")
    rewritten = vr.apply(CASES["fpet-plain"], case.base())
    load(rewritten, case)
    keys = ["blocks.2.attn.qkv.weight", "patch_embed.proj.weight"]

    def gradients() -> list[torch.Tensor]:
        module = rewritten.module.eval()
        parameters = [module.get_parameter(k).requires_grad_(True) for k in keys]
        loss = (module(case.tensors["input"]) * case.tensors["probe"]).sum()
        return list(torch.autograd.grad(loss, parameters))

    with_matching = gradients()
    (merge,) = (m for m in rewritten.module.modules() if hasattr(m, "merge_soft"))
    match = merge.match
    merge.match = lambda k: match(k).detach()  # type: ignore[assignment]
    assert all(torch.equal(a, b) for a, b in zip(with_matching, gradients(), strict=True))


@given(
    height=st.integers(2, 7),
    width=st.integers(2, 7),
    prefix=st.integers(0, 5),
    bits=st.sampled_from([1, 4, 32]),
    sized=st.booleans(),
    seed=st.integers(0, 99),
)
def test_mass_and_means_are_conserved(
    height: int, width: int, prefix: int, bits: int, sized: bool, seed: int
) -> None:
    generator = torch.Generator().manual_seed(seed)
    merge = MERGE((height, width), 8, 4, bits).eval()
    merge.reset_parameters(generator)
    tokens = prefix + height * width
    x = torch.randn(2, tokens, 6, generator=generator)
    k = torch.randn(2, 3, tokens, 8, generator=generator)
    size = torch.randint(1, 4, (2, tokens), generator=generator).float() if sized else None
    y, new = merge(x, k, size)
    size = torch.ones(2, tokens) if size is None else size
    assert y.shape[1] == prefix + height * width // 2
    torch.testing.assert_close(new.sum(1), size.sum(1))
    torch.testing.assert_close(
        (new[..., None] * y).sum(1), (size[..., None] * x).sum(1), rtol=1e-4, atol=1e-4
    )
    torch.testing.assert_close(y[:, :prefix], x[:, :prefix])
    merge.hard = True
    for soft, hard in zip((y, new), merge(x, k, size), strict=True):
        torch.testing.assert_close(soft, hard)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_no_token_is_lost_in_half_precision(dtype: torch.dtype) -> None:
    torch.manual_seed(0)
    merge = MERGE((14, 14), 64, hard=True).eval()
    x, k = torch.randn(4, 197, 16), torch.randn(4, 12, 197, 64)
    _, size = merge.to(dtype)(x.to(dtype), k.to(dtype))
    assert torch.equal(size.float().sum(1), torch.full((4,), 197.0))


def vit(**options: Any) -> Any:
    small = {"img_size": 32, "patch_size": 4, "embed_dim": 16, "depth": 4, "num_heads": 2}
    torch.manual_seed(0)
    return spread(
        timm.models.vision_transformer.VisionTransformer(**{**small, "num_classes": 5, **options})
    )


@pytest.mark.parametrize(
    "options",
    [
        {"img_size": (28, 20)},
        {"reg_tokens": 3},
        {"class_token": False, "global_pool": "avg"},
        {"qk_norm": True, "init_values": 0.1},
    ],
)
def test_grids_and_prefixes(options: dict[str, Any]) -> None:
    rewritten = vr.apply("insert merge.bdm() after blocks[1].attn\n", vit(**options))
    prefix = options.get("reg_tokens", 0) + options.get("class_token", True)
    h, w = (n // 4 for n in options.get("img_size", (32, 32)))
    tokens = prefix + h * w
    after = prefix + h * w // 2
    assert rewritten.report["tokens"] == [tokens, tokens, after, after, after]
    vr.verify(rewritten, graphs=False)


def test_manual_attention_is_brought_to_one_form() -> None:
    model = vit()
    for block in model.blocks:
        block.attn.fused_attn = False
    rewritten = vr.apply("insert merge.bdm() after blocks[1].attn\n", model)
    vr.verify(rewritten, graphs=False)
    fused = vr.apply("insert merge.bdm() after blocks[1].attn\n", vit())
    with torch.no_grad():
        x = torch.randn(2, 3, 32, 32)
        torch.testing.assert_close(rewritten.module(x), fused.module(x), rtol=1e-4, atol=1e-5)


def test_distillation_and_register_tokens_are_kept() -> None:
    name = "deit_tiny_distilled_patch16_224"
    plan = vr.plan("insert merge.bdm() after blocks[6].attn\n", name)
    assert plan.measures.tokens[6:8] == (198, 100)


def test_figures_of_the_card() -> None:
    for block, giga in ((6, 13.410), (4, 11.933), (2, 10.457), (0, 8.981)):
        measures = vr.plan(f"insert merge.bdm() after blocks[{block}].attn\n", "vit_base").measures
        assert measures.macs / 1e9 == pytest.approx(giga + 0.009, abs=1.5e-3)
        assert measures.params.trainable == 4096
        assert measures.tokens[block : block + 2] == (197, 99)
    spec = vr.parse("fpet_lora")
    measures = vr.plan(spec).measures
    assert measures.params.trainable_without_head == 299_008


BAD = {
    "two merges": (
        "insert merge.bdm() after blocks[1].attn\ninsert merge.bdm() after blocks[2].attn\n",
        {}, "VR410", "no full grid",
    ),
    "out of range": ("insert merge.bdm() after blocks[4].attn\n", {}, "VR304", "0..3"),
    "too few patches": (
        "insert merge.bdm() after blocks[1].attn\n", {"img_size": (4, 8)}, "VR410", "1x2",
    ),
    "bits": ("insert merge.bdm(bits=3) after blocks[1].attn\n", {}, "VR205", "32"),
    "one number": (
        "insert merge.bdm(hidden=1) after blocks[1].attn\n", {"embed_dim": 2}, "VR403", "deviation",
    ),
    "every block": ("insert merge.bdm() after blocks[*].attn\n", {}, "VR410", "no full grid"),
}  # fmt: skip


@pytest.mark.parametrize("name", BAD)
def test_bad_input(name: str) -> None:
    spec, options, code, words = BAD[name]
    expect_refusal(spec, vit(**options), code, words, how=vr.apply)


@pytest.mark.parametrize(
    ("name", "words"),
    [
        ("swin_tiny_patch4_window7_224", "does not attend over one sequence"),
        ("pvt_v2_b0", "later stages"),
        ("beit_base_patch16_224", "needs them as they were"),
    ],
)
@pytest.mark.parametrize(
    "merge", ["merge.bdm() after blocks[0]", "merge.tome(r=2) after blocks[*]"]
)
def test_models_that_need_the_grid_later_are_refused(name: str, words: str, merge: str) -> None:
    with pytest.raises(vr.VitrewriteError, match=words):
        vr.plan(f"insert {merge}.attn\n", name)


def test_applying_twice_is_detected() -> None:
    spec = "insert merge.bdm() after blocks[1].attn\n"
    once = vr.apply(spec, vit())
    for again in (spec, spec.replace("1", "2")):
        with pytest.raises(vr.VitrewriteError, match="no full grid"):
            vr.apply(again, once.module, example=torch.zeros(1, 3, 32, 32))


def test_warnings() -> None:
    last = vr.plan("insert merge.bdm() after blocks[3].attn\n", vit())
    assert any("last block" in w for w in last.warnings)
    half = vr.plan("insert merge.bdm() after blocks[1].attn\n", vit().bfloat16())
    assert any("bfloat16" in w for w in half.warnings)
    pooled = vr.plan("insert merge.bdm() after blocks[1].attn\n", vit(global_pool="avg"))
    assert any("pools" in w for w in pooled.warnings)


@pytest.mark.parametrize("kind", ["zero", "equal", "pairs"])
def test_keys_that_are_zero_or_equal_lose_no_token(kind: str) -> None:
    torch.manual_seed(0)
    merge = MERGE((8, 8), 16).eval()
    hard = MERGE((8, 8), 16, hard=True).eval()
    hard.load_state_dict(merge.state_dict())
    k = {
        "zero": torch.zeros(2, 3, 65, 16),
        "equal": torch.ones(2, 3, 65, 16),
        "pairs": torch.randn(2, 3, 65, 4).repeat(1, 1, 1, 4).round(),
    }[kind]
    x = torch.randn(2, 65, 48)
    (soft, size), (other, count) = merge.train()(x, k), hard(x, k)
    merge.eval()
    assert bool(soft.isfinite().all())
    torch.testing.assert_close(size.sum(1), torch.full((2,), 65.0))
    if kind != "pairs":  # dropout of the adapter breaks the ties in training
        (soft, size) = merge(x, k)
        torch.testing.assert_close(soft, other)
        torch.testing.assert_close(size, count)
    soft.sum().backward()
    assert all(bool(p.grad.isfinite().all()) for p in merge.parameters() if p.grad is not None)


class NarrowKeys(torch.nn.Module):
    """Attention whose keys are narrower than its values."""

    def __init__(self, dim: int = 16, heads: int = 2, width: int = 3) -> None:
        super().__init__()
        self.heads = heads
        self.q, self.k = (torch.nn.Linear(dim, heads * width) for _ in range(2))
        self.v, self.proj = torch.nn.Linear(dim, dim), torch.nn.Linear(dim, dim)

    def forward(self, x: torch.Tensor, *_: Any, **__: Any) -> torch.Tensor:
        q, k, v = (
            m(x).unflatten(-1, (self.heads, -1)).transpose(1, 2) for m in (self.q, self.k, self.v)
        )
        y = torch.nn.functional.scaled_dot_product_attention(q, k, v)
        return self.proj(y.transpose(1, 2).flatten(2))


def test_the_keys_decide_where_values_are_wider() -> None:
    model = timm.models.VisionTransformer(
        img_size=32, patch_size=8, embed_dim=16, depth=2, num_heads=2, num_classes=3
    )
    for block in model.blocks:
        block.attn = NarrowKeys()
    rewritten = vr.apply("insert merge.bdm(hidden=4) after blocks[0].attn\n", model)
    with torch.no_grad():
        assert rewritten.module.eval()(torch.randn(2, 3, 32, 32)).shape == (2, 3)
    (merge,) = (m for m in rewritten.module.modules() if hasattr(m, "merge_soft"))
    assert {p.shape[1] for n, p in merge.named_parameters() if p.dim() == 2} & {3}
