"""Registers and rotary positions of Hugging Face's DINO models: what counts as prefix."""

from __future__ import annotations

from typing import Any

import pytest
import torch

import vitrewrite as vr
from vitrewrite.anatomy import analyse

transformers = pytest.importorskip("transformers")
SMALL = {"hidden_size": 48, "num_hidden_layers": 2, "num_attention_heads": 3}
PROMPT = "prepend prompt(count=5{more}) to blocks[*]\n"


def registers() -> Any:
    """A class token, 4 registers that join behind the positions, and 16 patches."""
    config = transformers.Dinov2WithRegistersConfig(
        **SMALL, mlp_ratio=2, image_size=56, patch_size=14, num_register_tokens=4
    )
    torch.manual_seed(0)
    return transformers.Dinov2WithRegistersForImageClassification(config).eval()


def rotary() -> Any:
    """A class token, 4 registers, 16 patches; positions of the patches only."""
    config = transformers.DINOv3ViTConfig(
        **SMALL, intermediate_size=96, image_size=64, patch_size=16, num_register_tokens=4
    )
    torch.manual_seed(0)
    return transformers.DINOv3ViTModel(config).eval()


def test_a_prefix_that_joins_in_two_steps() -> None:
    stream = analyse(vr.capture(registers())).stream
    names = [name.rpartition(".")[2] for name in stream.prefix]
    assert (names, stream.prefix_tokens) == (["cls_token", "register_tokens"], 5)
    assert (stream.tokens, stream.grid, stream.suffix_tokens) == (21, (4, 4), 0)


def with_prompts(model: Any, layers: Any, rewritten: Any) -> Any:
    """The user's model with the prompts put in by hooks."""
    rows = [v for k, v in rewritten.delta().items() if "prompt" in k]
    for index, layer in enumerate(layers):

        def put(_: Any, args: Any, kwargs: Any, index: int = index) -> Any:
            x, *rest = args
            new = rows[index].detach().expand(x.shape[0], -1, -1)
            x = torch.cat([x[:, :5], new, x[:, 10 if index else 5 :]], dim=1)
            return (x, *rest), kwargs

        layer.register_forward_pre_hook(put, with_kwargs=True)
    return model


def test_prompts_and_merges_behind_registers() -> None:
    model = registers()
    rewritten = vr.apply(PROMPT.format(more=""), model)
    assert rewritten.report["tokens"] == [21, 26, 26]
    merged = vr.apply("insert merge.bdm() after blocks[0].attn\n", model)
    assert merged.report["tokens"] == [21, 13, 13]
    encoder = next(m for n, m in model.named_modules() if n.endswith("encoder"))
    x = torch.randn(2, 3, 56, 56)
    with torch.no_grad():
        found = rewritten.module.eval()(x)["logits"]
        assert torch.equal(found, with_prompts(model, encoder.layer, rewritten)(x).logits)


@pytest.mark.skipif(
    not hasattr(transformers, "DINOv3ViTConfig"), reason="transformers has DINOv3 since 4.56"
)
@pytest.mark.parametrize("more", ["", ", readout=all"])
def test_rotary_positions_leave_prompts_alone_at_any_size(more: str) -> None:
    model = rotary()
    rewritten = vr.apply(PROMPT.format(more=more), model)
    assert rewritten.report["tokens"] == [21, 26, 26]
    layers = next(m for n, m in model.named_modules() if isinstance(m, torch.nn.ModuleList))
    with_prompts(model, layers, rewritten)
    for height, width in ((64, 64), (96, 64), (32, 80)):
        x = torch.randn(2, 3, height, width)
        with torch.no_grad():
            found = rewritten.module.eval()(x)["last_hidden_state"]
            assert torch.equal(found, model(x).last_hidden_state)
        assert found.shape[1] == 10 + height // 16 * (width // 16)
