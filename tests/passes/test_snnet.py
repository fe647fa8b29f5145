"""SN-Net: the authors' numbers, the space of stitches, and what is made of one."""

from __future__ import annotations

import json
from collections.abc import Mapping
from typing import Any

import pytest
import torch
from safetensors.torch import load_file
from timm.models.vision_transformer import VisionTransformer
from torch import nn
from torch._dynamo.testing import CompileCounter
from vitrewrite.passes.snnet.space import multiple_pairs, nearest_pairs, numbered, window_pairs

import vitrewrite as vr
from tests.goldens import FOLDER
from vitrewrite.emission.twin import emitted_twin
from vitrewrite.folder.reading import load_folder
from vitrewrite.folder.writing import model_text
from vitrewrite.rewrite.rewritten import Rewritten

SMALL = "depth=4, embed_dim=32, num_heads=4, img_size=32, patch_size=4, num_classes=10"
STITCH = (
    f"stitch front=vit_tiny_patch16_224({SMALL}), "
    f"end=vit_tiny_patch16_224({SMALL.replace('32', '48', 1)}) with snnet("
)


def golden(name: str) -> tuple[dict[str, Any], Mapping[str, torch.Tensor]]:
    about = json.loads((FOLDER / name / "case.json").read_text())
    return about, load_file(FOLDER / name / "tensors.safetensors")


def anchors(about: Mapping[str, Any]) -> dict[str, nn.Module]:
    state = load_file(FOLDER / about["base_file"])
    models: dict[str, nn.Module] = {}
    for name in ("front", "end"):
        models[name] = VisionTransformer(**about["base"][name]).eval()
        own = {k.removeprefix(f"base.{name}."): v for k, v in state.items() if f".{name}." in k}
        models[name].load_state_dict(own)
    return models


def stitched(more: str = "", options: str = "kernel=2, stride=1", **given: Any) -> Rewritten:
    return vr.apply(f"{STITCH}{options})\n{more}", **given)


def filled(about: Mapping[str, Any], tensors: Mapping[str, torch.Tensor]) -> Rewritten:
    made = stitched(model=anchors(about), example=tensors["input"])
    with torch.no_grad():
        for name, tensor in made.delta().items():
            _, layer, _, kind = name.split(".")
            tensor.copy_(tensors[f"method.stitch.{layer}.{kind}"])
    return made


def test_every_stitch_is_that_of_the_authors_with_the_final_norm() -> None:
    about, tensors = golden("snnet-stitch")
    made: Any = filled(about, tensors).module.eval()
    x = tensors["input"]
    for found, name in zip(made(x), ("front", "end"), strict=True):
        torch.testing.assert_close(found, tensors[f"output_base.{name}"], rtol=0, atol=1e-4)
    for wanted in about["stitches"]:
        j, k = wanted["front_last_block"], wanted["end_first_block"]
        row = ("front", j + 1, wanted["stitch_layer"], "end", k)
        assert made.STITCHES[wanted["id"]] == row
        found = made.stitch(x, wanted["id"])
        torch.testing.assert_close(found, tensors[f"output.{j}_{k}"], rtol=0, atol=1e-4)
    assert len(made.STITCHES) == 2 + len(about["stitches"])


def test_without_the_final_norm_every_stitch_is_that_of_their_code() -> None:
    about, tensors = golden("snnet-stitch")
    made = stitched(
        model=anchors(about), example=tensors["input"], options="kernel=2, final_norm=false"
    )
    with torch.no_grad():
        for name, tensor in made.delta().items():
            _, layer, _, kind = name.split(".")
            tensor.copy_(tensors[f"method.stitch.{layer}.{kind}"])
    module: Any = made.module.eval()
    x = tensors["input"]
    for found, name in zip(module(x), ("front", "end"), strict=True):
        torch.testing.assert_close(found, tensors[f"output_base.{name}"], rtol=0, atol=1e-4)
    for wanted in about["stitches"]:
        name = f"{wanted['front_last_block']}_{wanted['end_first_block']}"
        found = module.stitch(x, wanted["id"])
        torch.testing.assert_close(found, tensors[f"output_nonorm.{name}"], rtol=0, atol=1e-4)
    torch.testing.assert_close(module.stitch(x, 1), tensors["output_base.end"], rtol=0, atol=1e-4)
    alone = vr.lower(made, stitch=5)
    assert not any(name.startswith("end.norm") for name, _ in alone.module.named_parameters())
    assert torch.equal(alone.module(x), module.stitch(x, 5))
    assert "def finish_bare(self, x):" in model_text(made)


