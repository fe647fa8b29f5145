"""Bad command lines, specs, weights and folders: one clear error, and nothing is written."""

from __future__ import annotations

import socket
from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file

from .invoke import LORA, invoke, snapshot

INSERT = "model tiny.py:build\ninsert lora({}) at {}\n"
TRAIN = "model tiny.py:build\ntrain {}\n"

# What is wrong, what is in the spec, further arguments of `apply`, exit status, codes.
SPECS: list[tuple[str, str | bytes, str, int, str]] = [
    ("pass", "insert lroa() at blocks\n", "", 1, "VR201"),
    ("option", INSERT.format("rnak=4", "blocks[0].attn.q"), "", 1, "VR202"),
    ("option value", INSERT.format("rank=0", "blocks[0].attn.q"), "", 1, "VR203"),
    ("option type", INSERT.format("rank=1.5", "blocks[0].attn.q"), "", 1, "VR204"),
    ("choice", INSERT.format("convention=vtap", "blocks[0].attn.q"), "", 1, "VR209"),
    ("quoted choice", INSERT.format("convention='x'", "blocks[0].attn.q"), "", 1, "VR205"),
    ("verb for pass", "prepend lora() to blocks\n", "", 1, "VR208"),
    ("rank too large", INSERT.format("rank=32", "blocks[0].attn.q"), "", 1, "VR403"),
    ("rank of an override", LORA, "rank=33", 1, "VR403"),
    ("site", TRAIN.format("blocks[0].attn.gate"), "", 1, "VR301"),
    ("kind of site", TRAIN.format("every linaer in blocks"), "", 1, "VR301"),
    ("attribute", TRAIN.format("blocks where widht > 3"), "", 1, "VR305"),
    ("site for pass", INSERT.format("", "blocks[0].attn"), "", 1, "VR406"),
    ("rows alone", TRAIN.format("blocks[0].attn.q"), "", 1, "VR408"),
    ("block", TRAIN.format("blocks[2]"), "", 1, "VR304"),
    ("block from the end", TRAIN.format("blocks[-3]"), "", 1, "VR304"),
    ("nothing matches", INSERT.format("", "blocks[*].attn.q where dim > 99"), "", 1, "VR302"),
    ("selected twice", TRAIN.format("blocks[*] + blocks[1]"), "", 1, "VR303"),
    ("the same rows", INSERT.format("", "blocks[0].attn.{q, qkv}"), "", 1, "VR303"),
    ("two conflicts", INSERT.format("", "blocks[*].attn.q")
     + "insert lora() at blocks[1].attn.{q, v}\n", "", 1, "VR401"),
    ("measurements", TRAIN.format("sensitive(budget=1K)"), "", 1, "VR306"),
    ("claim", LORA + "require params < 1K\n", "", 1, "VR501"),
    ("several errors", TRAIN.format("blocks[7]") + "freeze nrm\n", "", 1, "VR304 VR301"),
    ("syntax", "train (\nfreeze blocks[\n", "", 1, "VR108 VR108"),
    ("empty clause", "insert lora at\n", "", 1, "VR114"),
    ("not UTF-8", b"train head\n\xff\xfe\n", "", 1, "VR103"),
    ("binary", bytes(range(256)) * 100, "", 1, "VR103"),
    ("control characters", b"train \x00head\n", "", 1, "VR104"),
    ("too large", b"train head\n" * 1_000_000, "", 1, "VR102"),
    ("no model", "train head\n", "", 1, "VR312"),
    ("includes nothing", 'include "x.peft"\n', "", 1, "VR220"),
    ("model", "train head\n", "model=vit_bsae", 1, "VR310"),
    ("model of the hub", "train head\n", "model=hf-hub:timm/vit_tiny_patch16_224", 1, "VR310"),
    ("folder as model", "train head\n", "model=local-dir:/tmp", 1, "VR310"),
    ("weights tag", "train head\n", "model=vit_tiny_patch16_224.nope", 1, "VR311"),
    ("model file", "train head\n", "model=missing.py:build", 1, "VR310"),
    ("model function", "train head\n", "model=tiny.py:bulid", 1, "VR311"),
    ("no module", "train head\n", "model=odd.py:number", 1, "VR311"),
    ("module that stops", "train head\n", "model=odd.py:stop", 1, "VR311"),
    ("model argument", LORA, "model.dpeth=3", 1, "VR311"),
    ("argument value", LORA, "num_heads=0", 1, "VR311"),
    ("argument type", LORA, "img_size=large", 1, "VR311"),
    ("timm argument", LORA, "model=vit_tiny(num_heads=0)", 1, "VR311"),
    ("pickle", LORA, "model=vit_tiny(checkpoint_path='x.pth')", 1, "VR311"),
    ("weights by the back door", LORA, "model=vit_tiny(pretrained=true)", 1, "VR311"),
    ("override", LORA, "rnak=4", 1, "VR218"),
    ("option of no pass", LORA, "lora.rnak=4", 1, "VR218"),
    ("value of an override", LORA, "rank=65", 1, "VR203"),
    ("type of an override", LORA, "rank=many", 1, "VR204"),
    ("override twice", LORA, "rank=4 rank=5", 1, "VR219"),
    ("no override", LORA, "rank", 1, "VR219"),
    ("seed", LORA, "seed=abc", 2, "VR903"),
    ("negative seed", LORA, "seed=-1", 2, "VR903"),
    ("huge seed", LORA, "seed=18446744073709551616", 2, "VR903"),
    ("flag", LORA, "--rank 4", 2, ""),
    ("no weights", LORA, "weights=none.safetensors", 1, "VR711"),
    ("folder as weights", LORA, "weights=.", 1, "VR711"),
    ("a program as weights", LORA, "weights=program.pth", 1, "VR711"),
    ("weights cut short", LORA, "weights=short.safetensors", 1, "VR711"),
    ("weights of another model", LORA, "weights=other.safetensors", 1, "VR712"),
    ("weights of another size", LORA, "weights=base.safetensors embed_dim=64", 1, "VR712"),
    ("out is a file", LORA, "--out tiny.py", 1, "VR701"),
    ("out is a foreign folder", LORA, "--out folder", 1, "VR701"),
    ("out is where we are", LORA, "--out .", 1, "VR701"),
    ("out is the root", LORA, "--out /", 1, "VR701"),
    ("out below a file", LORA, "--out tiny.py/x/y", 1, "VR702"),
    ("out in no real place", LORA, "--out /proc/nothing/x", 1, "VR702"),
    ("out is a long name", LORA, "--out " + "x" * 300, 1, "VR702"),
    ("out is a loop", LORA, "--out loop/x", 1, "VR702"),
]  # fmt: skip
ODD = """
import sys
def number(): return 3
def stop(): sys.exit(7)
"""


