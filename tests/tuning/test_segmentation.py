"""Training a model with queries on label maps: the loss, the figures, a run and its resumption."""

from __future__ import annotations

import copy
import json
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file

import vitrewrite as vr
from tests.cli.invoke import FILES, invoke
from vitrewrite import models
from vitrewrite.data import Preprocessing, batches, open_data
from vitrewrite.errors import TuneError
from vitrewrite.tasks import Dense, Queries, Task, overlap, task_for
from vitrewrite.tracing import trace
from vitrewrite.tuning import Settings, tune
from vitrewrite.tuning.loop import Loop

from .scenes import SPEC, model_folder, scenes

pytest.importorskip("transformers")
pytestmark = pytest.mark.xdist_group("segmentation")


@pytest.fixture
def here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The current folder, with a model, a spec, and 24 and 8 scenes."""
    model_folder(tmp_path / "tiny")
    (tmp_path / "seg.peft").write_text(SPEC)
    scenes(tmp_path / "data", training=24, validation=8)
    monkeypatch.chdir(tmp_path)
    return tmp_path


def built(**options: Any) -> Any:
    return models.create("hf:tiny", {"output_auxiliary_logits": True, **options}, seed=0).eval()


def rewritten(**overrides: Any) -> Any:
    return vr.apply("seg.peft", output_auxiliary_logits=True, **overrides)


def task_of(model: vr.Rewritten | Any) -> tuple[Task, Any]:
    data = open_data("data", Preprocessing.of(model))
    return task_for(data, model.module, model.result.anatomy), data


def lines(folder: str, event: str) -> list[dict[str, Any]]:
    found = [json.loads(line) for line in (Path(folder) / "metrics.jsonl").read_text().splitlines()]
    return [line for line in found if line["event"] == event]


# -- the task -------------------------------------------------------------------------------------


def test_the_loss_is_that_of_transformers(here: Path) -> None:
    model, ours = built(), rewritten()
    task, data = task_of(ours)
    images, labels = next(batches(data.train, 3))
    labels[:, :20] = 255
    labels[2] = 255  # no class at all
    present = [each[each != 255].unique() for each in labels]
    masks = [
        (m == p[:, None, None]).float() for m, p in zip(labels, present, strict=True)
    ]
    torch.manual_seed(4)
    expected = model(images, mask_labels=masks, class_labels=present).loss
    torch.manual_seed(4)
    found = task.loss(ours.base(images), labels)
    torch.testing.assert_close(found, expected, rtol=1e-5, atol=1e-5)
    state = torch.get_rng_state()
    seeded = [task.loss(ours.base(images), labels, seed=k) for k in (1, 1, 2)]
    assert torch.equal(torch.get_rng_state(), state)
    assert seeded[0] == seeded[1] != seeded[2]


def test_the_loss_counts_masks_over_processes_once(
    here: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    ours = rewritten()
    task, data = task_of(ours)
    images, labels = next(batches(data.train, 2))
    output = ours.base(images)

    def terms() -> torch.Tensor:
        torch.manual_seed(0)
        return task.loss(output, labels)

    alone = terms()
    monkeypatch.setattr(torch.distributed, "is_initialized", lambda: True)
    monkeypatch.setattr(torch.distributed, "get_world_size", lambda: 2)
    monkeypatch.setattr(torch.distributed, "all_reduce", lambda count: count.mul_(2))
    assert torch.equal(terms(), alone)  # the other process has as many masks


def test_figures() -> None:
    labels = torch.tensor([[0, 0, 1, 255], [1, 1, -1, 3]])
    predicted = torch.tensor([[0, 1, 1, 1], [1, 0, 0, 2]])
    found = overlap.counts(predicted, labels, 5)
    assert found.tolist() == [[1, 2, 0, 0, 0], [2, 3, 1, 0, 0], [2, 3, 0, 1, 0]]
    figures = overlap.figures(found)
    assert figures["mIoU"] == pytest.approx((1 / 3 + 2 / 4 + 0 + 0) / 4)  # class 4 is nowhere
    assert figures["pixel_accuracy"] == pytest.approx(3 / 6)


def test_figures_do_not_depend_on_batches(here: Path) -> None:
    ours = rewritten()
    task, data = task_of(ours)
    with torch.no_grad():
        sums = [
            sum(task.tally(ours.module(x), y) for x, y in batches(data.val, size)) for size in (8, 3)
        ]
    torch.testing.assert_close(sums[0], sums[1], rtol=1e-5, atol=0)
    images, labels = next(batches(data.val, 8))
    padded = torch.where(torch.arange(8)[:, None, None] < 5, labels, -1)
    with torch.no_grad():
        assert task.tally(ours.module(images), padded)[1] == 5


def test_a_model_of_dense_scores(here: Path) -> None:
    model = torch.nn.Sequential(torch.nn.Conv2d(3, 3, 4, stride=4))
    data = open_data("data", Preprocessing((3, 64, 64), {"mean": (0,) * 3, "std": (1,) * 3}))
    from vitrewrite.anatomy import analyse

    root = trace(model, torch.zeros(1, 3, 64, 64))
    task = task_for(data, root, analyse(root))
    assert isinstance(task, Dense)
    _, labels = next(batches(data.val, 8))
    right = torch.nn.functional.one_hot(labels, 3).movedim(-1, 1) * 50.0
    sums = task.tally(right, labels)
    assert task.results(sums) == {
        "loss": 0, "mIoU": 1, "pixel_accuracy": 1, "images": 8,
    }  # fmt: skip
    half = torch.where(torch.arange(64) < 32, labels, 255)
    wrong = torch.where(torch.arange(64) < 32, right, right.flip(1))
    assert task.loss(wrong, half) == 0
    assert task.loss(wrong, labels) > 1


# -- runs -----------------------------------------------------------------------------------------


def test_a_model_learns_scenes_and_the_folder_is_whole(here: Path) -> None:
    start = rewritten()
    task, data = task_of(start)
    with torch.no_grad():
        sums = sum(task.tally(start.base(x), y) for x, y in batches(data.val, 8))
    before = task.results(sums)
    result = invoke("tune", "seg.peft", "data=data", "--out", "out")
    assert result.status == 0, result.err
    after = lines("out", "evaluation")[-1]
    assert after["loss"] < 0.5 * before["loss"]
    assert before["mIoU"] < 0.35
    assert after["mIoU"] > 0.6
    assert f"mIoU      {after['mIoU']:.2%} of 8 images" in result.out
    assert {p.name for p in Path("out").iterdir()} == FILES | {
        "metrics.jsonl", "tune.json", "checkpoints",
    }  # fmt: skip
    report = json.loads(Path("out/report.json").read_text())["training"]
    assert (report["metric"], report["mIoU"]) == ("mIoU", after["mIoU"])
    lock = json.loads(Path("out/lock.json").read_text())
    assert lock["model_options"] == {"output_auxiliary_logits": True}


def test_an_interrupted_run_ends_bit_identical(
    here: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    given = ("tune", "seg.peft", "data=data", "tune.steps=7", "tune.checkpoint_every=2",
             "tune.augment=true")  # fmt: skip
    assert invoke(*given, "--out", "whole").status == 0
    original = Loop._update

    def interrupted(self: Loop, sums: Any) -> None:
        if self.run.step == 5:
            raise KeyboardInterrupt
        original(self, sums)

    with monkeypatch.context() as patch:
        patch.setattr(Loop, "_update", interrupted)
        assert invoke(*given, "--out", "out").status == 130
    assert invoke(*given, "--out", "out", "--resume").status == 0
    whole, again = (load_file(Path(f, "delta.safetensors")) for f in ("whole", "out"))
    assert whole.keys() == again.keys()
    assert all(torch.equal(whole[k], again[k]) for k in whole)
    losses = [[line["loss"] for line in lines(f, "step")] for f in ("whole", "out")]
    assert losses[0] == losses[1]
    assert len(losses[0]) == 7


def test_mixed_precision_and_pieces(here: Path) -> None:
    settings = Settings(steps=2, batch=4, log_every=1)
    for name, more in (("plain", {}), ("bf16", {"precision": "bf16"}), ("two", {"accumulate": 2})):
        tune(rewritten(), "data", settings.changed(more), out=name)
    losses = {n: lines(n, "step")[0]["loss"] for n in ("plain", "bf16", "two")}
    assert losses["plain"] != losses["bf16"]
    assert losses["bf16"] == pytest.approx(losses["plain"], rel=0.03)
    assert losses["two"] == pytest.approx(losses["plain"], rel=0.05)


# -- what is refused ------------------------------------------------------------------------------


def test_auxiliary_predictions_are_needed(here: Path) -> None:
    with pytest.raises(TuneError, match=r"VR856 .*\n.*output_auxiliary_logits=true"):
        tune(vr.apply("seg.peft"), "data", out="out")
    given = ("data=data", "output_auxiliary_logits=false", "--out", "out")
    assert invoke("tune", "seg.peft", *given).codes == ["VR856"]
    assert not Path("out").exists()


def test_a_loss_needs_its_library(here: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    output = {"class_queries_logits": torch.zeros(1, 2, 4), "auxiliary_logits": [{}]}
    monkeypatch.setitem(__import__("sys").modules, "transformers", None)
    with pytest.raises(TuneError, match=r"VR857 .*\n.*vitrewrite\[mask2former\]"):
        Queries(output)


@pytest.mark.parametrize(
    ("given", "code"),
    [
        (("data=digits",), "VR746"),
        (("data=data", "num_labels=2"), "VR743"),
        (("data=data", "image_size=80"), "VR748"),
        (("data=data", "tune.label_smoothing=0.1"), "VR858"),
    ],
)
def test_bad_runs_are_refused(here: Path, given: tuple[str, ...], code: str) -> None:
    result = invoke("tune", "seg.peft", *given, "--out", "out")
    assert result.codes == [code]
    if code == "VR748":
        assert "multiples of 32" in result.err
        assert "build the model for 64x64" in result.err


def test_label_maps_for_a_classifier(here: Path) -> None:
    import timm

    model = timm.create_model("vit_tiny_patch16_224", depth=1, img_size=32, num_classes=3)
    classifier = vr.apply("train head\n", model)
    with pytest.raises(vr.VitrewriteError, match=r"VR746 .* a label map for each image"):
        tune(copy.copy(classifier), "data", out="out")
