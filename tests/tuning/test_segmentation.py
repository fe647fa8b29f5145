"""Training a model with queries on label maps: the loss, the figures, a run and its resumption."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from torch.utils._pytree import tree_map

import vitrewrite as vr
from tests.cli.invoke import FILES, invoke
from vitrewrite import models
from vitrewrite.anatomy import analyse
from vitrewrite.data import Data, Preprocessing, batches, open_data
from vitrewrite.errors import DataError, TuneError
from vitrewrite.tasks import Dense, QueryTask, Task, overlap, task_for
from vitrewrite.tasks.choice import check_sides
from vitrewrite.tracing import trace
from vitrewrite.tuning import Settings, tune
from vitrewrite.tuning.loop import TrainingLoop

from .scenes import SPEC, model_folder, scenes

pytest.importorskip("transformers")
pytestmark = pytest.mark.xdist_group("segmentation")


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with a model, a spec, and 24 and 8 scenes."""
    made = tmp_path_factory.mktemp("segmentation")
    model_folder(made / "tiny")
    (made / "seg.peft").write_text(SPEC)
    scenes(made / "data", training=24, validation=8)
    return made


@pytest.fixture(autouse=True)
def here(folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The current folder: an empty one, but for links to the model, the spec and the data."""
    for path in folder.iterdir():
        (tmp_path / path.name).symlink_to(path)
    monkeypatch.chdir(tmp_path)
    return tmp_path


@pytest.fixture(scope="module")
def built(folder: Path) -> tuple[Any, dict[str, torch.Tensor]]:
    """The rewritten model, and what it starts from."""
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(folder)
        made = vr.apply("seg.peft", output_auxiliary_logits=True)
    return made, {k: v.clone() for k, v in made.delta().items()}


@pytest.fixture
def ours(built: tuple[Any, dict[str, torch.Tensor]]) -> Any:
    """The rewritten model, untrained."""
    made, start = built
    for name, tensor in made.delta().items():
        tensor.copy_(start[name])
    made.trained, made.training = False, {}
    return made


@pytest.fixture
def data(ours: Any) -> Data:
    return open_data("data", Preprocessing.of(ours.base))


@pytest.fixture
def task(ours: Any, data: Data) -> Task:
    return task_for(data, ours.module, ours.result.anatomy)


def lines(folder: str, event: str) -> list[dict[str, Any]]:
    found = [json.loads(line) for line in (Path(folder) / "metrics.jsonl").read_text().splitlines()]
    return [line for line in found if line["event"] == event]


# -- the task -------------------------------------------------------------------------------------


def test_the_loss_is_that_of_transformers(ours: Any, data: Data, task: Task) -> None:
    model = models.create("hf:tiny", {"output_auxiliary_logits": True}, seed=0).eval()
    images, labels = next(batches(data.train, 3))
    labels[:, :20] = 255
    labels[2] = 255  # no class at all
    present = [each[each != 255].unique() for each in labels]
    masks = [(m == p[:, None, None]).float() for m, p in zip(labels, present, strict=True)]
    torch.manual_seed(4)
    expected = model(images, mask_labels=masks, class_labels=present).loss
    torch.manual_seed(4)
    output = ours.base(images)
    torch.testing.assert_close(task.loss(output, labels), expected, rtol=1e-5, atol=1e-5)
    state = torch.get_rng_state()
    seeded = [task.loss(output, labels, seed=k) for k in (1, 1, 2)]
    assert torch.equal(torch.get_rng_state(), state)
    assert seeded[0] == seeded[1] != seeded[2]
    nothing = torch.full_like(labels, 255)
    assert 0 < task.loss(output, nothing, seed=0) < seeded[0]  # "no object" is learnt


def test_the_loss_is_computed_in_single_precision(ours: Any, data: Data, task: Task) -> None:
    images, labels = next(batches(data.train, 2))
    with torch.no_grad():
        output = tree_map(torch.Tensor.bfloat16, ours.base(images))
    with torch.autocast("cpu", torch.bfloat16):
        found = task.loss(output, labels, seed=0)
    assert found.dtype == torch.float32
    assert torch.equal(found, task.loss(tree_map(torch.Tensor.float, output), labels, seed=0))


def test_the_loss_counts_masks_over_processes_once(
    ours: Any, data: Data, task: Task, monkeypatch: pytest.MonkeyPatch
) -> None:
    images, labels = next(batches(data.train, 2))
    output = ours.base(images)

    def value() -> torch.Tensor:
        torch.manual_seed(0)
        return task.loss(output, labels)

    alone = value()
    monkeypatch.setattr(torch.distributed, "is_initialized", lambda: True)
    monkeypatch.setattr(torch.distributed, "get_world_size", lambda: 2)
    monkeypatch.setattr(torch.distributed, "all_reduce", lambda count: count.mul_(2))
    assert torch.equal(value(), alone)  # the other process has as many masks


def test_figures() -> None:
    labels = torch.tensor([[0, 0, 1, 255], [1, 1, -1, 3]])
    predicted = torch.tensor([[0, 1, 1, 1], [1, 0, 0, 2]])
    found = overlap.counts(predicted, labels, 5)
    assert found[:4, :4].tolist() == [[1, 1, 0, 0], [1, 2, 0, 0], [0, 0, 0, 0], [0, 0, 1, 0]]
    assert not found[4].any()
    assert not found[:, 4].any()
    figures = overlap.figures(found)
    assert figures["mIoU"] == pytest.approx((1 / 3 + 2 / 4 + 0 + 0) / 4)  # class 4 is nowhere
    assert figures["pixel_accuracy"] == pytest.approx(3 / 6)
    assert overlap.figures(0 * found) == {"mIoU": 0.0, "pixel_accuracy": 0.0}


def test_figures_do_not_depend_on_batches(ours: Any, data: Data, task: Task) -> None:
    with torch.no_grad():
        sums = [sum(task.tally(ours.module(x), y) for x, y in batches(data.val, n)) for n in (8, 3)]
        torch.testing.assert_close(sums[0], sums[1], rtol=1e-5, atol=0)
        images, labels = next(batches(data.val, 8))
        padded = torch.where(torch.arange(8)[:, None, None] < 5, labels, -1)
        assert task.tally(ours.module(images), padded)[1] == 5


def test_a_model_of_dense_scores(data: Data) -> None:
    model = torch.nn.Sequential(torch.nn.Conv2d(3, 3, 4, stride=4))
    root = trace(model, torch.zeros(1, 3, 64, 64))
    task = task_for(data, root, analyse(root))
    assert isinstance(task, Dense)
    _, labels = next(batches(data.val, 8))
    right = torch.nn.functional.one_hot(labels, 3).movedim(-1, 1) * 50.0
    sums = task.tally(right, labels)
    assert task.results(sums) == {"loss": 0, "mIoU": 1, "pixel_accuracy": 1, "images": 8}
    half = torch.where(torch.arange(64) < 32, labels, 255)
    wrong = torch.where(torch.arange(64) < 32, right, right.flip(1))
    assert task.loss(wrong, half) == 0
    assert task.loss(wrong, labels) > 1


# -- runs -----------------------------------------------------------------------------------------


def test_a_model_learns_scenes_and_the_folder_is_whole(ours: Any, data: Data, task: Task) -> None:
    with torch.no_grad():
        sums = sum(task.tally(ours.base(x), y) for x, y in batches(data.val, 8))
    before = task.results(sums)
    result = invoke("tune", "seg.peft", "data=data", "--out", "out")
    assert result.status == 0, result.err
    after = lines("out", "evaluation")[-1]
    assert after["loss"] < 0.5 * before["loss"]
    assert before["mIoU"] < 0.35
    assert after["mIoU"] > 0.6
    assert f"mIoU      {after['mIoU']:.2%} of 8 images" in result.out
    written = {p.name for p in Path("out").iterdir()}
    assert written == FILES | {"metrics.jsonl", "tune.json", "checkpoints"}
    report = json.loads(Path("out/report.json").read_text())["training"]
    assert (report["metric"], report["mIoU"]) == ("mIoU", after["mIoU"])
    lock = json.loads(Path("out/lock.json").read_text())
    assert lock["model_options"] == {"output_auxiliary_logits": True}


def test_an_interrupted_run_ends_bit_identical(
    ours: Any, built: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    settings = Settings(steps=7, batch=4, checkpoint_every=2, augment="standard", log_every=1)
    original = TrainingLoop._update

    def interrupted(self: TrainingLoop, sums: Any) -> None:
        if self.run.step == 5:
            raise KeyboardInterrupt
        original(self, sums)

    with monkeypatch.context() as patch:
        patch.setattr(TrainingLoop, "_update", interrupted)
        with pytest.raises(KeyboardInterrupt):
            tune(ours, "data", settings, out="out")
    tune(ours, "data", settings, out="out", resume=True)
    again = {k: v.clone() for k, v in ours.delta().items()}
    for name, tensor in ours.delta().items():
        tensor.copy_(built[1][name])
    tune(ours, "data", settings, out="whole")
    assert all(torch.equal(again[k], v) for k, v in ours.delta().items())
    assert not any(torch.equal(built[1][k], v) for k, v in again.items() if "queries" in k)
    losses = [[line["loss"] for line in lines(f, "step")] for f in ("whole", "out")]
    assert losses[0] == losses[1]
    assert len(losses[0]) == 7


@pytest.mark.slow
def test_pieces_see_the_same_images(ours: Any) -> None:
    for name, pieces in (("one", 1), ("two", 2)):
        settings = Settings(steps=1, batch=4, log_every=1, accumulate=pieces)
        tune(ours, "data", settings, out=name)
    one, two = (lines(n, "step")[0]["loss"] for n in ("one", "two"))
    assert two == pytest.approx(one, rel=0.05)  # each piece draws points of its own


@pytest.mark.slow
def test_bfloat16_is_near(ours: Any, built: Any) -> None:
    for name, precision in (("single", "no"), ("mixed", "bf16")):
        for key, tensor in ours.delta().items():
            tensor.copy_(built[1][key])
        tune(
            ours,
            "data",
            Settings(steps=6, batch=4, lr=1e-2, log_every=1, precision=precision),
            out=name,
        )
    single, mixed = ([line["loss"] for line in lines(n, "step")] for n in ("single", "mixed"))
    assert single != mixed
    assert mixed == pytest.approx(single, rel=0.1)
    assert mixed[-1] < mixed[0]


# -- what is refused ------------------------------------------------------------------------------


def test_auxiliary_predictions_are_needed() -> None:
    given = ("data=data", "output_auxiliary_logits=false", "--out", "out")
    result = invoke("tune", "seg.peft", *given)
    assert result.codes == ["VR856"]
    assert "output_auxiliary_logits=true" in result.err
    assert not Path("out").exists()


def test_a_loss_needs_its_library(monkeypatch: pytest.MonkeyPatch) -> None:
    output = {"class_queries_logits": torch.zeros(1, 2, 4), "auxiliary_logits": [{}]}
    monkeypatch.setitem(__import__("sys").modules, "transformers", None)
    with pytest.raises(TuneError, match=r"VR857 .*\n.*vitrewrite\[mask2former\]"):
        QueryTask(output)


def test_labels_smoothing_is_of_another_loss(ours: Any) -> None:
    with pytest.raises(TuneError, match="VR858"):
        tune(ours, "data", Settings(label_smoothing=0.1, batch=4), out="out")
    assert not Path("out").exists()


def test_labels_have_to_be_of_the_right_kind(ours: Any, data: Data) -> None:
    with pytest.raises(DataError, match=r"VR746 .* one label for each image"):
        tune(ours, "digits", out="out")
    root = trace(torch.nn.Sequential(torch.nn.Flatten(), torch.nn.Linear(3, 2)), torch.zeros(1, 3))
    with pytest.raises(DataError, match=r"VR746 .* a label map for each image"):
        task_for(data, root, analyse(root))


def test_sides_have_to_divide_into_levels(ours: Any) -> None:
    anatomy = ours.result.anatomy
    for side in (64, 96, 160):
        check_sides(_coarsest(anatomy, -(-side // 32)), (side, side))
    for side in (80, 100, 56):
        with pytest.raises(DataError, match=r"VR748 .*\n.*multiples of 32") as caught:
            check_sides(_coarsest(anatomy, -(-side // 32)), (side, side))
    assert "build the model for 64x64" in str(caught.value)


def _coarsest(anatomy: Any, cells: int) -> Any:
    levels = tuple(replace(v, grid=(cells << k,) * 2) for k, v in enumerate(anatomy.decoder.levels))
    return replace(anatomy, decoder=replace(anatomy.decoder, levels=levels))