@pytest.fixture
def bad(here: Path) -> Path:
    """The current folder, with files in it that are something else than their name says."""
    from vitrewrite import models

    (here / "folder").mkdir()
    (here / "folder" / "precious.txt").write_text("mine")
    (here / "loop").symlink_to("loop")
    (here / "odd.py").write_text(ODD)
    model = models.create("tiny.py:build")
    torch.save(model, "program.pth")
    save_file(model.state_dict(), "base.safetensors")
    save_file({"x": torch.zeros(3)}, "other.safetensors")
    (here / "short.safetensors").write_bytes((here / "base.safetensors").read_bytes()[:5000])
    return here


@pytest.mark.parametrize("case", SPECS, ids=lambda case: case[0].replace(" ", "-"))
def test_bad_specs_and_arguments(bad: Path, case: tuple[str, str | bytes, str, int, str]) -> None:
    _, text, arguments, status, codes = case
    (bad / "spec.peft").write_bytes(text if isinstance(text, bytes) else text.encode())
    before = snapshot(bad)
    for command in ("apply", "plan"):
        if command == "plan" and {"--out", "weights"} & set(arguments.replace("=", " ").split()):
            continue  # a plan takes neither
        result = invoke(command, "spec.peft", *arguments.split())
        assert (result.status, result.codes) == (status, codes.split()), command + result.err
        assert 0 < len(result.err) < 2000
        assert snapshot(bad) == before


