"""A folder needs no code of others; what its lock file names runs only if the user says so."""

from __future__ import annotations

import os
import shutil
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file

import vitrewrite as vr
from tests.cli.invoke import LORA, TINY, invoke, snapshot
from tests.folders import edit, reseal
from tests.lowering.models import equal, fill, state, vit
from vitrewrite.folder.lock import Folder
from vitrewrite.folder.reading import Trust, load_folder, rewritten_folder
from vitrewrite.folder.writing import model_text
from vitrewrite.verification.folder import verify_folder

CODE = 'open("ran", "w").close()\n'
BUILD = TINY.replace("\n\ndef", f"\n{CODE}\n\ndef", 1)

pytestmark = pytest.mark.usefixtures("without_graphs")


@pytest.fixture(scope="module")
def outputs(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """`out`, its `low`, and `bare` without weights, of a model in a file; and that file."""
    base, before = tmp_path_factory.mktemp("trust"), Path.cwd()
    (base / "tiny.py").write_text(BUILD)
    (base / "lora.peft").write_text(LORA)
    os.chdir(base)
    try:
        assert invoke("apply", "lora.peft", "--out", "out").status == 0
        assert invoke("apply", "lora.peft", "--no-weights", "--out", "bare").status == 0
        assert invoke("lower", "out", "--out", "low").status == 0
    finally:
        os.chdir(before)
    (base / "ran").unlink()
    return base


@pytest.fixture
def inside(outputs: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(shutil.copytree(outputs, tmp_path / "copy"))
    return Path.cwd()


def ran() -> bool:
    """Whether the code of the file ran since this was asked last."""
    found = Path("ran").exists()
    Path("ran").unlink(missing_ok=True)
    return found


@pytest.mark.usefixtures("without_processes")
def test_a_folder_is_verified_lowered_and_turned_back_without_code(inside: Path) -> None:
    for line in (
        "verify out",
        "verify low",
        "lower out --out again",
        "lower low --undo --out back",
    ):
        result = invoke(*line.split())
        assert (result.status, result.err) == (0, ""), line
    assert not ran()
    Path("tiny.py").unlink()
    assert load_folder(Path("low")).unlowered is not None
    for first, second in (("again", "low"), ("back", "out")):
        assert snapshot(Path(first)) == snapshot(Path(second))


def test_code_runs_where_it_is_needed_and_named(inside: Path) -> None:
    for line in ("verify bare", "lower bare --out new"):
        result = invoke(*line.split())
        assert (result.status, result.codes) == (1, ["VR718"])
        assert "'bare' has no weights, and its model is the code 'tiny.py:build'" in result.err
        assert "--trust" in result.err
        assert not ran()
    assert invoke("verify", "bare", "--trust").status == 0
    assert ran()
    Path("tiny.py").rename("mine.py")
    assert invoke("lower", "bare", "model=mine.py:build", "--out", "new").status == 0
    assert ran()
    assert (
        Path("new/weights.safetensors").read_bytes() == Path("low/weights.safetensors").read_bytes()
    )
    assert invoke("lower", "out", "model=mine.py:build", "--out", "other").status == 0
    assert ran()
    assert snapshot(Path("other")) == snapshot(Path("low"))


@pytest.mark.parametrize(
    ("given", "code", "status"),
    [("rank=3", "VR905", 2), ("model=vit_tiny", "VR903", 2), ("model=gone.py:build", "VR310", 1)],
)
def test_other_overrides_of_folders_are_refused(
    given: str, code: str, status: int, inside: Path
) -> None:
    for line in (("verify", "out", given), ("lower", "out", given, "--out", "new")):
        result = invoke(*line)
        assert (result.status, result.codes) == (status, [code])


def test_code_of_a_foreign_folder_does_not_run(inside: Path) -> None:
    """Its files agree with each other, and its source is not what the compiler prints."""
    with Path("out/model.py").open("a") as file:
        file.write(CODE)
    reseal("out", model="evil.py:build", no_program="it is evil")
    Path("evil.py").write_text(BUILD)
    result = invoke("verify", "out")
    assert (result.status, result.codes) == (1, ["VR503"])
    assert "model.py is what vitrewrite prints: measured line" in result.err
    assert "--trust runs it" in result.err
    assert invoke("lower", "out", "--out", "new").status == 0
    assert not ran()
    assert invoke("verify", "out", "--trust").status == 0
    assert ran()
    files = dict(Folder.open(Path("out")).lock["files"])
    del files["program.json"]
    reseal("out", files=files)
    for line in ("verify out", "lower out --out new2"):
        assert invoke(*line.split()).codes == ["VR718"]
    assert not ran()


def test_who_may_build_the_model(inside: Path) -> None:
    assert not load_folder(Path("out")).buildable
    assert load_folder(Path("out"), Trust(code=True)).buildable
    assert load_folder(Path("out"), Trust(model="tiny.py:build")).buildable
    text = (
        "model vit_tiny_patch16_224(depth=1, embed_dim=24, num_heads=2, img_size=32)\ntrain head\n"
    )
    named = vr.apply(text, seed=3)
    vr.emit(named, "named")
    loaded = load_folder(Path("named"))
    assert loaded.buildable
    assert (loaded.model_name, loaded.model_options, loaded.weights_request, loaded.seed) == (
        named.model_name, named.model_options, named.weights_request, 3,
    )  # fmt: skip


# -- models that were objects ---------------------------------------------------------------------


@pytest.mark.usefixtures("without_processes")
def test_a_folder_of_a_model_object_needs_nothing_else(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    spec = "insert lora(rank=2) at blocks[*].attn.{q, v}\nprepend prompt(count=3) to blocks[0]\n"
    rewritten = fill(vr.apply(spec + "train head\n", vit()))
    vr.emit(rewritten, "out")
    loaded = load_folder(Path("out"))
    assert equal(state(loaded), state(rewritten))
    assert loaded.weights_request == "given"
    assert not loaded.buildable
    for line in ("verify out", "lower out --out low", "verify low", "lower low --undo --out back"):
        result = invoke(*line.split())
        assert (result.status, result.err) == (0, ""), line
    assert equal(load_file("low/weights.safetensors"), state(vr.lower(rewritten)))
    assert snapshot(Path("back")) == snapshot(Path("out"))
    vr.emit(rewritten, "bare", weights=False)
    assert invoke("lower", "bare", "--out", "new").codes == ["VR704"]


def test_a_tuned_folder_of_a_model_object(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    pytest.importorskip("accelerate")
    from vitrewrite.tuning import Settings, tune

    monkeypatch.chdir(tmp_path)
    rewritten = vr.apply("insert lora(rank=2) at blocks[0].attn.q\ntrain head\n", vit())
    tune(rewritten, "digits:0-4", Settings(steps=1, batch=8), out="tuned", device="cpu")
    Folder.open(Path("tuned")).check()
    assert equal(state(rewritten_folder(Path("tuned"))), state(rewritten))


def test_what_the_spec_takes_out_of_the_base_is_in_the_folder(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    pytest.importorskip("transformers")
    from tests.hf.zoo import ZOO

    monkeypatch.chdir(tmp_path)
    torch.manual_seed(0)
    member = next(m for n, m in ZOO.items() if "mask2former" in n.lower())
    example = torch.zeros(1, 3, *member.sizes[0])
    text = "replace decoder.layers[0].cross_attn with rcda()\n"
    rewritten = vr.apply(text, member.build(), example=example)
    vr.emit(rewritten, "out")
    gone = rewritten.base.state_dict().keys() - rewritten.module.state_dict().keys()
    assert gone
    assert gone <= load_file("out/program.safetensors").keys()
    loaded = load_folder(Path("out"))
    assert equal(dict(loaded.base.state_dict()), dict(rewritten.base.state_dict()))
    assert equal(state(loaded), state(rewritten))
    assert Path("out/model.py").read_text() == model_text(loaded)


# -- what is in the folder is what is checked -----------------------------------------------------


def test_weights_of_another_model_are_named(inside: Path) -> None:
    name = "blocks.0.mlp.fc1.weight"
    edit("out/weights.safetensors", lambda t: t[name][0, 0].add_(1))
    reseal("out")
    result = invoke("verify", "out")
    assert (result.status, result.codes) == (1, ["VR720"])
    assert "'out/weights.safetensors'" in result.err


ODD = (
    ("out/weights.safetensors", "blocks.0.mlp.fc1.weight", "verify out"),
    ("out/delta.safetensors", "head.bias", "lower out --out new"),
    ("low/weights.safetensors", "norm.weight", "verify low"),
    ("low/originals.safetensors", "blocks.0.attn.qkv_lora.down", "lower low --undo --out new"),
)


@pytest.mark.parametrize("value", [float("nan"), float("inf")])
@pytest.mark.parametrize(("path", "name", "line"), ODD)
def test_numbers_that_are_not_finite_are_refused_by_name(
    path: str, name: str, line: str, value: float, inside: Path
) -> None:
    edit(path, lambda t: t[name].view(-1)[0].fill_(value))
    if path == "low/weights.safetensors":
        Path("low/originals.safetensors").unlink()
    reseal(path[:3])
    result = invoke(*line.split())
    assert (result.status, result.codes) == (1, ["VR716"]), result.err
    assert path in result.err
    assert name in result.err


def test_what_is_not_finite_is_not_written(inside: Path) -> None:
    model = vit()
    rewritten = vr.apply("insert lora(rank=2) at blocks[0].attn.q\n", model)
    vr.emit(rewritten, "new")
    before = snapshot(Path("new"))
    rewritten.delta()["blocks.0.attn.q.lora.up"][0, 0] = float("nan")
    for write in (
        lambda: vr.emit(rewritten, "new"),
        lambda: vr.emit(rewritten, "new", weights=False),
        lambda: vr.save(rewritten, "delta.safetensors"),
    ):
        with pytest.raises(vr.VitrewriteError, match="VR716"):
            write()
    assert snapshot(Path("new")) == before
    assert not Path("delta.safetensors").exists()


@pytest.mark.usefixtures("without_processes")
def test_masks_may_be_infinite(tmp_path: Path) -> None:
    class Masked(torch.nn.Module):
        mask: torch.Tensor

        def __init__(self) -> None:
            super().__init__()
            self.fc = torch.nn.Linear(4, 4)
            self.register_buffer("mask", torch.tensor([0.0, -torch.inf, 0.0, 0.0]))

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return (self.fc(x) + self.mask).softmax(-1)

    rewritten = vr.apply('train module("fc")\n', Masked(), example=torch.zeros(1, 4))
    vr.emit(rewritten, tmp_path / "out")
    loaded = load_folder(tmp_path / "out")
    assert equal(state(loaded), state(rewritten))
    save_file({k: v * torch.nan for k, v in state(rewritten).items()}, tmp_path / "x")
    assert not any(check.holds is False for check in verify_folder(tmp_path / "out"))
    rewritten.module.get_buffer("mask").fill_(torch.nan)
    with pytest.raises(vr.VitrewriteError, match="VR716"):
        vr.emit(rewritten, tmp_path / "out")
