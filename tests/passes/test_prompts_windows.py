"""Prompts on Swin: the authors' numbers, per-image semantics by hand, readouts, bad input."""

from __future__ import annotations

import re
from typing import Any

import pytest
import timm
import torch
import torch.nn.functional as F
from safetensors.torch import load_file
from timm.models.swin_transformer import SwinTransformer, window_partition, window_reverse

import vitrewrite as vr
from tests import goldens
from tests.lowering.models import fill
from tests.models import spread
from vitrewrite.emission.twin import emitted_twin
from vitrewrite.folder.writing import model_text

DEEP = "prepend prompt(count=3) to blocks[*]\n"
X = torch.randn(2, 3, 32, 32, generator=torch.Generator().manual_seed(1))


def swin(**options: Any) -> Any:
    torch.manual_seed(0)
    small = {
        "img_size": 32, "patch_size": 2, "window_size": 4, "embed_dim": 8, "depths": (2, 2),
        "num_heads": (1, 2), "num_classes": 5, "mlp_ratio": 2.0,
    }  # fmt: skip
    return spread(SwinTransformer(**{**small, **options})).eval()


def golden_name(name: str) -> str:
    """The case's name of a tensor of a delta."""
    found = re.fullmatch(r"layers\.(\d)\.blocks\.(\d)\.prompt\.prompt", name)
    return f"prompt.{found[1]}.{found[2]}" if found else name


def test_golden() -> None:
    case = goldens.case("vpt-deep-swin")
    model = SwinTransformer(**case.about["base"]["kwargs"])
    state = load_file(goldens.FOLDER / case.about["base_file"])
    model.load_state_dict({k.removeprefix("base."): v for k, v in state.items()})
    rewritten = vr.apply(DEEP + "train head\n", model.eval())
    for name, tensor in rewritten.delta().items():
        if "prompt" in name:
            tensor.copy_(case.tensors[f"method.{golden_name(name)}"])
    x = case.tensors["input"]
    with torch.no_grad():
        case.close(rewritten.base(x), "output_base")
        case.close(rewritten.module.eval()(x), "output")
        case.close(rewritten.module.eval()(x), "output_public_batched")
        assert torch.equal(vr.lower(rewritten).module(x), rewritten.module(x))
    case.gradients_close({golden_name(k): v for k, v in case.gradients_of(rewritten).items()})


