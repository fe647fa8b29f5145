"""What is emitted loads and computes the same, or is not written."""

from __future__ import annotations

import enum
import math
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from timm.models.vision_transformer import VisionTransformer
from torch import nn
from torch.nn.utils import parametrizations, prune, spectral_norm

import vitrewrite as vr
from vitrewrite.emission import checked
from vitrewrite.emission.file import patterns
from vitrewrite.emission.literals import constant
from vitrewrite.emission.twin import emitted_twin
from vitrewrite.folder.writing import model_text

from .emitted import INPUT, Block, check, linear, loaded, module
from .test_names import in_turn


class Mode(str, enum.Enum):
    SMOOTH = "bilinear"


def weight_norm(layer: nn.Module) -> nn.Module:
    with pytest.warns(FutureWarning, match="weight_norm"):
        return torch.nn.utils.weight_norm(layer)


def pruned() -> nn.Module:
    layer = linear()
    prune.l1_unstructured(layer, "weight", 0.5)
    return module(lambda s, x: s.a(x), a=layer)


def tied_tensors() -> nn.Module:
    table = torch.randn(8)
    model = module(lambda s, x: s.b(s.a(x)) + s.t + s.u, a=linear(), b=linear(), t=table, u=table)
    model.get_submodule("b").weight = model.get_submodule("a").weight
    return model


def tables() -> nn.Module:
    found = {
        "scalar": torch.tensor(2.5), "odd": torch.tensor([math.inf, -math.inf, math.nan]),
        "nan": torch.full((20,), math.nan), "zeros": torch.tensor([0.0, -0.0] * 9),
        "complex": torch.randn(30, dtype=torch.cfloat), "bools": torch.rand(30) > 0.5,
        "empty": torch.zeros(0, 3),
    }  # fmt: skip

    def forward(self: Any, x: torch.Tensor) -> torch.Tensor:
        sums = [(self.get_buffer(n) * 1.0).abs().nan_to_num().sum() for n in found]
        return self.a(x) + torch.stack(sums).sum() + (1 / self.zeros).clamp(-1, 1).sum()

    model = module(forward, a=linear())
    for name, value in found.items():
        model.register_buffer(name, value, persistent=False)
    return model


def absent_parts() -> nn.Module:
    model = module(lambda s, x: s.a(x) + (s.nothing is None), a=linear())
    model.register_buffer("nothing", None)
    model.register_parameter("none", None)
    model.add_module("gone", None)
    return model


def lazy() -> nn.Module:
    model = module(lambda s, x: s.a(x), a=nn.LazyLinear(8))
    model(INPUT)
    return model


def twice(kind: Callable[[list[nn.Module]], nn.Module]) -> Callable[[], nn.Module]:
    def build() -> nn.Module:
        block, norm = Block(), nn.BatchNorm1d(3)
        return module(
            lambda s, x: in_turn(s.kept, x), kept=kind([block, norm, Block(), norm, block])
        )

    return build


def called(forward: Callable[..., Any], **parts: Any) -> Callable[[], nn.Module]:
    return lambda: module(forward, a=linear(), **parts)


MODELS: dict[str, Callable[[], nn.Module]] = {
    "weight_norm": lambda: module(lambda s, x: s.a(x), a=weight_norm(linear())),
    "parametrized": lambda: module(lambda s, x: s.a(x), a=parametrizations.weight_norm(linear())),
    "spectral_norm": lambda: module(lambda s, x: s.a(x), a=spectral_norm(linear())),
    "pruned": pruned,
    "one module at two indices of a list": twice(nn.ModuleList),
    "one module at two indices of a sequential": twice(lambda parts: nn.Sequential(*parts)),
    "one layer called twice": lambda: module(
        lambda s, x: s.l(x), l=(lambda a: nn.Sequential(a, nn.GELU(), a))(linear())
    ),
    "numpy scalars": called(
        lambda s, x: (s.a(x) * np.float64(0.5) + np.float32(0.25)).reshape(np.int64(-1), 8)
    ),
    "powers": called(lambda s, x: s.a(x) ** 2 + 2**x + (-x) ** 2 + x**-1 + (-2) ** x.round()),
    "not finite": called(
        lambda s, x: s.a(x).clamp(-math.inf, math.inf).nan_to_num(math.nan, math.inf).masked_fill(
            x > 0, -math.inf
        ).softmax(-1)
    ),
    "complex": called(lambda s, x: (s.a(x) * (1 - 2j) * 1j).abs() * 1e-300),
    "long tuple": called(lambda s, x: s.a(x)[:, (0, 1, 2) * 300]),
    "objects of torch": called(
        lambda s, x: torch.zeros(2, device=torch.device("cpu"), dtype=torch.float32).sum()
        + s.a(x)[..., 0:8:2].contiguous(memory_format=torch.contiguous_format).sum()
        + x.new_zeros(torch.Size([1, 2])).sum() + torch.tensor(tuple(range(8)))
    ),
    "member of an enum": called(
        lambda s, x: F.interpolate(s.a(x)[:, None], scale_factor=2, mode=Mode.SMOOTH)
    ),
    "tied tensors": tied_tensors,
    "tables": tables,
    "parts that are None": absent_parts,
    "parameter of the root": called(lambda s, x: s.a(x) * s.g, g=nn.Parameter(torch.ones(8))),
    "integer parameter": called(
        lambda s, x: s.a(x) * s.g, g=nn.Parameter(torch.arange(8), requires_grad=False)
    ),
    "complex parameter": called(
        lambda s, x: (s.a(x) * s.g).abs(), g=nn.Parameter(torch.randn(8, dtype=torch.cfloat))
    ),
    "layer that was lazy": lazy,
    "attention of torch": lambda: module(
        lambda s, x: s.a(x, x, x)[0], a=nn.MultiheadAttention(8, 2, batch_first=True)
    ),
}  # fmt: skip


