"""Where the stream has another length in training: behind the block that drops tokens there."""

from __future__ import annotations

import pytest
import timm
import torch
from timm.layers import PatchDropout
from timm.models.vision_transformer import Block, VisionTransformer

import vitrewrite as vr
from vitrewrite.anatomy import analyse
from vitrewrite.editing.training import Training

DEPTH = 4


class Dropping(Block):
    """Drops half of the patches behind it, in training."""

    def forward(self, x: torch.Tensor, *_: object, **__: object) -> torch.Tensor:
        return self.dropout(super().forward(x))


def model(at: int) -> VisionTransformer:
    made = timm.models.VisionTransformer(
        img_size=16, patch_size=4, embed_dim=8, depth=DEPTH, num_heads=2, num_classes=3
    )
    made.blocks[at].__class__ = Dropping
    made.blocks[at].dropout = PatchDropout(0.5, num_prefix_tokens=1)
    return made


@pytest.mark.parametrize("at", [1, 2])
def test_every_position_in_front_is_as_it_was(at: int) -> None:
    root = vr.capture(model(at))
    found = Training(root, analyse(root), (torch.empty(1, 3, 16, 16, device="meta"),))
    changes = [found.change(position) for position in range(2 * DEPTH + 1)]
    assert [change is not None for change in changes] == [p > 2 * at + 1 for p in range(9)]
    assert {change.tokens for change in changes if change is not None} == {(17, 9)}
