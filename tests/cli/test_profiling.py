"""Bad input to profiling and allocations: one clear error, and nothing is written."""

from __future__ import annotations

import json
import os
import random
import shutil
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file

from tests.folders import edit, flip
from vitrewrite.errors import ProfileError
from vitrewrite.sensitivity.profile import Profile
from vitrewrite.storage.tensors import write_tensors

from .invoke import TINY, invoke, snapshot

SENSITIVE = "sensitive(budget=1K, samples=8, scale=10K)"
SPT = f"""model tiny.py:build
insert lora(rank=1, convention=spt) at optional {SENSITIVE}
insert sparse() at optional {SENSITIVE}
train optional {SENSITIVE}
train head
"""
ONE = "model tiny.py:build\ninsert sparse() at sensitive({})\n"


@pytest.fixture(scope="module")
def prepared(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with a profile in it, and data and files of all kinds of badness."""
    import numpy as np
    from PIL import Image

    base, before = tmp_path_factory.mktemp("prepared"), Path.cwd()
    (base / "tiny.py").write_text(TINY)
    (base / "spt.peft").write_text(SPT)
    for folder, classes in (("images", 2), ("many", 12), ("broken", 2)):
        for label in range(classes):
            (base / folder / f"{label:02}").mkdir(parents=True)
            for number in range(4):
                pixels = np.full((8, 8, 3), 20 * label, dtype=np.uint8)
                Image.fromarray(pixels).save(base / folder / f"{label:02}" / f"{number}.png")
    for path in (base / "broken").rglob("*.png"):
        path.write_bytes(b"no image")
    (base / "empty").mkdir()
    os.chdir(base)
    try:
        assert invoke("profile", "spt.peft", "data=digits", "--out", "p").status == 0
    finally:
        os.chdir(before)
    (base / "text").write_text("no profile")
    (base / "cut").write_bytes((base / "p").read_bytes()[:5000])
    save_file({"x": torch.zeros(3)}, base / "tensors")
    save_file({"x": torch.zeros(3)}, base / "odd", {"vitrewrite": "[]"})
    write_tensors(base / "none", {"x": torch.zeros(3)}, {"vitrewrite": "{}"}, seal=True)
    return base


@pytest.fixture
def bad(prepared: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A copy of it as the current folder."""
    monkeypatch.chdir(shutil.copytree(prepared, tmp_path / "copy"))
    return Path.cwd()


def write(old: str, new: str) -> None:
    """The spec with something else in it, as `bad.peft`."""
    assert old in SPT
    Path("bad.peft").write_text(SPT.replace(old, new))


DATA = [
    ("", "VR907", "add data=digits"),
    ("data=digit", "VR740", "no data 'digit'"),
    ("data=nowhere/at/all", "VR740", "no data"),
    ("data=empty", "VR741", "is empty"),
    ("data=broken", "VR742", "cannot read the image"),
    ("data=many", "VR743", "has 12 classes and the head 10 outputs"),
    ("data=digits num_classes=3", "VR743", "give num_classes=10"),
    ("data=digits in_chans=2", "VR744", "no batch of images"),
    ("data=digits weights=missing.safetensors", "VR711", "missing.safetensors"),
    ("data=digits device=cuda:99", "VR904", "no device"),
    ("data=digits num_classes=0", "VR746", "one label for each image"),
]


@pytest.mark.parametrize(("given", "code", "part"), DATA)
def test_data_that_cannot_be_measured_on(given: str, code: str, part: str, bad: Path) -> None:
    if "num_classes=0" in given:
        given += " global_pool=''"
    before = snapshot(bad)
    result = invoke("profile", "spt.peft", *given.split(), "--out", "new")
    assert result.codes == [code], result.err
    assert result.status == (2 if code.startswith("VR90") else 1)
    assert part in result.err
    assert snapshot(bad) == before


@pytest.mark.parametrize("out", ["images", "missing/p", "spt.peft/p"])
def test_a_profile_goes_only_where_a_file_can_be(out: str, bad: Path) -> None:
    before = snapshot(bad)
    assert invoke("profile", "spt.peft", "data=digits", "--out", out).codes == ["VR702"]
    assert snapshot(bad) == before


PROFILES = [
    ("missing", "VR763", "cannot read the profile"),
    ("text", "VR763", "cannot read the profile"),
    ("cut", "VR763", "cannot read the profile"),
    ("images", "VR763", "cannot read the profile"),
    ("tensors", "VR763", "is no file that 'vitrewrite profile' wrote"),
    ("odd", "VR763", "is no file that 'vitrewrite profile' wrote"),
    ("none", "VR769", "holds no sensitivities"),
    ("p embed_dim=64", "VR760", "norm1.weight is shaped [32]"),
    ("p depth=3", "VR760", "blocks.2.norm1.weight is missing"),
]


@pytest.mark.parametrize(("given", "code", "part"), PROFILES)
def test_profiles_that_do_not_fit(given: str, code: str, part: str, bad: Path) -> None:
    before = snapshot(bad)
    name, *rest = given.split()
    for command in (("plan",), ("apply", "--out", "new")):
        result = invoke(*command, "spt.peft", "--profile", name, *rest)
        assert (result.status, set(result.codes)) == (1, {code}), result.err
        assert part in result.err
    assert snapshot(bad) == before


SPECS: list[tuple[str, str, str]] = [
    ("budget=1K, alpha=0", "VR203", "alpha"),
    ("budget=1K, alpha=-1.5", "VR203", "alpha"),
    ("budget=1K, beta=0", "VR203", "beta"),
    ("budget=0", "VR203", "budget"),
    ("budget=1K, scale=0", "VR203", "scale"),
    ("budget=1K, samples=0", "VR203", "samples"),
    ("budget=1K, per=epoch", "VR209", "sample"),
    ("samples=8", "VR206", "budget"),
    ("budget=1K, samples=8", "VR761", "the nearest totals are 20,0"),
    ("budget=1K, samples=8, scale=100M", "VR761", "at least 2,000,000 are tried"),
    ("budget=10, samples=8, scale=10K", "VR761", "the nearest totals are"),
    ("budget=1K, samples=9, scale=10K", "VR769", "from 8 samples, per sample"),
    ("budget=1K, samples=8, per=batch, scale=10K", "VR769", "wants 8 samples, per batch"),
]


@pytest.mark.parametrize(("options", "code", "part"), SPECS)
def test_selectors_that_cannot_be(options: str, code: str, part: str, bad: Path) -> None:
    Path("bad.peft").write_text(ONE.format(options))
    result = invoke("plan", "bad.peft", "--profile", "p")
    assert (result.status, result.codes) == (1, [code]), result.err
    assert part in result.err
    assert result.err.startswith("bad.peft:2:")  # says where


@pytest.mark.parametrize(
    ("old", "new", "code"),
    [
        ("lora(rank=1,", "lora(rank=32,", "VR766"),
        ("lora(rank=1, convention=spt)", "adapter(hidden=64)", "VR766"),
        ("train optional " + SENSITIVE, "train sensitive(budget=1K, samples=9)", "VR769"),
    ],
)
def test_specs_that_cannot_be(old: str, new: str, code: str, bad: Path) -> None:
    write(old, new)
    result = invoke("plan", "bad.peft", "--profile", "p")
    assert (result.status, set(result.codes)) == (1, {code}), result.err
    if code == "VR769":  # measured neither
        assert invoke("profile", "bad.peft", "data=digits", "--out", "q").codes == ["VR769"]
        assert not Path("q").exists()


@pytest.mark.parametrize("value", [float("nan"), float("inf")])
def test_weights_that_are_not_finite(value: float, bad: Path) -> None:
    from vitrewrite import models

    state = {k: v.clone() for k, v in models.create("tiny.py:build").state_dict().items()}
    state["blocks.0.mlp.fc1.weight"][0, 0] = value
    save_file(state, "nan.safetensors")
    before = snapshot(bad)
    result = invoke("profile", "spt.peft", "data=digits", "weights=nan.safetensors", "--out", "q")
    assert (result.status, result.codes) == (1, ["VR716"])
    kind = "NaN" if value != value else "infinite numbers"
    assert f"'nan.safetensors' holds {kind}: blocks.0.mlp.fc1.weight" in result.err
    assert snapshot(bad) == before


@pytest.mark.parametrize(
    ("change", "code"),
    [
        (lambda t: t.update({k: v * float("nan") for k, v in t.items() if "fc2" in k}), "VR762"),
        (lambda t: t.pop("sensitivity.norm.bias"), "VR760"),
    ],
)
def test_profiles_that_were_changed(
    change: Callable[[dict[str, torch.Tensor]], object], code: str, bad: Path
) -> None:
    edit("p", change)
    result = invoke("plan", "spt.peft", "--profile", "p")
    assert set(result.codes) == {code}


def test_a_profile_notices_every_bit(bad: Path) -> None:
    size = 8 * Path("p").stat().st_size
    for bit in random.Random(0).sample(range(size), 20):
        flip(Path("p"), bit)
        with pytest.raises(ProfileError, match="VR763"):
            Profile.load("p")
        flip(Path("p"), bit)
    flip(Path("p"), size // 2)
    result = invoke("apply", "spt.peft", "--profile", "p", "--out", "x")
    assert (result.status, result.codes) == (1, ["VR763"])
    assert "'p'" in result.err


def test_a_profile_says_how_it_was_made(bad: Path) -> None:
    command = ("profile", "spt.peft", "data=images?val=0.25", "--out", "q")
    refused = invoke(*command, "--profile", "p")  # it would not be read: this makes another
    assert refused.status == 2
    assert "--profile" in refused.err
    assert not Path("q").exists()
    about = json.loads(invoke(*command, "--json").out)
    assert about["way"] == {"samples": 8, "per": "sample"}
    assert about["samples"] == 6  # there are no more to train on
    assert invoke("plan", "spt.peft", "--profile", "q").status == 0


def test_a_run_does_not_go_on_with_another_allocation(bad: Path) -> None:
    run = (
        "tune",
        "spt.peft",
        "data=images?val=0.25",
        "tune.epochs=1",
        "tune.batch=2",
        "--out",
        "run",
    )
    assert invoke("profile", "spt.peft", "data=images?val=0.25", "--out", "q").status == 0
    assert invoke(*run, "--profile", "p").status == 0
    result = invoke(*run, "--profile", "q", "--resume")
    assert (result.status, result.codes) == (1, ["VR732"])
    assert (
        f"allocations.{SENSITIVE.replace('1K', '1000').replace('10K', '10000')} was" in result.err
    )
    assert invoke(*run, "--profile", "p", "--resume").status == 0


def test_models_without_blocks(bad: Path) -> None:
    Path("flat.py").write_text(
        "import torch\n"
        "def build():\n"
        "    m = torch.nn.Sequential(torch.nn.Flatten(), torch.nn.Linear(3072, 10))\n"
        "    m.pretrained_cfg = {'input_size': (3, 32, 32)}\n"
        "    return m\n"
    )
    given = ("spt.peft", "model=flat.py:build", "data=digits", "--out", "q")
    assert invoke("profile", *given).codes == ["VR766"]
    assert not Path("q").exists()
