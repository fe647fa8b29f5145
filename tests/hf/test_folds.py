"""RepAdapter and FacT where q, k and v are layers of their own that read one value."""

from __future__ import annotations

import pytest
import torch

import vitrewrite as vr
from tests.hf.zoo import VIT
from tests.lowering.models import fill
from tests.models import spread
from vitrewrite.rewrite.rewritten import Rewritten

QKV = "blocks[*].attn.{q, k, v}"


def applied(clauses: str) -> Rewritten:
    import transformers as hf

    torch.manual_seed(0)
    config = hf.ViTConfig(**{**VIT, "intermediate_size": 64, "num_hidden_layers": 2})
    model = spread(hf.ViTForImageClassification(config)).eval()
    return fill(vr.apply(clauses, model, example=torch.zeros(1, 3, 32, 32)))


@pytest.mark.parametrize("form", ["", "insert fact(rank=4) at every linear in blocks\n"])
@torch.no_grad()
def test_one_adapter_is_in_front_of_all_three(form: str) -> None:
    rewritten = applied(f"{form}insert repadapter(hidden=4) at {QKV} + blocks[*].mlp.fc1\n")
    assert sum(n.endswith("repadapter.down.weight") for n in rewritten.delta()) == 4
    lowered = vr.lower(rewritten)
    assert not lowered.result.editor.insertions
    x = torch.randn(2, 3, 32, 32)
    result, base = (m(x)["logits"] for m in (rewritten.module.eval(), rewritten.base))
    assert (result - base).abs().max() > 1e-2
    torch.testing.assert_close(lowered.module(x)["logits"], result, rtol=1e-4, atol=1e-5)


def test_the_code_is_computed_once_for_all_three() -> None:
    text = applied(f"insert fact(rank=4) at {QKV}\n").source.text
    assert text.count("F.linear(hidden_states, U)") == 1
    names = ["q_proj", "k_proj", "v_proj"]
    if "self.q_proj" not in text:  # as transformers named them before
        names = ["query", "key", "value"]
    assert all(f"self.{n}_fact(code, self.{n}(hidden_states), V)" in text for n in names)


def test_one_of_the_three_alone_is_refused() -> None:
    with pytest.raises(vr.VitrewriteError, match=r"(k_proj|key)', .*(v_proj|value)' too"):
        applied("insert repadapter(hidden=4) at blocks[*].attn.q\n")
