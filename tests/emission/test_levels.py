"""Tuples that a source hands on stay one value, and what is made of their items is one loop."""

from __future__ import annotations

import inspect
import pickle
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from timm.models.mvitv2 import MultiScaleVit, MultiScaleVitCfg
from torch import nn

import vitrewrite as vr
from vitrewrite.tracing.unit import Unit, run_graph

IMAGE = torch.randn(2, 3, 16, 16, generator=torch.Generator().manual_seed(0))


class Pyramid(nn.Module):
    """Four maps, each half as large as the one before."""

    def __init__(self) -> None:
        super().__init__()
        self.stages = nn.ModuleList(nn.Conv2d(3, 3, 3, 2, 1) for _ in range(4))

    def forward(self, x: torch.Tensor) -> Any:
        maps = []
        for stage in self.stages:
            x = stage(x)
            maps.append(x)
        return tuple(maps)


class Attend(nn.Module):
    """Reads sizes of maps, as numbers in pairs."""

    def __init__(self) -> None:
        super().__init__()
        self.fc = nn.Linear(3, 3)

    def forward(self, tokens: torch.Tensor, shapes: Any, *, scale: Any = None) -> torch.Tensor:
        if sum(h * w for h, w in shapes) != tokens.shape[1]:
            raise ValueError("other sizes")
        parts = self.fc(tokens).split([h * w for h, w in shapes], dim=1)
        found = []
        for level, (height, width) in enumerate(shapes):
            grid = parts[level].transpose(1, 2).unflatten(2, (height, width))
            pooled = F.adaptive_avg_pool2d(grid, 1).flatten(1)
            found.append(pooled * tokens[:, level])
        return torch.stack(found, dim=1)


class Neck(nn.Module):
    """Projects the three smallest maps, the smallest first."""

    def __init__(self) -> None:
        super().__init__()
        self.projections = nn.ModuleList(nn.Conv2d(3, 3, 1) for _ in range(3))
        self.level = nn.Parameter(torch.randn(3, 3))
        self.attend = Attend()

    def forward(self, features: Any) -> torch.Tensor:
        flat, shapes = [], []
        for i, feature in enumerate(features[::-1][:3]):
            x = self.projections[i](feature)
            shapes.append((x.shape[2], x.shape[3]))
            flat.append(x.flatten(2).transpose(1, 2) + self.level[i])
        out: torch.Tensor = self.attend(torch.cat(flat, 1), shapes)
        return out


class Model(nn.Module):
    def __init__(self, neck: nn.Module | None = None) -> None:
        super().__init__()
        self.body, self.neck = Pyramid(), neck or Neck()

    def forward(self, x: torch.Tensor) -> Any:
        return self.neck(self.body(x))


def captured(neck: nn.Module | None = None) -> Any:
    """A model with a neck, captured: the same numbers, at another size too."""
    torch.manual_seed(0)
    model = Model(neck).eval()
    found = vr.capture(model, IMAGE)
    with torch.no_grad():
        for x in (IMAGE, torch.randn(3, 3, 32, 16)):
            assert torch.equal(model(x), found(x))
    again = vr.capture(found, IMAGE)
    assert source(again) == source(found)
    return found


def source(module: Any) -> str:
    return str(type(module).printed.text)


def of(module: nn.Module) -> str:
    return inspect.getsource(type(module).forward)


@pytest.fixture(scope="module")
def model() -> Any:
    return captured()


def test_a_tuple_is_one_argument(model: Any) -> None:
    assert "def forward(self, features):" in source(model)
    assert "def forward(self, tokens, shapes):" in source(model)
    assert "return self.neck(self.body(x))" in source(model).replace("y = ", "")


def test_what_is_made_of_the_items_is_a_loop(model: Any) -> None:
    neck, attend = of(model.neck), of(model.neck.attend)
    assert "for i, (projection, feature) in enumerate(" in neck
    assert "features[::-1]" in neck
    assert "shapes.append((height, width))" in neck
    assert "self.level[i]" in neck
    assert "[height * width for height, width in shapes]" in attend
    assert "for i, (shape, part) in enumerate(zip(shapes, parts)):" in attend
    assert attend.count("adaptive_avg_pool2d") == 1


def test_what_a_split_implies_is_not_checked(model: Any) -> None:
    assert "raise" not in of(model.neck.attend)


def test_graphs_call_what_takes_tuples(model: Any) -> None:
    neck = model.neck
    assert neck.packing
    assert isinstance(neck, Unit)
    assert neck.template is not None
    maps = model.body(IMAGE)
    with torch.no_grad():
        assert torch.equal(run_graph(neck.template.graph, neck, maps), neck(maps))
        assert torch.equal(run_graph(model.template.graph, model, (IMAGE,)), model(IMAGE))


