"""Prompts where there is no class token, where the head pools, and under positions in attention.

The reference is the user's own model with the prompts put in by hooks in front of its blocks.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import timm
import torch
import torch.nn.functional as F
from torch import nn

import vitrewrite as vr

SMALL = {"depth": 2, "embed_dim": 48, "num_heads": 3, "img_size": 32, "num_classes": 5}
DEEP = "prepend prompt(count=3) to blocks[*]\n"


def build(name: str, **more: Any) -> nn.Module:
    """A tiny model with random norms and biases."""
    torch.manual_seed(0)
    model: nn.Module = timm.create_model(name, **{**SMALL, **more}).eval()
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(0.1 * torch.randn_like(parameter))
    # Torch takes another kernel for weights that ask for a gradient: those of a rewrite do not.
    return model.requires_grad_(False)


def by_hooks(
    model: nn.Module, blocks: list[nn.Module], prompts: list[torch.Tensor], start: int
) -> Any:
    """The model with prompts at the inputs of blocks."""
    for index, (block, rows) in enumerate(zip(blocks, prompts, strict=True)):
        old = len(prompts[index - 1]) if index else 0

        def put(_: nn.Module, args: Any, rows: torch.Tensor = rows, old: int = old) -> Any:
            x, *rest = args
            new = rows.to(x.dtype).expand(x.shape[0], -1, -1)
            return (torch.cat([x[:, :start], new, x[:, start + old :]], dim=1), *rest)

        block.register_forward_pre_hook(put)
    return model


def prompts_of(rewritten: Any, count: int) -> list[torch.Tensor]:
    """The prompts of each block that has some, made larger than they start."""
    found = []
    for i in range(count):
        rows = rewritten.delta()[f"blocks.{i}.prompt.prompt"]
        with torch.no_grad():
            rows.copy_(torch.randn_like(rows))
        found.append(rows)
    return found


def with_rope(model: nn.Module) -> None:
    """Three more tokens without positions."""
    for block in model.blocks:  # type: ignore[union-attr]
        block.attn.num_prefix_tokens += 3  # type: ignore[union-attr, operator]


def with_bias(start: int) -> Callable[[nn.Module], None]:
    """Zeros in the relative position bias for three more tokens."""

    def change(model: nn.Module) -> None:
        for block in model.blocks:  # type: ignore[union-attr]
            attn: Any = block.attn  # type: ignore[union-attr]

            def padded(get: Any = attn._get_rel_pos_bias) -> torch.Tensor:
                bias = get()
                n = bias.shape[-1]
                order = [*range(start), *[n] * 3, *range(start, n)]
                return F.pad(bias, (0, 1, 0, 1))[..., order, :][..., order]

            attn._get_rel_pos_bias = padded

    return change


CASES: dict[str, tuple[str, dict[str, Any], int, list[int], Any]] = {
    # the model, options, tokens in front, tokens at the blocks, what the reference needs
    "siglip": ("vit_base_patch16_siglip_224", {}, 0, [4, 7, 7], None),
    "gap without class token": ("vit_base_patch16_siglip_gap_224", {}, 0, [4, 7, 7], None),
    "gap with class token": ("vit_tiny_patch16_224", {"global_pool": "avg"}, 1, [5, 8, 8], None),
    "max": ("vit_tiny_patch16_224", {"global_pool": "max"}, 1, [5, 8, 8], None),
    "rotary, register": ("vit_base_patch16_rope_reg1_gap_256", {}, 1, [5, 8, 8], with_rope),
    "rotary, gap": ("eva02_tiny_patch14_224", {"img_size": 28}, 1, [5, 8, 8], with_rope),
    "rotary, class": ("eva02_tiny_patch14_224", {"img_size": 28, "global_pool": "token"}, 1,
                      [5, 8, 8], with_rope),
    "dinov3": ("vit_small_patch16_dinov3", {"img_size": 64}, 5, [21, 24, 24], with_rope),
    "bias, gap": ("beit_base_patch16_224", {}, 1, [5, 8, 8], with_bias(1)),
    "bias, class": ("beit_base_patch16_224", {"global_pool": "token"}, 1, [5, 8, 8], with_bias(1)),
}  # fmt: skip


@pytest.mark.parametrize("name", CASES)
def test_heads_and_positions(name: str) -> None:
    model, options, start, tokens, change = CASES[name]
    base = build(model, **options)
    rewritten = vr.apply(DEEP, base)
    prompts = prompts_of(rewritten, 2)
    assert rewritten.report["tokens"] == tokens
    if change is not None:
        change(base)
    by_hooks(base, list(base.blocks), prompts, start)  # type: ignore[arg-type]
    size = options.get("img_size", 32)
    with torch.no_grad():
        for batch in (1, 3):
            x = torch.randn(batch, 3, size, size)
            assert torch.equal(rewritten.module(x), base(x))
        lowered = vr.lower(rewritten)
        alone = name.endswith("class")  # the last prompts are read by nobody, and all become keys
        assert lowered.report["tokens"] == ([tokens[0]] * 3 if alone else tokens)
        torch.testing.assert_close(lowered.module(x), base(x), rtol=1e-4, atol=2e-5)
        if name == "dinov3":  # whose own casts keep the positions' periods in float32
            return
        x, wide = x.bfloat16(), base.bfloat16()
        assert torch.equal(rewritten.module.bfloat16()(x), wide(x))


def test_class_token_that_joins_late() -> None:
    base = build("cait_xxs24_224", init_values=1.0)
    rewritten = vr.apply(DEEP, base)
    prompts = prompts_of(rewritten, 2)
    assert [k for k in rewritten.delta() if "prompt" in k] == [
        "blocks.0.prompt.prompt",
        "blocks.1.prompt.prompt",
    ]
    assert any(
        "'blocks[2]': its stream is the class token alone" in w for w in rewritten.result.warnings
    )
    by_hooks(base, list(base.blocks), prompts, 0)  # type: ignore[arg-type]
    x = torch.randn(2, 3, 32, 32)
    with torch.no_grad():
        assert torch.equal(rewritten.module(x), base(x))
        assert torch.equal(
            vr.lower(rewritten).module(x), base(x)
        )  # what class attention reads stays


def test_prompts_from_a_later_block_move_the_cuts_behind_it_only() -> None:
    base = build("eva02_tiny_patch14_224", img_size=28, depth=3)
    rewritten = vr.apply("prepend prompt(count=3) to blocks[1]\n", base)
    (rows,) = [v for k, v in rewritten.delta().items() if "prompt" in k]
    by_hooks(base, [base.blocks[1]], [rows.detach()], 1)  # type: ignore[index, list-item]
    for block in list(base.blocks)[1:]:  # type: ignore[arg-type]
        block.attn.num_prefix_tokens += 3
    x = torch.randn(2, 3, 28, 28)
    with torch.no_grad():
        assert torch.equal(rewritten.module(x), base(x))


def test_prompts_that_are_taken_out_again() -> None:
    base = build("beit_base_patch16_224")
    rewritten = vr.apply(DEEP.replace("3)", "3, readout=patches)"), base)
    prompts = prompts_of(rewritten, 2)
    with_bias(1)(base)
    by_hooks(base, list(base.blocks), prompts, 1)  # type: ignore[arg-type]
    base.blocks[-1].register_forward_hook(  # type: ignore[index, operator]
        lambda _m, _a, y: torch.cat([y[:, :1], y[:, 4:]], dim=1)
    )
    x = torch.randn(2, 3, 32, 32)
    with torch.no_grad():
        assert torch.equal(rewritten.module(x), base(x))
        lowered = vr.lower(rewritten)
        assert lowered.report["tokens"] == [5, 5, 5]
        torch.testing.assert_close(lowered.module(x), base(x), rtol=1e-4, atol=2e-5)


def test_prompts_in_front_of_what_the_head_reads_by_position() -> None:
    model = build("vit_tiny_patch16_224", global_pool="avg")
    with pytest.raises(vr.VitrewriteError) as caught:
        vr.plan("prepend prompt(position=0) to blocks[*]\n", model)
    assert caught.value.code == "VR403"
    assert (
        "the head tells tokens 0..0 by their position, and prompts in front would move them"
        in str(caught.value)
    )


@pytest.mark.parametrize("name", ["siglip", "gap with class token", "bias, gap"])
def test_prompts_alone_are_pooled(name: str) -> None:
    model, options, start, _, change = CASES[name]
    base = build(model, **options)
    rewritten = vr.apply(DEEP.replace("3)", "3, readout=prompts)"), base)
    prompts = prompts_of(rewritten, 2)
    if change is not None:
        change(base)
    by_hooks(base, list(base.blocks), prompts, start)  # type: ignore[arg-type]
    base.blocks[-1].register_forward_hook(lambda _m, _a, y: y[:, : start + 3])  # type: ignore
    x = torch.randn(2, 3, 32, 32)
    with torch.no_grad():
        assert torch.equal(rewritten.module(x), base(x))
        torch.testing.assert_close(vr.lower(rewritten).module(x), base(x), rtol=1e-4, atol=2e-5)


UNLIKE: dict[str, tuple[str, dict[str, Any], str | None]] = {
    "plain": ("vit_tiny_patch16_224", {}, None),
    "rotary": ("eva02_tiny_patch14_224", {"img_size": 28, "global_pool": "token"}, "cuts"),
    "bias": ("beit_base_patch16_224", {"global_pool": "token"}, "bias"),
}  # fmt: skip


@pytest.mark.parametrize("name", UNLIKE)
@pytest.mark.parametrize("counts", ["[2, 4, 1]", "[1, 3, 3]"])
def test_prompts_of_unlike_counts(name: str, counts: str) -> None:
    model, options, kind = UNLIKE[name]
    base = build(model, depth=3, **options)
    rewritten = vr.apply(f"prepend prompt(count={counts}) to blocks[*]\n", base)
    prompts = prompts_of(rewritten, 3)
    for block, rows in zip(base.blocks, prompts, strict=True):  # type: ignore[arg-type]
        if kind == "cuts":
            block.attn.num_prefix_tokens += len(rows)
        if kind == "bias":
            with_room(block.attn, len(rows))
    by_hooks(base, list(base.blocks), prompts, 1)  # type: ignore[arg-type]
    size = options.get("img_size", 32)
    x = torch.randn(2, 3, size, size)
    with torch.no_grad():
        assert torch.equal(rewritten.module(x), base(x))
        lowered = vr.lower(rewritten)
        torch.testing.assert_close(lowered.module(x), base(x), rtol=1e-4, atol=2e-5)
    assert len(set(lowered.report["tokens"])) == 1


def with_room(attn: Any, count: int) -> None:
    """Zeros in the relative position bias of one attention for tokens behind the first."""

    def padded(get: Any = attn._get_rel_pos_bias) -> torch.Tensor:
        bias = get()
        n = bias.shape[-1]
        order = [0, *[n] * count, *range(1, n)]
        return F.pad(bias, (0, 1, 0, 1))[..., order, :][..., order]

    attn._get_rel_pos_bias = padded


def test_new_prompts_at_some_blocks_only() -> None:
    base = build("vit_tiny_patch16_224", depth=3)
    rewritten = vr.apply("prepend prompt(count=[3, 2]) to blocks[0] + blocks[2]\n", base)
    first, last = (v for k, v in rewritten.delta().items() if "prompt" in k)
    by_hooks(base, [base.blocks[0], base.blocks[2]], [first.detach(), last.detach()], 1)  # type: ignore
    x = torch.randn(2, 3, 32, 32)
    with torch.no_grad():
        assert torch.equal(rewritten.module(x), base(x))
    assert rewritten.report["tokens"] == [5, 8, 8, 7]
    assert vr.lower(rewritten).report["tokens"] == [5, 8, 8, 7]


def test_rows_beside_keys_do_not_move_where_a_bias_gets_room() -> None:
    base = build("beit_base_patch16_224", global_pool="token")
    kv = "prepend kv_prompt(n=2) to blocks[*].attn\n"
    outputs = []
    for spec in (DEEP + kv, kv + DEEP):
        rewritten = vr.apply(spec, base)
        for name, tensor in rewritten.delta().items():
            generator = torch.Generator().manual_seed(len(name) + sum(map(ord, name)))
            tensor.copy_(torch.randn(tensor.shape, generator=generator))
        with torch.no_grad():
            outputs.append(rewritten.module(torch.ones(1, 3, 32, 32)))
    assert torch.equal(*outputs)


def test_projection() -> None:
    base = build("vit_tiny_patch16_224")
    rewritten = vr.apply("prepend prompt(count=200, project=6) to blocks[*]\n", base)
    delta = rewritten.delta()
    weight = delta["blocks.0.prompt.project.weight"]
    assert weight.shape == (48, 6)
    assert float(weight.std()) == pytest.approx((2 / 48) ** 0.5, rel=0.15)
    assert not delta["blocks.0.prompt.project.bias"].any()
    prompts = [
        torch.nn.functional.linear(
            *(delta[f"blocks.{i}.prompt.{n}"] for n in ("prompt", "project.weight", "project.bias"))
        ).detach()
        for i in range(2)
    ]
    by_hooks(base, list(base.blocks), prompts, 1)  # type: ignore[arg-type]
    x = torch.randn(2, 3, 32, 32)
    with torch.no_grad():
        torch.testing.assert_close(rewritten.module(x), base(x))
        torch.testing.assert_close(vr.lower(rewritten).module(x), base(x), rtol=1e-4, atol=2e-5)


@pytest.mark.parametrize("name", ["rotary, gap", "bias, class"])
def test_verified(name: str) -> None:
    model, options, *_ = CASES[name]
    vr.verify(vr.apply(DEEP, build(model, **options)), graphs=False)