def test_gradients_are_those_of_the_authors() -> None:
    about, tensors = golden("snnet-stitch")
    made: Any = filled(about, tensors).module
    for name in (n for n in tensors if n.startswith("grad.")):
        _, pair, _, layer, kind = name.split(".")
        j, k = map(int, pair.split("_"))
        number = next(
            s["id"]
            for s in about["stitches"]
            if (s["front_last_block"], s["end_first_block"]) == (j, k)
        )
        made.zero_grad()
        (made.stitch(tensors["input"], number) * tensors["probe"]).sum().backward()
        found = made.stitches[int(layer)].get_parameter(kind).grad
        bound = 1e-3 * float(tensors[name].abs().max())
        torch.testing.assert_close(found, tensors[name], rtol=1e-3, atol=bound)


def test_parameters_of_a_stitch_but_for_positions_that_the_authors_leave_out() -> None:
    about, tensors = golden("snnet-stitch")
    space = filled(about, tensors).measures.stitches
    assert space is not None
    left_out = 32 + 65 * 32
    for wanted in about["stitches"]:
        assert space.stitches[wanted["id"]].params - left_out == wanted["params"]


@pytest.mark.parametrize("size", [8, 3])
def test_least_squares_are_those_of_the_authors_whatever_the_batches(size: int) -> None:
    about, tensors = golden("snnet-lsq-init")
    images = tensors["images"]
    made = stitched(model=anchors(about), example=images, calibration=images.split(size))
    for name, tensor in made.delta().items():
        _, layer, _, kind = name.split(".")
        torch.testing.assert_close(
            tensor, tensors[f"init.stitch.{layer}.{kind}"], rtol=0, atol=1e-4
        )
    assert made.report["calibration"]["rows"] == 8 * 65
    assert made.report["calibration"]["layers"][0] == {
        "layer": 0, "pairs": 4, "rank": 33, "width": 33,
    }  # fmt: skip
    assert not made.report["warnings"]


def test_too_few_rows_are_told_and_give_the_solution_of_least_norm() -> None:
    spec = STITCH.replace("patch_size=4", "patch_size=16") + "kernel=1)\n"
    made = vr.apply(spec, calibration=[torch.randn(1, 3, 32, 32)])
    (told,) = made.report["warnings"]
    assert "have rank 5 of 33; the solution is the one of least norm" in told


def test_least_squares_need_images_and_several_models() -> None:
    with pytest.raises(vr.VitrewriteError, match=r"VR512 least squares need images"):
        stitched(calibration=[])
    with pytest.raises(vr.VitrewriteError, match=r"VR512 'spec' stitches no models"):
        vr.apply(f"model vit_tiny_patch16_224({SMALL})\ntrain head", calibration=[])


@pytest.mark.parametrize(
    ("depth", "kernel", "stride", "pairs", "layers"),
    [(12, 2, 1, 34, 11), (4, 2, 1, 10, 3), (12, 1, 1, 12, 12), (12, 3, 1, 54, 10),
     (12, 4, 1, 72, 9), (12, 2, 2, 24, 6), (12, 3, 2, 44, 6)],
)  # fmt: skip
def test_the_window(depth: int, kernel: int, stride: int, pairs: int, layers: int) -> None:
    found = window_pairs(depth, kernel, stride)
    assert (len(found), 1 + max(p.layer for p in found)) == (pairs, layers)


def test_unequal_depth_is_that_of_the_authors() -> None:
    spaces = json.loads((FOLDER / "snnet-unequal-depth" / "case.json").read_text())["spaces"]
    for name, wanted in spaces["hierarchical_v1"].items():
        front, end = map(int, name.split(","))
        if front == end:
            found = [p for p in window_pairs(front, 2, 1) if p.front < p.end]
        else:
            found = [p for p in nearest_pairs(front, end) if p.front < p.end]
            assert [p.layer for p in nearest_pairs(front, end)] == wanted[
                "front_block_of_end_block"
            ]
        assert [[p.front, p.end] for p in found] == wanted["pairs"]
        assert 1 + max(p.layer for p in numbered(found, False)) == wanted["layers"]
    for name, wanted in spaces["plain_v2_one_way"].items():
        front, end = map(int, name.split(","))
        found = multiple_pairs(front, end)
        assert [[p.front, p.end + 1] for p in found] == wanted["pairs"]  # offset 1
        assert 1 + max(p.layer for p in found) == wanted["layers"]