def test_a_pickled_module_takes_tuples(model: Any) -> None:
    twin = pickle.loads(pickle.dumps(model))
    assert twin.neck.packing == model.neck.packing
    assert torch.equal(twin(IMAGE), model(IMAGE))


class Named(nn.Module):
    """Children with names of their own, one for each level."""

    def __init__(self) -> None:
        super().__init__()
        self.norm_a, self.norm_b, self.norm_c = (nn.GroupNorm(3, 3) for _ in range(3))

    def forward(self, maps: Any) -> torch.Tensor:
        norms = (self.norm_a, self.norm_b, self.norm_c)
        found = []
        for norm, x in zip(norms, maps, strict=False):
            y = norm(x).relu()
            z = y.mean((2, 3), keepdim=True) * y
            found.append((y + z).flatten(2).mean(-1))
        return torch.cat(found, dim=1)


def test_children_of_other_names_are_gone_through_too() -> None:
    text = of(captured(Named()).neck)
    assert "zip((self.norm_a, self.norm_b, self.norm_c), maps)" in text


class Changed(nn.Module):
    """Adds to a map between what is made of it and what is made of the others."""

    def forward(self, maps: Any) -> torch.Tensor:
        first = maps[0].mean((2, 3)) * 2
        maps[1].add_(1.0)
        second = maps[1].mean((2, 3)) * 2
        return torch.cat([first, second, maps[2].mean((2, 3)) * 2], dim=1)


def test_nothing_is_moved_across_a_change_in_place() -> None:
    assert "for " not in of(captured(Changed()).neck)


class Drawn(nn.Module):
    """Draws for each level: the order of draws is kept."""

    def __init__(self) -> None:
        super().__init__()
        self.drop = nn.Dropout(0.5)

    def forward(self, maps: Any) -> torch.Tensor:
        first = [self.drop(m.mean((2, 3))) for m in maps[:3]]
        return torch.cat([self.drop(f) * 2 for f in first], dim=1)


def test_draws_keep_their_order() -> None:
    model = captured(Drawn())
    plain = Model(Drawn())
    plain.load_state_dict(model.state_dict())
    out = []
    for each in (plain.train(), model.train()):
        torch.manual_seed(3)
        out.append(each(IMAGE))
    assert torch.equal(*out)


class Twice(nn.Module):
    """Calls one module with a tuple, and one like it with the same values otherwise nested."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.second = Nested(), Nested()

    def forward(self, maps: Any) -> torch.Tensor:
        a, b = (m.mean((2, 3)) for m in maps[:2])
        found: torch.Tensor = self.first(((a, b), a)) + self.second(((a,), (b, a)))
        return found


class Nested(nn.Module):
    def forward(self, pairs: Any) -> torch.Tensor:
        flat = [x for each in pairs for x in (each if isinstance(each, tuple) else (each,))]
        found: torch.Tensor = flat[0] * 2 + flat[1].tanh() - flat[2] * flat[0]
        return found + flat[1] * flat[2]


def test_tuples_of_other_shapes_for_one_program() -> None:
    captured(Twice())


class Idle(nn.Module):
    """Operations that do nothing."""

    def forward(self, maps: Any) -> torch.Tensor:
        x = maps[0]
        mask = (x[:, :, 0:] > 0).bool()
        return torch.where(mask, x[:], x * 2).mean((2, 3))


def test_what_does_nothing_is_not_printed() -> None:
    text = of(captured(Idle()).neck)
    assert ".bool()" not in text
    assert "0:" not in text


class Checked(nn.Module):
    """Refuses sizes that nothing else would."""

    def forward(self, maps: Any) -> torch.Tensor:
        if maps[0].shape[2] * maps[0].shape[3] == maps[1].shape[2]:
            raise ValueError("never")
        return torch.bmm(maps[0].flatten(2), maps[0].flatten(2).transpose(1, 2))


def test_a_check_that_nothing_implies_stays() -> None:
    assert "raise ValueError" in of(captured(Checked()).neck)


@pytest.mark.parametrize(("depths", "lines"), [((1, 2, 3, 1), 205), ((2, 2, 2), 190)])
def test_stages_that_hand_on_a_size_are_one_class(depths: tuple[int, ...], lines: int) -> None:
    torch.manual_seed(0)
    config = MultiScaleVitCfg(depths=depths, embed_dim=16, num_heads=1)
    model = MultiScaleVit(config, img_size=32, num_classes=5).eval()
    x = torch.randn(2, 3, 32, 32)
    found = vr.capture(model, x)
    with torch.no_grad():
        assert torch.equal(model(x), found(x))
    assert list(found.state_dict()) == list(model.state_dict())
    text = source(found)
    assert source(vr.capture(found, x)) == text
    assert text.count("class MultiScale") == 4, "attention, block, stage and model"
    assert "for stage in self.stages:\n            x, feat_size = stage(x, feat_size)" in text
    assert len(text.splitlines()) <= lines
