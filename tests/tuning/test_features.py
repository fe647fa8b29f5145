"""Training on what the frozen part yields: equal to training with it, and what is refused."""

from __future__ import annotations

import copy
import errno
import json
import shutil
from pathlib import Path
from typing import Any

import pytest
import torch

import vitrewrite as vr
from tests.cli.invoke import invoke
from vitrewrite.data import Preprocessing, open_data
from vitrewrite.errors import VitrewriteError
from vitrewrite.features import store
from vitrewrite.rewrite.frozen import cut_of
from vitrewrite.tuning import Settings, cached, tune
from vitrewrite.tuning.loop import TrainingLoop

from .test_resume import without_times

LINEAR = "train head"
METHODS = {
    "head2toe": "replace head with head2toe(fraction=0.1)",
    "linear": LINEAR,
    "lst": "insert lst(reduction=2) at blocks[*]\ntrain head",
    "partial": "train head + blocks[1] + norm",
    "side_tuning": "insert side_tuning() before head\ntrain head",
    "synqt": "insert synqt(count=2, hidden=8, narrow=4) at blocks[*]\ntrain head",
    "synqt_copies": "insert synqt(count=2, hidden=8, narrow=4, kem=trained) at blocks[*]\n"
    "train head",
    "tome": "insert merge.tome(r=2) after blocks[*].attn\ntrain head",
    "vqt": "prepend vqt(count=2) to blocks[*]\ntrain head",
}
LONG = ("partial", "synqt_copies", "tome")
DATA = "digits:0-2?images=64"
SHORT: dict[str, Any] = {"epochs": 2, "batch": 16, "lr": 0.01, "log_every": 1}
KEPT: dict[str, Any] = {**SHORT, "cache": "features"}


def rewritten(spec: str, options: str = "", **more: Any) -> Any:
    return vr.apply(f"model tiny.py:build(num_classes=3{options})\n{spec}\n", **more)


def trained(spec: str, out: str, data: str = DATA, options: str = "", **settings: Any) -> Any:
    resume, seed = settings.pop("resume", False), settings.pop("seed", 0)
    made = rewritten(spec, options, seed=seed)
    return tune(made, data, Settings(**settings), out=out, device="cpu", resume=resume)


def losses(out: str) -> list[float]:
    lines = [json.loads(line) for line in Path(out, "metrics.jsonl").read_text().splitlines()]
    return [line[k] for line in lines for k in ("loss", "accuracy") if k in line]


def refused(code: str, words: str, **changes: Any) -> VitrewriteError:
    given = {"spec": LINEAR, "out": "out", **KEPT, **changes}
    with pytest.raises(VitrewriteError) as caught:
        trained(**given)
    assert (caught.value.code, words in caught.value.message) == (code, True), caught.value.message
    return caught.value


@pytest.mark.parametrize(
    "name", [pytest.param(n, marks=[pytest.mark.slow] * (n in LONG)) for n in sorted(METHODS)]
)
def test_training_is_the_same_as_with_the_whole_model(name: str, here: Path) -> None:
    more: dict[str, Any] = {}
    if name == "side_tuning":
        more = {"options": ", img_size=64, patch_size=16", "steps": 2}
    expected = trained(METHODS[name], "whole", **{**SHORT, **more}).delta()
    found = trained(METHODS[name], "kept", **{**KEPT, **more})
    assert found.training["features"]["bytes"] > 0
    assert losses("kept") == pytest.approx(losses("whole"), rel=1e-5)
    delta = found.delta()
    assert delta.keys() == expected.keys()
    for key, value in expected.items():
        assert torch.allclose(delta[key], value, rtol=1e-4, atol=1e-6), key
    assert not Path("kept", cached.FOLDER).exists()  # nobody else reads it


@pytest.mark.slow
def test_all_phases_of_a_selection_run_on_the_same_values(here: Path) -> None:
    spec = "prepend vqt(count=2, keep=0.5) to blocks[*]\ntrain head"
    expected, found = (trained(spec, n, **s).delta() for n, s in (("a", SHORT), ("b", KEPT)))
    assert all(torch.allclose(found[k], v, rtol=1e-4, atol=1e-6) for k, v in expected.items())


