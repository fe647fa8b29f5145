"""Mask2Former and FASeg from backbone maps to predictions, against their authors' code."""

from __future__ import annotations

from functools import partial
from typing import Any

import torch
import transformers as hf
from safetensors.torch import load_file
from torch import nn

import vitrewrite as vr
from tests.goldens import FOLDER, Case, case
from tests.hf.zoo import SEGMENTER
from vitrewrite.rewrite.engine import rewrite
from vitrewrite.tracing import trace

FASEG = "add dfpq() to decoder\nadd hrca(omega=4) to decoder\ntrain every parameter\n"
PIXELS, DECODER = "model.pixel_level_module.decoder", "model.transformer_module.decoder"
PROJECTION = {
    "0.weight": "projection", "0.bias": "projection_bias",
    "1.weight": "norm_weight", "1.bias": "norm_bias",
}  # fmt: skip


class FromMaps(nn.Module):
    """Both decoders and the class predictor, under their names in the whole model."""

    def __init__(self, whole: bool = True) -> None:
        super().__init__()
        from transformers.models.mask2former import modeling_mask2former as parts

        config = hf.Mask2FormerConfig(**SEGMENTER)
        self.whole = whole
        self.model = nn.Module()
        self.model.pixel_level_module = nn.Module()
        self.model.pixel_level_module.decoder = parts.Mask2FormerPixelDecoder(
            config, feature_channels=[8, 16, 24, 32]
        )
        if whole:
            self.model.transformer_module = parts.Mask2FormerTransformerModule(32, config)
            self.class_predictor = nn.Linear(32, 6)

    def forward(self, res2: Any, res3: Any, res4: Any, res5: Any) -> Any:
        """Class and mask predictions of all heads, or maps of all levels and mask features."""
        made = self.model.pixel_level_module.decoder([res2, res3, res4, res5])
        if not self.whole:
            return *made.multi_scale_features, made.mask_features
        found = self.model.transformer_module(list(made.multi_scale_features), made.mask_features)
        states = found.intermediate_hidden_states
        classes = [self.class_predictor(s.transpose(0, 1)) for s in states]
        return classes, found.masks_queries_logits


def built(golden: Case, *, whole: bool = True) -> tuple[Any, tuple[torch.Tensor, ...]]:
    """The model on the weights of a case, and its inputs, which want gradients."""
    model = FromMaps(whole).eval()
    state = load_file(FOLDER / golden.about["base_file"])
    model.load_state_dict({k.removeprefix("base."): v for k, v in state.items()})
    names = (f"input.res{i}" for i in (2, 3, 4, 5))
    return model, tuple(golden.tensors[n].clone().requires_grad_() for n in names)


def own_name(name: str) -> str:
    """Where a tensor of FASeg's is in the rewritten model."""
    kind, part, *rest = name.split(".")
    leaf = ".".join(rest)
    if part == "mlp":
        return f"{DECODER}.dfpq.h.{leaf}"
    if kind == "dfpq":
        which, _, leaf = leaf.partition(".")
        if which == "projection":
            return f"{PIXELS}.dfpq_position_3.{PROJECTION[leaf]}"
        return f"{PIXELS}.dfpq_position_{leaf}"
    if part == "level_embed":
        return f"{DECODER}.hrca_level.level_embed"
    number, leaf = ("3", leaf) if part == "final" else (rest[0], ".".join(rest[1:]))
    return f"{DECODER}.hrca_layers.{number}.{leaf}"


def test_faseg_from_backbone_maps_to_predictions() -> None:
    golden = case("faseg-complete")
    given = golden.tensors
    model, inputs = built(golden)
    module: Any = rewrite(vr.parse(FASEG), trace(model, tuple(x.detach() for x in inputs))).root
    parameters = dict(module.named_parameters())
    with torch.no_grad():
        for name in (n for n in given if n.startswith("method.")):
            parameters[own_name(name.removeprefix("method."))].copy_(given[name])
    classes, masks = module(*inputs)
    assert len(classes) == len(masks) == 14
    for i, each in enumerate(classes):
        golden.close(each, f"output.class.{i}")
    golden.close(masks[0], "output.mask.first")
    golden.close(masks[-1], "output.mask.last")
    probes = given["probe.class"], given["probe.mask"]
    ((classes[-1] * probes[0]).sum() + (masks[-1] * probes[1]).sum()).backward()
    compare(golden, {
        **{n: parameters[own_name(n)].grad for n in wanted(golden, "dfpq.", "hrca.")},
        **{n: parameters[n.removeprefix("base.")].grad for n in wanted(golden, "base.")},
        **{f"res{i}": x.grad for i, x in enumerate(inputs, 2)},
    })  # fmt: skip


def test_the_pixel_decoder_is_the_original_one() -> None:
    golden = case("mask2former-pixel-decoder")
    given = golden.tensors
    model, inputs = built(golden, whole=False)
    captured: Any = vr.capture(model, inputs)
    *levels, masks = captured(*inputs)
    for i, each in enumerate(levels):
        golden.close(each, f"output.feature.{i}")
    golden.close(masks[:1, :8], "output.mask_features.channels_0_to_7_first_image")
    total = sum((x * given[f"probe.feature.{i}"]).sum() for i, x in enumerate(levels))
    (total + (masks[:1, :8] * given["probe.mask_features"]).sum()).backward()
    parameters = dict(captured.named_parameters())
    compare(
        golden,
        {
            **{n: parameters[n.removeprefix("base.")].grad for n in wanted(golden, "base.")},
            **{f"res{i}": x.grad for i, x in enumerate(inputs, 2)},
        },
    )


def wanted(golden: Case, *prefixes: str) -> list[str]:
    """Names of gradients that a case has."""
    names = (n.removeprefix("grad.") for n in golden.tensors if n.startswith("grad."))
    return [n for n in names if n.startswith(prefixes)]


def compare(golden: Case, gradients: dict[str, torch.Tensor | None]) -> None:
    """Every gradient of a case, rounding noise as the case says."""
    names = wanted(golden, "")
    largest = max(float(golden.tensors[f"grad.{n}"].abs().max()) for n in names)
    noise = golden.about.get("rounding_noise_gradients", ())
    for name in names:
        expected, found = golden.tensors[f"grad.{name}"], gradients[name]
        assert found is not None, name
        bound = 1e-3 * float(expected.abs().max()) + 1e-6 * largest
        bound = 1e-5 * largest if f"grad.{name}" in noise else bound
        torch.testing.assert_close(
            found, expected, rtol=0, atol=bound, msg=partial("{}: {}".format, name)
        )
