"""`show architecture`: what is drawn is what the graphs compute, whatever a pass is called."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn

import vitrewrite as vr
from vitrewrite.report.architecture import Architecture, architecture_picture

from .invoke import invoke

TINY = "vit_tiny_patch16_224(img_size=64, depth=6, embed_dim=48, num_heads=3, num_classes=10)"


class Convolved(nn.Module):
    """In the place of an attention: a bottleneck of convolutions over a grid of 4 x 4 patches."""

    def __init__(self, side: int) -> None:
        super().__init__()
        self.down, self.up = nn.Conv2d(48, 16, side, padding=side // 2), nn.Conv2d(16, 48, 1)

    def forward(self, x: torch.Tensor, **_: Any) -> torch.Tensor:
        grid = x[:, 1:].transpose(1, 2).unflatten(2, (4, 4))
        return torch.cat([x[:, :1], self.up(self.down(grid).relu()).flatten(2).mT], dim=1)


def mixed() -> nn.Module:
    """A ViT whose blocks differ."""
    import timm

    model: Any = timm.create_model(
        "vit_tiny_patch16_224", img_size=64, depth=6, embed_dim=48, num_heads=3, num_classes=10
    )
    model.blocks[0].attn, model.blocks[1].attn = Convolved(1), Convolved(3)
    mlp = model.blocks[2].mlp
    mlp.fc1, mlp.fc2 = nn.Linear(48, 20), nn.Linear(20, 48)
    return model


def shown(spec: str, model: Any = None) -> Architecture:
    return Architecture.planned(vr.plan(spec, model))


def test_a_model_is_drawn_as_it_computes() -> None:
    found = shown("drop blocks[4]\n", mixed())
    kinds = [each.mixing for each in found.blocks]
    assert kinds[2:] == ["attention", "attention", "dropped", "attention"]
    assert [each.heads for each in found.blocks] == [None, None, 3, 3, None, 3]
    assert [each.hidden for each in found.blocks] == [192, 192, 20, 192, None, 192]
    assert [each.block.index for each in found.blocks] == list(range(6))
    assert found.params[0] < found.params[1]
    assert found.macs[0] < found.macs[1]


def test_convolutions_are_told_by_their_size() -> None:
    """Those of an MLP are none of these."""
    kinds = [each.mixing for each in shown("train head\n", mixed()).blocks]
    assert kinds[:2] == ["1x1", "3x3"]
    assert {each.mixing for each in shown("model convnext_atto\n").blocks} == {"7x7"}
    assert {each.mixing for each in shown("model poolformer_s12\n").blocks} == {"other"}


@pytest.mark.parametrize(
    "clause",
    [
        "insert lora() at blocks[*].mlp.fc1", "insert merge.tome(r=2) after blocks[*].attn",
        "insert convpass() at blocks[*].mlp_branch", "insert dispatch() at blocks[*].mlp_branch",
        "insert prune.dynamicvit(keep=0.7) before blocks[1]",
    ],
)  # fmt: skip
def test_what_stands_beside_a_part_leaves_it_what_it_is(clause: str) -> None:
    for each in shown(f"model {TINY}\n{clause}\n").blocks:
        assert (each.mixing, each.heads, each.hidden) == ("attention", 3, 192)


def test_what_a_search_found_is_drawn_beside_what_it_was() -> None:
    states = '["1x1", "3x3", "skip", "msa", "msa"]'
    found = shown(
        f"model {TINY}\nreplace blocks[*].attn with umsa(state={states})\n"
        "replace blocks[0:2].mlp with uffn(keep=[20, 30])\ndrop blocks[5]\n"
    ).blocks
    kinds = ["1x1", "3x3", "skip", "attention", "attention", "dropped"]
    assert [each.mixing for each in found] == kinds
    assert [each.hidden for each in found] == [20, 30, 192, 192, 192, None]
    assert {each.hidden_before for each in found} == {192}
    assert {each.heads_before for each in found} == {3}


def test_gates_say_what_is_there() -> None:
    """A search that has not ended is drawn as it would be lowered now."""
    made = vr.apply(
        f"model {TINY}\nreplace blocks[*].attn with umsa()\nreplace blocks[*].mlp with uffn()\n"
    )
    logits = [[1.0, -1, -1], [1, 1, -1], [-1, 1, 1], [1, 1, 1], [1, 1, 1], [1, 1, 1]]
    with torch.no_grad():
        for module, wanted in zip(made.inserted("umsa"), logits, strict=True):
            module.logits.copy_(torch.tensor(wanted))  # type: ignore[operator, union-attr]
        made.inserted("uffn")[1].logits[:100] = -1  # type: ignore[index]
    blocks = Architecture.of(made).blocks
    assert [each.mixing for each in blocks] == ["1x1", "3x3", "skip"] + ["attention"] * 3
    assert [each.hidden for each in blocks] == [192, 92, 192, 192, 192, 192]


def test_a_stage_has_a_scale_of_its_own() -> None:
    """All dashed lines of Swin are at one height, each with the width of its stage."""
    text = architecture_picture([shown("model swin_tiny\ndrop blocks[3]\n")])
    for width in (384, 768, 1536, 3072):
        assert f">{width}</text>" in text
    assert text.count('stroke-dasharray="5 3"') == 4
    assert "block dropped" in text


def test_folders_specs_and_models_side_by_side(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    Path("few.peft").write_text(f"model {TINY}\ndrop blocks[5]\n")
    vr.emit(vr.apply("few.peft"), "made")
    vr.emit(vr.lower(vr.apply("few.peft")), "low")
    done = invoke(
        "show",
        "architecture",
        "few.peft",
        "made",
        "low",
        TINY,
        "--across",
        "2",
        "--out",
        "a.svg",
        "--json",
    )
    models = json.loads(done.out)["models"]
    assert [m["title"].partition(" ")[0] for m in models[:3]] == ["few"] * 3
    assert models[0]["blocks"] == models[1]["blocks"] == models[2]["blocks"]
    assert models[0]["macs"] == models[1]["macs"] == models[2]["macs"]
    assert models[3]["params"] == models[3]["params_base"] == models[0]["params_base"]
    text = Path("a.svg").read_text()
    assert text.startswith("<svg") or text.lstrip().startswith("<svg")
    assert text.count("font-weight") == 4


def test_a_lowered_folder_is_drawn_as_what_it_was_made_of(tmp_path: Path) -> None:
    spec = (
        f'model {TINY}\nreplace blocks[*].attn with umsa(state=["1x1", "3x3", "skip", "msa", '
        '"msa", "msa"])\nreplace blocks[*].mlp with uffn(keep=[9, 20, 30, 40, 50, 60])\n'
        "train every parameter\n"
    )
    made = vr.apply(spec)
    vr.emit(vr.lower(made), tmp_path / "low")
    done = invoke(
        "show", "architecture", str(tmp_path / "low"), "--out", str(tmp_path / "a.svg"), "--json"
    )
    (found,) = json.loads(done.out)["models"]
    known = shown(spec)
    assert found["blocks"] == [each.to_json() for each in known.blocks]
    assert (found["params"], found["macs"]) == (known.params[0], known.macs[0])


def test_the_command_says_what_there_is(tmp_path: Path) -> None:
    done = invoke("show", "architecture", TINY, "--out", str(tmp_path / "a.svg"))
    assert "6 blocks: 6 attention; 1,152 of 1,152 hidden units" in done.out
    done = invoke("show", "architecture", "vit_tinny", "--out", str(tmp_path / "b.svg"))
    assert done.status == 1
    assert "VR310 no model named 'vit_tinny'" in done.err
    done = invoke("show", "architecture", "few.peft", "--out", str(tmp_path / "b.svg"))
    assert "VR101" in done.err
    done = invoke("show", "architecture", "rank=4", "--out", str(tmp_path / "b.svg"))
    assert done.status == 2
    assert not (tmp_path / "b.svg").exists()