COMMANDS: list[tuple[str, int, str]] = [
    ("", 2, ""),
    ("aply lora.peft", 2, ""),
    ("apply", 2, ""),
    ("apply missing.peft", 1, "VR101"),
    ("apply lora_qvv", 1, "VR226"),
    ("apply folder", 1, "VR226"),
    ("plan folder.peft", 1, "VR101"),
    ("check", 2, "VR902"),
    ("check lora.peft missing.peft nothing", 1, "VR101 VR226"),
    ("sites", 2, ""),
    ("sites vit_bsae", 1, "VR310"),
    ("sites tiny.py:build depth=none", 1, "VR311"),
    ("sites tiny.py:build depth", 1, "VR219"),
    ("sites ((", 1, "VR108"),
    ("sites cannot.py:branch", 1, "VR602"),
    ("plan lora.peft model=cannot.py:branch", 1, "VR602"),
    ("plan lora.peft model=cannot.py:broken", 1, "VR602"),
    ("plan lora.peft model=cannot.py:nothing", 1, "VR301 VR301"),
    ("plan lora.peft model=cannot.py:unsized", 1, "VR601"),
    ("apply lora.peft model=cannot.py:plain", 1, "VR301"),
    ("list", 2, ""),
    ("list modles", 2, ""),
    ("explain", 2, ""),
    ("explain VR123", 2, "VR901"),
    ("explain atention", 1, "VR229"),
    ("fmt", 2, ""),
    ("fmt missing.peft folder", 1, "VR101 VR101"),
    ("fmt /dev/null/x", 1, "VR101"),
    ("verify folder", 1, "VR703"),
    ("verify folder rank=4", 2, "VR905"),
    ("verify nothing", 1, "VR226"),
    ("verify broken", 1, "VR703"),
    ("lower", 2, ""),
    ("lower folder", 2, ""),
    ("lower folder --out low", 1, "VR703"),
    ("lower broken --out low", 1, "VR703"),
    ("lower missing --out low", 1, "VR703"),
    ("lower folder --out folder", 1, "VR701"),
    ("diff lora.peft", 2, ""),
    ("diff lora.peft nothing", 1, "VR226"),
    ("diff lora.peft broken", 1, "VR703"),
    ("bench lora.peft --rounds 0", 2, ""),
    ("bench lora.peft --batch many", 2, ""),
    ("bench lora.peft device=cuda:99", 2, "VR904"),
    ("bench lora.peft device=graphics", 2, "VR904"),
    ("bench lora.peft --threads 0", 2, ""),
    ("bench lora.peft --dtype float64", 2, ""),
    ("bench lora.peft --batch 100000000000000", 2, "VR906"),
    ("bench lora.peft --out folder", 1, "VR702"),
    ("bench lora.peft --svg folder", 1, "VR702"),
    ("bench lora.peft --svg missing/b.svg", 1, "VR702"),
]
CANNOT = """
import torch

class Model(torch.nn.Module):
    pretrained_cfg = {"input_size": (3, 8, 8)}

    def __init__(self, run, layer=None):
        super().__init__()
        self.run, self.layer = run, layer or torch.nn.Linear(8, 8)

    def forward(self, x):
        return self.run(x, self.layer)

def broken_forward(x, layer):
    raise KeyError("no such thing")

def branch(): return Model(lambda x, f: f(x) if x.sum().item() > 0 else x)
def broken(): return Model(broken_forward)
def nothing(): return Model(lambda x, f: None)
def plain(): return Model(lambda x, f: f(x))
def empty(): return Model(lambda x, f: f(x) + 1, torch.nn.Identity())
def unsized():
    model = plain()
    model.pretrained_cfg = None
    return model
"""


