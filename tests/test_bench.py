"""Benchmarks: what is measured, not how long it takes."""

from __future__ import annotations

import inspect
import json
import sys
import xml.etree.ElementTree as ET
from collections.abc import Callable
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import torch
from timm.models.swin_transformer import SwinTransformer
from timm.models.vision_transformer import VisionTransformer
from torch import nn

import vitrewrite as vr
from vitrewrite import bench, catalog
from vitrewrite.bench.contenders import contenders
from vitrewrite.bench.layer import layer_steps
from vitrewrite.bench.memory import peak_bytes, saved_bytes
from vitrewrite.bench.steps import training_macs, training_steps
from vitrewrite.bench.tuning import plain_loop
from vitrewrite.data import Preprocessing, batches, open_data
from vitrewrite.errors import UsageError
from vitrewrite.profiling.timing import spread, timed
from vitrewrite.report.chart import KINDS, chart
from vitrewrite.rewrite.rewritten import Rewritten
from vitrewrite.tuning import Settings

CPU = torch.device("cpu")
SPEC = "insert lora(rank=2, dropout=0.0) at blocks[{}].attn.{{q, v}}\ntrain head\n"
SETTINGS = bench.BenchSettings(batch=2, rounds=1)


def tiny(**options: Any) -> VisionTransformer:
    small = {"img_size": 16, "patch_size": 8, "embed_dim": 16, "depth": 2, "num_heads": 2}
    return VisionTransformer(**{**small, "num_classes": 5, **options})


def swin() -> SwinTransformer:
    return SwinTransformer(
        img_size=32,
        patch_size=4,
        embed_dim=16,
        depths=(2, 1),
        num_heads=(2, 4),
        window_size=4,
        num_classes=5,
    )


def applied(model: nn.Module, spec: str = SPEC.format("*")) -> Rewritten:
    return vr.apply(spec, model)


def models(rewritten: Rewritten) -> dict[str, Any]:
    return {c.name: c for c in contenders(rewritten, CPU, torch.float32, compile=False)}


# -- memory ---------------------------------------------------------------------------------------


def test_autograd_saves_what_arithmetic_says() -> None:
    first, last = nn.Linear(8, 16), nn.Linear(16, 4)
    model = nn.Sequential(first, nn.ReLU(), last)
    x = torch.randn(3, 8)

    def saved() -> int:
        return saved_bytes(lambda: model(x), [*model.parameters(), x])

    assert saved() == 3 * 16 * 4  # the hidden layer: ReLU's result is the last layer's input
    first.requires_grad_(False)
    assert saved() == 3 * 16 * 4  # still the input of the layer that is trained
    last.requires_grad_(False)
    assert saved() == 0
    first.requires_grad_(True)
    assert saved() == 3 * 16 * 4  # the ReLU needs its result, the frozen layer above nothing
    assert saved_bytes(lambda: model(x), model.parameters()) == 3 * 16 * 4 + 3 * 8 * 4


def test_a_saved_view_counts_its_whole_storage_once() -> None:
    a, b = torch.randn(4, 6), torch.randn(3, requires_grad=True)
    assert saved_bytes(lambda: (a[:, :3] * b, a[:, 3:] * b), [b]) == 4 * 6 * 4


def test_what_lora_saves() -> None:
    """The code [tokens, rank] and the padded matrix [out, rank], beside the layer's own input."""
    low_rank = sys.modules[catalog.load("lora").__module__].LowRank
    layer, branch = nn.Linear(8, 6).requires_grad_(False), low_rank(8, ((0, 6),), 2, 1.0)
    x = torch.randn(3, 5, 8)

    def saved(living: list[torch.Tensor]) -> int:
        known = [*layer.parameters(), *branch.parameters(), *living]
        return saved_bytes(lambda: branch(x, layer(x)), known)

    assert saved([x]) == 4 * (15 * 2 + 6 * 2)
    assert saved([]) == 4 * (15 * 2 + 6 * 2 + 15 * 8)


def test_frozen_blocks_save_nothing() -> None:
    x = (torch.randn(2, 3, 16, 16),)
    saved = {}
    for where in ("0", "1", "*"):
        rewritten = vr.apply(SPEC.format(where), tiny())
        steps = training_steps(contenders(rewritten, CPU, torch.float32, compile=False), x)
        for name, step in steps.items():
            saved[name, where] = saved_bytes(step.loss, step.living)
    # The head reads the class token, a view of what the final norm gave: 5 tokens of 16.
    assert saved["base", "*"] == saved["lowered", "*"] == 2 * 5 * 16 * 4
    assert saved["base", "*"] < saved["rewritten", "1"] < saved["rewritten", "0"]
    # Both blocks: as the first one alone, which needs everything above it, and one more code.
    extra = saved["rewritten", "*"] - saved["rewritten", "0"]
    codes, padded = 2 * 5 * (2 * 2), 48 * (2 * 2)
    assert extra == 4 * (codes + padded + 2 * 5 * 16)


