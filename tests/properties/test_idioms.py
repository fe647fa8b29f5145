"""Forwards put together from idioms are captured exactly, guarded, or refused with the line."""

from __future__ import annotations

import itertools
import re
from pathlib import Path

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import nn

import vitrewrite as vr
from tests.properties import idioms
from tests.properties.idioms import ENDS, PIECES, C
from tests.properties.invented import Model
from tests.properties.test_random_models import imported
from vitrewrite.folder.writing import model_text

EXAMPLE = torch.zeros(2, 6, C)
SIZES = ((3, 6), (1, 6), (2, 11))
LINE = re.compile(r"\w\.py:\d+")


@st.composite
def names(draw: st.DrawFn) -> tuple[str, ...]:
    """Two to four pieces, of which the last may be an end."""
    pieces = draw(st.lists(st.sampled_from(sorted(PIECES)), min_size=2, max_size=4))
    last = draw(st.one_of(st.none(), st.sampled_from(sorted(ENDS))))
    return tuple(pieces if last is None else [*pieces[:3], last])


def build(chosen: tuple[str, ...], dtype: torch.dtype = torch.float32) -> Model:
    torch.manual_seed(0)
    return Model(*chosen).to(dtype)


def outcome(chosen: tuple[str, ...]) -> str:
    """`refused`, `guarded` or `exact`; fails for anything else."""
    try:
        captured = vr.capture(build(chosen).eval(), EXAMPLE)
    except vr.VitrewriteError as error:
        refusal = error.message
    else:
        refusal = ""
    if refusal:
        assert LINE.search(refusal)
        return "refused"
    return compared(chosen, captured)


def compared(chosen: tuple[str, ...], captured: nn.Module) -> str:
    """Runs what was captured beside the original; whether a check of it refused anything."""
    found = "exact"
    for dtype in (torch.float32, torch.bfloat16, torch.float16):
        model, captured = build(chosen, dtype), captured.to(dtype)
        captured.load_state_dict(model.state_dict())
        for training, (batch, tokens) in itertools.product((False, True), SIZES):
            x = torch.randn(batch, tokens, C, generator=torch.Generator().manual_seed(2)).to(dtype)
            wanted, got = (attempt(m.train(training), x) for m in (model, captured))
            if isinstance(wanted, str):
                continue  # where the original fails, anything may
            where = f"{chosen} in {dtype}, {batch}x{tokens}, training {training}: {got}"
            if isinstance(got, str):
                assert "captured for" in got, where
                found = "guarded"
                continue
            assert (got.dtype, got.shape) == (wanted.dtype, wanted.shape), where
            assert ((got == wanted) | (got.isnan() & wanted.isnan())).all(), where
    return found


@torch.no_grad()
def attempt(model: nn.Module, x: torch.Tensor) -> torch.Tensor | str:
    """The output at a fixed seed, or the error."""
    torch.manual_seed(1)
    try:
        result: torch.Tensor = model(x)
    except (RuntimeError, TypeError, ValueError) as error:
        return str(error)
    return result


@given(chosen=names())
def test_idioms_together(chosen: tuple[str, ...]) -> None:
    outcome(chosen)


REFUSED = {
    "sum_of_batch", "text_of_batch", "numpy_prod", "each_sample", "listed", "averaged",
    "over_shape_numel", "numpy_array", "parity",
}  # fmt: skip


@pytest.mark.parametrize("name", sorted(PIECES | ENDS))
def test_each_idiom(name: str) -> None:
    assert (outcome((name,)) == "refused") == (name in REFUSED)


def test_there_are_enough_of_them() -> None:
    text = Path(idioms.__file__).read_text("utf-8")
    assert len(PIECES) >= 60
    assert len(re.findall(r"Any:  # (timm|models|activations)", text)) >= 20


@pytest.mark.parametrize(
    "chosen",
    [
        ("llama_norm", "eager_attention", "two_readings"),
        ("clamp_half", "if_single", "loss"),
        ("drop_path", "prefix", "sqrt_tokens", "int_of_root"),
        ("masked_min", "constant_limits", "over_len"),
    ],
)
def test_the_file_that_is_written(chosen: tuple[str, ...], tmp_path: Path) -> None:
    rewritten = vr.apply("# nothing\n", build(chosen).eval(), example=EXAMPLE)
    emitted = imported(model_text(rewritten), tmp_path).build()
    compared(chosen, emitted)
