"""The `synqt` pass: the authors' numbers, queries by hand, counts, memory, other models."""

from __future__ import annotations

import re
from functools import partial
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
from tests.refusal import expect_refusal

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
            gradients[key], value, rtol=1e-3, atol=1e-6 * largest, msg=partial("{}: {}".format, key)
        )


def adapter(x: torch.Tensor, delta: dict[str, torch.Tensor], path: str) -> torch.Tensor:
    """Ad(x), with the tensors at a path."""
    down, up = ([delta[f"{path}.{n}.{k}"] for k in ("weight", "bias")] for n in ("down", "up"))
    return x + F.linear(F.gelu(F.linear(x, *down)), *up)


def norm(x: torch.Tensor, delta: dict[str, torch.Tensor], path: str) -> torch.Tensor:
    return F.layer_norm(x, x.shape[-1:], delta[f"{path}.weight"], delta[f"{path}.bias"])


def synthesis(p: torch.Tensor, delta: dict[str, torch.Tensor], path: str, s: Any) -> torch.Tensor:
    """What is asked in a block, of its own queries and what those before found."""
    p = adapter(p, delta, f"{path}.in_adapter")
    u = norm(p, delta, f"{path}.pre_attn_norm")
    a, c = norm(u, delta, f"{path}.attn_q_norm"), norm(u, delta, f"{path}.attn_kv_norm")
    q = adapter(a, delta, f"{path}.attn_q")
    k, v = (adapter(c, delta, f"{path}.attn_{n}") for n in "kv")
    weights = (q @ k.transpose(1, 2) * q.shape[-1] ** -0.5).softmax(-1)
    p = p + s("attn_scale", path) * adapter(weights @ v, delta, f"{path}.attn_o")
    made = adapter(norm(p, delta, f"{path}.pre_ffn_norm"), delta, f"{path}.ffn_adapter")
    return p + s("ffn_scale", path) * made


@pytest.mark.parametrize("kept", [(1,), (0, 2)])
@pytest.mark.parametrize("options", ["", "scale=1", "kem=trained"])
@torch.no_grad()
def test_queries_by_hand(options: str, kept: tuple[int, ...]) -> None:
    """Layer scales and norms of queries and keys hold for the rows, too."""
    plain = options == "kem=trained"
    model = vit(**({} if plain else {"qk_norm": True, "init_values": 0.3})).eval()
    where = f"blocks[{', '.join(map(str, kept))}]"
    rewritten = vr.apply(SPEC.format(f"count=3, hidden=6, narrow=2, {options}", where), model)
    rewritten = rewritten if plain else fill(rewritten)
    delta = rewritten.delta()

    def scale(name: str, path: str) -> Any:
        return 1.0 if options == "scale=1" else delta[f"{path}.{name}"]

    found: list[Any] = []
    x = model.norm_pre(model._pos_embed(model.patch_embed(IMAGES)))
    for i, block in enumerate(model.blocks):
        if i in kept:
            attn, path = block.attn, f"blocks.{i}.synqt"
            p = delta[f"{path}.query"].expand(len(x), -1, -1)
            if found:
                mean = found[-1][0].mean(1, keepdim=True)
                shared = 1.0 if options == "scale=1" else delta["synqt.scale"]
                p = p + shared * mean
            p = synthesis(p, delta, path, scale)
            heads = (attn.num_heads, -1)
            q = attn.qkv(block.norm1(p)).chunk(3, -1)[0].unflatten(-1, heads).transpose(1, 2)
            k, v = (
                t.unflatten(-1, heads).transpose(1, 2)
                for t in attn.qkv(block.norm1(x)).chunk(3, -1)[1:]
            )
            asked = F.scaled_dot_product_attention(attn.q_norm(q), attn.k_norm(k), v)
            added = block.ls1(attn.proj(attn.norm(asked.transpose(1, 2).flatten(2))))
            fed = block.ls2(block.mlp(block.norm2(p + added)))
            found.append((p + added + fed, added, fed))
        x = block(x)
    features = torch.stack([each[n].mean(1) for n in range(3) for each in found], 1)
    features = torch.cat([found[-1][0].mean(1)[:, None], features], 1)
    n = norm(features, delta, "head.synqt.feature_norm")
    g = features + adapter(n, delta, "head.synqt.adapter")
    fc = [delta[f"head.synqt.weight_fc.{k}"] for k in ("weight", "bias")]
    w = torch.tanh(F.gelu(F.linear(g[:, 0], *fc)))
    z = (torch.cat([torch.ones_like(w[:, :1]), w], 1)[..., None] * g).mean(1)
    z = norm(z, delta, "head.synqt.final_norm")
    expected = F.linear(z, delta["head.weight"], delta["head.bias"])
    made = rewritten.module.eval()(IMAGES)
    torch.testing.assert_close(made, expected, rtol=1e-4, atol=1e-5)
    lowered = vr.lower(rewritten).module.eval()(IMAGES)
    torch.testing.assert_close(lowered, made, rtol=1e-4, atol=1e-5)
    blocks: Any = rewritten.module.get_submodule("blocks")
    assert len(blocks) == kept[-1] + 1