@pytest.mark.parametrize("held", [False, True])
def test_peak_memory_of_a_step(held: bool) -> None:
    before = torch.ones(10_000)

    def step() -> None:
        kept = [torch.empty(1000)]
        if not held:
            kept.clear()
        torch.empty(500).add_(before[:500])

    assert peak_bytes(step, CPU) == 4 * (1500 if held else 1000)


def test_measuring_memory_writes_nothing(capfd: pytest.CaptureFixture[str]) -> None:
    assert peak_bytes(lambda: torch.ones(10), CPU) == 40
    assert capfd.readouterr() == ("", "")


# -- arithmetic and time --------------------------------------------------------------------------


def test_training_macs_are_forward_and_both_products_of_backward() -> None:
    model = nn.Sequential(nn.Linear(8, 16), nn.ReLU(), nn.Linear(16, 4))
    example = (torch.empty(1, 8, device="meta"),)
    # Nothing is needed of the gradient of the input.
    assert training_macs(model, example) == 2 * 8 * 16 + 3 * 16 * 4
    model[0].requires_grad_(False)
    assert training_macs(model, example) == 8 * 16 + 2 * 16 * 4


def test_rounds_take_turns_and_warm_up_does_not_count() -> None:
    order: list[str] = []
    ticks: list[None] = []
    steps: dict[str, Callable[[], object]] = {n: partial(order.append, n) for n in "abc"}
    times = timed(steps, 2, CPU, lambda: ticks.append(None))
    assert "".join(order) == "abc" + "bca" + "cab" + "abc"
    assert [len(v) for v in times.values()] == [2, 2, 2]
    assert len(ticks) == 12
    assert timed({}, 2, CPU, lambda: None) == {}


def test_spread() -> None:
    assert spread([4.0, 1.0, 2.0, 3.0, 5.0]) == {
        "median": 3.0, "min": 1.0, "low_quartile": 2.0, "high_quartile": 4.0, "max": 5.0,
    }  # fmt: skip
    assert set(spread([2.0]).values()) == {2.0}


# -- the models -----------------------------------------------------------------------------------


def test_contenders_train_what_the_table_says() -> None:
    rewritten = vr.apply(SPEC.format("*"), tiny())
    wanted = {n: p.requires_grad for n, p in rewritten.base.named_parameters()}
    found = models(rewritten)
    counts = {name: sum(p.numel() for p in c.trained) for name, c in found.items()}
    head = 16 * 5 + 5
    assert counts == {
        "base": head, "rewritten": rewritten.measures.params.trainable, "lowered": head,
    }  # fmt: skip
    # The models that were given stay as they are, and frozen weights are shared.
    assert {n: p.requires_grad for n, p in rewritten.base.named_parameters()} == wanted
    weight = "blocks.0.mlp.fc1.weight"
    pointers = {c.module.get_parameter(weight).data_ptr() for c in found.values()}
    assert pointers == {rewritten.base.get_parameter(weight).data_ptr()}


def test_models_of_which_nothing_is_trained_have_no_training_step() -> None:
    result = bench.run(
        applied(tiny(num_classes=0), "insert lora(rank=2) at blocks[0].attn.q\n"), SETTINGS
    )
    assert result["training"].keys() == {"rewritten"}
    assert "ratio" not in result["training"]["rewritten"]
    assert "training step" in bench.table(result)
    assert ET.fromstring(chart(result)).tag.endswith("svg")


def test_the_first_adapted_layer() -> None:
    like = torch.empty(0)
    rewritten = vr.apply("insert lora(rank=2) at blocks[1].mlp.fc1\n", tiny())
    steps = layer_steps(rewritten, rewritten.module, 2, like)
    assert steps.keys() == {"base", "rewritten"}
    for step in steps.values():
        step()
    branch = rewritten.module.get_submodule(rewritten.result.editor.insertions[0].path)
    assert all(p.grad is not None for p in branch.parameters())
    elsewhere = vr.apply("prepend kv_prompt() to blocks[*].attn\n", tiny())
    assert layer_steps(elsewhere, elsewhere.module, 2, like) == {}
    assert layer_steps(vr.apply("train head\n", tiny()), rewritten.module, 2, like) == {}


# -- whole benchmarks -----------------------------------------------------------------------------

