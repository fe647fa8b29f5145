"""What tests of passes at branches share: small models of many kinds, and a golden case's round."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import timm
import torch
from torch import nn

import vitrewrite as vr
from tests import goldens
from tests.models import spread
from vitrewrite.rewrite.rewritten import Rewritten

TINY: Mapping[str, Any] = {"embed_dim": 32, "depth": 2, "num_heads": 2, "img_size": 64}
SWIN = {"embed_dim": 16, "depths": (1, 2), "num_heads": (2, 2), "img_size": 64}
SMALL: Mapping[str, Mapping[str, Any]] = {
    "deit_tiny_distilled_patch16_224": TINY,
    "beit_base_patch16_224": TINY,
    "vit_small_patch14_reg4_dinov2": {**TINY, "img_size": 56},
    "vit_small_patch16_dinov3": TINY,
    "eva02_tiny_patch14_224": {**TINY, "img_size": 56},
    "swin_tiny_patch4_window7_224": {**SWIN, "window_size": 4},
    "swinv2_tiny_window8_256": {**SWIN, "window_size": 8},
    "pvt_v2_b0": {},
    "convnext_atto": {"depths": (1, 2, 1, 1), "dims": (16, 16, 32, 32)},
}


def small(name: str, **more: Any) -> Any:
    """A model of a family, with weights that are nowhere zero."""
    torch.manual_seed(0)
    options = {"num_classes": 5, **SMALL[name], **more}
    return spread(timm.create_model(name, **options)).eval()


def images(model: Any) -> torch.Tensor:
    """Two images of the size that a model takes."""
    size = getattr(getattr(model, "patch_embed", None), "img_size", (64, 64))
    return torch.randn(2, 3, *size, generator=torch.Generator().manual_seed(1))


def bottleneck(
    z: torch.Tensor, delta: Mapping[str, torch.Tensor], act: Callable[[torch.Tensor], torch.Tensor]
) -> torch.Tensor:
    """up(act(down(z))) with biases."""
    code = act(z @ delta["down.weight"].T + delta["down.bias"])
    return code @ delta["up.weight"].T + delta["up.bias"]


def tensors(rewritten: Rewritten, path: str) -> dict[str, torch.Tensor]:
    """The tensors of a delta under one path, by what follows it."""
    found = rewritten.delta().items()
    return {k.removeprefix(f"{path}."): v for k, v in found if k.startswith(f"{path}.")}


def golden(
    name: str, spec: str, named: Callable[[str], str], base: nn.Module | None = None
) -> Rewritten:
    """The numbers of a case: outputs, also lowered and in training, and gradients."""
    case = goldens.case(name)
    rewritten = vr.apply(spec, case.base() if base is None else base)
    names = {k: named(k) for k in rewritten.delta()}
    given = {k.removeprefix("method."): v for k, v in case.tensors.items() if "method." in k}
    for key, tensor in rewritten.delta().items():
        if names[key] in given:
            tensor.copy_(given.pop(names[key]))
    unread = ("up_text", "up_multimodal", "norm_cross")  # towers of text have these
    assert not [k for k in given if not any(word in k for word in unread)]
    module, x = rewritten.module, case.tensors["input"]
    with torch.no_grad():
        case.close(rewritten.base(x), "output_base")
        case.close(module.eval()(x), "output")
        case.close(vr.lower(rewritten).module(x), "output")
        trained = "output_train" if "output_train" in case.tensors else "output"
        case.close(module.train()(x), trained)
    case.gradients_close({names[k]: v for k, v in case.gradients_of(rewritten).items()})
    return rewritten
