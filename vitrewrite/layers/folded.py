"""A convolution that holds the batch norm behind it."""

from __future__ import annotations

from copy import deepcopy

import torch
from torch import nn
from torch.nn.utils.fusion import fuse_conv_bn_eval


def folded(conv: nn.Conv2d, norm: nn.Module) -> nn.Conv2d:
    """What a convolution and the batch norm behind it do in evaluation, as one convolution.

    Computed in float32 or better, and in the dtype of the convolution.
    """
    wide = torch.promote_types(conv.weight.dtype, torch.float32)
    assert isinstance(norm, nn.BatchNorm2d)
    made = fuse_conv_bn_eval(deepcopy(conv).to(wide).eval(), deepcopy(norm).to(wide).eval())
    return made.to(conv.weight.dtype)
