"""Weighted sums of deltas: numbers, folders, and what cannot be added up."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest
import torch

import vitrewrite as vr
from tests.cli.invoke import LORA, TINY, invoke
from tests.folders import edit
from tests.test_capture import tiny
from vitrewrite.folder.delta import read_file
from vitrewrite.rewrite.rewritten import Rewritten

SPEC = "insert lora(rank=2) at blocks[*].attn.{q, v}\ninsert ssf() at norm\ntrain head\n"


def saved(path: Path, seed: int, spec: str = SPEC, change: float = 0.0) -> Rewritten:
    model = tiny()
    with torch.no_grad():
        model.norm.bias[0] += change
    rewritten = vr.apply(spec, model)
    generator = torch.Generator().manual_seed(seed)
    for tensor in rewritten.delta().values():
        tensor.copy_(torch.randn(tensor.shape, generator=generator))
    vr.save(rewritten, path)
    return rewritten


@pytest.fixture
def here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(tmp_path)
    return tmp_path


def test_a_weighted_sum_of_files(here: Path) -> None:
    models = [saved(here / name, seed) for seed, name in enumerate("abc")]
    one, two, three = (model.delta() for model in models)
    assert invoke("merge", "a", "b", "c", "--weights", "0.5,-0.25,2", "--out", "d").status == 0
    target = vr.load(vr.apply(SPEC, tiny()), here / "d")
    for name, tensor in target.delta().items():
        expected = 0.5 * one[name] - 0.25 * two[name] + 2 * three[name]
        torch.testing.assert_close(tensor, expected)
    assert read_file(here / "d").metadata["merged_from"] == "0.5 a, -0.25 b, 2 c"
    done = invoke("merge", "a", "a", "--out", "same")
    assert done.out == f"merged    {len(one)} tensors of 2 deltas\nwritten   same\n"
    again = vr.load(vr.apply(SPEC, tiny()), here / "same").delta()
    assert all(torch.equal(again[k], v) for k, v in one.items())
    assert invoke("merge", "a", "b", "--out", "d", "--json").json["weights"] == [0.5, 0.5]


@pytest.mark.slow
def test_folders(here: Path) -> None:
    Path("tiny.py").write_text(TINY)
    Path("lora.peft").write_text(LORA)
    for seed, name in enumerate("ab"):
        rewritten = vr.apply("lora.peft", seed=0)
        torch.manual_seed(seed)
        for tensor in rewritten.delta().values():
            tensor.copy_(torch.randn(tensor.shape))
        vr.emit(rewritten, name)
    done = invoke("merge", "a", "b", "--out", "c")
    assert (done.status, done.out.splitlines()[-1]) == (0, "written   c/")
    assert invoke("verify", "c").status == 0
    one, two, both = (read_file(Path(n, "delta.safetensors"), None).tensors for n in "abc")
    for name, tensor in both.items():
        torch.testing.assert_close(tensor, (one[name] + two[name]) / 2)
    mixed = invoke("merge", "a", "b/delta.safetensors", "--out", "c")
    assert mixed.status == 0
    inside = invoke("merge", "b/delta.safetensors", "a", "--out", "a/delta.safetensors")
    assert "VR717" in inside.err


OTHERS: dict[str, tuple[str, Callable[[Path], object]]] = {
    "spec": ("VR777", lambda p: saved(p, 1, SPEC.replace("rank=2", "rank=3"))),
    "base": ("VR777", lambda p: saved(p, 1, change=1.0)),
    "missing": ("VR722", lambda p: (saved(p, 1), edit(p, lambda t: t.pop("head.bias")))),
    "no delta": ("VR711", lambda p: p.write_text("no")),
    "nothing": ("VR711", lambda p: None),
}


@pytest.mark.parametrize("what", OTHERS)
def test_what_cannot_be_added_up_is_refused(what: str, here: Path) -> None:
    code, make = OTHERS[what]
    saved(here / "a", 0)
    make(here / "b")
    done = invoke("merge", "a", "b", "--out", "c")
    assert (done.status, done.codes) == (1, [code])
    assert not Path("c").exists()


def test_positions_have_to_be_the_same(here: Path) -> None:
    def positions(tensors: dict[str, torch.Tensor]) -> None:
        tensors["index"] = torch.arange(2) + len(list(here.iterdir())) % 2

    for name in "ab":
        saved(here / name, 0)
        edit(here / name, positions)
    done = invoke("merge", "a", "b", "--out", "c")
    assert done.codes == ["VR777"]


@pytest.mark.parametrize(
    "arguments",
    [["a"], [], ["a", "a", "--weights", "1"], ["a", "a", "--weights", "1,x"],
     ["a", "a", "--weights", "1,inf"]],
    ids=str,
)  # fmt: skip
def test_weights_that_are_none(arguments: list[str], here: Path) -> None:
    saved(here / "a", 0)
    done = invoke("merge", *arguments, "--out", "c")
    assert (done.status, done.codes) == (2, ["VR778"])