ABOUT = {
    "spec", "model", "batch", "rounds", "dtype", "device", "device_name", "threads", "machine",
    "system", "python", "torch",
}  # fmt: skip
TIMES = {f"{k}_ms" for k in ("median", "min", "low_quartile", "high_quartile", "max")} | {
    "ratio", "ratio_min", "ratio_low_quartile", "ratio_high_quartile", "ratio_max",
}  # fmt: skip
FORWARD = TIMES | {"macs", "macs_ratio", "peak_bytes", "compile_s"}


@pytest.mark.parametrize("build", [tiny, swin])
def test_a_whole_benchmark(build: Callable[[], nn.Module]) -> None:
    told: list[float] = []
    threads = torch.get_num_threads()
    settings = replace(SETTINGS, threads=1, rounds=2)
    result = bench.run(applied(build()), settings, progress=lambda what, share: told.append(share))
    assert torch.get_num_threads() == threads
    assert told == sorted(told)
    assert told[0] == 0
    assert 0.9 < told[-1] <= 1
    assert json.loads(json.dumps(result)) == result
    names = {"base", "rewritten", "lowered"}
    kinds = ("forward", "training", "layer_forward_backward", "profiling", "tuning")
    assert result["profiling"] == result["tuning"] == {}
    assert result.keys() == ABOUT | {*kinds, "macs", "tokens"}
    assert result["forward"].keys() == result["training"].keys() == names
    assert all(row.keys() == FORWARD for row in result["forward"].values())
    for row in result["training"].values():
        assert row.keys() == FORWARD | {"trained", "saved_bytes"}
        assert row["saved_bytes"] > 0
        assert row["peak_bytes"] > 0
    base, rewritten = (result["training"][n] for n in ("base", "rewritten"))
    assert base["saved_bytes"] < rewritten["saved_bytes"] < rewritten["peak_bytes"]
    assert base["macs_ratio"] == base["ratio"] == 1 < rewritten["macs_ratio"]
    assert result["forward"]["rewritten"]["macs"] == result["macs"]["rewritten"]
    text = bench.table(result)
    assert all(f"  {name} " in text for name in names)
    assert "The base trains its head only" in text
    assert "compile" not in text


def test_without_training_and_with_other_dtypes() -> None:
    settings = replace(SETTINGS, dtype="bfloat16", train=False)
    result = bench.run(applied(tiny()), settings)
    assert result["training"] == {}
    assert "training" not in bench.table(result)
    assert result["dtype"] == "bfloat16"
    assert all(row["peak_bytes"] > 0 for row in result["forward"].values())


def test_profiling() -> None:
    model = tiny(embed_dim=32)
    result = bench.run(applied(model), replace(SETTINGS, profiling=True, train=False, batch=4))
    rows = result["profiling"]
    assert rows.keys() == {"base", "per batch", "per sample"}
    blocks = sum(p.numel() for n, p in model.named_parameters() if n.startswith(("blocks", "norm")))
    assert {row["copy_bytes"] for row in rows.values()} == {4 * blocks}
    # At most the sums are held beside what a plain backward holds.
    assert rows["per batch"]["above_base_bytes"] <= 4 * blocks
    assert rows["per sample"]["peak_bytes"] < rows["per batch"]["peak_bytes"]
    assert rows["base"]["ratio"] == 1
    text = bench.table(result)
    assert "profiling a batch" in text
    assert f"copy is {4 * blocks / 2**20:.2f} MiB" in text
    assert ET.fromstring(chart(result)).tag.endswith("svg")


def test_a_spec_that_measures_has_its_profiling_measured() -> None:
    from vitrewrite.profiling.run import measure

    spec = "insert sparse() at sensitive(budget=100, samples=4, scale=1K)\ntrain head\n"
    small = tiny(in_chans=1, num_classes=10)
    profile = measure(vr.parse(spec), small, data="digits", batch=4)
    wanted = vr.apply(spec, small, profile=profile)
    assert bench.run(wanted, replace(SETTINGS, train=False))["profiling"]
    off = replace(SETTINGS, train=False, profiling=False)
    assert bench.run(wanted, off)["profiling"] == {}
    features = applied(
        tiny(num_classes=0, global_pool=""), "insert lora(rank=2) at blocks[0].attn.q\n"
    )
    assert bench.run(features, replace(SETTINGS, train=False, profiling=True))["profiling"] == {}


@pytest.mark.slow
def test_tuning(tmp_path: Path) -> None:
    model = tiny(in_chans=1, num_classes=10)
    wanted = applied(model, "train head + blocks + patch_embed\n")
    result = bench.run(wanted, replace(SETTINGS, train=False, tuning=2))
    assert result["tuning"].keys() == {"base", "tune"}
    assert result["tuning"]["base"]["ratio"] == 1
    assert "a plain loop of PyTorch" in bench.table(result)
    assert ET.fromstring(chart(result)).tag.endswith("svg")
    colour = applied(tiny(), "train head\n")  # five classes, and digits are ten
    assert bench.run(colour, replace(SETTINGS, train=False, tuning=2))["tuning"] == {}


