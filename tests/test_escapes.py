"""Values that leave a forward by hooks, attributes and lists: outputs and inputs of its calls."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import nn

import vitrewrite as vr
from vitrewrite.emission.twin import emitted_twin
from vitrewrite.folder.writing import model_text


class Attention(nn.Module):
    """Keeps its weights, as people do to look at them; a size as well."""

    def __init__(self) -> None:
        super().__init__()
        self.q = nn.Linear(8, 8)
        self.last: Any = None
        self.tokens = 0
        self.kept: dict[str, torch.Tensor] = {}

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        self.last = self.q(x).softmax(-1)
        self.tokens = x.shape[1]
        self.kept["sine"] = self.last.sin()
        return self.last * x


class Block(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.attn, self.mlp = Attention(), nn.Linear(8, 8)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.mlp(self.attn(x)) + x


class Reader(nn.Module):
    """Adds what another module computed."""

    def __init__(self, other: Attention) -> None:
        super().__init__()
        self.other = [other]  # in a list, so that it is no child

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return x + self.other[0].last * self.other[0].tokens


class Told(nn.Module):
    """Adds what its parent tells it."""

    def __init__(self) -> None:
        super().__init__()
        self.fc, self.given = nn.Linear(8, 8), torch.zeros(1)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.fc(x) + self.given


STORE: list[torch.Tensor] = []


class Appending(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.fc = nn.Linear(8, 8)

    def forward(self, x: torch.Tensor, found: list[torch.Tensor]) -> torch.Tensor:
        x = self.fc(x)
        found.append(x.tanh())
        STORE.append(x.cos())
        return x


class Net(nn.Module):
    """Reads values of others in one of several ways."""

    def __init__(self, way: str) -> None:
        super().__init__()
        self.way = way
        self.blocks = nn.Sequential(*(Block() for _ in range(3)))
        inside = nn.Sequential(nn.Identity(), Reader(self.blocks[1].attn))
        self.readers = nn.Sequential(inside, nn.ReLU())
        self.told = nn.Sequential(Told(), Told())
        self.lists = nn.ModuleList(Appending() for _ in range(2))
        self.seen: list[torch.Tensor] = []
        if way == "hooks":
            for block in self.blocks:
                block.attn.q.register_forward_hook(lambda m, i, o: self.seen.append(o))

    def forward(self, x: torch.Tensor) -> Any:
        self.seen.clear()
        if self.way == "told":
            for each in self.told:
                each.given = x.mean(1, keepdim=True)
            return self.told(x)
        if self.way == "lists":
            STORE.clear()
            found: list[torch.Tensor] = []
            for each in self.lists:
                x = each(x, found)
            return x, found, STORE[0] + STORE[1]
        x = self.blocks(x)
        return {
            "hooks": lambda: x + sum(self.seen),
            "attributes": lambda: (x, [block.attn.last for block in self.blocks]),
            "the last": lambda: x * self.blocks[-1].attn.last,
            "dicts": lambda: x * self.blocks[0].attn.kept["sine"],
            "sizes": lambda: x / self.blocks[2].attn.tokens,
            "siblings": lambda: self.readers(x),
        }[self.way]()


WAYS = ["hooks", "attributes", "the last", "dicts", "sizes", "siblings", "told", "lists"]


def same(a: Any, b: Any) -> bool:
    if isinstance(a, torch.Tensor):
        return torch.equal(a, b)
    return len(a) == len(b) and all(map(same, a, b))


@pytest.mark.parametrize("way", WAYS)
def test_they_are_exact_in_capture_and_in_print(way: str) -> None:
    torch.manual_seed(0)
    model, x = Net(way).eval(), torch.randn(2, 5, 8)
    rewritten = vr.apply('freeze module("blocks")', model, example=x)
    emitted = emitted_twin(model_text(rewritten), model.state_dict())
    for shape in ((2, 5, 8), (3, 7, 8)):
        y = torch.randn(shape)
        wanted = model(y)
        assert same(wanted, rewritten.base(y))
        assert same(wanted, emitted(y))


def test_what_leaves_is_printed_as_an_output() -> None:
    captured = vr.capture(Net("attributes").eval(), torch.randn(2, 5, 8))
    text = str(getattr(captured.printed, "text", ""))
    assert "y, z, y2, y3 = self.blocks(x)" in text


def test_several_calls_of_one_module_are_refused() -> None:
    class Twice(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.block = Block()

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            x = self.block(x)
            first = self.block.attn.last
            return self.block(x) + first

    with pytest.raises(vr.VitrewriteError, match="VR604 'block' is called several times"):
        vr.capture(Twice(), torch.randn(2, 5, 8))


def _attentions() -> tuple[nn.Module, Callable[[Any], Any]]:
    transformers = pytest.importorskip("transformers")
    small = {"hidden_size": 16, "num_hidden_layers": 2, "num_attention_heads": 2}
    config = transformers.ViTConfig(
        **small,
        intermediate_size=32,
        image_size=32,
        patch_size=8,
        output_attentions=True,
        attn_implementation="eager",
    )
    return transformers.ViTForImageClassification(config).eval(), lambda o: o["attentions"]


def test_attention_maps_of_hugging_face() -> None:
    model, maps = _attentions()
    captured, x = vr.capture(model, torch.randn(2, 3, 32, 32)), torch.randn(3, 3, 32, 32)
    wanted, found = maps(model(x)), maps(captured(x))
    assert len(found) == 2
    assert same(wanted, found)


def test_a_batch_taken_apart_is_told_with_the_pieces() -> None:
    class Apart(nn.Module):
        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return torch.stack([p.sin() for p in x.split(1)])

    with pytest.raises(vr.VitrewriteError, match=r"batch size .* in 'the root' gives \d") as error:
        vr.capture(Apart(), torch.zeros(2, 3))
    assert error.value.code == "VR605"