@pytest.mark.parametrize(
    ("spec", "size"),
    [
        ("synqt", 2 * 2 * 197 * 768), ("head2toe", 2 * 7 * 768 + 768), ("lst", 3 * 197 * 768),
        ("linear", 768),
    ],
)  # fmt: skip
def test_a_plan_tells_what_an_image_takes(spec: str, size: int) -> None:
    asked = {"tune.cache": "features", "depth": 2}
    assert vr.plan(spec, **asked).to_json()["features"]["bytes"] == 4 * size
    if spec == "linear":
        assert vr.plan(spec, **asked, **{"tune.cache_dtype": "bf16"}).features["bytes"] == 2 * size
        assert "features" not in vr.plan(spec, depth=2).to_json()


@pytest.mark.slow
def test_keys_and_values_of_vit_b_take_what_the_paper_has() -> None:
    plan = vr.plan("synqt", **{"tune.cache": "features"})
    assert plan.features == {"bytes": 14_524_416, "macs_spared": 16_341_496_320}


def test_the_commands_take_and_tell_it(here: Path) -> None:
    (here / "linear.peft").write_text("model tiny.py:build(num_classes=3)\n\ntrain head\n")
    given = ("linear.peft", f"data={DATA}", "tune.cache=features")
    lines = invoke("plan", *given).out.splitlines()
    assert "features     128 bytes an image on disk; no step computes" in "\n".join(lines)
    assert any("for 170 images" in line for line in lines), lines
    short = ("tune.epochs=1", "tune.batch=32", "tune.cache_at=shared", "tune.cache_dtype=bf16")
    assert invoke("tune", *given, *short, "--out", "out").status == 0
    assert (here / "shared" / store.INDEX).is_file()
    wrong = invoke("tune", *given[:2], "tune.cache=feature", "--out", "other")
    assert wrong.codes == ["VR205"]
    assert "did you mean 'features'?" in wrong.err