def test_llama_has_forty_stitches() -> None:
    inner = [p for p in nearest_pairs(32, 40) if p.front < 31 and p.end > 0]
    assert len(inner) + 2 == 40
    assert (inner[-1].front + 1, 39 - inner[-1].end) == (31, 1)


def by_hand(made: Any, models: Any, x: torch.Tensor, number: int) -> torch.Tensor:
    front, stop, layer, end, start = made.STITCHES[number]
    one, other = getattr(models, front), getattr(models, end)
    x = one.norm_pre(one.patch_drop(one._pos_embed(one.patch_embed(x))))
    for block in one.blocks[:stop]:
        x = block(x)
    x = x if layer is None else made.stitches[layer](x)
    for block in other.blocks[start:]:
        x = block(x)
    return other.forward_head(other.norm(x))


def test_unequal_depths_run_as_by_hand() -> None:
    spec = STITCH.replace("depth=4, embed_dim=48", "depth=6, embed_dim=48")
    cases = (("", 6, 6), ("ends=inner", 6, 4), ("unequal=multiple", 8, 4), ("offset=0", 6, 5))
    for options, depth, count in cases:
        made = vr.apply(f"{spec.replace('depth=6', f'depth={depth}')}{options})\n")
        module: Any = made.module.eval()
        x = torch.randn(2, 3, 32, 32)
        assert len(module.STITCHES) == 2 + count, options
        for number in range(2 + count):
            wanted = by_hand(module, made.original, x, number)
            assert torch.equal(module.stitch(x, number), wanted)


LORA = "insert lora(rank=2) at every base.blocks[1:].attn.{q, v}\ntrain every base.head"


@pytest.mark.parametrize("more", ["", LORA])
def test_one_stitch_is_a_model_of_its_own(more: str, tmp_path: Any) -> None:
    made = stitched(more)
    with torch.no_grad():
        for tensor in made.delta().values():
            tensor += 0.1 * torch.randn(tensor.shape, generator=torch.Generator().manual_seed(0))
    module: Any = made.module.eval()
    x = torch.randn(3, 3, 32, 32)
    space = made.measures.stitches
    assert space is not None
    for number in (0, 1, 2, 6, 11):
        one = vr.lower(made, stitch=number)
        torch.testing.assert_close(one.module(x), module.stitch(x, number), rtol=0, atol=1e-5)
        front, _, _, end, _ = module.STITCHES[number]
        names = {n.split(".")[0] for n in one.module.state_dict()}
        assert names == ({front} if number < 2 else {front, end, "stitches"})
        if not more:
            assert one.measures.macs == space.stitches[number].macs
            assert one.measures.params.total == space.stitches[number].params
        vr.emit(one, tmp_path / "out")
        assert torch.equal(load_folder(tmp_path / "out").module.eval()(x), one.module.eval()(x))


def test_the_palette_lowers_with_all_its_stitches() -> None:
    made = stitched(LORA)
    with torch.no_grad():
        for tensor in made.delta().values():
            tensor += 0.1 * torch.randn(tensor.shape, generator=torch.Generator().manual_seed(0))
    module: Any = made.module.eval()
    low: Any = vr.lower(made).module.eval()
    x = torch.randn(2, 3, 32, 32)
    assert not any("lora" in name for name in low.state_dict())
    for number in range(12):
        torch.testing.assert_close(
            low.stitch(x, number), module.stitch(x, number), rtol=0, atol=1e-5
        )


def test_weights_are_there_once_and_the_source_runs_alone(tmp_path: Any) -> None:
    made = stitched(LORA)
    module: Any = made.module.eval()
    original: Any = made.original
    for name in ("front", "end"):
        ours, theirs = getattr(module, name), getattr(original, name)
        own = dict(ours.named_parameters())
        for key, tensor in theirs.named_parameters():
            if "head" not in key:  # what is trained has memory of its own
                assert own[key].data_ptr() == tensor.data_ptr()
    twin: Any = emitted_twin(model_text(made), module.state_dict()).eval()
    x = torch.randn(2, 3, 32, 32)
    assert all(torch.equal(twin.stitch(x, n), module.stitch(x, n)) for n in range(12))
    with pytest.raises(ValueError, match="captured for 32x32"):
        module.stitch(torch.zeros(1, 3, 16, 16), 2)
    vr.verify(made, graphs=False)
    vr.emit(made, tmp_path / "out")
    again: Any = load_folder(tmp_path / "out").module.eval()
    assert all(torch.equal(again.stitch(x, n), module.stitch(x, n)) for n in range(12))