def test_the_plain_loop_is_one_that_learns(tmp_path: Path) -> None:
    assert len(inspect.getsource(plain_loop).splitlines()) <= 40
    model = tiny(in_chans=1, num_classes=10)
    data = open_data("digits", Preprocessing.of(vr.capture(model)))
    for images in (data.train, data.val):
        list(batches(images, 64))
    settings = Settings(steps=44, lr=3e-3, log_every=10)
    assert plain_loop(model, data, settings, CPU, tmp_path) > 0.2  # of ten classes
    assert sorted(p.name for p in tmp_path.iterdir()) == ["21.pt", "43.pt", "log.txt"]


def test_compiled_models(monkeypatch: pytest.MonkeyPatch) -> None:
    made = partial(torch.compile, backend="eager", fullgraph=True)
    monkeypatch.setattr(torch, "compile", lambda model, **_: made(model))
    result = bench.run(applied(tiny()), replace(SETTINGS, compile=True))
    names = {"base", "rewritten", "lowered"}
    for kind in ("forward", "training"):
        assert result[kind].keys() == names | {f"{n} compiled" for n in names}
        for name, row in result[kind].items():
            assert (row["compile_s"] is None) == (name in names)
            assert row["macs"] == result[kind][name.removesuffix(" compiled")]["macs"]
    # This backend runs the same operations, so autograd saves the same.
    training = result["training"]
    assert training["rewritten compiled"]["saved_bytes"] == training["rewritten"]["saved_bytes"]
    assert "compile s" in bench.table(result)


def test_a_step_that_does_not_run() -> None:
    with pytest.raises(
        UsageError, match=r"preparing does not run on cpu in float32 with batch"
    ) as e:
        bench.run(applied(tiny()), replace(SETTINGS, batch=10**14))
    assert e.value.code == "VR906"


def test_the_chart() -> None:
    result = bench.run(applied(tiny()), replace(SETTINGS, rounds=3))
    for rows in (result["forward"], result["training"], result["layer_forward_backward"]):
        for row in rows.values():  # what was measured on a busy machine can be anything
            row.update(ratio=1.0, ratio_min=0.9, ratio_max=1.1)
    slow = result["training"]["rewritten"]
    slow.update(ratio=2.0, ratio_min=1.5, ratio_max=3.75, macs_ratio=1.25)
    result["model"] = "a <model> & more"
    root = ET.fromstring(chart(result))
    names = [t.text for t in root.iter("{http://www.w3.org/2000/svg}text")]
    assert names[0] == "spec on a <model> & more"
    assert names.count("rewritten") == 3
    assert names.count("lowered") == 2
    ticks = [t for t in names if t and t.replace(".", "").isdigit()]
    assert "4" in ticks
    assert "2.00" in names


def test_a_long_bar_does_not_make_the_others_short() -> None:
    """It is cut, with its own number beside it."""
    row = {"ratio": 1.0, "ratio_min": 0.9, "ratio_max": 1.1, "macs_ratio": 1.0, "median_ms": 1.0}
    slow = {**row, "ratio": 50.0, "ratio_min": 49.0, "ratio_max": 90.0}
    late = {**row, "ratio_max": 400.0}
    names = {"base": row, "rewritten": late, "lowered": row, "lowered compiled": slow}
    about = {"spec": "a", "model": "b", "device_name": "c", "threads": 1, "batch": 1,
             "dtype": "float32", "torch": "2", "rounds": 7}  # fmt: skip
    kinds: dict[str, Any] = {kind: {} for kind in KINDS}
    root = ET.fromstring(chart({**about, **kinds, "forward": names}))
    texts = [t.text for t in root.iter("{http://www.w3.org/2000/svg}text")]
    assert "50.00" in texts
    bars = [r for r in root.iter("{http://www.w3.org/2000/svg}rect") if r.get("height") == "16"]
    widths = [float(bar.get("width", 0)) for bar in bars]
    assert max(widths) == pytest.approx(460, abs=0.1)
    assert min(widths) > 90


@pytest.mark.skipif(not torch.cuda.is_available(), reason="no GPU")
def test_on_a_gpu() -> None:
    result = bench.run(applied(tiny()), replace(SETTINGS, compile=True), "cuda")
    assert result["device_name"] == torch.cuda.get_device_name()
    training = result["training"]
    assert training["base"]["peak_bytes"] < training["rewritten"]["peak_bytes"]
    assert training["base"]["saved_bytes"] < training["rewritten"]["saved_bytes"]
