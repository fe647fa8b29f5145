"""timm's attention written out, and how tests compare a rewritten model with it."""

from __future__ import annotations

import itertools
import runpy
from pathlib import Path
from types import MethodType
from typing import Any

import timm
import torch
import torch.nn.functional as F

import vitrewrite as vr
from tests.lowering.models import fill
from tests.models import spread

IMAGES = torch.randn(3, 3, 16, 16, generator=torch.Generator().manual_seed(1))
KV = "prepend kv_prompt(n=2) to blocks[*].attn"
MERGE = "insert merge.tome(r=3) after blocks[*].attn"

RECEIVED = """
class ReceivedModule(nn.Module):
    '''x + g s, with s how peaked the weights are in an image.'''

    inserted_by = "{name}"
    changes = (0,)

    def __init__(self, width: int) -> None:
        super().__init__()
        self.width = width
        self.gain = nn.Parameter(torch.ones(width))

    def forward(self, x: torch.Tensor, weights: torch.Tensor) -> torch.Tensor:
        peaked = weights.square().reshape(x.shape[0], -1).mean(1)
        return x + self.gain * peaked.reshape(-1, *[1] * (x.dim() - 1))


@dataclass(frozen=True)
class Received(Pass):
    verbs: ClassVar[tuple[str, ...]] = ("insert at",)
    attaches: ClassVar[tuple[str, ...]] = ("attention",)

    def rewrite(self, attn: Any) -> None:
        attn.block.mid.insert(ReceivedModule(attn.dim), attn.{tap})
"""

PASS = """

@dataclass(frozen=True)
class {cls}(Pass):
    verbs: ClassVar[tuple[str, ...]] = ("insert at",)
    attaches: ClassVar[tuple[str, ...]] = ("attention",)
"""
PAIRS = (
    """
class PairsModule(nn.Module):
    inserted_by = "{name}"

    def __init__(self, heads: int, queries: int, keys: int) -> None:
        super().__init__()
        self.heads, self.queries, self.keys = heads, queries, keys
        self.bias = nn.Parameter(torch.zeros(1, heads, queries, keys))

    def forward(self) -> torch.Tensor:
        return self.bias
"""
    + PASS.replace("{cls}", "Pairs")
    + """
    claims: ClassVar[tuple[str, ...]] = ("same_output_at_init",)

    queries: int = option(17)
    keys: int = option(17)

    def rewrite(self, attn: Any) -> None:
        module = PairsModule(attn.heads, self.queries, self.keys)
        attn.bias_scores(attn.shared("pairs", lambda: module))
"""
)


def vit(**options: Any) -> Any:
    torch.manual_seed(0)
    given = {"attn_drop_rate": 0.3, "proj_drop_rate": 0.2, **options}
    model = timm.models.vision_transformer.VisionTransformer(
        img_size=16, patch_size=4, embed_dim=16, depth=2, num_heads=2, num_classes=5, **given
    )
    return spread(model)


def swin() -> Any:
    torch.manual_seed(0)
    model = timm.models.swin_transformer.SwinTransformer(
        img_size=32,
        patch_size=4,
        window_size=4,
        embed_dim=8,
        depths=(2,),
        num_heads=(2,),
        num_classes=5,
        attn_drop_rate=0.3,
        drop_path_rate=0.0,
    )
    return spread(model)


