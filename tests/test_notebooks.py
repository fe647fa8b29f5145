"""What a notebook and a prompt show of everything public: short, and with a picture."""

from __future__ import annotations

import json
import pickle
from collections.abc import Callable
from pathlib import Path

import pytest
import timm
import torch
from torch import nn

import vitrewrite as vr
from tests.hf.zoo import mask2former
from tests.shown import sizes
from tests.test_capture import tiny
from vitrewrite.rewrite.rewritten import Rewritten
from vitrewrite.text import Pictured, brief

SPEC = "insert lora(rank=2) at blocks[*].attn.{q, v}\ntrain head\n"
LIMIT = 2_000


MODELS: dict[str, Callable[[], nn.Module]] = {
    "vit": lambda: timm.create_model("vit_base_patch16_224"),
    "mvitv2": lambda: timm.create_model("mvitv2_tiny"),
    "mask2former": lambda: mask2former("swin"),
}


@pytest.mark.parametrize(
    "name", ["vit", "mvitv2", pytest.param("mask2former", marks=pytest.mark.slow)]
)
def test_whatever_is_reached_prints_shortly(name: str) -> None:
    with torch.device("meta"):
        model = MODELS[name]()
    plan, captured = vr.plan("insert lora(rank=2) at blocks[*].attn.q", model), vr.capture(model)
    flat = captured.flat()
    for each in (plan, captured, flat):
        found = sizes(each, type(each).__name__)
        assert {where: size for where, size in found.items() if size >= LIMIT} == {}
    # A picture is as long as the model is deep; what is below it is short.
    for each in (plan, captured):
        page = each._repr_html_()
        assert len(page.partition("<pre>")[2]) < 1.5 * LIMIT  # with its characters escaped
        assert len(page) < 40_000
    assert flat.code.strip() in str(flat)


def rewritten() -> Rewritten:
    return vr.apply(SPEC, tiny())


def test_everything_public_prints_shortly() -> None:
    model = rewritten()
    bank = vr.bank(model, {"a": model.delta()})
    plan = vr.plan(SPEC, tiny())
    shown = {
        "spec": vr.parse("fpet_lora"), "plan": plan, "rewritten": model, "module": model.module,
        "captured": vr.capture(tiny()), "lowered": vr.lower(model), "bank": bank,
        "many": bank.module, "report": model.report, "graphs": vr.capture(tiny()).graphs,
        "delta": vr.apply("train blocks[*]", tiny()).delta(),
        "checks": vr.verify(model, graphs=False),
        "folded": vr.lower(model).report, "flat": vr.capture(tiny()).flat(),
    }  # fmt: skip
    for name, each in shown.items():
        assert 0 < len(repr(each)) < LIMIT, name
        assert {k: v for k, v in sizes(each, name).items() if v >= LIMIT} == {}
    assert repr(plan) == str(plan)
    assert repr(shown["spec"]).startswith("# fpet_lora\n")
    assert "lora(rank=2)" in repr(model)
    assert repr(shown["lowered"]).splitlines()[0].endswith(", lowered")
    assert repr(bank.module) == "<model with 1 task: a>"


def test_an_error_is_its_message_alone() -> None:
    with pytest.raises(vr.VitrewriteError) as caught:
        vr.parse("insert lroa(rank=2) at blocks[*].attn.q\n")
    told = caught.value._render_traceback_()
    assert told[0].startswith("SpecError: ")
    assert told[0].splitlines()[2].strip() == "^^^^"
    assert "did you mean 'lora'?" in told[0]


def test_a_report_is_data_that_prints_shortly() -> None:
    report = rewritten().report
    lines = repr(report).splitlines()
    assert lines[0] == f"{len(report)} keys"
    assert "  clauses       <list of 2>" in lines
    assert json.loads(json.dumps(report)) == report
    again = pickle.loads(pickle.dumps(report))
    assert again == report
    assert {type(again["clauses"]), type(again["clauses"][0])} == {list, dict}


def test_a_captured_model_tells_its_parts() -> None:
    lines = repr(vr.capture(tiny())).splitlines()
    assert lines[0].startswith("VisionTransformer: ")
    assert "  blocks: 2 Block" in lines
    assert any(line.startswith("  head: Linear(in_features=16") for line in lines)
    whole = str(vr.capture(tiny()))
    assert whole == nn.Module.__repr__(vr.capture(tiny()))
    assert "(attn)" in whole


def test_checks_say_whether_they_hold() -> None:
    shown = repr(vr.verify(rewritten(), graphs=False))
    assert shown.startswith("[<ok ")
    assert "Check(" not in shown


def test_pictures() -> None:
    model = rewritten()
    for each in (vr.plan(SPEC, tiny()), model, vr.capture(tiny()), model.module):
        page = each._repr_html_()
        assert page.count("<svg ") == 1
        assert ">block 1<" in page
        assert "<pre>" in page
    assert "lora(rank=2)" in model._repr_html_().partition("<pre>")[0]
    odd = vr.capture(nn.Linear(3, 2), torch.zeros(1, 3))._repr_html_()
    assert odd.startswith("<pre>Linear")


def test_a_delta_is_saved_as_data(tmp_path: Path) -> None:
    delta = rewritten().delta()
    assert repr(delta).splitlines()[1] == "  blocks.0.attn.q.lora.down: [2, 16]"
    torch.save(delta, tmp_path / "delta.pt")
    loaded = torch.load(tmp_path / "delta.pt", weights_only=True)
    assert list(loaded) == list(delta)
    assert all(torch.equal(loaded[name], tensor) for name, tensor in delta.items())


def test_names_of_the_package() -> None:
    assert dir(vr) == sorted([*vr.__all__, "__version__"])
    assert len(vr.__all__) <= 15
    assert vr.plan is not None


def test_brief() -> None:
    assert brief("short") == "short"
    text = "\n".join(["a line"] * 1_000)
    assert brief(text).endswith("more lines)")
    assert len(brief(text)) < LIMIT
    assert len(brief("x" * 9_999)) < LIMIT
    assert Pictured()._repr_html_().startswith("<pre>&lt;vitrewrite.text.Pictured")
