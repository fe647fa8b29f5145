"""What is printed is proved for every module: where printing is at fault, it is noticed."""

from __future__ import annotations

import inspect
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from hypothesis import given
from hypothesis import strategies as st
from torch import nn

import vitrewrite as vr
from tests.emission.emitted import check, module
from tests.emission.test_merging import Listed, Ordered, Scaled
from tests.models import DEAR
from tests.test_rolls import tensors
from vitrewrite.emission import classes, realise
from vitrewrite.emission.loops import runs as loops
from vitrewrite.emission.proof import Doubt, likeness, unproved

X = torch.randn(2, 8, 8, generator=torch.Generator().manual_seed(1))


def off(model: nn.Module, x: torch.Tensor = X, *, training: bool = False) -> float:
    """The largest difference between a model and its capture, in two batch sizes."""
    captured = vr.capture(model.eval(), x)
    found = [0.0]
    for batch in (x, torch.cat([x, 2 * x])):
        outputs = []
        for each in (model, captured):
            torch.manual_seed(0)
            outputs.append(tensors(each.train(training)(batch.clone())))
        found += [(a - b).abs().max().item() for a, b in zip(*outputs, strict=True)]
    return max(found)


# -- faults that are put into printing ------------------------------------------------------------


def test_a_loop_that_drops_a_second_reader_is_written_plainly(monkeypatch: Any) -> None:
    def continues(last: Any, node: Any) -> bool:
        before, here = loops._plain_call(last), loops._plain_call(node)
        return before is not None and here is not None and here[1] == before[1] + 1

    def forward(m: Any, x: torch.Tensor) -> torch.Tensor:
        y = m.layers[0](x)
        z: torch.Tensor = m.layers[2](m.layers[1](y))
        return z + y

    model = Listed([nn.Linear(8, 8) for _ in range(3)], forward)
    monkeypatch.setattr(loops, "_continues", continues)
    assert off(model) == 0
    text = inspect.getsource(type(vr.capture(model, X)).forward)
    assert "for " not in text
    assert text.count("self.layers[") == 3


def test_a_class_that_two_programs_share_is_taken_apart(monkeypatch: Any) -> None:
    """Sizes are read in another dimension by one instance; the key of classes forgets them."""
    monkeypatch.setattr(classes, "skeleton", lambda template: (template.name, {}))
    model = nn.Sequential(Ordered((1, 2)), Ordered((2, 1)))
    assert off(model) == 0
    captured = vr.capture(model, X)
    assert type(captured.get_submodule("0")) is not type(captured.get_submodule("1"))


def test_what_cannot_be_written_rightly_is_refused(monkeypatch: Any) -> None:
    doubt = Doubt("add is not what the graph computes there", differs=True)
    wrong = lambda root, _: {id(root): doubt}  # noqa: E731
    monkeypatch.setattr(realise, "find_unproved", wrong)
    message = (
        "VR812 the class that was printed for Made differs from its graph: add is not what the "
        "graph computes there"
    )
    with pytest.raises(vr.VitrewriteError, match=message):
        vr.capture(module(lambda m, x: x + 1), X)


def test_what_symbols_cannot_go_through_is_written_plainly(monkeypatch: Any) -> None:
    doubt = Doubt("TypeError: no such operator", differs=False)
    monkeypatch.setattr(realise, "find_unproved", lambda root, _: {id(root): doubt})
    model = Listed([nn.Linear(8, 8) for _ in range(3)], in_turn)
    assert off(model) == 0
    assert "for " not in inspect.getsource(type(vr.capture(model, X)).forward)


# -- order ----------------------------------------------------------------------------------------


def read_before_a_change(m: Any, x: torch.Tensor) -> Any:
    x = x * 2
    kept = x.mean(-1, keepdim=True)
    x.add_(1)
    return x, kept


def read_before_a_layer_changes(m: Any, x: torch.Tensor) -> Any:
    x = x * 2
    kept = x.mean(-1, keepdim=True)
    return m.act(x), kept


def a_view_of_what_is_changed(m: Any, x: torch.Tensor) -> Any:
    x = x * 2
    first = x[:, 0]
    total = x.sum(1)
    first.mul_(3)
    return total, x.sum(1), first


def a_part_that_is_changed(m: Any, x: torch.Tensor) -> Any:
    x = x * 2
    first, second = x.unbind(1)[:2]
    total = x.sum(1)
    first.mul_(3)
    return total, x.sum(1), second


def a_shape_that_is_changed(m: Any, x: torch.Tensor) -> Any:
    x = x * 2
    rows = x.shape[1]
    x.unsqueeze_(1)
    return x * x.shape[-2] + rows, x.ndim * x


def drawn_in_order(m: Any, x: torch.Tensor) -> Any:
    attended = F.scaled_dot_product_attention(x, x, x, dropout_p=0.5 if m.training else 0.0)
    return m.drop(x) + attended


