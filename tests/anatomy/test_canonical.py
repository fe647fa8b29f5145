"""Manual attention in the one form, with the same results."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import timm
import torch
from timm.models.mvitv2 import MultiScaleVit, MultiScaleVitCfg
from torch import nn

from vitrewrite.anatomy import analyse
from vitrewrite.anatomy.canonical import canonicalise
from vitrewrite.tracing import trace
from vitrewrite.tracing.modes import by_mode
from vitrewrite.tracing.unit import Unit


def _swin() -> nn.Module:
    """Relative bias, shift masks, and a layout of windows in between."""
    small = {"depths": (2, 2), "embed_dim": 24, "num_heads": (2, 3), "img_size": 56}
    return timm.create_model("swin_tiny_patch4_window7_224", attn_drop_rate=0.2, **small)


def _swinv2() -> nn.Module:
    """Cosine attention: the scale is a parameter."""
    small = {"depths": (2, 2), "embed_dim": 24, "num_heads": (2, 3), "img_size": 64}
    return timm.create_model("swinv2_tiny_window8_256", window_size=8, **small)


def _mvit() -> nn.Module:
    """The bias is written over the scores in place."""
    return MultiScaleVit(MultiScaleVitCfg(depths=(1, 2), embed_dim=32, num_heads=1), img_size=64)


def _xcit() -> nn.Module:
    return timm.create_model("xcit_nano_12_p16_224", depth=2, embed_dim=32, img_size=64)


def _crossvit() -> nn.Module:
    return timm.create_model("crossvit_tiny_240", depth=((1, 1, 0),), embed_dim=(24, 48))


def _randomised(model: nn.Module) -> nn.Module:
    torch.manual_seed(0)
    for parameter in model.parameters():
        nn.init.normal_(parameter, std=0.2)
    return model.double().eval()


def _graphs(root: nn.Module) -> list[Any]:
    units = [m for m in root.modules() if isinstance(m, Unit) and m.template is not None]
    return [g for u in units if u.template is not None for g in u.template.graphs]


@pytest.mark.parametrize(
    ("build", "side", "count"),
    [(_swin, 56, 3), (_swinv2, 64, 3), (_mvit, 64, 3), (_xcit, 64, 1), (_crossvit, 240, 2)],
)
@torch.no_grad()
def test_same_results(build: Callable[[], nn.Module], side: int, count: int) -> None:
    model = _randomised(build())
    root = trace(model, torch.zeros(2, 3, side, side, dtype=torch.float64)).eval()
    assert canonicalise(root) == count
    for graph in _graphs(root):
        graph.lint()
    image = torch.randn(3, 3, side, side, dtype=torch.float64)
    torch.testing.assert_close(root(image), model(image), rtol=1e-12, atol=1e-12)
    assert {b.attn.form for b in analyse(root).blocks if b.attn} == {"sdpa"}
    assert canonicalise(root) == 0


@torch.no_grad()
def test_dropout_of_probabilities_is_kept() -> None:
    root = trace(_swin(), torch.zeros(2, 3, 56, 56))
    canonicalise(root)
    rates = {n.args[1:] for g in _graphs(root) for n in g.nodes if n.target is by_mode}
    assert rates == {(0.2, 0.0)}
    image = torch.randn(2, 3, 56, 56)
    root.train()
    assert not torch.equal(root(image), root(image))


def test_sites_stay(anatomy: Callable[[str], Any]) -> None:
    name = "swin_tiny_patch4_window7_224"
    with torch.device("meta"):
        root = trace(timm.create_model(name))
    before = anatomy(name)
    canonicalise(root)
    after = analyse(root)
    assert after.linears == before.linears
    assert [b.attn and b.attn.windows for b in after.blocks] == [
        b.attn and b.attn.windows for b in before.blocks
    ]


class _Dropping(nn.Module):
    """Attention in functions only; `always` drops in eval mode too."""

    def __init__(self, always: bool) -> None:
        super().__init__()
        self.always, self.qkv = always, nn.Linear(8, 24)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        q, k, v = self.qkv(x).chunk(3, dim=-1)
        scores = torch.softmax(torch.bmm(q, k.transpose(1, 2)) / 2, dim=-1)
        return nn.functional.dropout(scores, 0.5, self.always or self.training) @ v


@pytest.mark.parametrize("always", [False, True])
@torch.no_grad()
def test_dropout_as_a_function(always: bool) -> None:
    model = _Dropping(always).double().eval()
    root = trace(model, torch.zeros(2, 5, 8, dtype=torch.float64)).eval()
    assert canonicalise(root) == (0 if always else 1)
    x = torch.randn(3, 7, 8, dtype=torch.float64)
    torch.manual_seed(0)
    expected = model(x)
    torch.manual_seed(0)
    torch.testing.assert_close(root(x), expected)
    assert always or not torch.equal(root.train()(x), root(x))


def test_talking_heads_stay_manual() -> None:
    model = timm.create_model("cait_xxs24_224", depth=2, img_size=32, embed_dim=48)
    root = trace(model, torch.zeros(2, 3, 32, 32))
    assert canonicalise(root) == 0
    forms = [b.attn.form for b in analyse(root).blocks if b.attn]
    assert forms == ["manual", "manual", "sdpa", "sdpa"]


class _FewerKeys(nn.Module):
    """Windows of more queries than keys, with a bias of some axes and a mask for each window."""

    def __init__(self, *shape: int) -> None:
        super().__init__()
        self.q, self.kv = nn.Linear(8, 8), nn.Linear(8, 16)
        self.bias = nn.Parameter(torch.randn(*shape))
        self.mask = nn.Parameter(torch.randn(2, 1, 4, 3))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        b = x.shape[0]
        x = x.view(b * 2, 4, 8)
        q = self.q(x).view(b * 2, 4, 2, 4).transpose(1, 2)
        k, v = self.kv(x[:, 1:]).view(b * 2, 3, 2, 2, 4).permute(2, 0, 3, 1, 4).unbind(0)
        scores = q @ k.transpose(-2, -1) + self.bias
        scores = scores.view(b, 2, 2, 4, 3) + self.mask
        weights = scores.view(b * 2, 2, 4, 3).softmax(dim=-1)
        return (weights @ v).transpose(1, 2).reshape(b, 8, 8)


@pytest.mark.parametrize(
    "shape", [(2, 4, 3), (2, 1, 3), (2, 4, 1), (2, 1, 1), (1, 4, 3), (1, 1, 3), (4, 1)], ids=str
)
@torch.no_grad()
def test_a_bias_is_as_long_as_queries_and_keys(shape: tuple[int, ...]) -> None:
    torch.manual_seed(0)
    model = _FewerKeys(*shape).double().eval()
    root = trace(model, torch.zeros(2, 8, 8, dtype=torch.float64)).eval()
    assert canonicalise(root) == 1
    for batch in (1, 2, 5):
        x = torch.randn(batch, 8, 8, dtype=torch.float64)
        torch.testing.assert_close(root(x), model(x), rtol=0, atol=1e-12)