MODEL = "model vit_base_patch16_224\n"
SLOW = pytest.mark.slow


@pytest.mark.parametrize("count", [4, *(pytest.param(n, marks=SLOW) for n in (1, 16))])
def test_parameters_of_the_card(count: int) -> None:
    measures = vr.plan(MODEL + SPEC.format(f"count={count}", "blocks[*]")).measures
    assert measures.params.trainable_without_head == 2_595_181 + 9_216 * count
    if count == 4:
        assert round(measures.macs / 1e9, 2) == 16.65


@SLOW
def test_parameters_of_the_variants() -> None:
    """Without scales, and with layers of its own for queries; of qkv the rows of queries alone."""
    counts = [
        vr.plan(MODEL + SPEC.format(each, "blocks[*]")).measures.params.trainable_without_head
        for each in ("scale=1", "kem=trained")
    ]
    assert counts == [2_632_045 - 25, 2_632_045 + 70_880_256]


def kept_for_backward(module: torch.nn.Module, images: torch.Tensor) -> int:
    """Bytes that one pass keeps for backward, parameters left out, each once."""
    own = {p.untyped_storage()._cdata for p in (*module.parameters(), *module.buffers())}
    kept: dict[int, torch.UntypedStorage] = {}

    def pack(tensor: torch.Tensor) -> torch.Tensor:
        storage = tensor.untyped_storage()
        if storage._cdata not in own:
            kept[storage._cdata] = storage  # held, so that no other gets its address
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(pack, lambda t: t):
        module(images)
    return sum(storage.nbytes() for storage in kept.values())


def kept_by(spec: str, model: torch.nn.Module, images: torch.Tensor) -> int:
    return kept_for_backward(vr.apply(spec, model).module.eval(), images)


LORA = "insert lora(rank=8) at blocks[*].attn.qkv\ntrain head\n"


def test_little_is_kept_for_backward() -> None:
    """Keys and values, weights on them, and what is the queries' own."""
    model = vit(img_size=112, patch_size=8, embed_dim=96, num_heads=4, depth=4)
    images = torch.randn(1, 3, 112, 112)
    own = SPEC.format("count=4, hidden=12, narrow=2", "blocks[*]")
    assert kept_by(own, model, images) < 0.3 * kept_by(LORA, model, images)


@SLOW
def test_what_vit_b_keeps_for_backward() -> None:
    """The card's 26 MB of an image against 97 MB of LoRA's, or less."""
    model = timm.create_model("vit_base_patch16_224")
    images = torch.randn(1, 3, 224, 224)
    own, lora = (kept_by(s, model, images) for s in (SPEC.format("count=4", "blocks[*]"), LORA))
    assert own <= 26e6
    assert own <= 0.3 * lora


