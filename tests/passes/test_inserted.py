"""What holds of whatever a pass puts into a model: dtype, mode, and that it spoils nothing."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import pytest
import torch
from torch import nn

import vitrewrite as vr
from tests import goldens
from tests.passes.test_spt import profile
from vitrewrite import catalog

SPECS = {
    "lora": "insert lora(rank=2) at blocks[*].attn.{q, v} + blocks[*].mlp.fc1",
    "lora-spt": "insert lora(rank=2, convention=spt) at every linear in blocks",
    "lora-library": "insert lora(rank=2, convention=library, alpha=4) at blocks[*].attn.qkv",
    "adapter": "insert adapter(hidden=4) at every linear in blocks",
    "adaptformer": "insert adaptformer(hidden=4) at blocks[*].mlp_branch",
    "bi.lora": "insert bi.lora(rank=2) at blocks[*].attn.{q, v} + blocks[*].mlp.fc1",
    "bi.adaptformer": "insert bi.adaptformer(hidden=4, bits=2) at blocks[*].mlp_branch",
    "bi.head": "replace head with bi.head(bits=4)",
    "ssf": "insert ssf() at every linear in blocks + every norm + every conv",
    "ssf-same": "insert ssf(std=0) at blocks[*].attn.{q, v} + norm",
    "sparse": "insert sparse() at sensitive(budget=4K, scale=10K)",
    "merge.bdm": "insert merge.bdm() after blocks[1].attn",
    "merge.bdm-bsm": "insert merge.bdm(match=bsm) after blocks[1].attn\ntrain head",
    "merge.pool": "insert merge.pool() after blocks[1].attn\ntrain head",
    "merge.tome": "insert merge.tome(r=3) after blocks[*].attn\ntrain head",
    "unmerge": (
        "insert merge.tome(r=3) after blocks[0].attn\ninsert unmerge() after blocks[0]\ntrain head"
    ),
    "prune.evit": "insert prune.evit(keep=0.5) after blocks[1].attn\ntrain head",
    "prune.dynamicvit": "insert prune.dynamicvit(keep=0.5) before blocks[1]\ntrain head",
    "prune.ltmp": "insert prune.ltmp() after blocks[1].attn\ntrain head",
    "squeeze.tps": "insert squeeze.tps(keep=0.5) before blocks[1]\ntrain head",
    "squeeze.tps-class": "insert squeeze.tps(keep=0.5) after blocks[1].attn\ntrain head",
    "prompt": "prepend prompt(count=3, dropout=0.1) to blocks[*]",
    "prompt-masks": "prepend prompt(count=3, masks=true, segments=4) to blocks[*]",
    "prompt-patches": "prepend prompt(count=3, readout=patches) to blocks[0]",
    "kv_prompt": "prepend kv_prompt(n=2) to blocks[*].attn",
    "dispatch": "insert dispatch(hidden=4) at blocks[*].mlp_branch",
    "dispatch-blocks": "insert dispatch(hidden=4, experts=2) at blocks[*]",
    "setr": "replace head with setr(classes=3, width=4)",
    "repadapter": "insert repadapter(hidden=4) at blocks[*].attn.qkv + blocks[*].mlp.fc1",
    "fact": "insert fact(rank=4) at every linear in blocks",
    "fact-tk": "insert fact(rank=4, form=tk) at every linear in blocks",
    "convpass": "insert convpass(hidden=4) at every branch",
    "res_tuning": "insert res_tuning(hidden=4, zero_up=true) at blocks[*].{attn, mlp}",
    "res_tuning-bypass": "insert res_tuning(form=bypass, hidden=4) at blocks[*]",
    "uniadapter": "insert uniadapter(hidden=4, zero_visual=true) at blocks[*].mlp_branch",
    "ia3": "insert ia3() at blocks[*].attn.{k, v} + blocks[*].mlp.fc2",
    "heads": "replace blocks[*].attn with heads()\ntrain head",
    "uffn": "replace blocks[*].mlp with uffn()\ntrain head",
    "mlp_head": "replace head with mlp_head(layers=3)\ntrain head",
    "vqt": "prepend vqt(count=2) to blocks[*]\ntrain head",
    "head2toe": "replace head with head2toe()",
    "lst": "insert lst(reduction=4) at blocks[*]\ntrain head",
    "synqt": "insert synqt(count=2, hidden=6, narrow=3) at blocks[*]\ntrain head",
    "synqt-copies": "insert synqt(hidden=6, narrow=3, kem=trained, scale=1) at blocks[*]",
    "lst-drawn": "insert lst(reduction=4, init=random) at blocks[*]\ntrain head",
    "vqt-weighted": "prepend vqt(count=2, combine=weighted, keep=0.5) to blocks[*]\ntrain head",
    "umsa": "replace blocks[*].attn with umsa()",
    "umsa-hard": 'replace blocks[*].attn with umsa(state="3x3")',
    "umsa-multi": "replace blocks[*].attn with umsa(paths=multi, kernels=[3], rule=complex)",
    "kv_prompt-apart": "prepend kv_prompt(n=2, shared=false, init=normal) to blocks[*].attn",
}
OF_DECODERS = {"dfpq", "hrca", "rcda"}  # in tests/hf/test_inserted.py
OF_BASES = {"snnet", "stitch_bias"}  # in tests/passes/test_snnet.py, test_stitch_bias.py
OF_LARGE_IMAGES = {"side_tuning"}  # in tests/passes/test_side_tuning.py
PUT_NOTHING = {"sls"}  # in tests/passes/test_sls.py
LATENT = {"merge.bdm", "bi.lora", "bi.adaptformer", "bi.head"}
"""Passes with numbers that stay in float32 or better."""
AT_INIT = {
    "lora", "lora-spt", "lora-library", "adapter", "adaptformer", "ssf-same", "sparse",
    "repadapter", "fact", "fact-tk", "convpass", "res_tuning", "uniadapter", "ia3", "uffn", "heads",
    "umsa", "umsa-multi",
}  # fmt: skip
IMAGES = torch.randn(2, 3, 32, 32, generator=torch.Generator().manual_seed(0))


def _apply(name: str, model: nn.Module) -> vr.Rewritten:
    measured = {"profile": profile()} if name == "sparse" else {}
    return vr.apply(f"{SPECS[name]}\n", model, **measured)


def _base(dtype: torch.dtype = torch.float32) -> nn.Module:
    return goldens.case("spt-lora-vit").base().to(dtype)


def _dtypes(module: nn.Module) -> set[torch.dtype]:
    tensors = (*module.parameters(), *module.buffers())
    return {t.dtype for t in tensors if t.is_floating_point()}


@contextmanager
def _default(dtype: torch.dtype) -> Iterator[None]:
    before = torch.get_default_dtype()
    torch.set_default_dtype(dtype)
    try:
        yield
    finally:
        torch.set_default_dtype(before)


def test_every_pass_is_here() -> None:
    covered = {name.partition("-")[0] for name in SPECS} | OF_DECODERS | OF_BASES | PUT_NOTHING
    covered |= OF_LARGE_IMAGES
    assert covered == set(catalog.passes())


CASES = [(name, torch.bfloat16) for name in SPECS] + [
    ("lora", torch.float16), ("merge.bdm", torch.float16),
    ("adapter", torch.float64), ("merge.bdm", torch.float64), ("merge.bdm", torch.float32),
]  # fmt: skip


@pytest.mark.parametrize(("name", "dtype"), CASES, ids=lambda v: str(v).removeprefix("torch."))
def test_it_has_the_dtype_of_the_model_whatever_the_default(name: str, dtype: torch.dtype) -> None:
    model, x = _base(dtype), IMAGES.to(dtype)
    with _default(torch.float64):
        rewritten = _apply(name, model)
        module = rewritten.module
        y = module(x)
        lowered = vr.lower(rewritten).module
        z = lowered(x)
    kept = {torch.promote_types(dtype, torch.float32)} if name in LATENT else set()
    for made in (module, lowered):
        assert {dtype} <= _dtypes(made) <= {dtype, *kept}
    assert y.dtype == z.dtype == dtype
    if name in AT_INIT:
        assert torch.equal(y, model(x))
    assert max(map(len, rewritten.source.text.splitlines())) <= 100 or "unpack(" in (
        rewritten.source.text
    )
    torch.testing.assert_close(z, y, rtol=0, atol=0.06)
    module.train()
    trained = module(x)
    sum(t.float().sum() for t in (trained if isinstance(trained, tuple) else (trained,))).backward()
    assert all(p.grad is not None for p in module.parameters() if p.requires_grad)


FORMS = [
    # Which form of a pass it is makes no difference to modes: one for every change.
    pytest.param(n, marks=[pytest.mark.slow] * ("-" in n and n.partition("-")[0] in SPECS))
    for n in SPECS
]


@pytest.mark.parametrize("name", FORMS)
def test_it_is_in_the_mode_of_what_it_is_put_into(name: str) -> None:
    model = _base().eval()
    rewritten = _apply(name, model)
    with torch.no_grad():
        for parameter in rewritten.module.parameters():
            parameter.add_(torch.randn_like(parameter) * 0.1 * parameter.requires_grad)
    for module in (rewritten.module, rewritten.base, vr.lower(rewritten).module):
        assert [n for n, m in module.named_modules() if m.training] == []
    assert torch.equal(rewritten.module(IMAGES), rewritten.module(IMAGES))
    model.train()
    rewritten = _apply(name, model)
    for module in (rewritten.module, rewritten.base, vr.lower(rewritten).module):
        assert [n for n, m in module.named_modules() if not m.training] == []
    assert all(m.training for m in model.modules())


def test_mixed_modes_stay_as_they_were_given() -> None:
    model = _base().train()
    model.blocks[0].eval()  # type: ignore[union-attr, index]
    rewritten = _apply("lora-spt", model)
    vr.verify(rewritten, graphs=False)
    for module in (rewritten.module, vr.lower(rewritten).module):
        for path, each in module.named_modules():
            assert each.training == (not f"{path}.".startswith("blocks.0.")), path


def test_a_claim_that_is_measured_changes_no_mode() -> None:
    spec = f"{SPECS['lora']}\nrequire identity at init\nrequire lowers exactly\n"
    assert all(m.training for m in vr.apply(spec, _base().train()).module.modules())


def test_a_model_by_name_is_in_eval_mode() -> None:
    options = {"depth": 2, "embed_dim": 48, "num_heads": 3, "img_size": 32, "num_classes": 5}
    rewritten = vr.apply(SPECS["prompt"] + "\n", "vit_tiny_patch16_224", model_options=options)
    assert not any(m.training for m in rewritten.module.modules())


@pytest.mark.parametrize("name", SPECS)
def test_nothing_is_written_into_what_others_may_hold(name: str) -> None:
    rewritten = _apply(name, _base())
    module = rewritten.module
    paths = {i.path for i in rewritten.result.editor.insertions}
    kept: list[tuple[torch.Tensor, torch.Tensor, int]] = []

    def note(*values: Any) -> None:
        kept.extend((v, v.clone(), v._version) for v in values if isinstance(v, torch.Tensor))

    for path, each in module.named_modules():
        if path in paths:
            each.register_forward_pre_hook(lambda _, given: note(*given))
        elif path:
            each.register_forward_hook(
                lambda _, given, made: note(*given, *(made if isinstance(made, tuple) else [made]))
            )
    with torch.no_grad():
        for parameter in module.parameters():
            parameter.add_(torch.randn_like(parameter) * 0.1 * parameter.requires_grad)
        module(IMAGES)
        module.train()(IMAGES)
    module(IMAGES)
    assert kept
    for value, copy, version in kept:
        assert torch.equal(value, copy)
        assert value._version == version


@pytest.mark.parametrize(
    "spec",
    [
        "insert lora(rank=2, dropout=0) at every linear in blocks",
        "insert lora(rank=2, convention=spt, dropout=0, drop_path=0) at every linear in blocks",
        "insert adapter(hidden=4, dropout=0, drop_path=0) at every linear in blocks",
    ],
)
def test_the_base_trains_as_it_did_at_equal_seed(spec: str) -> None:
    kwargs = goldens.case("lora-qv").about["base"]["kwargs"]
    from timm.models.vision_transformer import VisionTransformer

    model = VisionTransformer(**kwargs, proj_drop_rate=0.1, drop_path_rate=0.3).train()
    rewritten = vr.apply(f"{spec}\n", model)
    torch.manual_seed(3)
    expected = model(IMAGES)
    torch.manual_seed(3)
    assert torch.equal(rewritten.module(IMAGES), expected)