def test_runs_share_a_folder(here: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    trained(METHODS["synqt"], "first", cache_at="shared", **KEPT)
    filled = []
    original = cached.Filling._computed
    monkeypatch.setattr(cached.Filling, "_computed", lambda *a: filled.append(1) or original(*a))
    other = METHODS["synqt"].replace("count=2", "count=1")
    trained(other, "second", cache_at="shared", seed=0, **{**KEPT, "lr": 0.1})
    assert not filled
    assert Path("shared", store.INDEX).is_file()


@pytest.mark.slow
def test_half_of_the_bytes_are_enough(here: Path) -> None:
    whole = trained(METHODS["synqt"], "whole", **KEPT)
    half = trained(METHODS["synqt"], "half", cache_dtype="bf16", **KEPT)
    assert 2 * half.training["features"]["bytes"] == whole.training["features"]["bytes"]
    assert losses("half") == pytest.approx(losses("whole"), abs=0.02)


def test_a_run_goes_on_bit_identical(here: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    spec, settings = LINEAR, {**KEPT, "checkpoint_every": 3}
    whole = trained(spec, "whole", **settings).delta()
    original, calls = TrainingLoop._update, []

    def interrupted(loop: TrainingLoop, sums: Any) -> None:
        calls.append(1)
        if len(calls) == 5:
            raise KeyboardInterrupt
        original(loop, sums)

    monkeypatch.setattr(TrainingLoop, "_update", interrupted)
    with pytest.raises(KeyboardInterrupt):
        trained(spec, "parts", **settings)
    assert Path("parts", cached.FOLDER, store.INDEX).is_file()
    again = trained(spec, "parts", resume=True, **settings).delta()
    assert all(torch.equal(again[k], v) for k, v in whole.items())
    assert without_times(here / "parts") == without_times(here / "whole")
    trained(spec, "whole", resume=True, **settings)  # a finished run, whose features are gone
    refused("VR732", "another one", out="parts", spec=spec, resume=True, **{**settings, "cache": 9})


def test_an_interrupted_filling_starts_again(here: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def interrupted(*_: Any) -> None:
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(store.FeatureWriter, "write", interrupted)
        with pytest.raises(KeyboardInterrupt):
            trained(LINEAR, "out", **KEPT)
    assert {p.name for p in Path("out").iterdir()} == {"tune.json"}
    trained(LINEAR, "out", resume=True, **KEPT)


@pytest.mark.parametrize(
    ("changes", "code", "words"),
    [
        ({"spec": "train patch_embed + head"}, "VR550", "what is trained reads the images"),
        ({"spec": "train every parameter"}, "VR550", "would keep nothing"),
        ({"options": ", proj_drop_rate=0.1"}, "VR551", "the model's proj_drop_rate"),
        ({"spec": LINEAR + "\ntune { drop_path = 0.1 }", "drop_path": 0.1}, "VR551",
         "'blocks.1.drop_path1' is drawn anew in each step of training: drop_path = 0.1"),
        ({"crop": 0.5}, "VR552", "with crop = 0.5 it is another in every"),
        ({"augment": "standard"}, "VR552", "with augment = standard"),
        ({"mixup": 0.8}, "VR552", "with mixup = 0.8"),
        ({"teacher": "base"}, "VR553", "with teacher = base"),
    ],
    ids=lambda value: str(value)[:40],
)  # fmt: skip
def test_what_changes_from_step_to_step_is_refused(
    changes: dict[str, Any], code: str, words: str, here: Path
) -> None:
    refused(code, words, **changes)
    assert not Path("out").exists()  # before anything is written


def test_dropout_in_front_of_the_head_is_drawn_as_ever(here: Path) -> None:
    for out, settings in (("whole", SHORT), ("kept", KEPT)):
        trained(LINEAR, out, options=", drop_rate=0.3", **settings)
    assert losses("kept") == pytest.approx(losses("whole"), rel=1e-5)


def test_a_procedure_that_computes_with_images_is_refused(here: Path) -> None:
    batch: Any = cached.CrossingBatch([None], None, 2)
    with pytest.raises(VitrewriteError, match="a procedure of this spec computes with them"):
        rewritten(LINEAR).module(batch)


def test_features_of_something_else_are_refused(here: Path) -> None:
    trained(LINEAR, "first", cache_at="shared", **KEPT)
    changes: dict[str, dict[str, Any]] = {
        "images": {"data": "digits:0-2?images=48"}, "transforms": {"inputs": "unit"},
        "precision": {"precision": "bf16"}, "cache_dtype": {"cache_dtype": "bf16"},
        "weights": {"seed": 1},
    }  # fmt: skip
    for number, (what, change) in enumerate(changes.items()):
        error = refused("VR554", f"of other {what}", out=f"{number}", cache_at="shared", **change)
        assert error.notes
        assert error.suggestion == "remove the folder, or give another one with tune.cache_at"
    found = invoke("tune", "lora.peft", "data=digits", "tune.cache=features", "--out", "other")
    assert found.codes == ["VR550"]  # in one line, and nothing else


def test_broken_features_are_refused(here: Path) -> None:
    trained(LINEAR, "first", cache_at="shared", **KEPT)
    index = Path("shared", store.INDEX)
    (name,) = (p for p in Path("shared").iterdir() if len(p.name) == 24)
    content, text = name.read_bytes(), index.read_text()

    def expect(words: str) -> None:
        refused("VR555", words, out="second", cache_at="shared", resume=Path("second").exists())

    name.write_bytes(content[:-4])
    expect(f"it has {len(content) - 4:,} bytes of {len(content):,}")
    name.write_bytes(bytes(len(content)))
    expect("not what the model yields at 'head_drop'")
    name.unlink()
    expect("no such file")
    name.write_bytes(content)
    index.write_text(text.replace('"rows": 170', '"rows": 173'))
    expect("it was changed since it was written")
    index.write_text("{}")
    expect("it was changed since it was written")
    index.write_text(text)
    trained(LINEAR, "second", cache_at="shared", resume=True, **KEPT)


def test_a_full_disk_leaves_nothing(here: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def full(*_: Any) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    with monkeypatch.context() as patch:
        patch.setattr(store.FeatureWriter, "write", full)
        refused("VR556", "it is full", cache_at="shared")
    with monkeypatch.context() as patch:
        patch.setattr(shutil, "disk_usage", lambda _: type("Usage", (), {"free": 1000}))
        refused("VR556", "and 1.0 kB are free", out="other", cache_at="shared")
    assert {p.name for p in here.iterdir()} == {"tiny.py", "lora.peft", "out", "other"}


def test_what_differs_in_training_is_refused(here: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def doubled(module: Any) -> Any:
        other = copy.deepcopy(module)
        other.norm.weight.data.mul_(2)
        return other

    monkeypatch.setattr(cached, "training_mode", doubled)
    refused("VR557", "another value in training than in evaluation")


@pytest.mark.slow
def test_a_value_is_found_by_the_program_that_makes_it(here: Path) -> None:
    cuts = [
        cut_of(made.result, made.module)
        for made in map(rewritten, (METHODS["synqt"], METHODS["synqt"], METHODS["lst"], LINEAR))
    ]
    names = [{each.digest for each in cut.kept} for cut in cuts]
    assert names[0] == names[1]
    assert not names[0] & (names[2] | names[3])
    data = open_data(DATA, Preprocessing.of(rewritten(LINEAR).base))
    assert len({*data.train.indices} | {*data.val.indices}) == 170
