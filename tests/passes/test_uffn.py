"""The `uffn` pass: the authors' numbers, models narrowed by hand, properties, bad input."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from safetensors.torch import load_file
from timm.layers import Mlp
from torch import nn

import vitrewrite as vr
from tests import goldens
from tests.models import DEAR, tiny_vit
from tests.passes.by_hand import images, small
from tests.test_capture import tiny
from vitrewrite.rewrite.rewritten import Rewritten

SEARCH = "replace blocks[*].mlp with uffn()\n"
X = torch.randn(2, 3, 32, 32, generator=torch.Generator().manual_seed(1))


class Alone(nn.Module):
    """A block that is an MLP and nothing else, as the golden case has it."""

    def __init__(self) -> None:
        super().__init__()
        self.mlp = Mlp(48, 192)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return x + self.mlp(x)


class Stack(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.blocks = nn.Sequential(Alone())

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.blocks(x)  # type: ignore[no-any-return]


def case() -> tuple[goldens.Case, Rewritten, Any]:
    """The case, its MLP with gates, and the module of these."""
    found = goldens.case("spvit-uffn")
    state = load_file(goldens.FOLDER / found.about["base_file"])
    model = Stack().eval()
    model.blocks[0].mlp.load_state_dict({k.removeprefix("base."): v for k, v in state.items()})
    rewritten = vr.apply(SEARCH + "train blocks\n", model, example=found.tensors["input"])
    rewritten.delta()["blocks.0.mlp.uffn.gate_logits"].copy_(found.tensors["method.gate_logits"])
    return found, rewritten, rewritten.inserted("uffn")[0]


def test_the_numbers_of_the_authors() -> None:
    found, rewritten, gates = case()
    x = found.tensors["input"]
    with torch.no_grad():
        found.close(rewritten.module(x) - x, "output.search")
        lowered = vr.lower(rewritten)
        found.close(lowered.module(x) - x, "output.pruned")
    for name, tensor in lowered.module.state_dict().items():
        if name.removeprefix("blocks.0.mlp.") != "fc2.bias":
            found.close(tensor, name.replace("blocks.0.mlp.", "expected."))
    assert gates.opened() == found.tensors["kept"].nonzero().flatten().tolist()
    assert gates.priced().sum() == found.tensors["cost.kept_count"]
    gates.priced().sum().backward()
    found.close(gates.logits.grad, "grad.cost.gate_logits")


def test_the_gradients_of_the_authors() -> None:
    found, rewritten, gates = case()
    gates.gates.register_forward_pre_hook(lambda _, given: (found.tensors["train.uniforms"],))
    y = rewritten.module.train()(found.tensors["input"]) - found.tensors["input"]
    found.close(y.detach(), "output_train")
    (y * found.tensors["probe"]).sum().backward()
    own: Any = rewritten.module
    grads = {f"{k}.weight": getattr(own.blocks[0].mlp, k).weight.grad for k in ("fc1", "fc2")}
    for name, tensor in (grads | {"gate_logits": gates.logits.grad}).items():
        wanted = found.tensors[f"grad.{name}"]
        atol = 1e-5 * float(wanted.abs().max()) + 1e-6
        torch.testing.assert_close(tensor, wanted, rtol=0, atol=atol)


def closed(rewritten: Rewritten) -> Rewritten:
    """With gates that are closed here and there."""
    torch.manual_seed(3)
    for module in rewritten.inserted("uffn"):
        with torch.no_grad():
            module.logits.normal_()  # type: ignore[operator, union-attr]
    return rewritten


@DEAR
@given(data=st.data())
def test_properties_over_random_vits(data: st.DataObject) -> None:
    rewritten = vr.apply(SEARCH, data.draw(tiny_vit()))
    vr.verify(rewritten, graphs=False)
    logits = sum(m.logits.numel() for m in rewritten.inserted("uffn"))  # type: ignore[operator, union-attr, misc]
    assert rewritten.report["params"]["trainable"] == logits


@torch.no_grad()
@pytest.mark.parametrize(
    "name",
    ["beit_base_patch16_224", "eva02_tiny_patch14_224", "swin_tiny_patch4_window7_224",
     "vit_small_patch16_dinov3"],
)  # fmt: skip
def test_other_models_are_narrowed_by_their_gates(name: str) -> None:
    model = small(name)
    sites = "every mlp" if name.startswith("swin") else "blocks[*].mlp"
    rewritten = closed(vr.apply(f"replace {sites} with uffn()\n", model))
    lowered, x = vr.lower(rewritten), images(model)
    torch.testing.assert_close(lowered.module(x), rewritten.module.eval()(x), rtol=1e-4, atol=1e-5)
    assert lowered.report["macs"] < rewritten.report["macs"]
    gone = sum(int((m.logits <= 0).sum()) for m in rewritten.inserted("uffn"))  # type: ignore[operator, union-attr, misc]
    assert gone
    names = {k for k in lowered.module.state_dict() if "uffn" in k}
    assert not names
    vr.verify(lowered, graphs=False)


def test_lora_goes_into_the_weights_before_units_go() -> None:
    clauses = [SEARCH, "insert lora(rank=2) at blocks[*].mlp.{fc1, fc2}\n",
               "insert ssf() at blocks[*].mlp.fc1\n"]  # fmt: skip
    for order in (clauses, clauses[::-1]):
        rewritten = closed(vr.apply("".join(order), tiny()))
        vr.verify(rewritten, graphs=False)
        lowered = vr.lower(rewritten)
        assert lowered.module.blocks[0].mlp.fc1.out_features < 64  # type: ignore[union-attr, index]