@pytest.mark.parametrize("name", MODELS)
def test_what_is_emitted_loads(name: str, tmp_path: Path) -> None:
    torch.manual_seed(0)
    check(MODELS[name](), tmp_path / "out")


def test_one_module_with_two_names_is_one_in_the_emitted_model(tmp_path: Path) -> None:
    twin = check(twice(nn.ModuleList)(), tmp_path / "out")
    assert twin.get_submodule("kept.4") is twin.get_submodule("kept.0")
    assert twin.get_submodule("kept.3") is twin.get_submodule("kept.1")


def rewritten(**parts: Any) -> Any:
    return vr.apply(
        "# no clauses\n", module(lambda s, x: s.a(x), a=linear(), **parts), example=INPUT
    )


@pytest.mark.parametrize(
    ("old", "new", "code", "told"),
    [
        ("return self.a(x)", "return self.b(x)", "VR806", "in class Made(nn.Module)"),
        ("return self.a(x)", "return self.a(x", "VR806", "line"),
        ("return self.a(x)", "return self.a(x) + 1e-6", "VR808", "difference"),
        ("return self.a(x)", "return self.a(x)[:, :2]", "VR808", "(2, 2, 8)"),
        ("nn.Linear(8, 8)", "nn.Linear(8, 8, bias=False)", "VR807", "missing: a.bias"),
        ("nn.Linear(8, 8)", "nn.Linear(8, 9)", "VR807", "another shape or dtype: a.bias, a.weight"),
    ],
)
def test_source_that_is_wrong_is_not_written(
    old: str, new: str, code: str, told: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    found = rewritten()
    text = model_text(found)
    assert old in text
    monkeypatch.setattr("vitrewrite.folder.writing.model_text", lambda _: text.replace(old, new))
    with pytest.raises(vr.VitrewriteError) as caught:
        vr.emit(found, tmp_path / "out")
    assert caught.value.code == code
    assert told in caught.value.render()
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize(
    ("old", "new", "told"),
    [
        ("nn.Dropout(p=0.4)", "nn.Dropout(p=0.25)", "'d' with p = 0.25 instead of 0.4"),
        ("eps=0.1", "eps=0.2", "'n' with eps = 0.2 instead of 0.1"),
    ],
)
def test_what_acts_in_training_alone_is_compared(
    old: str, new: str, told: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    found = vr.apply(
        "# no clauses\n",
        module(
            lambda s, x: s.d(s.n(s.a(x))), a=linear(), d=nn.Dropout(0.4), n=nn.LayerNorm(8, 0.1)
        ),
        example=INPUT,
    )
    text = model_text(found)
    assert old in text
    monkeypatch.setattr("vitrewrite.folder.writing.model_text", lambda _: text.replace(old, new))
    with pytest.raises(vr.VitrewriteError, match=f"VR808 the source that was printed makes {told}"):
        vr.emit(found, tmp_path / "out")


def test_a_model_that_does_not_run_is_not_written(tmp_path: Path) -> None:
    found = rewritten()
    found.module.get_submodule("a").weight = nn.Parameter(torch.ones(8, 9))
    with pytest.raises(vr.VitrewriteError, match=r"VR80[79]"):
        vr.emit(found, tmp_path / "out")
    assert not list(tmp_path.iterdir())


def test_values_without_source_are_refused() -> None:
    model = module(lambda s, x: F.pad(s.a(x), (1, 1), value=Odd(1.5)), a=linear())
    assert "value=1.5" in model_text(vr.apply("# no clauses\n", model, example=INPUT))
    with pytest.raises(vr.VitrewriteError, match="VR803"):
        constant(object())


class Odd(float):
    def __repr__(self) -> str:
        return "__import__('os')"


def test_a_text_is_run_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    found = rewritten()
    made = []
    monkeypatch.setattr(checked, "emitted_twin", lambda *a: made.append(1) or emitted_twin(*a))
    vr.emit(found, tmp_path / "out")
    vr.emit(found, tmp_path / "out")
    assert len(made) == 1


def test_a_twin_shares_what_it_is_given_and_draws_nothing() -> None:
    found = rewritten(t=nn.Parameter(torch.ones(2)))
    found.module.register_buffer("table", torch.arange(3.0), persistent=False)
    found.module.train()
    state = found.module.state_dict()
    before = torch.get_rng_state()
    twin = emitted_twin(model_text(found), state)
    assert torch.equal(before, torch.get_rng_state())
    assert not twin.training
    assert {v.data_ptr() for v in twin.parameters()} == {v.data_ptr() for v in state.values()}
    assert all(not b.is_meta for b in twin.buffers())


def test_patterns_match_names_with_wildcards() -> None:
    names = ["a[0].weight", "a*.weight", "b?.weight", "b1.weight"]
    assert patterns(names[:1], names) == ("a[[]0].*",)
    assert patterns(names[2:3], names) == ("b[?].*",)


def test_nothing_is_trained_where_everything_is_frozen(tmp_path: Path) -> None:
    model = VisionTransformer(16, 8, embed_dim=16, depth=1, num_heads=2, num_classes=2)
    folder = vr.emit(vr.apply("freeze head\n", model), tmp_path / "out")
    assert not any(p.requires_grad for p in loaded(folder).parameters())
    assert "backward" not in (folder / "test_model.py").read_text("utf-8")
