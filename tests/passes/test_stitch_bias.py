"""ESTA's model: reference numbers, biases by stitch, and what is folded of one taken out."""

from __future__ import annotations

import copy
from collections.abc import Mapping
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch._dynamo.testing import CompileCounter

import vitrewrite as vr
from tests.passes.test_snnet import STITCH, anchors, golden, stitched
from vitrewrite.emission.twin import emitted_twin
from vitrewrite.folder.writing import model_text
from vitrewrite.rewrite.rewritten import Rewritten

ESTA = """insert lora(rank=4, dropout=0) at front.blocks[*].attn.{qkv, proj}
insert lora(rank=3, dropout=0) at end.blocks[*].attn.{qkv, proj}
insert stitch_bias() at every base.blocks[*].attn.{qkv, proj}
"""
OPTIONS = "layers=lora, biases=true"
NUMBERS = {"1_2": 6, "2_1": 7, "end_anchor": 1}
"""The stitches of the golden case."""


def row(made: Any, place: str, number: int) -> tuple[str, int]:
    """The table of a place of the golden case, and the row of a stitch."""
    if place == "stitch":
        layer = made.module.get_submodule(f"stitches.{made.module.STITCHES[number][2]}")
        return f"{_path(made, layer)}.snnet.table", layer.stitches.index(number)
    found = next(
        m
        for n, m in made.module.named_modules()
        if n.startswith(place.rpartition(".")[0])
        and n.endswith("stitch_bias")
        and place.rpartition(".")[2] in n
    )
    return f"{place}.stitch_bias.table", found.stitches.index(number)


def _path(made: Rewritten, module: object) -> str:
    return next(n for n, m in made.module.named_modules() if m is module)


def names(made: Rewritten, tensors: Mapping[str, torch.Tensor], start: str) -> dict[str, Any]:
    """For each name of the golden case below `start` the tensor of the delta, or a row of it."""
    delta = made.delta()
    found: dict[str, tuple[str, Any]] = {}
    for name in (n for n in tensors if n.startswith(start)):
        kind, place = name.removeprefix(start).split(".", 1)
        if kind == "ssb":
            stitch, place = place.split(".", 1)
            table, index = row(made, place, NUMBERS[stitch])
            found[name] = table, index
        elif kind == "stitch":
            number, tensor = place.split(".")
            found[name] = f"stitches.{number}.snnet.{tensor}", slice(None)
        else:
            place, tensor = place.rsplit(".", 1)
            own = {"in": "down", "out": "up"}[tensor]
            pass_ = "lora"
            if place.startswith("stitch."):
                place, pass_ = place.replace("stitch.", "stitches."), "snnet"
            found[name] = f"{place}.{pass_}.{own}", slice(None)
    assert {table for table, _ in found.values()} <= delta.keys()
    return found


def esta(more: str = ESTA, options: str = OPTIONS, **given: Any) -> Rewritten:
    return stitched(more, options, **given)


@pytest.fixture(scope="module")
def case() -> tuple[dict[str, Any], Mapping[str, torch.Tensor]]:
    return golden("esta-pst")


@pytest.fixture(scope="module")
def made(case: tuple[dict[str, Any], Mapping[str, torch.Tensor]]) -> Rewritten:
    about, tensors = case
    found = esta(model=anchors(about), example=tensors["input"])
    delta = found.delta()
    with torch.no_grad():
        for name, (tensor, index) in names(found, tensors, "method.").items():
            delta[tensor][index] = tensors[name]
    found.module.eval()
    return found


def test_stitches_are_those_of_the_reference(case: Any, made: Rewritten) -> None:
    about, tensors = case
    module: Any = made.module
    for name, number in NUMBERS.items():
        found = module.stitch(tensors["input"], number)
        torch.testing.assert_close(found, tensors[f"output.{name}"], rtol=0, atol=1e-4)
    # A model that is called as such has its own biases.
    end = module(tensors["input"])[1]
    torch.testing.assert_close(end, tensors["output.end_anchor"], rtol=0, atol=1e-4)
    # With all of it zero stitches are those of the models.
    assert {"1_2", "2_1"} == about["stitches"].keys()


def test_gradients_are_those_of_the_reference(case: Any, made: Rewritten) -> None:
    _, tensors = case
    module: Any = made.module
    parameters = {n: p for n, p in _parameters(made).items()}
    for stitch in ("1_2", "2_1"):
        module.zero_grad()
        (module.stitch(tensors["input"], NUMBERS[stitch]) * tensors["probe"]).sum().backward()
        places = names(made, tensors, f"grad.{stitch}.")
        assert places
        for name, (tensor, index) in places.items():
            gradient = parameters[tensor].grad
            assert gradient is not None
            bound = 1e-3 * float(tensors[name].abs().max())
            torch.testing.assert_close(gradient[index], tensors[name], rtol=1e-3, atol=bound)
        assert module.stitches[0].weight.grad is None
        others = [p for n, p in parameters.items() if n.endswith("table")]
        given = sum(int((p.grad.abs().sum(1) > 0).sum()) for p in others if p.grad is not None)
        assert given == sum(".ssb." in name for name in places)


def _parameters(made: Rewritten) -> dict[str, torch.nn.Parameter]:
    """Parameters by the name of the delta."""
    delta = made.delta()
    by_memory = {p.data_ptr(): p for p in made.module.parameters()}
    return {name: by_memory[tensor.data_ptr()] for name, tensor in delta.items()}