class Hand:
    """timm's Swin with prompts in every window, image by image, as the card has it."""

    def __init__(self, model: Any, rewritten: vr.Rewritten, mask: Any = None) -> None:
        self.model, self.delta, self.mask = model, rewritten.delta(), mask

    def __call__(self, x: torch.Tensor, readout: str = "all") -> torch.Tensor:
        return torch.cat([self.one(image[None], readout) for image in x])

    def one(self, x: torch.Tensor, readout: str) -> torch.Tensor:
        model, rows = self.model, torch.zeros(1, 0, 0)
        x = model.patch_embed(x)
        for s, stage in enumerate(model.layers):
            x = stage.downsample(x)
            if s and rows.shape[1]:
                four, down = rows.repeat(1, 1, 4), stage.downsample
                v2 = down.norm.normalized_shape[0] == x.shape[-1]
                rows = down.norm(down.reduction(four)) if v2 else down.reduction(down.norm(four))
            for b, block in enumerate(stage.blocks):
                if not rows.shape[1]:
                    rows = x.new_zeros(1, 0, x.shape[-1])
                new = self.delta.get(f"layers.{s}.blocks.{b}.prompt.prompt")
                if new is not None:
                    rows = new[None] * (self.mask if s + b == 0 and self.mask is not None else 1)
                kv = self.delta.get(f"layers.{s}.blocks.{b}.attn.kv_prompt.kv")
                x, rows = self.block(block, x, rows, kv)
        x, rows = model.norm(x).flatten(1, 2), model.norm(rows)
        read = {"all": torch.cat([rows, x], 1), "prompts": rows, "patches": x}[readout]
        made: torch.Tensor = model.head.fc(read.mean(1))
        return made

    def block(self, block: Any, x: torch.Tensor, rows: torch.Tensor, kv: Any) -> Any:
        _, height, width, _ = x.shape
        count, size, shift = rows.shape[1], block.window_size, block.shift_size
        moved = torch.roll(block.norm1(x), (-shift[0], -shift[1]), (1, 2))
        windows = window_partition(moved, size).flatten(1, 2)
        top = block.norm1(rows).expand(len(windows), -1, -1)
        y = self.attend(block.attn, torch.cat([top, windows], 1), block.attn_mask, count, kv)
        back = window_reverse(y[:, count:].reshape(-1, *size, x.shape[-1]), size, height, width)
        x = x + torch.roll(back, tuple(shift), (1, 2))
        rows = rows + y[:, :count].mean(0, keepdim=True)
        return (z + block.mlp(block.norm2(z)) for z in (x, rows))

    def attend(self, attn: Any, x: torch.Tensor, mask: Any, count: int, kv: Any) -> torch.Tensor:
        q, k, v = attn.qkv(x).reshape(*x.shape[:2], 3, attn.num_heads, -1).permute(2, 0, 3, 1, 4)
        bias = attn._get_rel_pos_bias()
        if mask is not None:
            bias = bias + mask[:, None]
        bias = F.pad(bias, (count, 0, count, 0))
        if kv is not None:
            more = kv.expand(len(k), -1, -1, -1)
            k, v = torch.cat([more, k], 2), torch.cat([more, v], 2)
            bias = F.pad(bias, (kv.shape[1], 0))
        weights = (q @ k.mT * attn.scale + bias).softmax(-1)
        made: torch.Tensor = attn.proj((weights @ v).transpose(1, 2).flatten(2))
        return made


KV = "prepend kv_prompt(n=2) to blocks[*].attn\n"
CASES = {
    "deep": DEEP,
    "shallow": "prepend prompt(count=3) to blocks[0]\n",
    "from the second stage on": "prepend prompt(count=3) to blocks[2]\n",
    "with gaps": "prepend prompt(count=3) to blocks[1] + blocks[3]\n",
    "unlike counts": "prepend prompt(count=[3, 1, 2, 4]) to blocks[*]\n",
    "prompts": "prepend prompt(count=3, readout=prompts) to blocks[*]\n",
    "patches": "prepend prompt(count=3, readout=patches) to blocks[0]\n",
    "rows of keys": DEEP + KV,
    "rows of keys first": KV + "prepend prompt(count=3) to blocks[0]\n",
}


@pytest.mark.parametrize("name", CASES)
def test_it_is_what_the_equations_say(name: str) -> None:
    model = swin()
    rewritten = fill(vr.apply(CASES[name], model))
    readout = name if name in ("prompts", "patches") else "all"
    with torch.no_grad():
        for batch in (2, 1):
            found = rewritten.module(X[:batch])
            expected = Hand(model, rewritten)(X[:batch], readout)
            torch.testing.assert_close(found, expected, rtol=1e-4, atol=1e-5)
        twin = emitted_twin(model_text(rewritten), rewritten.module.state_dict())
        assert torch.equal(twin.eval()(X), rewritten.module(X))
        torch.testing.assert_close(vr.lower(rewritten).module(X), rewritten.module(X))


def test_masks_are_for_the_first_prompts_only() -> None:
    model = swin()
    spec = "prepend prompt(count=3, masks=true, segments=4) to blocks[*]\n" + KV
    rewritten = fill(vr.apply(spec, model))
    delta = rewritten.delta()
    mask = delta["prompt.segment_mask"].repeat(1, 2) * delta["prompt.token_mask"][:, None]
    with torch.no_grad():
        expected = Hand(model, rewritten, mask)(X)
        torch.testing.assert_close(rewritten.module(X), expected, rtol=1e-4, atol=1e-5)


def test_gradients_reach_all_prompts() -> None:
    rewritten = fill(vr.apply(DEEP + KV + "train head\n", swin()))
    rewritten.module(X).square().sum().backward()
    for name, parameter in rewritten.module.named_parameters():
        assert (
            parameter.grad is not None and bool(parameter.grad.any())
        ) == parameter.requires_grad, name


