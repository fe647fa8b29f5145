"""Matrices of few bits: their levels, their gradient, and what they are as bytes."""

from __future__ import annotations

import copy

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from tests import goldens
from vitrewrite.authoring import Quantised
from vitrewrite.layers.packing import dequantised, fills_bytes, pack, packed, size_of, unpacked

CARD = {1: (0.674490,), 2: (0.377754, 1.265720), 4: (2.265491,), 8: (2.8095,)}


def drawn(rows: int = 5, columns: int = 7, bits: int = 1, seed: int = 0) -> Quantised:
    matrix = Quantised(rows, columns, bits)
    with torch.no_grad():
        generator = torch.Generator().manual_seed(seed)
        matrix.weight.copy_(0.3 * torch.randn(rows, columns, generator=generator) + 0.05)
    return matrix


@pytest.mark.parametrize("bits", CARD)
def test_levels_are_those_of_the_card(bits: int) -> None:
    levels = Quantised(2, 2, bits).levels
    assert len(levels) == 2**bits
    assert torch.equal(levels, levels.sort().values)
    torch.testing.assert_close(levels, -levels.flip(0), rtol=1e-5, atol=1e-6)
    for value in CARD[bits]:
        assert (levels - value).abs().min() < (1e-4 if bits == 8 else 1e-6)
    assert float(levels[-1]) == pytest.approx(CARD[bits][-1], abs=1e-4)


@pytest.mark.parametrize("bits", CARD)
def test_the_gradient_is_that_of_the_card(bits: int) -> None:
    matrix = drawn(bits=bits).double()
    g = torch.randn(5, 7, dtype=torch.float64, generator=torch.Generator().manual_seed(1))
    (matrix() * g).sum().backward()
    w = matrix.weight.detach()
    mu, sg, count = w.mean(), w.std(), w.numel()
    n = (w - mu) / (sg + 1e-5)
    q = (matrix().detach() - mu) / sg
    a = sg / (sg + 1e-5)
    expected = a * g + (1 - a) * g.sum() / count
    expected += (g * (q - a * n)).sum() * (w - mu) / ((count - 1) * sg)
    torch.testing.assert_close(matrix.weight.grad, expected, rtol=1e-6, atol=1e-8)


def test_on_a_threshold_it_is_the_middle() -> None:
    matrix = Quantised(1, 3, bits=1)
    matrix.weight.data = torch.tensor([[-1.0, 0.0, 1.0]])
    assert matrix()[0, 1] == 0
    torch.testing.assert_close(matrix()[0, 2].item(), 0.674490, rtol=1e-5, atol=1e-5)


def test_moves_take_levels_along_and_no_cast_goes_below_float32() -> None:
    matrix = drawn(bits=4)
    meta = copy.deepcopy(matrix).to("meta")
    assert {t.device.type for t in (*meta.parameters(), *meta.buffers())} == {"meta"}
    before = matrix().detach()
    assert torch.equal(matrix.half()(), before)
    assert torch.equal(matrix.bfloat16().to(torch.float16)(), before)
    assert matrix.double()().dtype == torch.float64
    assert matrix.float()().dtype == torch.float32


def test_it_compiles_to_one_graph() -> None:
    matrix = drawn(bits=2)
    compiled = torch.compile(matrix, backend="eager", fullgraph=True)
    assert torch.equal(compiled(), matrix())
    exported = torch.export.export(torch.nn.Sequential(Around(matrix)), (torch.ones(1, 7),))
    torch.testing.assert_close(exported.module()(torch.ones(1, 7)), torch.ones(1, 7) @ matrix().T)


class Around(torch.nn.Module):
    def __init__(self, matrix: Quantised) -> None:
        super().__init__()
        self.matrix = matrix

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return x @ self.matrix().T


@pytest.mark.parametrize(("shape", "bits"), [((2, 2), 3), ((2, 2), 0), ((1, 1), 1), ((1, 1), 8)])
def test_what_has_no_levels_is_refused(shape: tuple[int, int], bits: int) -> None:
    with pytest.raises(ValueError, match="no matrix of"):
        Quantised(*shape, bits)
    assert Quantised(1, 1, 32)().shape == (1, 1)


# -- bytes ----------------------------------------------------------------------------------------


@given(
    bits=st.sampled_from([1, 2, 4, 8]),
    count=st.integers(1, 40),
    seed=st.integers(0, 9),
)
def test_codes_come_back_from_bytes(bits: int, count: int, seed: int) -> None:
    codes = torch.randint(2**bits, (count,), generator=torch.Generator().manual_seed(seed))
    raw = packed(codes, bits)
    assert raw.dtype == torch.uint8
    assert len(raw) == -(-count * bits // 8)
    assert torch.equal(unpacked(raw, bits, count), codes)


def test_the_first_code_is_in_the_least_significant_bits() -> None:
    assert packed(torch.tensor([1, 0, 0, 0, 0, 0, 0, 1, 1]), 1).tolist() == [129, 1]
    assert packed(torch.tensor([3, 0, 1]), 2).tolist() == [3 + 16]
    assert packed(torch.tensor([[1, 2]]), 4).tolist() == [1 + 32]


@given(
    rows=st.integers(1, 9),
    columns=st.integers(2, 9),
    bits=st.sampled_from([1, 2, 4, 8]),
    seed=st.integers(0, 99),
)
def test_bytes_are_the_matrix_as_it_is_used(rows: int, columns: int, bits: int, seed: int) -> None:
    matrix = drawn(rows, columns, bits, seed)
    used = matrix().detach()
    raw, scale = pack(matrix)
    assert raw.numel() == size_of(matrix)
    assert fills_bytes(matrix) == (bits * rows * columns % 8 == 0)
    assert torch.equal(dequantised(matrix, raw, scale), used)
    # Once read, it is as it was read, and the same bytes again.
    matrix.weight.data, matrix.scale = dequantised(matrix, raw, scale), scale
    assert torch.equal(matrix(), used)
    assert all(torch.equal(a, b) for a, b in zip(pack(matrix), (raw, scale), strict=True))


def test_what_was_trained_since_it_was_read_has_no_bytes() -> None:
    matrix = drawn(bits=2)
    raw, scale = pack(matrix)
    matrix.weight.data, matrix.scale = dequantised(matrix, raw, scale), scale
    matrix.weight.data[0, 0] += 1e-3
    with pytest.raises(ValueError, match="trained since"):
        pack(matrix)
    matrix.scale.zero_()
    pack(matrix)
    matrix.weight.data.fill_(0.1)
    with pytest.raises(ValueError, match="all its numbers are equal"):
        pack(matrix)


@pytest.mark.parametrize("name", ["bi-lora-bit1", "bi-adaptformer-bit1"])
def test_the_authors_bytes(name: str) -> None:
    tensors = goldens.case(name).tensors
    stems = [k.removeprefix("packed.") for k in tensors if k.startswith("packed.")]
    assert stems
    for stem in stems:
        matrix = Quantised(*tensors[f"method.{stem}"].shape, bits=1)  # type: ignore[misc]
        matrix.weight.data = tensors[f"method.{stem}"]
        raw, scale = pack(matrix)
        assert torch.equal(raw, tensors[f"packed.{stem}"])
        theirs = [tensors[f"packed_{n}.{stem}"] for n in ("mean", "std")]
        torch.testing.assert_close(scale, torch.cat(theirs))
        read = dequantised(matrix, raw, torch.cat(theirs))
        torch.testing.assert_close(read, tensors[f"dequant.{stem}"])