@pytest.mark.parametrize("stitch", ["1_2", "2_1"])
def test_loss_and_score_are_those_of_the_reference(stitch: str, case: Any, made: Rewritten) -> None:
    about, tensors = case
    module: Any = made.module
    labels, wanted = tensors["labels"].long(), about["step"][stitch]
    module.zero_grad()
    teacher = module.stitch(tensors["input"], NUMBERS["end_anchor"]).detach()
    logits = module.stitch(tensors["input"], NUMBERS[stitch])
    hard = teacher.argmax(1)
    loss = 0.5 * F.cross_entropy(logits, labels) + 0.5 * F.cross_entropy(logits, hard)
    loss.backward()
    score = sum(
        float((p.detach() * p.grad).abs().sum()) for p in module.parameters() if p.grad is not None
    )
    assert hard.tolist() == wanted["teacher_hard_labels"]
    assert float(loss.detach()) == pytest.approx(wanted["student_loss"], rel=1e-4)
    assert score == pytest.approx(wanted["snip_score"], rel=1e-4)


@pytest.mark.parametrize("stitch", ["1_2", "2_1", "end_anchor"])
def test_one_stitch_has_its_biases_and_updates_folded(
    stitch: str, case: Any, made: Rewritten
) -> None:
    _, tensors = case
    number = NUMBERS[stitch]
    taken = vr.lower(made, stitch=number)
    found = taken.module(tensors["input"])
    torch.testing.assert_close(found, tensors[f"output.{stitch}"], rtol=0, atol=1e-4)
    own = {name.rpartition(".")[2] for name, _ in taken.module.named_parameters()}
    assert own.isdisjoint({"table", "down", "up"})
    assert made.measures.stitches is not None
    before = made.measures.stitches.stitches[number].params
    assert sum(p.numel() for p in taken.module.parameters()) < before


def test_all_stitches_keep_their_tables_when_lowered(case: Any, made: Rewritten) -> None:
    _, tensors = case
    lowered: Any = vr.lower(made).module
    for stitch, number in NUMBERS.items():
        found = lowered.stitch(tensors["input"], number)
        torch.testing.assert_close(found, tensors[f"output.{stitch}"], rtol=0, atol=1e-4)
    own = {name.rpartition(".")[2] for name, _ in lowered.named_parameters()}
    assert "table" in own
    assert own.isdisjoint({"down", "up"})
    taken = vr.lower(vr.lower(made), stitch=6).module(tensors["input"])
    torch.testing.assert_close(taken, tensors["output.1_2"], rtol=0, atol=1e-4)


def test_source_runs_alone_and_says_which_stitch_runs(made: Rewritten, case: Any) -> None:
    _, tensors = case
    text = model_text(made)
    assert text.count("module.running = number") == 1
    assert "        x = x\n" not in text
    assert "attn2" not in text, "attentions are handed in as a list"
    twin: Any = emitted_twin(text, made.module.state_dict()).eval()
    for number in NUMBERS.values():
        module: Any = made.module
        torch.testing.assert_close(
            twin.stitch(tensors["input"], number),
            module.stitch(tensors["input"], number),
            rtol=0,
            atol=0,
        )


def test_a_stitch_is_compiled_once(made: Rewritten, case: Any) -> None:
    module, counter = copy.deepcopy(made).module.eval(), CompileCounter()
    run: Any = torch.compile(module.stitch, backend=counter, fullgraph=True)
    x = case[1]["input"]
    with torch.no_grad():
        for number in (5, 6, 7, 5, 6, 7):
            torch.testing.assert_close(run(x, number), module.stitch(x, number), rtol=0, atol=1e-6)  # type: ignore[operator]
    assert counter.frame_count == 3


def test_what_it_costs_at_full_size() -> None:
    spec = """stitch tiny=vit_tiny, small=vit_small, base=vit_base with snnet(ends=inner, UPDATE)
insert lora(rank=32, dropout=0) at tiny.blocks[*].attn.{qkv, proj}
insert lora(rank=16, dropout=0) at small.blocks[*].attn.{qkv, proj}
insert lora(rank=8, dropout=0) at base.blocks[*].attn.{qkv, proj}
insert stitch_bias() at every base.blocks[*].attn.{qkv, proj}
"""
    made = vr.plan(spec.replace("UPDATE", OPTIONS))
    delta = {n: p.numel() for n, p in made.result.root.named_parameters() if p.requires_grad}
    tables = sum(count for name, count in delta.items() if name.endswith("table"))
    between = sum(
        count
        for name, count in delta.items()
        if name.startswith("stitches") and not name.endswith("table")
    )
    assert tables == 1_440_000
    assert between == 1_520_640
    assert sum(delta.values()) == 1_440_000 + 1_520_640 + 3 * 442_368


def test_biases_want_stitches() -> None:
    small = "depth=1, embed_dim=32, num_heads=4, img_size=32, patch_size=16, num_classes=10"
    with pytest.raises(vr.VitrewriteError, match=r"VR535 stitch_bias: no stitch runs"):
        vr.apply(f"model vit_tiny_patch16_224({small})\ninsert stitch_bias() at blocks[*].attn.qkv")
    with pytest.raises(vr.VitrewriteError, match=r"VR535 stitch_bias: no stitch runs"):
        vr.apply(f"{STITCH})\ninsert stitch_bias() at front.head")


def test_rank_is_below_the_width() -> None:
    with pytest.raises(vr.VitrewriteError, match=r"VR511 snnet: rank 33 is above the width 32"):
        vr.plan(f"{STITCH}layers=lora, rank=33)\n")
