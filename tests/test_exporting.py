"""What ONNX writes only in another form, and what it does not write at all."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F
from torch import nn

from tests.passes.test_pairs import applied, text
from vitrewrite.errors import VerifyError
from vitrewrite.interchange import exported
from vitrewrite.interchange.instead import FOR_ONNX, Replaced


class Attends(nn.Module):
    """Attention with `batch * heads` as one axis: without a mask, and with one."""

    def __init__(self) -> None:
        super().__init__()
        self.qkv = nn.Linear(8, 24)

    def forward(self, x: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        q, k, v = self.qkv(x.flatten(2).transpose(1, 2)).chunk(3, -1)
        mask = (k @ k.transpose(1, 2)) > 0
        plain = F.scaled_dot_product_attention(q, k, v, scale=0.3)
        return plain, F.scaled_dot_product_attention(q, k, v, attn_mask=mask)


def test_attention_with_three_axes_goes_to_onnx() -> None:
    found = exported.export(Attends(), "onnx", (8, 4, 4), fixed=True, about={})
    assert found.apart < 1e-5


@pytest.mark.parametrize("axes", [2, 3, 4])
def test_attention_is_the_same_with_four_axes(axes: int) -> None:
    generator = torch.Generator().manual_seed(0)
    q, k, v = (torch.randn(2, 3, 5, 4, generator=generator)[(0,) * (4 - axes)] for _ in "qkv")
    masks = [None, torch.eye(5).bool(), torch.randn((*q.shape[:-1], 5), generator=generator)]
    for mask in masks:
        expected = F.scaled_dot_product_attention(q, k, v, mask)
        with Replaced(FOR_ONNX):
            found = F.scaled_dot_product_attention(q, k, v, mask)
        torch.testing.assert_close(found, expected)
        assert found.is_contiguous()


class Spreads(nn.Module):
    """Rows with numbers of their own, as many as the image has."""

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        rows = torch.linspace(0.0, 1.0, x.shape[2], dtype=x.dtype)
        return (x * rows[:, None]).mean((1, 2, 3))[:, None]


def test_as_many_steps_as_the_image_has_rows_fix_no_size() -> None:
    found = exported.export(Spreads(), "pt2", (3, 32, 32), fixed=False, about={})
    assert found.sizes, found.reason
    assert found.apart < 1e-6


class Decomposes(nn.Module):
    """A decomposition of matrices, which ONNX has no operator for."""

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return torch.linalg.qr(x).Q


def test_what_onnx_lacks_is_told_with_its_line() -> None:
    with pytest.raises(VerifyError, match=r"write aten\.linalg_qr\.default of the model") as caught:
        exported.export(Decomposes(), "onnx", (3, 8, 8), fixed=True, about={})
    assert caught.value.code == "VR598"
    (note,) = caught.value.notes
    assert note.startswith("test_exporting.py:")
    assert note.endswith("return torch.linalg.qr(x).Q")
    assert caught.value.suggestion == "export it --to pt2"


class Sorts(nn.Module):
    """Sorting that keeps the order of what is equal, of numbers and of truth values."""

    def forward(self, x: torch.Tensor) -> tuple[torch.Tensor, ...]:
        rough = (x.flatten(1) * 2).round()
        down = rough.sort(dim=1, descending=True, stable=True)
        up = (rough > 0).to(torch.uint8).argsort(dim=1, stable=True)
        return down.values, down.indices.float(), up.float(), rough.argsort(dim=0, stable=True)


def test_sorting_keeps_the_order_of_what_is_equal_in_onnx() -> None:
    assert exported.export(Sorts(), "onnx", (3, 8, 8), fixed=True, about={}).apart == 0


class Divides(nn.Module):
    """Remainders by a length that an export keeps, and by numbers of either sign."""

    def forward(self, x: torch.Tensor) -> tuple[torch.Tensor, ...]:
        cells = (x * 9).long()
        return cells % (x.shape[-1] // 2), cells % 3, cells % -3, (x * 2).round() % 4.0


def test_remainders_by_lengths_go_to_onnx() -> None:
    found = exported.export(Divides(), "onnx", (3, 8, 8), fixed=False, about={})
    assert (found.sizes, found.reason) == (True, "")
    assert found.apart == 0


TOKENS = ("bdm", "dispatch", "dtps", "dynamicvit", "evit", "ltmp", "pool", "tome", "unmerge")


@pytest.mark.slow
@pytest.mark.parametrize("name", TOKENS)
def test_models_that_choose_tokens_go_to_onnx(name: str) -> None:
    made = applied(text((name,)))
    shape = made.result.example[0].shape
    size = int(shape[1]), int(shape[2]), int(shape[3])
    assert exported.export(made.module, "onnx", size, fixed=True, about={}).apart < 1e-5
