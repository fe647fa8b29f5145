"""The captured decoder against numbers from the original implementation of Mask2Former."""

from __future__ import annotations

from typing import Any

import torch
import transformers as hf
from safetensors.torch import load_file
from torch import nn

import vitrewrite as vr
from tests.goldens import FOLDER, case
from tests.hf.zoo import SEGMENTER


class Decoder(nn.Module):
    """The transformer module with the class predictor, under their names in the whole model."""

    def __init__(self, config: Any) -> None:
        super().__init__()
        from transformers.models.mask2former.modeling_mask2former import (
            Mask2FormerTransformerModule,
        )

        self.model = nn.Module()
        self.model.transformer_module = Mask2FormerTransformerModule(32, config)
        self.class_predictor = nn.Linear(32, 6)

    def forward(self, coarse: Any, middle: Any, fine: Any, mask_features: Any) -> Any:
        found = self.model.transformer_module([coarse, middle, fine], mask_features)
        states = found.intermediate_hidden_states
        classes = [self.class_predictor(s.transpose(0, 1)) for s in states]
        return classes, found.masks_queries_logits


def test_ten_predictions_are_those_of_the_original() -> None:
    golden = case("mask2former-decoder")
    model = Decoder(hf.Mask2FormerConfig(**SEGMENTER)).eval()
    state = load_file(FOLDER / golden.about["base_file"])
    model.load_state_dict({k.removeprefix("base."): v for k, v in state.items()})
    names = ("input.features.0", "input.features.1", "input.features.2", "input.mask_features")
    inputs = tuple(golden.tensors[n] for n in names)
    captured = vr.capture(model, inputs)
    with torch.no_grad():
        classes, masks = captured(*inputs)
        expected = model(*inputs)
    assert len(classes) == len(masks) == 10
    for j in range(10):
        golden.close(classes[j], f"output.class.{j}")
        assert torch.equal(classes[j], expected[0][j])
        assert torch.equal(masks[j], expected[1][j])
    for j in (0, 1, 9):
        golden.close(masks[j], f"output.mask.{j}")
