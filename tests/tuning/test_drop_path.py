"""The rate of stochastic depth: a setting of the recipe that the model is built with."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

import vitrewrite as vr
from vitrewrite.errors import TuneError
from vitrewrite.tuning import Settings, tune

SPEC = """model tiny.py:build(num_classes=3)
insert lora(rank=2, dropout=0) at blocks[*].attn.q
tune { drop_path = 0.5, steps = 1, batch = 8 }
"""


def own(rate: float) -> torch.nn.Module:
    from timm.models.vision_transformer import VisionTransformer

    small = {"img_size": 16, "patch_size": 4, "embed_dim": 32, "depth": 2, "num_heads": 2}
    return VisionTransformer(**small, in_chans=1, num_classes=3, drop_path_rate=rate)


def test_the_model_drops_paths_as_timms_does(here: Path) -> None:
    rewritten = vr.apply(SPEC)
    assert rewritten.model_options["drop_path_rate"] == 0.5
    reference = own(0.5)
    reference.load_state_dict(rewritten.base.state_dict())
    images = torch.randn(8, 1, 16, 16, generator=torch.Generator().manual_seed(0))
    for training in (False, True):
        outputs = []
        for module in (rewritten.module.train(training), reference.train(training)):
            torch.manual_seed(5)
            outputs.append(module(images))
        assert torch.allclose(outputs[0], outputs[1], atol=1e-6)
    dropped = rewritten.module.train()
    assert not torch.equal(dropped(images), dropped(images))


def test_a_model_without_it_is_named_at_the_setting() -> None:
    with pytest.raises(vr.VitrewriteError, match=r"drop_path = 0.1 .* 'vgg11' does not") as caught:
        vr.plan("model vgg11\ntrain head\ntune { drop_path = 0.1 }\n")
    assert caught.value.code == "VR311"
    assert caught.value.span is not None
    assert (caught.value.span.line, caught.value.span.column) == (3, 8)


@pytest.mark.parametrize(("rate", "built"), [(None, "without it"), (0.5, "with 0.5")])
def test_a_model_that_is_built_otherwise_is_refused(
    rate: float | None, built: str, here: Path
) -> None:
    spec = SPEC.replace("drop_path = 0.5, ", "" if rate is None else "drop_path = 0.5, ")
    settings = Settings(drop_path=0.2, steps=1, batch=8)
    with pytest.raises(TuneError, match=f"was built {built}") as caught:
        tune(vr.apply(spec), "digits:0-2", settings, out="out")
    assert caught.value.code == "VR860"
    with pytest.raises(TuneError, match="was built without it"):
        tune(vr.apply(SPEC, own(0.5)), "digits:0-2", out="out")
