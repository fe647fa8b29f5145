"""Training in one process: what it learns, writes and measures, and what it refuses."""

from __future__ import annotations

import json
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from safetensors.torch import load_file

import vitrewrite as vr
from tests.cli.invoke import FILES, invoke
from vitrewrite.errors import TuneError
from vitrewrite.tuning import Settings, tune
from vitrewrite.tuning.checks import check_batch
from vitrewrite.tuning.engine import Engine
from vitrewrite.tuning.loop import TrainingLoop

WRITTEN = FILES | {"metrics.jsonl", "tune.json", "checkpoints"}


def rewritten(spec: str = "lora.peft", **overrides: object) -> Any:
    return vr.apply(vr.parse(spec, **overrides))


def lines(folder: str, event: str) -> list[dict[str, Any]]:
    found = [json.loads(line) for line in (Path(folder) / "metrics.jsonl").read_text().splitlines()]
    return [line for line in found if line["event"] == event]


def largest_difference(first: str, second: str) -> float:
    a, b = (load_file(Path(folder) / "delta.safetensors") for folder in (first, second))
    assert a.keys() == b.keys()
    return max(float((a[key] - b[key]).abs().max()) for key in a)


@pytest.mark.usefixtures("without_graphs")
def test_a_model_learns_digits_and_the_folder_is_whole(here: Path) -> None:
    given = ["data=digits:0-4", "num_classes=5", "lora.dropout=0", "tune.keep=3"]
    given += ["tune.epochs=12", "tune.warmup_epochs=1", "tune.lr=5e-3"]
    result = invoke("tune", "lora.peft", *given, "--out", "out")
    assert result.status == 0, result.err
    assert result.err == ""
    evaluations, steps = lines("out", "evaluation"), lines("out", "step")
    assert evaluations[-1]["accuracy"] > 0.85
    assert f"accuracy  {evaluations[-1]['accuracy']:.2%} of 178 images" in result.out
    assert [e["epoch"] for e in evaluations] == list(range(1, 13))
    assert evaluations[-1]["loss"] < 0.3 * evaluations[0]["loss"]
    assert [s["step"] for s in steps][:3] == [5, 10, 15]
    assert all(s["images_per_second"] > 0 and s["peak_memory_mb"] > 0 for s in steps)
    seconds = [s["seconds"] for s in steps]
    assert seconds == sorted(seconds)
    assert {p.name for p in (here / "out").iterdir()} == WRITTEN
    totals = [int(p.name.partition("-")[2]) for p in sorted(Path("out/checkpoints").iterdir())]
    assert totals == [10 * 22, 11 * 22, 12 * 22]
    assert not list(Path("out/checkpoints").rglob("*.pt*"))
    report = json.loads(Path("out/report.json").read_text())
    assert report["training"]["accuracy"] == evaluations[-1]["accuracy"]
    for command in (["verify", "out"], ["lower", "out", "--out", "lowered"]):
        assert invoke(*command).status == 0


def test_the_api_trains_in_place_and_leaves_the_base(here: Path) -> None:
    model = rewritten("model tiny.py:build\ninsert lora(rank=2) at blocks[*].attn.q\ntrain head\n")
    frozen = {k: v.clone() for k, v in model.base.state_dict().items()}
    before = {k: v.clone() for k, v in model.delta().items()}
    assert tune(model, "digits", Settings(steps=3), out="out") is model
    assert all(torch.equal(v, frozen[k]) for k, v in model.base.state_dict().items())
    changed = {k for k, v in model.delta().items() if not torch.equal(v, before[k])}
    assert changed == before.keys()
    assert model.report["training"]["steps"] == 3
    vr.verify(model, graphs=False)
    again = vr.load(rewritten(str(model.spec)), "out/delta.safetensors")
    assert all(torch.equal(v, model.delta()[k]) for k, v in again.delta().items())


def test_pieces_do_not_change_the_result(here: Path) -> None:
    for name, pieces in (("one", 1), ("four", 4)):
        settings = Settings(steps=6, optimiser="sgd", lr=0.05, batch=32, accumulate=pieces)
        tune(rewritten(**{"lora.dropout": 0}), "digits", settings, out=name)
    assert 0 < largest_difference("one", "four") < 1e-6


@pytest.mark.slow
def test_the_same_seed_gives_the_same_bits_also_with_workers(here: Path) -> None:
    for name, workers, seed in (("a", 0, 0), ("b", 2, 0), ("c", 0, 1)):
        settings = Settings(steps=6, augment="standard", workers=workers)
        tune(rewritten(), "digits", settings, out=name, seed=seed)
    assert largest_difference("a", "b") == 0
    assert largest_difference("a", "c") > 0


