"""Capture beyond the zoo: guards, sizes, flat graphs, errors, what stays untouched."""

from __future__ import annotations

import functools
import math
from typing import Any

import pytest
import timm
import torch
import torch.nn.functional as F
from torch import fx, nn

import vitrewrite as vr
from tests.models import spread, without_fused_attention


def tiny(**options: Any) -> Any:
    torch.manual_seed(0)
    small = {"img_size": 32, "patch_size": 8, "embed_dim": 16, "depth": 2, "num_heads": 2}
    model = timm.models.vision_transformer.VisionTransformer(**small, num_classes=5, **options)
    return spread(model).eval()


@torch.no_grad()
def same(a: nn.Module, b: nn.Module, *inputs: torch.Tensor) -> bool:
    torch.manual_seed(0)
    first = a(*inputs)
    torch.manual_seed(0)
    return torch.equal(first, b(*inputs))


@pytest.mark.parametrize(
    ("name", "options"),
    [
        ("convnext_atto", {"depths": (1, 1, 2, 1), "dims": (8, 16, 24, 32)}),
        ("pvt_v2_b0", {"depths": (1, 1, 1, 1)}),
        ("xcit_nano_12_p16_224", {"depth": 1}),
    ],
)
def test_image_size_stays_free_where_the_model_leaves_it_free(
    name: str, options: dict[str, Any]
) -> None:
    model = spread(timm.create_model(name, **options)).eval()
    captured = vr.capture(model, torch.zeros(1, 3, 128, 128))
    for size in ((128, 128), (256, 256), (128, 256)):
        assert same(captured, model, torch.randn(2, 3, *size)), size


def test_a_flat_graph_module_is_accepted_and_given_back() -> None:
    model = tiny()
    flat = vr.capture(model).flat()
    assert isinstance(flat, fx.GraphModule)
    x = torch.randn(3, 3, 32, 32)
    assert same(flat, model, x)
    rewritten = vr.apply("insert lora(rank=2) at blocks[*].attn.{q, v}\n", flat, example=x)
    vr.verify(rewritten, graphs=False)
    again = rewritten.module.flat()  # type: ignore[operator]
    assert isinstance(again, fx.GraphModule)
    assert same(again, rewritten.module, x)
    assert sum("lora" in str(n.target) for n in again.graph.nodes if n.op == "call_module") == 2


def test_symbolic_trace_gives_the_same_sites() -> None:
    model = without_fused_attention(tiny())
    x = torch.randn(2, 3, 32, 32)
    flat = vr.apply(
        "insert lora(rank=2) at blocks[*].attn.q\n", fx.symbolic_trace(model), example=x
    )
    nested = vr.apply("insert lora(rank=2) at blocks[*].attn.q\n", model)
    assert flat.delta().keys() == nested.delta().keys()


def test_graphs_are_one_per_distinct_forward() -> None:
    captured = vr.capture(tiny(drop_path_rate=0.3))
    graphs = captured.graphs
    assert {"VisionTransformer", "Block", "Attention", "Mlp", "DropPath"} <= graphs.keys()
    assert "DropPath (training)" in graphs
    assert all(isinstance(g, fx.Graph) for g in graphs.values())
    blocks = [type(b) for b in captured.blocks]  # type: ignore[attr-defined]
    assert len(set(blocks)) == 1  # so that dynamo and FSDP see one class


class Residual(nn.Module):
    """Decides on its input's length, and escapes from tracking in several ways."""

    def __init__(self, how: str) -> None:
        super().__init__()
        self.how = how
        self.linear = nn.Linear(4, 4)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        n = x.shape[1]
        if self.how == "branch" and n > 6:
            return self.linear(x)
        if self.how == "sqrt":
            return self.linear(x) * math.sqrt(n)
        if self.how == "hash":
            return self.linear(x) * {n: 2.0}.get(n, 3.0)
        if self.how == "divmod":
            a, b = divmod(n, 4)
            return self.linear(x) * (a + b)
        return self.linear(x) * (n / 2)


@pytest.mark.parametrize("how", ["branch", "sqrt", "hash", "divmod", "plain"])
def test_no_size_is_ever_silently_baked(how: str) -> None:
    model = Residual(how).eval()
    captured = vr.capture(model, torch.zeros(2, 8, 4))
    for n in (8, 7, 5, 16):
        x = torch.randn(2, n, 4)
        try:
            agrees, refused = same(captured, model, x), ""
        except ValueError as error:
            agrees, refused = False, str(error)
        assert agrees or (n != 8 and "captured for" in refused)
    if how in ("plain", "divmod"):
        assert same(captured, model, torch.randn(2, 5, 4))


class BakedBatch(nn.Module):
    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return torch.cat([row[None] for row in x[: int(x.shape[0])]])


def test_a_built_in_batch_size_is_an_error() -> None:
    with pytest.raises(vr.VitrewriteError, match="VR605"):
        vr.capture(BakedBatch(), torch.zeros(2, 4, 4))


class DecidesOnValues(nn.Module):
    def forward(self, x: torch.Tensor) -> torch.Tensor:
        if not x.isfinite().all():
            x = x.nan_to_num()
        return x if x.sum() > 0 else -x