def test_training_reaches_what_is_on_the_path_and_nothing_else() -> None:
    module: Any = stitched(LORA).module.train()
    module.stitch(torch.randn(2, 3, 32, 32), 6).square().sum().backward()
    reached = {n for n, p in module.named_parameters() if p.grad is not None}
    assert {n for n in reached if "stitches" in n} == {"stitches.1.weight", "stitches.1.bias"}
    blocks = {n.split(".attn")[0] for n in reached if "lora" in n}
    assert blocks == {"front.blocks.1", "end.blocks.2", "end.blocks.3"}
    assert {n for n in reached if "head" in n} == {"end.head.weight", "end.head.bias"}


def test_a_compile_for_each_stitch_and_no_more() -> None:
    module: Any = stitched().module.eval()
    counter = CompileCounter()
    torch._dynamo.reset()
    run = torch.compile(module.stitch, backend=counter, fullgraph=True)
    x = torch.randn(2, 3, 32, 32)
    for count, number in enumerate((2, 6, 11), 1):
        for _ in range(2):
            torch.testing.assert_close(run(x, number), module.stitch(x, number))
        assert counter.frame_count == count
    run(x, 2)
    run(x, 6)
    assert counter.frame_count == 3


THREE = "stitch tiny=vit_tiny_patch16_224, small=vit_small_patch16_224, base=vit_base_patch16_224"


@pytest.fixture(scope="module")
def supernet() -> Any:
    return vr.plan(f"{THREE} with snnet(kernel=2, stride=1)\n")


def test_all_71_costs_of_the_paper(supernet: Any) -> None:
    widths, n = {"tiny": 192, "small": 384, "base": 768}, 197

    def block(d: int) -> int:
        return 12 * n * d * d + 2 * n * n * d

    found = supernet.measures.stitches.stitches
    assert len(found) == 71
    for stitch in found:
        front, stop, layer, end, start = stitch.path.row
        d1, d2 = widths[front], widths[end]
        between = 0 if layer is None else n * d1 * d2
        wanted = 196 * 768 * d1 + stop * block(d1) + between + (12 - start) * block(d2) + 1000 * d2
        assert stitch.macs == wanted
    costs = {i: round(found[i].macs / 1e9, 3) for i in (0, 1, 2, 24, 36, 56, 39)}
    assert costs == {0: 1.254, 1: 4.599, 2: 17.564, 24: 2.752, 36: 1.647, 56: 10.035, 39: 18.321}
    assert supernet.measures.stitches.macs[1] > found[2].macs  # not the largest model
    params = {0: 5_717_416, 1: 22_050_664, 2: 86_567_656}
    assert {i: found[i].params for i in params} == params
    left_out = {24: 192 + 197 * 192, 56: 384 + 197 * 384}
    published = {i: round((found[i].params - left_out[i]) / 1e6, 1) for i in left_out}
    assert published == {24: 13.0, 56: 49.2}
    assert supernet.steps[0].parameters == 11 * (74_112 + 295_680)


def test_the_space_is_a_graph(supernet: Any) -> None:
    import networkx as nx

    space = supernet.measures.stitches
    graph = space.graph
    assert graph.number_of_nodes() == 39
    layers = [data["layer"] for _, _, data in graph.edges(data=True) if "layer" in data]
    assert len(layers) == 68
    assert len(set(layers)) == 22
    path = space.stitches[56].path
    assert nx.has_path(graph, ("small", 0), ("base", 12))
    edge = graph.edges[("small", path.stop), ("base", path.start)]
    assert edge["stitch"] == 56
    assert edge["module"] == f"stitches.{path.layer}"


def test_plan_tells_every_base_and_what_stitches_cost(supernet: Any) -> None:
    text = str(supernet)
    assert "stitch      3..36   tiny-small  1.545 G to 4.789 G" in text
    assert "stitch      37..70  small-base  5.733 G to 18.321 G" in text
    assert len(supernet.to_json()["stitches"]) == 71


@pytest.mark.slow
def test_the_supernet_prints_in_250_lines() -> None:
    made = vr.apply(f"{THREE} with snnet(kernel=2, stride=1)\n")
    assert len(model_text(made).splitlines()) <= 250
