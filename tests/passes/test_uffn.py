"""The `uffn` pass: the authors' numbers, models narrowed by hand, properties, bad input."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import timm
import torch
from hypothesis import given
from hypothesis import strategies as st
from safetensors.torch import load_file
from timm.layers import Mlp
from torch import nn

import vitrewrite as vr
from tests import goldens
from tests.models import DEAR, spread, tiny_vit
from tests.passes.by_hand import images, small
from tests.test_capture import tiny
from vitrewrite.folder.reading import load_folder, unlowered_folder
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
    assert gates.gates.opened() == found.tensors["kept"].bool().tolist()
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
    clauses = [
        SEARCH,
        "insert lora(rank=2) at blocks[*].mlp.{fc1, fc2}\n",
        "insert ssf() at blocks[*].mlp.fc1\n",
    ]
    for order in (clauses, clauses[::-1]):
        rewritten = closed(vr.apply("".join(order), tiny()))
        vr.verify(rewritten, graphs=False)
        lowered = vr.lower(rewritten)
        assert lowered.module.blocks[0].mlp.fc1.out_features < 64  # type: ignore[union-attr, index]


# -- units that are gone from the start -----------------------------------------------------------

KEPT = "replace blocks[*].mlp with uffn(keep=[[0, 2, 5], [1, 3]])\n"
BASE = (1118, 489, 1050, 1345, 1336, 1326, 1431, 1564, 1606, 1702, 1290, 190)
"""The hidden units of SPViT-DeiT-B."""


@torch.no_grad()
def test_named_units_stay() -> None:
    model = tiny()
    rewritten = vr.apply(KEPT, model)
    hand = tiny()
    for block, keep in zip(hand.blocks, ([0, 2, 5], [1, 3]), strict=True):
        gone = [i for i in range(64) if i not in keep]
        block.mlp.fc2.weight[:, gone] = 0
    torch.testing.assert_close(rewritten.module(X), hand(X), rtol=1e-5, atol=1e-5)
    own = rewritten.module.state_dict()
    assert own.keys() == model.state_dict().keys()
    assert torch.equal(own["blocks.1.mlp.fc1.bias"], model.blocks[1].mlp.fc1.bias[[1, 3]])
    assert {k: v.shape[-1] for k, v in rewritten.delta().items() if "fc2" in k} == {
        "blocks.0.mlp.fc2.weight": 3,
        "blocks.1.mlp.fc2.weight": 2,
    }
    vr.verify(rewritten, graphs=False)


def test_of_a_number_those_with_the_largest_norms_stay() -> None:
    model = tiny()
    rewritten = vr.apply("replace blocks[*].mlp with uffn(keep=[5, none])\n", model)
    mlp, own = model.blocks[0].mlp, rewritten.module.state_dict()
    weight = mlp.fc1.weight.norm(dim=1) * mlp.fc2.weight.norm(dim=0)
    keep = weight.topk(5).indices.sort().values
    assert torch.equal(own["blocks.0.mlp.fc1.weight"], mlp.fc1.weight[keep])
    assert own["blocks.1.mlp.fc1.weight"].shape == (64, 16)


def test_the_widths_of_a_published_net() -> None:
    text = f"replace blocks[*].mlp with uffn(keep={list(BASE)})\n"
    plan = vr.plan(vr.parse("model deit_base_patch16_224\n" + text))
    gone = 12 * 3072 - sum(BASE)
    assert plan.measures.params.total == 86_567_656 - gone * (2 * 768 + 1)
    assert plan.measures.macs == plan.measures.macs_base - gone * 2 * 768 * 197


def test_units_of_deit_tiny_cost_what_the_card_says() -> None:
    dense = vr.plan("model deit_tiny_patch16_224\ntrain head\n").measures
    text = "model deit_tiny_patch16_224\nreplace blocks[0].mlp with uffn(keep=237)\n"
    plan = vr.plan(text).measures
    assert dense.params.total - plan.params.total == 531 * 385 == 204_435
    assert dense.macs - plan.macs == 531 * 2 * 192 * 197 == 40_169_088


@pytest.mark.parametrize("order", [1, -1])
def test_other_clauses_see_what_is_left(order: int) -> None:
    clauses = [KEPT, "insert lora(rank=1) at blocks[*].mlp.{fc1, fc2}\n"]
    rewritten = vr.apply("".join(clauses[::order]), tiny())
    delta = rewritten.delta()
    assert delta["blocks.0.mlp.fc1.lora.up"].shape == (3, 1)
    assert delta["blocks.1.mlp.fc2.lora.down"].shape == (1, 2)
    vr.verify(rewritten, graphs=False)


@torch.no_grad()
def test_a_folder_has_what_is_left(tmp_path: Path) -> None:
    rewritten = vr.apply("replace blocks[*].mlp with uffn(keep=[5, 9])\n", tiny())
    for tensor in rewritten.delta().values():
        tensor += torch.randn(tensor.shape) * 0.1
    vr.emit(rewritten, tmp_path / "out")
    text = (tmp_path / "out" / "model.py").read_text()
    assert text.count("class Mlp") == 1
    assert "Block(5), Block(9)" in text
    again = load_folder(tmp_path / "out")
    assert torch.equal(again.module(X), rewritten.module.eval()(X))
    vr.verify(again, graphs=False)


def test_a_lowered_folder_is_read_and_turned_back(tmp_path: Path) -> None:
    rewritten = closed(vr.apply(SEARCH, tiny()))
    lowered = vr.lower(rewritten)
    assert {k: v["to"] for k, v in lowered.report["keys"].items()} == {
        f"blocks.{i}.mlp.fc2_uffn.gates.logits": None for i in (0, 1)
    }
    vr.emit(lowered, tmp_path / "out")
    with torch.no_grad():
        found = load_folder(tmp_path / "out").module(X)
        assert torch.equal(found, lowered.module.eval()(X))
        turned = unlowered_folder(tmp_path / "out").module(X)
        assert torch.equal(turned, rewritten.module.eval()(X))


def test_all_gates_closed_leave_one_unit() -> None:
    rewritten = vr.apply(SEARCH, tiny())
    for module in rewritten.inserted("uffn"):
        nn.init.constant_(module.logits, -1.0)  # type: ignore[arg-type]
    state = vr.lower(rewritten).module.state_dict()
    assert state["blocks.0.mlp.fc1.weight"].shape == (1, 16)


def test_what_a_search_is_told() -> None:
    rewritten = vr.apply(SEARCH, tiny())
    (insertion, _), (module, _) = rewritten.result.editor.insertions, rewritten.inserted("uffn")
    method, site = rewritten.result.methods[0], insertion.site
    assert list(method.prices(site, module)) == [2 * 16 * 17] * 64
    assert list(method.prices(site, module, patches_only=True)) == [2 * 16 * 16] * 64
    assert method.found(module, [False, True, True]) == {"keep": [1, 2]}


def test_gated_mlps_lose_rows_of_both_halves() -> None:
    model = small("eva02_tiny_patch14_224")
    hidden = model.blocks[0].mlp.fc2.in_features
    state = vr.apply(
        "replace blocks[*].mlp with uffn(keep=[[3], [4]])\n", model
    ).module.state_dict()
    whole = model.blocks[0].mlp.fc1.weight
    assert torch.equal(state["blocks.0.mlp.fc1.weight"], whole[[3, 3 + hidden]])


@pytest.mark.parametrize(
    ("options", "code"),
    [
        ("keep=[[0, 2, 2], [1]]", "VR485"), ("keep=[[0, 64], [1]]", "VR485"),
        ("keep=[[-1], [1]]", "VR203"), ("keep=0", "VR486"), ("keep=[0, 3]", "VR486"),
        ("keep=[[], [1]]", "VR486"), ("keep=65", "VR486"), ("keep=[1, 2, 3]", "VR403"),
        ("keep=[[1]]", "VR403"), ("keep=[[0.5], [1]]", "VR204"), ("kep=3", "VR202"),
        ("start=0", "VR203"),
    ],
)  # fmt: skip
def test_bad_options(options: str, code: str) -> None:
    with pytest.raises(vr.VitrewriteError, match=code):
        vr.plan(f"replace blocks[*].mlp with uffn({options})\n", tiny())


@pytest.mark.parametrize("clauses", [KEPT + SEARCH, SEARCH + KEPT, SEARCH * 2, KEPT * 2])
def test_once_at_a_place(clauses: str) -> None:
    with pytest.raises(vr.VitrewriteError, match="VR402"):
        vr.plan(clauses, tiny())


@pytest.mark.parametrize(
    ("name", "options"),
    [("pvt_v2_b0", {}), ("vit_small_patch16_224", {"scale_mlp_norm": True, "embed_dim": 32,
                                                    "depth": 2, "num_heads": 2})],
)  # fmt: skip
def test_what_mixes_units_keeps_them(name: str, options: dict[str, Any]) -> None:
    model = spread(timm.create_model(name, num_classes=5, **options)).eval()
    with pytest.raises(vr.VitrewriteError, match=r"VR487.*(dwconv|norm)"):
        vr.plan("replace every mlp with uffn(keep=3)\n", model)
    rewritten = closed(vr.apply("replace every mlp with uffn()\n", model))
    lowered = vr.lower(rewritten)
    assert lowered.inserted("uffn")  # gates that stay
    with torch.no_grad():
        x = torch.randn(1, 3, 224, 224)
        torch.testing.assert_close(
            lowered.module(x), rewritten.module.eval()(x), rtol=1e-4, atol=1e-5
        )