def test_bf16_is_near_and_clipping_limits_the_step(here: Path) -> None:
    plain = {"steps": 3, "optimiser": "sgd", "lr": 0.05, "schedule": "constant", "log_every": 1,
             "weight_decay": 0, "batch": 8}  # fmt: skip
    for name, more in (("plain", {}), ("bf16", {"precision": "bf16"}), ("clip", {"clip": 1e-6})):
        tune(rewritten(**{"lora.dropout": 0}), "digits", Settings(**plain, **more), out=name)
    losses = {n: [s["loss"] for s in lines(n, "step")] for n in ("plain", "bf16", "clip")}
    assert losses["plain"] != losses["bf16"]
    assert losses["plain"] == pytest.approx(losses["bf16"], abs=0.03)
    start = rewritten().delta()
    moved = load_file("clip/delta.safetensors")
    assert max(float((moved[k] - start[k]).abs().max()) for k in start) < 1e-6


def test_a_folder_of_pictures(pictures: Path) -> None:
    result = invoke(
        "tune",
        "lora.peft",
        "data=pictures?val=0.2",
        "num_classes=2",
        "in_chans=3",
        "tune.batch=4",
        "tune.augment=standard",
        "--out",
        "out",
        "--json",
    )
    assert result.status == 0, result.err
    assert result.json["training"]["images"] == {"train": 20, "val": 4}
    assert result.json["training"]["accuracy"] == 1


@pytest.mark.parametrize("clauses", ["train head\n", "train head + stem\n"])
def test_batch_norms_keep_their_statistics(clauses: str, here: Path) -> None:
    import timm

    model = timm.create_model("convnext_atto", depths=(1, 1, 1, 1), in_chans=1, num_classes=10)
    model.stem[1] = torch.nn.BatchNorm2d(model.stem[0].out_channels)  # type: ignore[assignment]
    changed = vr.apply(clauses, model, example=torch.zeros(1, 1, 32, 32))
    tune(changed, "digits", Settings(steps=2), out="out")
    assert torch.equal(changed.module.stem[1].running_mean, model.stem[1].running_mean)


# -- what is refused ------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("given", "code", "status"),
    [
        (["tune.lrr=1"], "VR202", 1),
        (["tune.epochs=-1"], "VR203", 1),
        (["tune.optimiser=adamm"], "VR205", 1),
        (["data=digts"], "VR740", 1),
        (["data=digits", "num_classes=9"], "VR743", 1),
        (["data=digits", "tune.precision=fp16"], "VR852", 1),
        (["data=digits", "tune.shard=true"], "VR852", 1),
        (["data=digits", "tune.batch=2000"], "VR853", 1),
        (["data=digits", "tune.batch=10", "tune.accumulate=3"], "VR853", 1),
        (["data=digits", "device=nonsense"], "VR904", 2),
        (["num_classes=9"], "VR907", 2),
    ],
)
def test_bad_runs_are_refused(here: Path, given: list[str], code: str, status: int) -> None:
    given = given if any("=dig" in g or "classes" in g for g in given) else [*given, "data=digits"]
    result = invoke("tune", "lora.peft", *given, "--out", "out")
    assert (result.status, result.codes) == (status, [code])
    assert not (here / "out").exists()


@pytest.mark.parametrize(
    ("batch", "accumulate", "count", "fits"), [(64, 1, 10, 10), (10, 3, 99, 9), (2, 4, 99, 4)]
)
def test_a_batch_that_fits_is_named(batch: int, accumulate: int, count: int, fits: int) -> None:
    settings = Settings(batch=batch, accumulate=accumulate)
    with pytest.raises(vr.VitrewriteError, match="VR853") as caught:
        check_batch(settings, count, SimpleNamespace(processes=1))
    assert caught.value.suggestion == f"say tune.batch={fits}"


def test_nothing_to_train(here: Path) -> None:
    (here / "empty.peft").write_text("model tiny.py:build\ntrain head\nfreeze head\n")
    assert invoke("tune", "empty.peft", "data=digits", "--out", "out").codes == ["VR855"]


