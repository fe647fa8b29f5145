"""Decoders of Mask2Former print as one loop, whatever is collected and added to their layers."""

from __future__ import annotations

import re
import runpy
from pathlib import Path

import pytest
import torch

import vitrewrite as vr
from tests.hf.zoo import mask2former
from vitrewrite.folder.writing import model_text
from vitrewrite.tracing.construction import construct

EVERYTHING = {
    "output_auxiliary_logits": True, "output_hidden_states": True, "output_attentions": True,
}  # fmt: skip
DFPQ, HRCA = "add dfpq() to decoder\n", "add hrca(omega=4) to decoder\n"
CASES = {
    "plain": ("# no clauses\n", {}, "for i, layer in enumerate(self.layers):", 1),
    "everything": ("# no clauses\n", EVERYTHING, "for i, layer in enumerate(self.layers):", 1),
    "dfpq": (DFPQ, {}, "for i, layer in enumerate(self.layers[:8]):", 2),
    "hrca": (HRCA, {}, "for i in range(0, 9, 3):", 4),
    "both": (DFPQ + HRCA, {}, "for i in range(0, 9, 3):", 4),
}


def decoder(text: str) -> str:
    """The decoder's class without comments."""
    name = "class Mask2FormerMaskedAttentionDecoder("
    (found,) = re.findall(
        rf"^{re.escape(name)}.*?(?=^class )", text, flags=re.MULTILINE | re.DOTALL
    )
    return re.sub(r"^ *# .*\n", "", str(found), flags=re.MULTILINE)


@pytest.mark.parametrize("name", CASES)
def test_the_decoder_is_one_loop(name: str) -> None:
    spec, options, head, calls = CASES[name]
    torch.manual_seed(0)
    model, example = mask2former("resnet", **options).eval(), torch.zeros(1, 3, 64, 64)
    text = model_text(vr.apply(spec, model, example=example))
    forward = decoder(text).partition("def forward(")[2]
    assert re.findall(r"^ *(for .*)", forward, re.MULTILINE) == [head]
    assert len(re.findall(r"= (layer|self\.\w*layers\[.*\])\(", forward)) == calls + (
        name in ("hrca", "both")
    )
    # Auxiliary predictions are one list.
    assert text.count("self.class_predictor(") == 1 + ("output_auxiliary_logits" in options)


def test_with_more_layers_the_loop_is_a_fixed_point(tmp_path: Path) -> None:
    example = torch.zeros(1, 3, 64, 64)
    rewritten = vr.apply(DFPQ + HRCA, mask2former("resnet"), example=example)

    text = model_text(rewritten)
    path = tmp_path / "emitted.py"
    path.write_text(text)
    space = runpy.run_path(str(path))
    again = model_text(vr.apply("# no clauses\n", construct(space["build"]), example=example))
    assert decoder(again) == decoder(text)
