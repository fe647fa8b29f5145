"""Equal programs of different parts: one class, line or loop only where all values agree."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn

import vitrewrite as vr
from tests.emission.emitted import check
from tests.test_rolls import tensors


class Listed(nn.Module):
    """A list of children, and a function of all of them and an input."""

    def __init__(self, children: Any, forward: Callable[..., Any], **more: nn.Module) -> None:
        super().__init__()
        self.layers = nn.ModuleList(children)
        for name, module in more.items():
            self.add_module(name, module)
        self.__dict__["does"] = forward

    def forward(self, x: torch.Tensor) -> Any:
        return self.does(self, x)


class Trunk(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.layers = nn.ModuleList(nn.Linear(8, 8) for _ in range(4))

    def forward(self, x: torch.Tensor) -> Any:
        out = []
        for layer in self.layers:
            x = layer(x)
            out.append(x)
        return tuple(out)


def norms() -> list[nn.Module]:
    made: list[nn.Module] = [nn.LayerNorm(8) for _ in range(4)]
    for i, norm in enumerate(made):
        nn.init.constant_(norm.weight, i + 1.0)
    return made


class Scaled(nn.Module):
    """Scaled by the width of what its part makes."""

    def __init__(self, part: nn.Module) -> None:
        super().__init__()
        self.part = part

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        x = self.part(x)
        return x * x.shape[-1] ** -0.5


class Reads(nn.Module):
    def __init__(self, dim: int) -> None:
        super().__init__()
        self.dim, self.proj = dim, nn.Linear(8, 8)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        y: torch.Tensor = self.proj(x)
        return y * x.shape[self.dim] + x.shape[0]


class Ordered(nn.Module):
    """The same shapes whichever order its dimensions are in."""

    def __init__(self, order: tuple[int, ...]) -> None:
        super().__init__()
        self.order, self.proj = order, nn.Linear(8, 8)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        y = self.proj(x).permute(0, *self.order).permute(0, *self.order)
        return y.reshape(y.shape[0], y.shape[1], y.shape[2]) * y.shape[1]


class Factor(nn.Module):
    def __init__(self, factor: float) -> None:
        super().__init__()
        self.factor, self.dim = factor, 8

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return x * self.factor


class Around(nn.Module):
    """A small program around another, which is what differs."""

    def __init__(self, part: nn.Module) -> None:
        super().__init__()
        self.part, self.fc = part, nn.Linear(8, 8)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        y: torch.Tensor = self.fc(self.part(x))
        return y


class Some(nn.Module):
    """Calls some of its layers; others are there, too."""

    def __init__(self, there: int) -> None:
        super().__init__()
        self.layers = nn.ModuleList(nn.Linear(8, 8) for _ in range(there))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        for layer in self.layers[:3]:
            x = layer(x)
        return x


class Parts(nn.Module):
    def __init__(self, count: int) -> None:
        super().__init__()
        self.layers = nn.ModuleList(nn.Linear(8, 8) for _ in range(count))

    def forward(self, x: torch.Tensor) -> Any:
        return tuple(layer(x) for layer in self.layers)


class First(nn.Module):
    """Reads as many results as another, of a part that has more of them."""

    def __init__(self, count: int) -> None:
        super().__init__()
        self.parts = Parts(count)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        found = self.parts(x)
        return found[0] * found[1] + found[count_of(found) % 2]


def count_of(found: Any) -> int:
    return len(found)


class Typed(nn.Module):
    def __init__(self, **options: Any) -> None:
        super().__init__()
        self.options, self.fc = options, nn.Linear(8, 8)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.fc(nn.functional.gelu(x, **self.options)) + x.sum(-1, keepdim=True)


class Optional(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.fc = nn.Linear(8, 8)

    def forward(self, x: torch.Tensor, y: torch.Tensor | None = None) -> torch.Tensor:
        z: torch.Tensor = self.fc(x)
        return z if y is None else z * y.shape[1] + y


class Dropped(nn.Module):
    def __init__(self, rate: float) -> None:
        super().__init__()
        self.drop, self.fc = nn.Dropout(rate), nn.Linear(8, 8)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        y = self.drop(x)
        return self.fc(x.mul_(2)) + y


def reshaped(m: Any, x: torch.Tensor) -> Any:
    made = [n(h).permute(0, 2, 1) for n, h in zip(m.layers, m.trunk(x), strict=True)]
    return [h.reshape(h.shape[0], h.shape[1], 1, -1) for h in made]


def in_turn(m: Any, x: torch.Tensor) -> torch.Tensor:
    for layer in m.layers:
        x = layer(x)
    return x


def as_keys(m: Any, x: torch.Tensor) -> Any:
    return {"all": [{"n": n(h), "h": h} for n, h in zip(m.layers, m.trunk(x), strict=True)]}


def backwards(m: Any, x: torch.Tensor) -> Any:
    return [n(h) for n, h in zip(reversed(m.layers), m.trunk(x), strict=True)]


def in_pairs(m: Any, x: torch.Tensor) -> torch.Tensor:
    for layer, other in zip(m.layers, m.others, strict=True):
        x = layer(x) + other(x)
    return x


def alternating(m: Any, x: torch.Tensor) -> torch.Tensor:
    for i in (0, 1, 0, 1, 0, 1):
        x = m.layers[i](x) * m.layers[1 - i](x)
    return x


def changed_in_place(m: Any, x: torch.Tensor) -> Any:
    found = m.trunk(x)
    made = [n(h) for n, h in zip(m.layers, found, strict=True)]
    found[2].add_(1)
    return made


def with_and_without(m: Any, x: torch.Tensor) -> torch.Tensor:
    y: torch.Tensor = m.layers[1](m.layers[0](x), x)
    return y


def linears(count: int) -> list[nn.Module]:
    return [nn.Linear(8, 8) for _ in range(count)]


MODELS: dict[str, Callable[[], nn.Module]] = {
    "a norm per level": lambda: Listed(norms(), reshaped, trunk=Trunk()),
    "a norm per level, in dictionaries": lambda: Listed(norms(), as_keys, trunk=Trunk()),
    "a norm per level, backwards": lambda: Listed(norms(), backwards, trunk=Trunk()),
    "levels that are changed later": lambda: Listed(norms(), changed_in_place, trunk=Trunk()),
    "pairs of two lists": lambda: Listed(linears(4), in_pairs, others=nn.ModuleList(linears(4))),
    "alternating children": lambda: Listed(linears(2), alternating),
    "parts of other widths": lambda: nn.Sequential(Scaled(nn.Identity()), Scaled(nn.Linear(8, 32))),
    "sizes of other dimensions": lambda: Listed([Reads(d) for d in (1, 2, 1)], in_turn),
    "other orders": lambda: Listed([Ordered((1, 2)), Ordered((2, 1))], in_turn),
    "small parts that differ": lambda: Listed(
        [Around(Around(Factor(f))) for f in (2, 3, 4)], in_turn
    ),
    "small parts below": lambda: Listed([Scaled(Scaled(Factor(f))) for f in (2.0, 3.0)], in_turn),
    "a factor that is zero": lambda: Listed(
        [Around(p) for p in (nn.Identity(), Factor(0.0))], in_turn
    ),
    "a literal equal to a setting": lambda: Listed([Factor(8), Factor(8.0), Factor(3)], in_turn),
    "longer lists": lambda: Listed([Some(3), Some(5), Some(4)], in_turn),
    "more results": lambda: Listed([First(2), First(4)], in_turn),
    "other options": lambda: Listed([Typed(), Typed(approximate="tanh"), Typed()], in_turn),
    "with and without an input": lambda: Listed([Optional(), Optional()], with_and_without),
    "other rates": lambda: Listed([Dropped(r) for r in (0.0, 0.5, 0.2)], in_turn),
    "norms over two dimensions": lambda: Listed(
        [nn.LayerNorm((8, 8))], lambda m, x: m.layers[0](x @ x.mT)
    ),
}


@pytest.mark.parametrize("name", MODELS)
@torch.no_grad()
def test_parts_that_differ_stay_apart(name: str) -> None:
    torch.manual_seed(0)
    model = MODELS[name]().eval()
    captured = vr.capture(model, torch.zeros(2, 8, 8))
    for batch in (2, 3):
        x = torch.randn(batch, 8, 8)
        for training in (False, True):
            found = []
            for module in (model.train(training), captured.train(training)):
                torch.manual_seed(1)
                found.append([*tensors(module(x.clone()))])
            assert [*map(torch.equal, *found)] == [True] * len(found[0]), training


def test_a_layer_for_each_item_is_a_comprehension() -> None:
    model = MODELS["a norm per level, in dictionaries"]().eval()
    rewritten = vr.apply("# nothing\n", model, example=torch.zeros(2, 8, 8))
    assert "for layer, h in zip(self.layers, values)" in rewritten.source.text


@pytest.mark.parametrize("factors", [(0.0, 0.5, None), (None, 0.0), (0.5, None, 0.0, 0.25, None)])
def test_a_factor_of_zero_is_no_identity(factors: tuple[float | None, ...], tmp_path: Path) -> None:
    """A part that is there in some instances only: its number cannot tell which if it may be 0."""
    torch.manual_seed(0)
    blocks = [Around(nn.Identity() if f is None else Factor(f)) for f in factors]
    check(nn.Sequential(*blocks, nn.Linear(8, 8)), tmp_path / "out")


class Flat(nn.Module):
    """Reads nothing of its input's rank."""

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return x.reshape(x.shape[0], -1).mean(-1) * 2


def test_inputs_of_two_ranks_that_nothing_reads_are_one_class() -> None:
    model = Listed([Flat(), Flat()], lambda m, x: m.layers[0](x) + m.layers[1](x[:, :, None]))
    captured: Any = vr.capture(model, torch.zeros(2, 3, 4))
    assert captured.printed.text.count("class Flat") == 1
