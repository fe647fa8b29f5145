"""Refusals in the terms of models: what a part needs of its tokens, the sizes of a capture."""

from __future__ import annotations

from typing import Any

import pytest
import timm
import torch
from torch import nn

import vitrewrite as vr
from tests.test_capture import tiny
from vitrewrite.editing.measure import BrokenError
from vitrewrite.editing.stream import Tokens
from vitrewrite.rewrite.conflicts import needed

MERGE = "insert merge.bdm() after blocks[0].attn"
PROMPT = "prepend prompt() to blocks[*]"
BIAS = "adds a relative position bias, which is for a grid of"
ROTARY = "turns queries and keys by rotary positions, one for each of"
SMALL = {"depth": 2, "embed_dim": 48, "num_heads": 3}

# A model, a clause, what is said, and the part that needs the tokens.
CONFLICTS: list[tuple[str, dict[str, Any], str, str, str]] = [
    ("beit_base_patch16_224", {"img_size": 64, **SMALL}, MERGE,
     "merge.bdm at 'blocks[0].attn'", f"'blocks.1.attn' {BIAS} 17 tokens, and gets 9 tokens"),
    ("pvt_v2_b0", {}, PROMPT, "prompt",
     "'stages.0.blocks.0.attn' puts the tokens back on their grid, 56x56, and gets 3146 tokens"),
]  # fmt: skip


@pytest.mark.parametrize("case", CONFLICTS, ids=lambda case: f"{case[0]}-{case[2].split()[1]}")
def test_what_a_part_needs_of_its_tokens(
    case: tuple[str, dict[str, Any], str, str, str],
) -> None:
    name, options, clause, who, note = case
    with torch.device("meta"):
        model = timm.create_model(name, **options)
    with pytest.raises(vr.VitrewriteError) as caught:
        vr.plan(f"{clause}\n", model)
    error = caught.value
    part = note.split("'")[1]
    assert error.message == f"{who} changes the tokens, and '{part}' needs them as they were"
    assert (error.code, error.notes, str(error.span)) == ("VR410", (note,), "<text>:1:1")


OTHERS: list[tuple[BrokenError, str]] = [
    (BrokenError("a", "mul", ((1, 3, 98, 16), (196, 16))),
     f"'a' {ROTARY} 196 patches, and gets 98 tokens"),
    (BrokenError("a", "add", ((1, 197, 8), (1, 207, 8))),
     "'a' adds positions, one for each of 197 tokens, and gets 207 tokens"),
    (BrokenError("a", "where", ((196, 8), (98, 8))),
     "'a' uses what was made for 196 patches, and gets 98 tokens"),
    (BrokenError("a", "view", ((1, 207, 8),), (1, -1, 49, 8)),
     "'a' divides the tokens into parts of fixed size, and gets 207 tokens"),
    (BrokenError("a", "Linear", ((1, 5, 8),)),
     "'a' does not take what it is given now: Linear of 1x5x8"),
]  # fmt: skip


@pytest.mark.parametrize(("error", "told"), OTHERS)
def test_what_broke_in_the_terms_of_the_model(error: BrokenError, told: str) -> None:
    assert needed(error, Tokens(1, (14, 14))) == told


class Halves(nn.Module):
    """Runs at every size whose height is even."""

    def __init__(self) -> None:
        super().__init__()
        self.conv = nn.Conv2d(3, 4, 3, padding=1)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        if x.shape[2] % 2 != 0:
            x = x[:, :, 1:]
        y = self.conv(x)
        h, w = y.shape[2:]
        if h + w < 8:
            y = y + 1
        return y


def test_a_guard_names_the_sizes_that_it_wants_and_what_it_got() -> None:
    model = vr.capture(Halves().eval(), torch.zeros(1, 3, 8, 8)).eval()
    assert model(torch.zeros(2, 3, 6, 10)).shape == (2, 4, 6, 10)
    with pytest.raises(ValueError, match=r"^captured for .* % 2 == 0, got 1$") as caught:
        model(torch.zeros(1, 3, 7, 8))
    assert "x.shape[2] % 2 == 0" in str(caught.value)
    with pytest.raises(ValueError, match=r"^captured for sizes where .* >= 8, got 6$"):
        model(torch.zeros(1, 3, 2, 4))


def test_a_guard_with_a_long_condition_says_the_condition() -> None:
    class Long(nn.Module):
        def forward(self, x: torch.Tensor) -> torch.Tensor:
            height, width = (x * 2).shape[2:]
            area = height * width + height * width * 1000 + width * 1000000 + height * 10000000
            if area < height * width * 100 + height * 1000 + width * 10000 + 90000000 * height - 1:
                return x + 1
            return x

    model = vr.capture(Long().eval(), torch.zeros(1, 3, 8, 8)).eval()
    with pytest.raises(ValueError, match=r"^captured for sizes where .* < .* - 1$"):
        model(torch.zeros(1, 3, 1, 90000))


@pytest.mark.filterwarnings("ignore:.*torch.jit.script")
@pytest.mark.parametrize("wrapped", [False, True])
def test_torchscript_is_refused_with_what_to_use(wrapped: bool) -> None:
    module = vr.capture(tiny())
    with pytest.raises(vr.VitrewriteError) as caught:
        torch.jit.script(nn.Sequential(module) if wrapped else module)
    told = "torch.jit.script cannot compile a captured or rewritten model (VisionTransformer)"
    assert caught.value.render() == (
        f"VR909 {told}\n  help: use torch.export.export(module, (x,)) or torch.compile(module)"
    )


def test_a_size_that_a_model_does_not_say_is_asked_for_where_the_user_is() -> None:
    with pytest.raises(vr.VitrewriteError) as caught:
        vr.capture(nn.Linear(3, 3))
    error = caught.value
    assert "help: pass example=, a tensor" in error.render()
    assert "example=" not in error.render(shell=True)
    assert "help: give its input, such as input=1x3x224x224" in error.render(shell=True)