@pytest.mark.parametrize(
    "spec",
    [
        pytest.param(
            "insert lora(rank=2) at blocks[*].attn.{q, v} + blocks[*].mlp.fc1",
            marks=pytest.mark.slow,
        ),
        "insert ssf() at blocks[*].{norm1, norm2} + blocks[*].attn.qkv",
        pytest.param("insert adapter(hidden=2) at every branch", marks=pytest.mark.slow),
    ],
)
def test_they_pass_what_other_clauses_put_there(spec: str) -> None:
    both = [fill(vr.apply(text, swin())) for text in (f"{DEEP}{spec}\n", f"{spec}\n{DEEP}")]
    with torch.no_grad():
        found = [one.module(X) for one in both]
        torch.testing.assert_close(*found)
        torch.testing.assert_close(vr.lower(both[0]).module(X), found[0], rtol=1e-4, atol=2e-5)


def test_verified() -> None:
    vr.verify(vr.apply("prepend prompt(count=2) to blocks[0]\n", swin()), graphs=False)


@pytest.mark.slow
def test_figures_of_the_card() -> None:
    deep = vr.plan(DEEP, "swin_base_patch4_window7_224").measures
    assert deep.params.trainable == 3 * 12_032
    shallow = "prepend prompt(count=3) to blocks[0]\n"
    assert vr.plan(shallow, "swin_base_patch4_window7_224").measures.params.trainable == 3 * 128


def test_initial_values_go_by_the_stem() -> None:
    bound = (6 / (3 * 4 + 8)) ** 0.5
    for rows in vr.apply("prepend prompt(count=50) to blocks[*]\n", swin()).delta().values():
        assert 0.9 * bound < float(rows.abs().max()) <= bound


def test_swin_v2() -> None:
    torch.manual_seed(0)
    model = timm.models.swin_transformer_v2.SwinTransformerV2(
        img_size=32,
        patch_size=2,
        window_size=4,
        embed_dim=8,
        depths=(2, 2),
        num_heads=(1, 2),
        num_classes=5,
    )
    rewritten = fill(vr.apply(DEEP, spread(model).eval()))
    with torch.no_grad():
        whole, alone = rewritten.module(X), [rewritten.module(x[None]) for x in X]
    torch.testing.assert_close(whole, torch.cat(alone), rtol=1e-4, atol=1e-5)


BAD: dict[str, tuple[str, dict[str, Any], str]] = {
    "class token": ("readout=class", {}, "VR403 the model has no class token"),
    "position": ("position=1", {}, "VR403 prompts stand in front in every window"),
    "no whole windows": ("", {"img_size": 40}, "VR410 .*10x10 is not cut into whole windows of 16"),
    "no head": ("", {"num_classes": 0}, "VR410 .*no head"),
}


@pytest.mark.parametrize("name", BAD)
def test_bad_input(name: str) -> None:
    options, more, told = BAD[name]
    with pytest.raises(vr.VitrewriteError) as caught:
        vr.plan(f"prepend prompt({options}) to blocks[*]\n", swin(**more))
    assert re.search(told, f"{caught.value.code} {caught.value.message}"), caught.value.render()


def test_prompts_are_refused_twice() -> None:
    first = "prepend prompt(count=2) to blocks[0]\n"
    with pytest.raises(vr.VitrewriteError, match=r"VR410 .*rows of another clause go along"):
        vr.plan(first + "prepend prompt(count=2) to blocks[1:]\n", swin())
    once = vr.apply(first, swin()).module
    with pytest.raises(vr.VitrewriteError, match=r"VR402 .*has prompt already"):
        vr.plan(first, once, example=X)


def test_more_prompts_than_tokens_of_a_window_are_told() -> None:
    plan = vr.plan("prepend prompt(count=17) to blocks[*]\n", swin())
    assert any("17 prompts are more than the 16 tokens of a window" in w for w in plan.warnings)
