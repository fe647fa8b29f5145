"""The `lora` pass: the authors' numbers, properties, bad input, composition with itself."""

from __future__ import annotations

import math
from typing import Any

import pytest
import timm
import torch
from hypothesis import given
from hypothesis import strategies as st

import vitrewrite as vr
from tests import goldens
from tests.models import DEAR, tiny_vit
from vitrewrite.rewrite.rewritten import Rewritten

QV = "insert lora(rank=8, scale=0.7, dropout=0) at blocks[*].attn.{q, v}\ntrain head\n"


def any_linear_spec(sites: list[list[str]]) -> str:
    """One clause per block of the case, its sites named as the card names them."""
    group = {"q": "attn", "k": "attn", "v": "attn", "proj": "attn", "fc1": "mlp", "fc2": "mlp"}
    paths = [f"blocks[{i}].{group[s]}.{s}" for i, names in enumerate(sites) for s in names]
    return (
        f"insert lora(rank=4, convention=spt, dropout=0, drop_path=0) at {' + '.join(paths)}\n"
        "train head\ntrain cls_token\n"
    )


def load_golden(rewritten: Rewritten, case: goldens.Case, suffix: str) -> dict[str, str]:
    """Copies the case's method tensors in; maps our delta names to the case's names."""
    names = {}
    for name, tensor in rewritten.delta().items():
        if ".lora." not in name:
            names[name] = name
            continue
        path, _, which = name.partition(".lora.")
        _, block, _, site = path.split(".")
        golden = f"blocks.{block}.{site}.{which}{suffix}"
        tensor.copy_(case.tensors[f"method.{golden}"])
        names[name] = golden
    return names


def gradients(rewritten: Rewritten, case: goldens.Case, names: dict[str, str]) -> dict[str, Any]:
    """Gradients of (output * probe).sum() by golden name, split by site as the delta is."""
    return {names[k]: v for k, v in case.gradients_of(rewritten).items()}


CASES = [("lora-qv", QV, ""), ("lora-any-linear", None, ".weight")]


@pytest.mark.parametrize(("name", "spec", "suffix"), CASES, ids=[c[0] for c in CASES])
def test_golden_outputs_merged_weights_and_gradients(
    name: str, spec: str | None, suffix: str
) -> None:
    case = goldens.case(name)
    text = spec or any_linear_spec(case.about["hyperparameters"]["sites_per_block"])
    base = case.base()
    case.close(base(case.tensors["input"]), "output_base")
    rewritten = vr.apply(text, base)
    names = load_golden(rewritten, case, suffix)
    with torch.no_grad():
        case.close(rewritten.module.eval()(case.tensors["input"]), "output")
    case.close(rewritten.module(case.tensors["input"]), "output")  # the form used in training
    lowered = vr.lower(rewritten)
    with torch.no_grad():
        case.close(lowered.module(case.tensors["input"]), "output_merged")
    state = lowered.module.state_dict()
    merged = [k for k in case.tensors if k.startswith("merged.")]
    assert merged
    for key in merged:
        case.close(state[key.removeprefix("merged.")], key)
    case.gradients_close(gradients(rewritten, case, names))


def test_the_unadapted_rows_of_a_merged_weight_are_bit_identical() -> None:
    case = goldens.case("lora-qv")
    rewritten = vr.apply(QV, case.base())
    load_golden(rewritten, case, "")
    base, lowered = rewritten.base.state_dict(), vr.lower(rewritten).module.state_dict()
    key, width = "blocks.1.attn.qkv.weight", 48
    assert torch.equal(base[key][width : 2 * width], lowered[key][width : 2 * width])
    assert not torch.equal(base[key][:width], lowered[key][:width])
    assert torch.equal(base["blocks.1.attn.qkv.bias"], lowered["blocks.1.attn.qkv.bias"])


@DEAR
@given(data=st.data(), seed=st.integers(0, 99))
def test_properties_over_random_vits(data: st.DataObject, seed: int) -> None:
    model, dim = data.draw(tiny_vit()), 16
    width = data.draw(st.integers(1, dim - 1), label="rank")
    sites = data.draw(
        st.sampled_from(["blocks[*].attn.{q, v}", "every linear in blocks", "blocks[0].mlp.fc1",
                         "blocks[-1].attn.qkv + head", "blocks[*].attn.{k, proj}"]))  # fmt: skip
    if "head" in sites:
        width = min(width, model.num_classes - 1)  # a rank stays below the size of the matrix
    rewritten = vr.apply(f"insert lora(rank={width}) at {sites}\n", model, seed=seed)
    seats: list[Any] = [i.site for i in rewritten.result.editor.insertions]
    chosen = [seat.parts for seat in seats]
    count = sum(width * (s.in_features + s.out_features) for group in chosen for s in group)
    assert rewritten.report["params"]["trainable"] == count
    vr.verify(rewritten, graphs=False)
    again = vr.apply(f"insert lora(rank={width}) at {sites}\n", model, seed=seed)
    for name, tensor in rewritten.delta().items():
        assert torch.equal(tensor, again.delta()[name])


