"""Properties over random ViTs and random specs drawn from the grammar."""

from __future__ import annotations

import importlib.util
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import assume, given
from hypothesis import strategies as st
from torch import nn

import vitrewrite as vr
from tests.models import DEAR, tiny_vit
from tests.spec_strategies import specs
from vitrewrite.catalog import installed
from vitrewrite.folder.writing import model_text
from vitrewrite.rewrite.rewritten import Rewritten
from vitrewrite.tracing.inputs import image_size

SITES = (
    "blocks[*].attn.{q, v}",
    "blocks[0].attn.qkv",
    "blocks[-1].attn.{k, proj}",
    "blocks[*].mlp.fc1",
    "blocks[*].mlp.{fc1, fc2}",
    "blocks[0:2].attn.v",
    "every linear in blocks",
    "head",
    "norm",
    "blocks",
)

TRAINING = (
    "train head", "train blocks[0].norm1", "freeze head", "train cls_token", "train norm",
)  # fmt: skip
CLAIMS = (
    "require identity at init", "require lowers exactly", "require trainable <= 1M",
    "require macs <= 1G", "require tokens at blocks[0] <= 99",
)  # fmt: skip


def images(model: nn.Module, batch: int) -> torch.Tensor:
    size = image_size(model)
    assert size is not None
    return torch.randn(batch, *size, generator=torch.Generator().manual_seed(batch))


@torch.no_grad()
def output(model: nn.Module, x: torch.Tensor, *, training: bool) -> torch.Tensor:
    torch.manual_seed(5)
    result: torch.Tensor = model.train(training)(x)
    return result


def imported(text: str, folder: Path) -> Any:
    """The emitted file as a module; a real file, so that its source can be read again."""
    path = folder / "emitted.py"
    path.write_text(text)
    spec = importlib.util.spec_from_file_location("emitted", path)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@st.composite
def lora_specs(draw: Any) -> str:
    """Specs that mostly make sense on a tiny ViT, beside those drawn from the whole grammar."""
    lines = []
    for site in draw(st.lists(st.sampled_from(SITES[:8]), min_size=1, max_size=2, unique=True)):
        options = draw(
            st.sampled_from(
                ["", "rank=2", "rank=4, scale=0.5, dropout=0", "rank=1, convention=spt",
                 "rank=3, convention=library, alpha=6", "rank=2, drop_path=0.5"]
            )
        )  # fmt: skip
        lines.append(f"insert lora({options}) at {site}")
    lines += draw(st.lists(st.sampled_from(TRAINING), max_size=2))
    lines += draw(st.lists(st.sampled_from(CLAIMS), max_size=2))
    return "\n".join(lines) + "\n"


@st.composite
def token_specs(draw: Any) -> str:
    """Passes about tokens, with LoRA, in any order; some of what is drawn must be refused."""
    readout = draw(st.sampled_from(["", ", position=0, readout=patches", ", readout=all"]))
    masks = draw(st.sampled_from(["", ", masks=true, segments=4"]))
    lines = [
        f"prepend prompt(count={draw(st.integers(1, 4))}{readout}{masks}) to "
        + draw(st.sampled_from(["blocks[*]", "blocks[0]", "blocks[1:]", "blocks[-1]"])),
        f"prepend kv_prompt(n=2{draw(st.sampled_from(['', ', side=back', ', shared=false']))}) "
        "to blocks[*].attn",
        f"insert merge.bdm(bits={draw(st.sampled_from([1, 32]))}) after blocks[0].attn",
        "insert lora(rank=2) at blocks[*].attn.{q, v}",
    ]
    chosen = draw(st.lists(st.sampled_from(lines), min_size=1, unique=True))
    return "\n".join(chosen) + "\n"


@given(model=tiny_vit())
def test_capture_is_exact_in_both_modes_and_leaves_the_model_alone(model: nn.Module) -> None:
    state = {k: v.clone() for k, v in model.state_dict().items()}
    captured = vr.capture(model)
    assert list(captured.state_dict()) == list(state)
    for batch in (1, 3):
        x = images(model, batch)
        for training in (False, True):
            expected = output(model, x, training=training)
            assert torch.equal(output(captured, x, training=training), expected)
    assert all(torch.equal(v, state[k]) for k, v in model.state_dict().items())


@given(model=tiny_vit())
def test_another_image_size_is_refused(model: nn.Module) -> None:
    captured = vr.capture(model)
    wrong = torch.nn.functional.pad(images(model, 1), (0, 8, 0, 8))
    with pytest.raises(ValueError, match="captured for"):
        captured(wrong)


@DEAR
@given(model=tiny_vit(), spec=token_specs())
def test_emission_is_exact_and_a_fixed_point(
    model: nn.Module, spec: str, tmp_path_factory: pytest.TempPathFactory
) -> None:
    try:
        rewritten = vr.apply(f"{spec}train head\n", model)
    except vr.VitrewriteError:
        assume(False)
    text = model_text(rewritten)
    emitted = imported(text, tmp_path_factory.mktemp("emitted")).build()
    emitted.load_state_dict(rewritten.module.state_dict())
    x = images(model, 2)
    for training in (False, True):
        expected = output(rewritten.module, x, training=training)
        assert torch.equal(output(emitted, x, training=training), expected)
    trained = {n for n, p in rewritten.module.named_parameters() if p.requires_grad}
    assert {n for n, p in emitted.named_parameters() if p.requires_grad} == trained
    classes = rewritten.source.text
    again = vr.apply("# nothing\n", emitted, example=x)
    assert strip_origins(again.source.text) == strip_origins(classes)


def strip_origins(text: str) -> str:
    """Comments name spec lines, which a second spec does not have."""
    return "\n".join(line for line in text.splitlines() if not line.strip().startswith("#"))


@pytest.mark.parametrize("strategy", [lora_specs(), token_specs(), specs(installed(), None, SITES)])
@DEAR
@given(data=st.data())
def test_random_specs_verify_or_are_refused(strategy: Any, data: st.DataObject) -> None:
    text = data.draw(strategy, label="spec")
    model = data.draw(tiny_vit(), label="model")
    try:
        rewritten: Rewritten = vr.apply(text, model)
    except vr.VitrewriteError as error:
        refused = error.render()
    else:
        refused = ""
    if refused:
        assert refused.count("VR") >= 1
        return
    assume(rewritten.result.steps)
    vr.verify(rewritten, graphs=False)
    lowered = vr.lower(rewritten)
    assert lowered.report["macs"] == rewritten.report["macs_lowered"]
