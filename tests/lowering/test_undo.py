"""A lowered model turns back into what it was, bit for bit, or says why it cannot."""

from __future__ import annotations

import errno
import json
import os
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file

import vitrewrite as vr
from tests.cli.invoke import invoke, snapshot
from tests.folders import edit, flip, reseal
from vitrewrite.folder import originals
from vitrewrite.folder.reading import load_folder, unlowered_folder
from vitrewrite.rewrite.rewritten import Rewritten
from vitrewrite.rewrite.unlowering import same_bits
from vitrewrite.verification import quick

from .models import LORA, MASKED, MERGE, SPECS, applied, equal, fill, profile, state

TINY = """
from timm.models.vision_transformer import VisionTransformer


def build(**options):
    small = {"img_size": 16, "patch_size": 4, "embed_dim": 16, "depth": 3, "num_heads": 2}
    return VisionTransformer(**{**small, "num_classes": 5, **options})
"""
MODEL = "model tiny.py:build\n"


@pytest.fixture
def here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    (tmp_path / "tiny.py").write_text(TINY)
    monkeypatch.chdir(tmp_path)
    return tmp_path


@pytest.fixture(scope="module")
def written(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with `tiny.py`, `out` and `low`; to be left as it is."""
    folder, before = tmp_path_factory.mktemp("written"), Path.cwd()
    (folder / "tiny.py").write_text(TINY)
    os.chdir(folder)
    try:
        made(LORA)
    finally:
        os.chdir(before)
    return folder


@pytest.fixture
def inside(written: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A copy of `written` as the current folder."""
    monkeypatch.chdir(shutil.copytree(written, tmp_path / "copy"))
    return Path.cwd()


def made(*clauses: str, **options: Any) -> Rewritten:
    """A tuned model, written to `out`, and lowered to `low`."""
    text = MODEL + "\n".join((*clauses, "train head")) + "\n"
    rewritten = fill(vr.apply(text, profile=profile(), **options))
    vr.emit(rewritten, "out")
    vr.emit(vr.lower(rewritten), "low")
    return rewritten


# -- in Python ------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", ["all", "lora, library"])
def test_the_unlowered_model_stays_in_the_result(name: str) -> None:
    rewritten = applied(*SPECS[name])
    before = state(rewritten)
    lowered = vr.lower(rewritten)
    assert lowered.unlowered is rewritten
    assert vr.lower(lowered) is lowered
    for parameter in lowered.module.parameters():
        if parameter.requires_grad:
            parameter.detach().add_(1)
    for buffer in lowered.module.buffers():
        if buffer.is_floating_point():
            buffer.add_(1)
    assert equal(state(rewritten), before)
    # What is kept is what it takes, and no more.
    kept = originals.originals(lowered)  # type: ignore[attr-defined]
    now = lowered.module.state_dict()
    assert equal({**{k: v for k, v in now.items() if k in before}, **kept}, before)
    assert not any(k in now and same_bits(v, now[k]) for k, v in kept.items())


def test_bits_not_values_are_compared() -> None:
    zero, nan = torch.tensor(0.0), torch.tensor([float("nan")])
    assert not same_bits(zero, -zero)
    assert same_bits(nan, nan.clone())
    assert not same_bits(zero, zero.double())
    assert not same_bits(torch.zeros(2), torch.zeros(2, 1))
    assert same_bits(torch.eye(3).T, torch.eye(3))


# -- on disk --------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", SPECS)
def test_a_folder_turns_back_bit_for_bit(name: str, here: Path) -> None:
    rewritten = made(*SPECS[name], seed=3)
    result = invoke("lower", "low", "--undo", "--out", "back")
    assert (result.status, result.err) == (0, "")
    for file in ("weights.safetensors", "delta.safetensors"):
        assert equal(load_file(f"out/{file}"), load_file(f"back/{file}"))
    assert equal(load_file("back/weights.safetensors"), state(rewritten))
    back = unlowered_folder(Path("low"))
    flags = {n: p.requires_grad for n, p in rewritten.module.named_parameters()}
    assert {n: p.requires_grad for n, p in back.module.named_parameters()} == flags
    first, second = (json.loads(Path(f, "lock.json").read_text()) for f in ("out", "back"))
    for key in first.keys() - {"files"}:
        assert first[key] == second[key], key
    # And down again: the same bits as the first time.
    assert invoke("lower", "back", "--out", "again").status == 0
    weights = (load_file(f"{f}/weights.safetensors") for f in ("low", "again"))
    assert equal(*weights)


@pytest.mark.usefixtures("without_graphs")
@pytest.mark.usefixtures("without_processes")
def test_a_lowered_folder_whose_shapes_the_spec_does_not_tell(here: Path) -> None:
    """As many constants as there are prompts that training left."""
    rewritten = made(MASKED, LORA)
    rewritten.delta()["prompt.token_mask"].copy_(torch.tensor([1.0, 0.0, 0.0]))
    vr.emit(vr.lower(rewritten), "low")
    loaded = load_folder(Path("low"))
    assert equal(state(loaded), load_file("low/weights.safetensors"))
    assert loaded.unlowered is not None
    assert equal(state(loaded.unlowered), state(rewritten))
    result = invoke("verify", "low")
    assert (result.status, result.err) == (0, "")


def test_base_weights_are_not_needed(here: Path) -> None:
    base = vr.apply(MODEL + "train head\n").base
    save_file(state_of(base), "base.safetensors")
    rewritten = made(LORA, weights="base.safetensors")
    Path("base.safetensors").unlink()
    assert equal(state(unlowered_folder(Path("low"))), state(rewritten))
    assert invoke("lower", "low", "--undo", "--out", "back").status == 0
    lock = json.loads(Path("back/lock.json").read_text())
    assert lock["weights"] == "base.safetensors"


def state_of(module: torch.nn.Module) -> dict[str, torch.Tensor]:
    return {k: v.clone() for k, v in module.state_dict().items()}


@pytest.mark.slow
def test_lower_after_tune_and_back(here: Path) -> None:
    pytest.importorskip("accelerate")
    spec = MODEL + f"{LORA}\n{MERGE}\ntrain head\n"
    (here / "spec.peft").write_text(spec)
    given = ("data=digits:0-4", "in_chans=1", "tune.steps=4", "tune.warmup_epochs=0", "tune.lr=0.1")
    assert invoke("tune", "spec.peft", *given, "--out", "out").status == 0
    assert invoke("lower", "out", "--out", "low").status == 0
    assert len(load_file("low/originals.safetensors")) == 3 * 3 + 2
    result = invoke("lower", "low", "--undo", "--out", "back", "--json")
    assert (result.status, result.json["lowered"]) == (0, False)
    for file in ("weights.safetensors", "delta.safetensors"):
        assert equal(load_file(f"out/{file}"), load_file(f"back/{file}"))


def test_originals_go_with_the_weights(inside: Path) -> None:
    vr.emit(vr.lower(applied(LORA)), "low", weights=False)
    assert not Path("low/originals.safetensors").exists()
    assert not Path("out/originals.safetensors").exists()


# -- what cannot be turned back -------------------------------------------------------------------


def one_bit(name: str) -> Callable[[dict[str, torch.Tensor]], object]:
    def flip(tensors: dict[str, torch.Tensor]) -> None:
        tensors[name].flatten().view(torch.uint8)[0] ^= 1

    return flip


ORIGINALS, WEIGHTS = "low/originals.safetensors", "low/weights.safetensors"
QKV = "blocks.1.attn.qkv.weight"
# What is wrong, and what is said of it where the lock file agrees; where it does not, VR715.
DAMAGE: dict[str, tuple[Callable[[], object], str]] = {
    "cut": (lambda: Path(ORIGINALS).write_bytes(Path(ORIGINALS).read_bytes()[:-8]), "VR713"),
    "empty": (lambda: Path(ORIGINALS).write_bytes(b""), "VR713"),
    "foreign": (lambda: save_file(load_file(ORIGINALS), ORIGINALS), "VR713"),
    "a bit of the originals": (lambda: edit(ORIGINALS, one_bit(QKV)), "VR714"),
    "an original is gone": (lambda: edit(ORIGINALS, lambda t: t.pop(QKV)), "VR714"),
    "an original too many": (lambda: edit(ORIGINALS, lambda t: t.update(x=t[QKV] + 1)), "VR714"),
    "a bit of the weights": (lambda: edit(WEIGHTS, one_bit("norm.weight")), "VR714"),
    "a bit of the head": (lambda: edit(WEIGHTS, one_bit("head.bias")), "VR714"),
    "cut weights": (lambda: Path(WEIGHTS).write_bytes(b"\x08"), "VR711"),
}
OTHERS: dict[str, tuple[Callable[[], object], str]] = {
    "originals are gone": (lambda: Path(ORIGINALS).unlink(), "VR713"),
    "no weights": (lambda: Path(WEIGHTS).unlink(), "VR715"),
    "another fingerprint": (lambda: reseal("low", base_fingerprint="0" * 40), "VR720"),
    "another spec": (
        lambda: reseal("low", spec=MODEL + "train head\n", places=[["a.peft", 2]]), "VR712",
    ),
    "another place": (lambda: reseal("low", places=[]), "VR703"),
    "no lock": (lambda: Path("low/lock.json").unlink(), "VR703"),
}  # fmt: skip


def undo_fails(code: str, folder: Path) -> str:
    before = snapshot(folder)
    result = invoke("lower", "low", "--undo", "--out", "back")
    assert (result.status, result.codes) == (1, [code]), result.err
    assert snapshot(folder) == before
    return result.err


@pytest.mark.parametrize("what", DAMAGE)
def test_damage_is_told_and_nothing_is_written(what: str, inside: Path) -> None:
    damage, code = DAMAGE[what]
    damage()
    assert "safetensors' is not what was written" in undo_fails("VR715", inside)
    reseal("low")
    undo_fails(code, inside)


@pytest.mark.parametrize("what", OTHERS)
def test_a_folder_that_is_another_is_told(what: str, inside: Path) -> None:
    change, code = OTHERS[what]
    change()
    undo_fails(code, inside)


def test_originals_of_another_model_are_refused(inside: Path) -> None:
    Path(ORIGINALS).rename("kept")
    made(LORA, seed=1)
    Path("kept").rename(ORIGINALS)
    undo_fails("VR715", inside)
    reseal("low")
    undo_fails("VR714", inside)


def test_a_folder_without_originals_is_a_model_all_the_same(inside: Path) -> None:
    Path(ORIGINALS).unlink()  # as it is shipped
    Path("tiny.py").unlink()
    loaded = load_folder(Path("low"))
    assert loaded.unlowered is None
    assert equal(state(loaded), load_file(WEIGHTS))
    assert not any(check.holds is False for check in quick(loaded))


@pytest.mark.parametrize("name", ["head.bias", "norm.weight"])
def test_weights_that_the_delta_does_not_know_are_not_lowered(name: str, inside: Path) -> None:
    edit("out/weights.safetensors", one_bit(name))
    codes = ("VR715", "VR714" if name == "head.bias" else "VR720")
    for code in codes:
        before = snapshot(inside)
        result = invoke("lower", "out", "--out", "new")
        assert (result.status, result.codes) == (1, [code])
        assert "out/weights.safetensors" in result.err
        assert snapshot(inside) == before
        reseal("out")
    if name == "head.bias":  # and with the delta it is fine
        edit("out/delta.safetensors", one_bit(name))
        reseal("out")
        assert invoke("lower", "out", "--out", "new").status == 0


def test_a_delta_from_elsewhere_is_lowered(inside: Path) -> None:
    rewritten = fill(vr.apply(MODEL + LORA + "\ntrain head\n"))
    rewritten.delta()["head.bias"].add_(1)
    vr.save(rewritten, "trained.safetensors")
    line = ("lower", "out", "--delta", "trained.safetensors", "--out", "new")
    assert invoke(*line).status == 0
    want = state(vr.lower(rewritten))
    assert equal(load_file("new/weights.safetensors"), want)
    assert invoke("lower", "low", "--undo", "--delta", "x", "--out", "n").codes == ["VR905"]
    edit("trained.safetensors", one_bit("head.bias"))
    flip(Path("trained.safetensors"), 8 * 1000)
    assert invoke(*line).codes == ["VR715"]
    with pytest.raises(vr.VitrewriteError, match="VR717"):
        vr.save(rewritten, "out/delta.safetensors")
    vr.emit(rewritten, "out")
    assert equal(load_file("out/weights.safetensors"), state(rewritten))
    assert load_folder(Path("out")).delta()["head.bias"].equal(rewritten.delta()["head.bias"])


@pytest.mark.parametrize("undo", [False, True])
def test_a_full_disk_leaves_what_was_there(
    undo: bool, inside: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def full(*_: object, **__: object) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    before = snapshot(inside)
    monkeypatch.setattr("vitrewrite.folder.writing.write_tensors", full)
    line = ("lower", "low", "--undo") if undo else ("lower", "out")
    for out in ("low", "new"):
        assert invoke(*line, "--out", out).codes == ["VR702"]
    assert snapshot(inside) == before
