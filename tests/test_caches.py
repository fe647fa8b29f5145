"""Caches in libraries that a forward calls: neither filled while tracing, nor read."""

from __future__ import annotations

import functools
from collections.abc import Callable

import pytest
import torch
from torch import nn

import vitrewrite as vr

from .fixtures.caching import shapes


class Heads(nn.Module):
    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return shapes.split(x, 4).softmax(-1).mean(1)


class Ramp(nn.Module):
    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return x * shapes.ramp(x.shape[1])[:, None]


class Table(nn.Module):
    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return x + shapes.table(x)[:, None]


class Mask(nn.Module):
    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return x * shapes.mask(x)


class Held(nn.Module):
    """Its helper is an object, its table an attribute, its parameter is looked at once."""

    def __init__(self) -> None:
        super().__init__()
        self.helper, self.known = shapes.Helper(), dict[int, torch.Tensor]()
        self.weight = nn.Parameter(torch.ones(8))

    @functools.cached_property
    def doubled(self) -> torch.Tensor:
        return self.weight * 2

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        if x.shape[1] not in self.known:
            self.known[x.shape[1]] = torch.ones(x.shape[1], 1)
        x = x * self.helper.scale(x.shape[1]) + self.helper.grid(x.shape[1])[:, None]
        return x * self.known[x.shape[1]] * self.doubled


class Inside(nn.Module):
    """Calls a module that does it."""

    def __init__(self) -> None:
        super().__init__()
        self.layers = nn.Sequential(Table(), Ramp(), Table(), Heads())

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.layers(x) * len(shapes.registry())


MODELS: dict[str, Callable[[], nn.Module]] = {
    "an lru_cache of a library": Heads, "a cache of tensors": Ramp, "a dict of a file": Table,
    "a dict in a closure": Mask, "a helper": Held, "modules below": Inside,
}  # fmt: skip


@pytest.fixture(autouse=True)
def empty() -> None:
    """Caches as they are when a program starts."""
    for cache in (shapes.recipe, shapes.ramp, shapes.registry):
        cache.cache_clear()
    shapes.TABLES.clear()
    shapes.mask.known.clear()  # type: ignore[attr-defined]
    shapes.registry().append(1)


@pytest.mark.parametrize("ran", [False, True], ids=["new", "used before"])
@pytest.mark.parametrize("name", MODELS)
def test_a_capture_is_exact_at_other_sizes_and_leaves_caches_alone(name: str, ran: bool) -> None:
    model, x = MODELS[name]().eval(), torch.randn(2, 6, 8)
    if ran:
        model(x)
        model(torch.randn(5, 6, 8))
    before = (dict(shapes.TABLES), shapes.ramp.cache_info(), shapes.recipe.cache_info())
    captured = vr.capture(model, x)
    assert (dict(shapes.TABLES), shapes.ramp.cache_info(), shapes.recipe.cache_info()) == before
    for shape in ((2, 6, 8), (3, 6, 8), (2, 9, 8), (5, 6, 8)):
        y = torch.randn(shape)
        assert torch.equal(captured(y), model(y)), shape
    assert shapes.registry() == [1]


def test_a_table_of_sizes_is_looked_up() -> None:
    class Windows(nn.Module):
        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return x * shapes.WINDOWS[x.shape[1]]

    x = torch.randn(2, 8, 4)
    captured = vr.capture(Windows(), x)
    assert torch.equal(captured(x), x * 2)
    with pytest.raises(ValueError, match="captured for"):
        captured(torch.randn(2, 16, 4))


@pytest.mark.parametrize("name", ["ViT", "SimpleViT"])
def test_einops(name: str) -> None:
    library = pytest.importorskip("vit_pytorch")
    options = {"image_size": 32, "patch_size": 8, "num_classes": 3, "dim": 16, "depth": 2}
    model = getattr(library, name)(**options, heads=2, mlp_dim=32).eval()
    captured = vr.capture(model, torch.randn(2, 3, 32, 32))
    x = torch.randn(5, 3, 32, 32)
    assert torch.equal(captured(x), model(x))