@pytest.mark.parametrize(
    "forward",
    [
        read_before_a_change,
        read_before_a_layer_changes,
        a_view_of_what_is_changed,
        a_part_that_is_changed,
        a_shape_that_is_changed,
        drawn_in_order,
    ],
)
@pytest.mark.parametrize("training", [False, True])
def test_order_is_kept(forward: Callable[..., Any], training: bool) -> None:
    parts = {"act": nn.ReLU(inplace=True), "drop": nn.Dropout(0.5)}
    assert off(module(forward, **parts), training=training) == 0


def test_one_module_does_not_prove_another_whose_part_changes_its_input() -> None:
    """The same program; what it calls is a layer that works in place in one of them."""

    def forward(m: Any, x: torch.Tensor) -> Any:
        return m.act(x), x.mean(-1, keepdim=True)

    parts = [module(forward, act=nn.ReLU(inplace=inplace)) for inplace in (False, True)]
    model = Listed(parts, lambda m, x: [part(x * 2) for part in m.layers])
    assert off(model) == 0
    first, second = vr.capture(model.eval(), X).get_submodule("layers").children()
    assert likeness(first) != likeness(second)


def test_names_of_what_nothing_calls(tmp_path: Path) -> None:
    """Several names for one module without state, which no constructor makes."""
    idle = nn.Identity()
    model = module(lambda m, x: m.fc(x), fc=nn.Linear(8, 8), q=idle, k=idle)
    check(model, tmp_path, X)


def operators(m: Any, x: torch.Tensor) -> Any:
    n = (x * 4).long()
    whole = n // 3 + 3 // (n.abs() + 1) + n % 2 + 5 % (n.abs() + 1) + n.__floordiv__(2)
    bits = (n << 1) + (1 << n.abs().clamp(max=3)) + (n >> 1) + (n & 1) + (n | 4) + (n ^ 2) + ~n
    return whole, bits, x**2 + 2**x - -x + abs(x) + 1 - x + 2 / (x * x + 1), x @ x, x // 2


def test_every_operator_is_known() -> None:
    captured: Any = vr.capture(module(operators).eval(), X)
    assert unproved(captured) is None
    assert off(module(operators)) == 0


# -- any layers in any order ----------------------------------------------------------------------


def layer(kind: str) -> nn.Module:
    """Keeps shapes; some have a class of their own, and what is equal of them differs."""
    made: dict[str, Callable[[], nn.Module]] = {
        "linear": lambda: nn.Linear(8, 8),
        "no bias": lambda: nn.Linear(8, 8, bias=False),
        "identity": nn.Identity,
        "drop": lambda: nn.Dropout(0.3),
        "never": lambda: nn.Dropout(0.0),
        "norm": lambda: nn.LayerNorm(8),
        "in place": lambda: nn.ReLU(inplace=True),
        "scaled": lambda: Scaled(nn.Linear(8, 8)),
        "scaled nothing": lambda: Scaled(nn.Identity()),
        "rows": lambda: Ordered((1, 2)),
        "columns": lambda: Ordered((2, 1)),
        "nested": lambda: nn.Sequential(nn.Linear(8, 8), nn.Identity(), nn.Dropout(0.1)),
    }
    return made[kind]()


KINDS = ("linear", "no bias", "identity", "drop", "never", "norm", "in place", "scaled",
         "scaled nothing", "rows", "columns", "nested")  # fmt: skip


def in_turn(m: Any, x: torch.Tensor) -> Any:
    for each in m.layers:
        x = each(x)
    return x


def collected(m: Any, x: torch.Tensor) -> Any:
    out = []
    for each in m.layers:
        x = each(x)
        out.append(x * x.shape[1])
    return out


def side_by_side(m: Any, x: torch.Tensor) -> Any:
    return tuple(each(x + 1) for each in m.layers)


def carried(m: Any, x: torch.Tensor) -> Any:
    state = torch.tanh(x)
    for each in m.layers:
        x, state = each(x) + state, each(state)
    return x - state


def alternating(m: Any, x: torch.Tensor) -> Any:
    for i in range(len(m.layers) * 2):
        x = m.layers[i % len(m.layers)](x) + i % 2
    return x


def with_the_first(m: Any, x: torch.Tensor) -> Any:
    first = m.layers[0](x)
    rest = [each(first) for each in m.layers[1:]]
    return {"first": first, "rest": rest}


FORWARDS = (in_turn, collected, side_by_side, carried, alternating, with_the_first)


@DEAR
@given(
    st.lists(st.sampled_from(KINDS), min_size=3, max_size=6),
    st.sampled_from(FORWARDS),
    st.booleans(),
)
def test_every_instance_is_right(kinds: list[str], forward: Any, training: bool) -> None:
    torch.manual_seed(0)
    inner = Listed([layer(kind) for kind in kinds], forward)
    model = Listed([inner, Listed([layer(k) for k in reversed(kinds)], forward)], side_by_side)
    model.__dict__["does"] = lambda m, x: (m.layers[0](x * 1.5), m.layers[1](x * 0.5))
    for each in model.modules():
        if isinstance(each, nn.Linear):
            nn.init.normal_(each.weight)
    assert off(model, training=training) == 0