def test_no_gradient_enters_the_stream() -> None:
    rewritten = fill(vr.apply(SPEC.format("hidden=6, narrow=2", "blocks[*]"), vit()))
    module, seen = rewritten.module.train(), []
    for block in module.get_submodule("blocks").children():
        block.register_forward_hook(lambda _m, x, _y: seen.append(x[0].requires_grad))
    module(IMAGES).square().sum().backward()
    assert seen == [False] * 3
    named = dict(module.named_parameters())
    reached = {n for n, p in named.items() if p.grad is not None and p.grad.abs().sum() > 0}
    assert reached >= {n for n in named if "synqt" in n and "attn_k.up.bias" not in n}
    assert all("synqt" in n or n.startswith("head.") for n in reached)
    vr.verify(rewritten, graphs=False)


def test_drawing_in_training() -> None:
    module = vr.apply(SPEC.format("hidden=6, narrow=2", "blocks[*]"), vit()).module.train()
    first, second = (module(IMAGES.repeat(8, 1, 1, 1)) for _ in range(2))
    assert not torch.equal(first, second)
    options = "hidden=6, narrow=2, dropout=0, drop_path=0"
    module = vr.apply(SPEC.format(options, "blocks[*]"), vit()).module
    torch.testing.assert_close(module.train()(IMAGES), module.eval()(IMAGES))


SMALLER = "hidden=6, narrow=2"
SYNQT = SPEC.format(SMALLER, "blocks[*]")
BAD: dict[str, tuple[str, dict[str, Any], str, str]] = {
    "no queries": (SPEC.format("count=0", "blocks[*]"), {}, "VR20", "1"),
    "wide": (SPEC.format("narrow=2", "blocks[*]"), {}, "VR403", "valid: 1..16"),
    "kem": (SPEC.format("kem=frozne", "blocks[*]"), {}, "VR20", "frozen"),
    "copies": (SPEC.format(f"{SMALLER}, kem=trained", "blocks[*]"), {"init_values": 0.1}, "VR403",
               "kem=frozen"),
    "no head": (SYNQT, {"num_classes": 0}, "VR", "head"),
    "no norm": (SYNQT, {"final_norm": False}, "VR410", "no norm behind its blocks"),
    "twice": (SPEC.format(SMALLER, "blocks[0]") + SPEC.format(SMALLER, "blocks[1]"), {},
              "VR4", "synqt"),
    "lora": ("insert lora(rank=2) at blocks[*].attn.q\n" + SYNQT, {}, "VR520", "lora"),
    "prompt": ("prepend prompt(count=2) to blocks[*]\n" + SYNQT, {}, "VR520", "prompt"),
    "adapter": ("insert adaptformer(hidden=2) at blocks[*].mlp_branch\n" + SYNQT, {}, "VR520",
                "adaptformer"),
    "norms": (SYNQT + "train blocks[*].norm1\n", {}, "VR520", "norm1"),
    "vqt": (SYNQT + "prepend vqt() to blocks[*]\n", {}, "VR455", "synqt and vqt"),
}  # fmt: skip


@pytest.mark.parametrize("name", BAD)
def test_bad_input(name: str) -> None:
    spec, model, code, words = BAD[name]
    expect_refusal(spec, vit(**model), code, words)


def test_one_query_is_warned_of() -> None:
    rewritten = vr.apply(SPEC.format(f"count=1, {SMALLER}", "blocks[*]"), vit())
    assert any("get no gradient" in w for w in rewritten.result.warnings)


def test_other_models() -> None:
    """Distilled ones have two heads, and Swin several widths."""
    swin = timm.create_model("swin_tiny_patch4_window7_224", depths=(1, 1, 1, 1))
    deit = timm.create_model("deit_tiny_distilled_patch16_224", depth=2)
    for model in (swin, deit):
        with pytest.raises(vr.VitrewriteError, match="VR410 synqt at"):
            vr.plan(SYNQT, model)