class ReadsOnOneWay(nn.Module):
    """Only one way reads the dtype, which stands at the top of its graph."""

    def forward(self, x: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        y = x.abs()
        if not x.isfinite().all():
            most = torch.finfo(x.dtype).max / 4
            x = torch.clamp(x, min=-most, max=most)
        return x, y


def test_ways_of_a_decision_that_read_different_things() -> None:
    model = ReadsOnOneWay()
    captured = vr.capture(model, torch.zeros(2, 4))
    for x in (torch.randn(3, 4), torch.full((3, 4), torch.inf), -torch.full((1, 4), torch.inf)):
        for dtype in (torch.float32, torch.bfloat16):
            found, expected = captured(x.to(dtype)), model(x.to(dtype))
            assert all(torch.equal(a, b) for a, b in zip(found, expected, strict=True))


class DrawsOnValues(nn.Module):
    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return x if x.sum() > 0 else torch.rand_like(x)


class ReadsValues(nn.Module):
    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return x * x.sum().item()


@pytest.mark.parametrize("last", [DrawsOnValues(), ReadsValues()])
def test_deciding_on_values_is_an_error_that_names_the_place(last: nn.Module) -> None:
    model = nn.Sequential(nn.Linear(4, 4), last)
    with pytest.raises(vr.VitrewriteError, match="'1' decides on the values of a tensor"):
        vr.capture(model, torch.zeros(2, 4))


def test_a_layer_that_is_never_skipped_is_no_decision() -> None:
    class Layers(nn.Module):
        def __init__(self, rate: float) -> None:
            super().__init__()
            self.linear, self.rate = nn.Linear(4, 4), rate

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            draw = torch.rand([])
            if self.training and draw < self.rate:
                return x
            return self.linear(x) + torch.rand_like(x)

    for rate in (0.0, 1.0):
        model = Layers(rate)
        captured = vr.capture(model, torch.zeros(2, 4))
        for training in (False, True):
            outputs = []
            for each in (model, captured):
                torch.manual_seed(3)
                outputs.append(each.train(training)(torch.ones(3, 4)))
            assert torch.equal(*outputs)
    with pytest.raises(vr.VitrewriteError, match="VR602"):
        vr.capture(Layers(0.5), torch.zeros(2, 4))


def test_where_both_ways_only_compute_a_decision_on_values_selects() -> None:
    model = DecidesOnValues()
    captured = vr.capture(model, torch.zeros(2, 4))
    for first in (1.0, -9.0, float("nan"), float("inf")):
        x = torch.tensor([[first, 2.0]], requires_grad=True)
        y = x.detach().clone().requires_grad_()
        assert torch.equal(captured(x), model(y))
        captured(x).sum().backward()
        model(y).sum().backward()
        assert torch.equal(x.grad, y.grad)


def test_a_model_without_a_known_input_asks_for_an_example() -> None:
    with pytest.raises(vr.VitrewriteError, match="VR601"):
        vr.capture(nn.Linear(4, 4))


@functools.cache
def table(n: int) -> torch.Tensor:
    return torch.arange(n)


class Careless(nn.Module):
    """Writes to itself, counts its calls, and uses a cache while it runs."""

    def __init__(self) -> None:
        super().__init__()
        self.calls: list[int] = []
        self.last: torch.Tensor | None = None
        self.linear = nn.Linear(4, 4)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        self.calls.append(1)
        y = self.linear(x) + table(4).to(x.dtype)
        self.last = y
        return y


def test_the_users_model_keeps_its_attributes_and_caches() -> None:
    model = Careless().eval()
    captured = vr.capture(model, torch.zeros(2, 4))
    assert model.calls == []
    assert model.last is None
    x = torch.randn(3, 4)
    assert same(captured, model, x)
    assert table(4).device.type == "cpu"


def test_the_random_state_is_left_alone() -> None:
    model = tiny()
    torch.manual_seed(3)
    expected = torch.rand(1)
    torch.manual_seed(3)
    vr.capture(model)
    assert torch.equal(torch.rand(1), expected)


def test_modules_in_other_dtypes_follow_their_input() -> None:
    model = tiny()
    captured = vr.capture(model)
    double, x = captured.double(), torch.randn(2, 3, 32, 32, dtype=torch.float64)
    assert double(x).dtype == torch.float64
    assert same(double, model.double(), x)


class Limited(nn.Module):
    """Clamps to what its own dtype holds, and to what another does."""

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        most = torch.finfo(x.dtype).max / 4
        x = torch.clamp(x, min=-most, max=most) + torch.finfo(x.dtype).eps
        return x / torch.finfo(torch.float16).max


def test_limits_of_a_dtype_follow_the_input() -> None:
    original = torch.finfo
    model = Limited()
    captured = vr.capture(model, torch.zeros(2, 3))
    assert torch.finfo is original
    for dtype in (torch.float32, torch.float64, torch.bfloat16):
        x = torch.tensor([[1.0, -1.0, 1e-3]], dtype=dtype) * torch.finfo(dtype).max
        assert same(model, captured, x)
        assert same(model, torch.compile(captured, backend="eager", fullgraph=True), x)


class Shared(nn.Module):
    """One module under two parents, called by both."""

    def __init__(self) -> None:
        super().__init__()
        norm = nn.Sequential(nn.LayerNorm(4), nn.GELU())
        self.first = nn.Sequential(nn.Linear(4, 4), norm)
        self.second = nn.Sequential(norm, nn.Linear(4, 4))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.second(self.first(x))


def test_shared_modules_stay_shared() -> None:
    model = Shared().eval()
    captured: Any = vr.capture(model, torch.zeros(2, 4))
    assert same(captured, model, torch.randn(3, 4))
    assert captured.first[1] is captured.second[0]


class InPlace(nn.Module):
    def forward(self, x: torch.Tensor) -> torch.Tensor:
        y = torch.zeros_like(x)
        y[:, 1:] = x[:, :-1]
        y[:, 0] += 1
        y += x
        y.mul_(2)
        return F.pad(y, (0, 1)).relu_()


def test_in_place_operations_keep_their_order() -> None:
    captured = vr.capture(InPlace(), torch.zeros(2, 4))
    assert same(captured, InPlace(), torch.randn(3, 6))
