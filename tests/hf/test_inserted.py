"""Models of Hugging Face: split q, k, v, windows at another size, keys in front of the batch."""

from __future__ import annotations

from typing import Any

import pytest
import torch

import vitrewrite as vr
from tests.hf.zoo import ZOO, mask2former
from tests.passes.test_samples import ADAPTER, LORA, draws, kept
from tests.zoo.subject import tensors

IMAGES = torch.randn(2, 3, 64, 64, generator=torch.Generator().manual_seed(0))
DECODERS = {
    "dfpq": "add dfpq() to decoder",
    "hrca": "add hrca(omega=2) to decoder",
    "rcda": "replace decoder.layers[2].cross_attn with rcda()",
    "lora": "insert lora(rank=2, convention=spt) at every linear in decoder",
    "adapter": "insert adapter(hidden=2) at decoder.layers[*].cross_attn.{k, proj}",
}


def _segmenter(**more: Any) -> Any:
    torch.manual_seed(0)
    return mask2former("resnet", **more)


@pytest.mark.parametrize("name", DECODERS)
def test_what_is_put_into_a_decoder_fits_it(name: str) -> None:
    model, x = _segmenter(decoder_layers=4).bfloat16().eval(), IMAGES.bfloat16()
    rewritten = vr.apply(f"{DECODERS[name]}\n", model, example=x)
    module = rewritten.module
    assert {p.dtype for p in module.parameters()} == {torch.bfloat16}
    assert not any(m.training for m in module.modules())
    kept_: list[tuple[torch.Tensor, torch.Tensor]] = []
    paths = {i.path for i in rewritten.result.editor.insertions}
    for path, each in module.named_modules():
        if path in paths:
            each.register_forward_pre_hook(
                lambda _, given: kept_.extend(
                    (v, v.clone()) for v in given if isinstance(v, torch.Tensor)
                )
            )
    with torch.no_grad():
        first, second, base = (list(tensors(m(x)).values()) for m in (module, module, model))
    assert all(v.dtype == torch.bfloat16 for v in first)
    assert all(torch.equal(a, b) for a, b in zip(first, second, strict=True))
    assert all(torch.equal(a, b) for a, b in kept_)
    if name in ("lora", "adapter"):
        assert all(torch.equal(a, b) for a, b in zip(first, base, strict=True))
    loss = sum(v.float().sum() for v in tensors(module.train()(x)).values() if v.requires_grad)
    loss.backward()  # type: ignore[union-attr]


def test_keys_of_a_decoder_are_in_front_of_the_batch() -> None:
    spec = f"insert {LORA} at decoder.layers[0].cross_attn.{{q, k, v, proj}}"
    found = kept("lora", spec, _segmenter(), IMAGES.expand(2, -1, -1, -1).repeat(3, 1, 1, 1))
    assert len(found) == 4
    for path, ratio in found.items():
        apart = "out_proj" in path  # [queries * batch, C]
        assert set(draws(ratio, 0 if apart else 1, 6, apart)) <= {0.0, 2.0}


def test_windows_at_another_size_share_the_draw() -> None:
    model, x = ZOO["swin"].build(), torch.randn(4, 3, 64, 64)
    spec = f"insert {ADAPTER} at blocks[0].attn.{{q, v}}\n"
    module = vr.apply(spec, model, example=x).module.train()
    found: list[tuple[torch.Tensor, int]] = []
    for path, each in module.named_modules():
        if path.endswith("_keep"):
            each.register_forward_hook(lambda _, given, made: found.append((made, given[1])))
    module(torch.randn(3, 3, 128, 96))
    assert [made.shape[0] for made, _ in found] == [3 * 8 * 6] * 2
    for made, batch in found:
        assert batch == 3
        rows = made.flatten().view(3, 48)
        assert torch.equal(rows, rows[:, :1].expand(-1, 48))


def test_split_layers_see_the_same_dropped_input() -> None:
    spec = "insert lora(rank=2, convention=spt, dropout=0.5) at blocks[0].attn.{q, k, v, proj}\n"
    module = vr.apply(spec, ZOO["vit"].build()).module.train()
    seen: dict[str, torch.Tensor] = {}

    def note(path: str) -> Any:
        return lambda _, given: seen.update({path.rpartition(".")[2]: given[0]})

    for path, each in module.named_modules():
        if path.endswith("_lora"):
            each.register_forward_pre_hook(note(path))
    module(torch.randn(2, 3, 32, 32))
    *qkv, proj = seen.values()
    assert len(qkv) == 3
    assert all(torch.equal(v, qkv[0]) for v in qkv)
    assert 0.4 < float((qkv[0] == 0).float().mean()) < 0.6
    assert not bool((proj == 0).any())