def test_accelerate_is_optional(here: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(__import__("sys").modules, "accelerate", None)
    result = invoke("tune", "lora.peft", "data=digits", "--out", "out")
    assert result.codes == ["VR851"]
    assert "pip install 'vitrewrite[tune]'" in result.err
    assert not (here / "out").exists()


def test_fsdp_of_accelerate_is_refused_on_a_cpu(
    here: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("ACCELERATE_USE_FSDP", "true")
    monkeypatch.setenv("FSDP_VERSION", "2")
    result = invoke("tune", "lora.peft", "data=digits", "device=cpu", "--out", "out")
    assert result.codes == ["VR852"]
    assert "DDP on a CPU" in result.err


def test_a_corrupt_image_stops_the_run_and_is_named(pictures: Path) -> None:
    given = (
        "data=pictures?val=0.2",
        "num_classes=2",
        "in_chans=3",
        "tune.batch=4",
        "tune.epochs=1",
    )
    (pictures / "light" / "07.png").write_bytes(b"nothing")
    result = invoke("tune", "lora.peft", *given, "--out", "out")
    assert result.codes == ["VR742"]
    assert "light/07.png" in result.err
    assert not Path("out").exists()  # it is found before anything is done
    whole = (pictures / "light" / "06.png").read_bytes()
    (pictures / "light" / "07.png").write_bytes(whole[:-30])
    result = invoke("tune", "lora.peft", *given, "--out", "out")
    assert result.codes == ["VR742"]
    assert "light/07.png" in result.err
    assert "--resume" in result.err
    (pictures / "light" / "07.png").write_bytes(whole)
    assert invoke("tune", "lora.peft", *given, "--out", "out", "--resume").status == 0
    (pictures / "light" / "07.png").unlink()
    assert invoke("tune", "lora.peft", *given, "--out", "out", "--resume").codes == ["VR732"]


def test_a_loss_that_is_not_finite_stops_before_it_spoils_the_weights(here: Path) -> None:
    given = ("tune.optimiser=sgd", "tune.lr=1e30", "tune.warmup_epochs=0")
    result = invoke("tune", "lora.peft", "data=digits", *given, "--out", "out")
    assert result.codes == ["VR850"]
    assert "in phase 'train', epoch 0.0" in result.err
    assert "the largest gradient was that of weights" in result.err
    assert "the last good checkpoint is 'out/checkpoints/00-00000000'" in result.err
    kept = load_file("out/checkpoints/00-00000000/tensors.safetensors")
    assert all(bool(tensor.isfinite().all()) for tensor in kept.values())
    assert lines("out", "stopped")


def test_a_device_is_not_waited_for_within_a_step(
    here: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """What a step came to is read when the next one is under way: the run is the same."""
    settings = Settings(steps=7, batch=32, log_every=3, checkpoint_every=4, clip=0.5)
    looked: dict[str, list[int]] = {"at once": [], "later": []}
    original, found = TrainingLoop._look, {}
    for name, early in looked.items():

        def look(self: TrainingLoop, seen: Any, early: list[int] = early) -> None:
            if seen is not None and seen.step == self.run.step:
                early.append(seen.step)  # before the step is done
            original(self, seen)

        monkeypatch.setattr(TrainingLoop, "_look", look)
        monkeypatch.setattr(Engine, "waits", name == "later")
        found[name] = tune(rewritten(), "digits", settings, out=name).delta()
    assert looked == {"at once": [*range(7)], "later": []}
    assert all(torch.equal(v, found["later"][k]) for k, v in found["at once"].items())
    losses = [[line["loss"] for line in lines(name, "step")] for name in found]
    assert losses[0] == losses[1]
    plain = Settings(optimiser="sgd", lr=1e30, checkpoint_every=1)
    with pytest.raises(TuneError, match=r"VR850 .* step [23]\n"):
        tune(rewritten(), "digits", plain, out="spoilt")
    for path in Path("spoilt/checkpoints").iterdir():
        kept = load_file(path / "tensors.safetensors")
        assert all(bool(tensor.isfinite().all()) for tensor in kept.values())


def test_the_table_shows_evaluations_and_the_last_step(
    here: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr("sys.stderr.isatty", lambda: True)
    tune(rewritten(), "digits:0,1", Settings(epochs=3, batch=96, log_every=1), out="out", live=True)
    shown = capsys.readouterr().err
    rows = [line.split() for line in shown.splitlines() if line.split()[:1] == ["train"]]
    assert [row[1] for row in rows[-3:]] == ["1.00", "2.00", "3.00"]
    assert all(row[4].endswith("%") for row in rows[-3:])


def test_training_leaves_the_global_generators_alone(here: Path) -> None:
    model = rewritten()
    torch.manual_seed(5)
    expected = torch.rand(3)
    torch.manual_seed(5)
    tune(model, "digits:0,1", Settings(steps=1), out="out")
    assert torch.equal(torch.rand(3), expected)


def test_settings_are_explained() -> None:
    text = invoke("explain", "tune").out
    assert "batch: int, default 64, minimum 1. images per step" in text
    assert "optimiser: str, default adamw, one of adamw, adam, nadamw, " in text