def test_initialisation_is_kaiming_uniform_down_and_zero_up() -> None:
    rewritten = vr.apply(
        "insert lora(rank=8) at blocks[*].attn.q\n", goldens.case("lora-qv").base()
    )
    for name, tensor in rewritten.delta().items():
        if name.endswith("up"):
            assert not tensor.any()
        else:
            bound = 1 / math.sqrt(48)
            assert tensor.abs().max() <= bound
            assert tensor.abs().max() > 0.9 * bound


@pytest.mark.parametrize(
    ("options", "factor"),
    [
        ("scale=0.7", 0.7),
        ("convention=spt", 1.0),
        ("convention=library, alpha=16", 4.0),
        ("convention=library, alpha=16, rank_stabilised=true", 8.0),
    ],
)
def test_scale_by_convention(options: str, factor: float) -> None:
    rewritten = vr.apply(
        f"insert lora(rank=4, {options}) at blocks[0].attn.qkv\n", goldens.case("lora-qv").base()
    )
    assert rewritten.result.editor.insertions[0].module.scale == factor


@pytest.mark.parametrize("convention", ["vtab", "spt"])
def test_dropout_acts_in_training_only(convention: str) -> None:
    spec = f"insert lora(rank=4, convention={convention}, dropout=0.5) at blocks[*].attn.q\n"
    rewritten = vr.apply(spec, goldens.case("lora-qv").base())
    for name, tensor in rewritten.delta().items():
        if name.endswith("up"):
            tensor.normal_(std=0.5)
    x = torch.randn(2, 3, 32, 32)
    assert not torch.equal(rewritten.module.train()(x), rewritten.module(x))
    assert torch.equal(rewritten.module.eval()(x), rewritten.module(x))


def test_counts_of_the_card_on_vit_base() -> None:
    plan = vr.plan("lora_qv", "vit_base")
    assert plan.measures.params.trainable_without_head == 294_912
    assert plan.measures.macs_base == 17_563_828_224
    assert plan.measures.macs_lowered == 17_563_828_224
    library = "insert lora(rank=8, convention=library, alpha=8) at blocks[*].attn.qkv\n"
    assert vr.plan(library, "vit_base").measures.params.trainable == 294_912


BAD = [
    ("insert lora(rank=48) at blocks[*].attn.q\n", "VR403", "rank 48 is not below"),
    ("insert lora(convention=library) at blocks[0].attn.q\n", "VR403", "library takes alpha"),
    ("insert lora(alpha=4) at blocks[0].attn.q\n", "VR403", "takes scale, not alpha"),
    ("insert lora() at blocks[9].attn.q\n", "VR304", "index 9 is out of range"),
    ("insert lora() at blocks[0].attn.gate\n", "VR301", "has no site 'gate'"),
    ("insert lora() at blocks[0].attn\n", "VR406", "is an attention"),
    ("insert lora() at blocks[0].attn.{q, qkv}\n", "VR303", "the same rows"),
    ("insert lora() at blocks[*].attn.q + blocks[1].attn.q\n", "VR303", "selected twice"),
    ("insert lora() at blocks[*].attn.q where dim > 99\n", "VR302", "matches nothing"),
    ("insert lora() at blocks[*].attn.q\ninsert lora() at blocks[1].attn.{q, v}\n", "VR401",
     "two clauses put lora at 'blocks[1].attn.q'"),
    ("insert lora() at blocks[0].attn.q\nrequire trainable <= 3\n", "VR501", "does not hold"),
]  # fmt: skip


@pytest.mark.parametrize(("spec", "code", "message"), BAD, ids=[b[1] + b[2][:12] for b in BAD])
def test_bad_input_is_one_clear_error(spec: str, code: str, message: str) -> None:
    base = goldens.case("lora-qv").base()
    with pytest.raises(vr.VitrewriteError) as caught:
        vr.apply(spec, base)
    assert caught.value.code == code
    assert message in caught.value.render()


def test_applying_twice_is_detected() -> None:
    once = vr.apply("insert lora(rank=4) at blocks[*].attn.q\n", goldens.case("lora-qv").base())
    example = torch.zeros(1, 3, 32, 32)
    with pytest.raises(vr.VitrewriteError, match="VR402"):
        vr.apply("insert lora(rank=4) at blocks[*].attn.q\n", once.module, example=example)
    twice = vr.apply("insert lora(rank=2) at blocks[*].attn.v\n", once.module, example=example)
    assert twice.report["params"]["trainable"] == 4 * 2 * (48 + 48)


@pytest.mark.parametrize("name", ["swin_tiny_patch4_window7_224", "beit_base_patch16_224"])
def test_fused_layers_of_other_families(name: str) -> None:
    small = {"depths": (1, 1, 1, 1)} if "swin" in name else {"depth": 1}
    model = timm.create_model(name, **small)
    rewritten = vr.apply("insert lora(rank=4) at blocks[*].attn.{q, v}\n", model)
    vr.verify(rewritten, graphs=False)