class ByHand:
    """timm's attention written out, with what a pass changes in it.

    Attributes:
        weights: the last weights on tokens, before dropout.
    """

    def __init__(
        self, attn: Any, scores: Any = None, softmax: Any = None, rows: Any = None
    ) -> None:
        self.scores, self.softmax, self.rows = scores, softmax, rows
        self.weights = torch.empty(0)
        attn.forward = MethodType(lambda attn, x, mask=None, **_: self.run(attn, x, mask), attn)

    def run(self, attn: Any, x: torch.Tensor, mask: Any = None) -> torch.Tensor:
        batch, count, _ = x.shape
        qkv = attn.qkv(x).reshape(batch, count, 3, attn.num_heads, -1).permute(2, 0, 3, 1, 4)
        q, k, v = qkv.unbind(0)
        front = 0
        if self.rows is not None:
            rows = self.rows.expand(batch, -1, -1, -1)
            front, k, v = rows.shape[2], torch.cat([rows, k], 2), torch.cat([rows, v], 2)
        scores = q * attn.scale @ k.transpose(-2, -1)
        if hasattr(attn, "relative_position_bias_table"):
            scores = scores + attn._get_rel_pos_bias()
        if mask is not None:
            scores = scores.view(-1, len(mask), *scores.shape[1:]) + mask[None, :, None]
            scores = scores.flatten(0, 1)
        if self.scores is not None:
            scores = scores + F.pad(self.scores, (front, 0))
        weights = scores.softmax(-1) if self.softmax is None else self.softmax(scores)
        self.weights = weights[..., front:]
        x = (attn.attn_drop(weights) @ v).transpose(1, 2).reshape(batch, count, -1)
        made: torch.Tensor = attn.proj_drop(attn.proj(x))
        return made


def peaked(
    blocks: Any, delta: dict[str, torch.Tensor], name: str, hands: Any = None, mean: bool = False
) -> None:
    """What `RECEIVED` does, between attention and feed-forward part."""
    for i, block in enumerate(blocks):
        hand = ByHand(block.attn) if hands is None else hands[i]
        gain = next(v for k, v in delta.items() if k.endswith(f"blocks.{i}.{name}.gain"))

        def forward(
            self: Any, x: torch.Tensor, hand: ByHand = hand, gain: torch.Tensor = gain
        ) -> torch.Tensor:
            attend = getattr(self, "_attn", self.attn)  # Swin's has the windows
            x = x + attend(self.norm1(x))
            weights = hand.weights.mean(1) if mean else hand.weights
            each = weights.square().reshape(x.shape[0], -1).mean(1)
            x = x + gain * each.reshape(-1, *[1] * (x.dim() - 1))
            return x + self.mlp(self.norm2(x))

        block.forward = MethodType(forward, block)


def agree(rewritten: Any, model: Any, images: torch.Tensor = IMAGES) -> None:
    """Equal outputs in eval and, at equal seed, in training, for one image and for three."""
    for training, count in itertools.product((True, False), (1, 3)):
        found = []
        for each in (rewritten.module, model):
            each.train(training)
            torch.manual_seed(5)
            with torch.no_grad():
                found.append(each(images[:count]))
        torch.testing.assert_close(*found, rtol=1e-4, atol=1e-5)


def reached(rewritten: Any) -> None:
    """A gradient that is not zero reaches every inserted parameter."""
    rewritten.module.zero_grad()
    rewritten.module(IMAGES).square().sum().backward()
    for insertion in rewritten.result.editor.insertions:
        for name, parameter in insertion.module.named_parameters():
            assert parameter.grad is not None, (insertion.path, name)
            assert parameter.grad.any(), (insertion.path, name)


def emitted(rewritten: Any, folder: Path) -> None:
    """The file runs without the compiler, and yields the same."""
    vr.emit(rewritten, folder)
    assert "import vitrewrite" not in (folder / "model.py").read_text()
    built = runpy.run_path(str(folder / "model.py"))["load"](str(folder / "weights.safetensors"))
    with torch.no_grad():
        assert torch.equal(built.eval()(IMAGES), rewritten.module.eval()(IMAGES))


@torch.no_grad()
def in_both_orders(mine: str, other: str) -> Any:
    """Two clauses in either order, lowered too, are one model; the last of those that were made."""
    found = []
    for first, second in ((mine, other), (other, mine)):
        rewritten = fill(vr.apply(f"{first}\n{second}\n", vit()))
        found += [m.module.eval()(IMAGES) for m in (rewritten, vr.lower(rewritten))]
    for each in found[1:]:
        torch.testing.assert_close(each, found[0], rtol=1e-4, atol=1e-5)
    return rewritten