@pytest.mark.parametrize("case", COMMANDS, ids=lambda case: case[0].replace(" ", "-") or "nothing")
def test_bad_command_lines(here: Path, case: tuple[str, int, str]) -> None:
    line, status, codes = case
    for folder in ("folder", "folder.peft", "broken"):
        (here / folder).mkdir()
    (here / "folder" / "precious.txt").write_text("mine")
    (here / "broken" / "lock.json").write_text('{"made_by": "vitrewrite", "spec": 3}')
    (here / "cannot.py").write_text(CANNOT)
    before = snapshot(here)
    result = invoke(*line.split())
    assert (result.status, result.codes) == (status, codes.split()), result.err
    assert 0 < len(result.err) < 2500
    assert snapshot(here) == before


def test_a_model_without_parameters(here: Path) -> None:
    (here / "cannot.py").write_text(CANNOT)
    (here / "no_clause.peft").write_text("# nothing\n")
    assert invoke("plan", "no_clause.peft", "model=cannot.py:empty").status in (0, 1)


def test_messages_say_what_is_valid_and_what_was_meant(here: Path) -> None:
    for line, parts in (
        ("plan lora.peft rnak=4", ["did you mean 'rank'?", "can be overridden"]),
        ("plan lora.peft model=vit_bsae", ["did you mean 'vit_base'?"]),
        ("plan lora.peft rank=40", ["valid: 1..31", "lora.peft:5:"]),
        ("plan lora.peft rank=65", ["1..64"]),
        ("apply lora.peft --out tiny.py", ["left alone", "--out"]),
        ("apply lora.peft weights=lora.peft", ["cannot read weights 'lora.peft'"]),
        ("aply lora.peft", ["No such command 'aply'"]),
    ):
        result = invoke(*line.split())
        assert result.status
        for part in parts:
            assert part in result.err


# -- pretrained weights without a network ---------------------------------------------------------


def test_pretrained_without_a_network(here: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    import huggingface_hub

    asked: list[object] = []

    def no_network(*args: object, **_: object) -> None:
        asked.append(args)
        raise socket.gaierror(-2, "Name or service not known")

    monkeypatch.setattr(socket, "getaddrinfo", no_network)
    monkeypatch.setattr(huggingface_hub, "try_to_load_from_cache", lambda **_: None)
    monkeypatch.setattr("time.sleep", asked.append)
    (here / "spec.peft").write_text("train head\n")
    before = snapshot(here)
    result = invoke("apply", "spec.peft", "model=vit_tiny", "depth=1", "weights=pretrained")
    assert (result.status, result.codes) == (1, ["VR710"])
    assert len(asked) <= 2  # no long series of attempts, and no waiting between them
    assert "weights=FILE.safetensors" in result.err
    assert invoke("apply", "lora.peft", "weights=pretrained").codes == ["VR710"]
    assert snapshot(here) == before


def test_pretrained_weights_that_are_only_a_pickle(
    here: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    import huggingface_hub

    def missing(url: str, **_: object) -> None:
        assert url.endswith("/model.safetensors")
        raise huggingface_hub.errors.EntryNotFoundError("404 Client Error")

    monkeypatch.setattr(huggingface_hub, "try_to_load_from_cache", lambda **_: None)
    monkeypatch.setattr(huggingface_hub, "get_hf_file_metadata", missing)
    monkeypatch.setattr(torch, "load", None)
    (here / "spec.peft").write_text("train head\n")
    result = invoke("apply", "spec.peft", "model=vit_tiny", "depth=1", "weights=pretrained")
    assert (result.status, result.codes) == (1, ["VR710"])
    assert not (here / "spec-vit_tiny").exists()
