"""Activations on data: what is kept, where, in which order, and what is refused."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import timm
import torch
from timm.models.vision_transformer import VisionTransformer
from torch import nn

import vitrewrite as vr
from tests.cli.invoke import invoke
from tests.tuning.conftest import TINY
from vitrewrite.data import Preprocessing, batches, open_data
from vitrewrite.profiling import activations
from vitrewrite.profiling.activations import Activations, places
from vitrewrite.profiling.run import measure
from vitrewrite.sensitivity.profile import Profile

SPEC = "train head\n"


def tiny(**options: Any) -> VisionTransformer:
    torch.manual_seed(0)
    small = {"img_size": 16, "patch_size": 4, "embed_dim": 16, "depth": 3, "num_heads": 2}
    return VisionTransformer(**{**small, "in_chans": 1, "num_classes": 10, **options})


def profile(sites: str, model: nn.Module, samples: int = 5, tokens: int | None = None) -> Profile:
    wanted = Activations(sites, samples, tokens)
    return measure(vr.parse(SPEC), model, data="digits", batch=2, activations=wanted)


def images(model: nn.Module, count: int) -> torch.Tensor:
    """The images that a profile measures on."""
    data = open_data("digits", Preprocessing.of(vr.capture(model)))
    return torch.cat([b.images for b in batches(data.train, 2, seed=0, limit=count)])


def seen(model: nn.Module, path: str, x: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """What enters and leaves a module of the user's own model."""
    found: list[tuple[torch.Tensor, torch.Tensor]] = []
    handle = model.get_submodule(path).register_forward_hook(
        lambda _, args, output: found.append((args[0], output))
    )
    with torch.no_grad():
        model.eval()(x)
    handle.remove()
    return found[0]


@pytest.mark.parametrize(
    ("sites", "role", "path"),
    [
        ("blocks[*]", "blocks[1]", "blocks.1"),
        ("blocks[*].attn", "blocks[1].attn", "blocks.1.attn"),
        ("blocks[0].mlp", "blocks[0].mlp", "blocks.0.mlp"),
        ("blocks[2].mlp.fc2", "blocks[2].mlp.fc2", "blocks.2.mlp.fc2"),
        ("blocks[*].norm1", "blocks[2].norm1", "blocks.2.norm1"),
        ("module('blocks.*.mlp.act')", "blocks.1.mlp.act", "blocks.1.mlp.act"),
        ("norm", "norm", "norm"),
    ],
)
def test_what_is_kept_is_what_the_model_computes(sites: str, role: str, path: str) -> None:
    model = tiny()
    found = profile(sites, model)
    taken, given = seen(model, path, images(model, 5))
    torch.testing.assert_close(found.activation(role, "input"), taken)
    torch.testing.assert_close(found.activation(role), given)


def test_rows_of_a_fused_layer() -> None:
    model = tiny()
    found = profile("blocks[1].attn.{k, v}", model)
    _, fused = seen(model, "blocks.1.attn.qkv", images(model, 5))
    torch.testing.assert_close(found.activation("blocks[1].attn.k"), fused[..., 16:32])
    torch.testing.assert_close(found.activation("blocks[1].attn.v"), fused[..., 32:])


def test_what_leaves_a_block_is_kept_once() -> None:
    found = profile("blocks[*]", tiny())
    assert set(found.tensors) == {
        "activation.blocks[0].input",
        *(f"activation.blocks[{i}].output" for i in range(3)),
    }
    assert found.activation("blocks[2]", "input") is found.activation("blocks[1]")
    assert found.tensors["activation.blocks[0].input"].shape == (5, 17, 16)


def test_tokens_are_spread_from_the_first_to_the_last() -> None:
    assert places(197, 4).tolist() == [0, 65, 131, 196]
    assert places(5, 9).tolist() == places(5, None).tolist() == [0, 1, 2, 3, 4]
    model = tiny()
    whole, some = (profile("blocks[1]", model, tokens=n) for n in (None, 3))
    assert some.activation("blocks[1]").shape == (5, 3, 16)
    assert torch.equal(some.activation("blocks[1]"), whole.activation("blocks[1]")[:, [0, 8, 16]])


def test_a_stitch_starts_from_least_squares() -> None:
    """From a small model's block to a wide one's, as far as a linear map goes."""
    small, wide = tiny(), tiny(embed_dim=32)
    given = profile("blocks[0]", small, 20).activation("blocks[0]").flatten(0, 1)
    wanted = profile("blocks[1]", wide, 20).activation("blocks[1]", "input").flatten(0, 1)
    rows = torch.cat([given, torch.ones(len(given), 1)], 1)
    solved = torch.linalg.lstsq(rows.double(), wanted.double()).solution.float()
    assert solved.shape == (17, 32)
    rest = wanted - rows @ solved
    assert float(rest.var()) < 0.5 * float(wanted.var())


@pytest.mark.parametrize("name", ["swin_tiny_patch4_window7_224", "convnext_tiny"])
def test_hierarchical_models(name: str) -> None:
    options: dict[str, Any] = {"img_size": 32, "window_size": 4, "embed_dim": 8, "depths": (1, 1),
                               "num_heads": (1, 2)}  # fmt: skip
    if name == "convnext_tiny":
        options = {"depths": (1, 1, 1, 1), "dims": (8, 16, 16, 16)}
    overlay = {"input_size": (1, 32, 32)}
    model = timm.create_model(name, in_chans=1, pretrained_cfg_overlay=overlay, **options)
    found = profile("blocks[1]", model)
    path = "layers.1.blocks.0" if "swin" in name else "stages.1.blocks.0"
    taken, given = seen(model, path, images(model, 5))
    for side, value in (("input", taken), ("output", given)):
        last = value if "swin" in name else value.movedim(1, -1)
        torch.testing.assert_close(found.activation("blocks[1]", side), last.flatten(1, 2))


def test_flat_graphs() -> None:
    model, x = tiny(), torch.zeros(1, 1, 16, 16)
    wanted = Activations("blocks[1] + blocks[2].mlp", 5)
    found = measure(
        vr.parse(SPEC), vr.capture(model).flat(), data="digits", example=x, activations=wanted
    )
    _, given = seen(model, "blocks.1", images(model, 5))
    torch.testing.assert_close(found.activation("blocks[1]"), given)


def test_values_are_kept_as_they_were_before_operations_in_place() -> None:
    class Model(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.first, self.act = nn.Linear(4, 4), nn.ReLU(inplace=True)

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return self.act(self.first(x.flatten(1).unflatten(1, (-1, 4)))).mean(1)

    from vitrewrite.anatomy import analyse
    from vitrewrite.tracing import trace

    model, x = Model(), torch.randn(3, 1, 4, 4)
    root = trace(model, x)
    points = activations.selected("module('first')", analyse(root), root)
    found = activations.ActivationRecorder(root, points, "sequence")(x)
    name = next(n for n in found if n.endswith("output"))
    torch.testing.assert_close(found[name], model.first(x.reshape(3, 4, 4)))
    assert float(found[name].min()) < 0


# -- the command ----------------------------------------------------------------------------------


@pytest.fixture
def here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    (tmp_path / "tiny.py").write_text(TINY)
    (tmp_path / "spec.peft").write_text(f"model tiny.py:build\n{SPEC}")
    monkeypatch.chdir(tmp_path)
    return tmp_path


def command(*given: str) -> tuple[str, ...]:
    return ("profile", "spec.peft", "data=digits", "--out", "p", *given)


def test_one_file_holds_both_measurements(here: Path) -> None:
    given = ("--activations", "blocks[*]", "--samples", "4", "--tokens", "2")
    result = invoke(*command(*given))
    assert (result.status, result.err) == (0, "")
    assert (
        result.out.splitlines()[0]
        == "measured  3 activations of 4 images, at most 2 tokens of each"
    )
    assert not any(name.startswith("sensitivity") for name in Profile.load("p").tensors)
    with Path("spec.peft").open("a") as file:
        file.write("insert sparse() at sensitive(budget=100, samples=4)\n")
    found = invoke(*command(*given), "--json")
    assert found.json["activations"]["same"] == {"blocks[1].input": "blocks[0].output"}
    both = Profile.load("p")
    assert both.activation("blocks[1]").shape == (4, 2, 32)
    assert any(name.startswith("sensitivity") for name in both.tensors)
    assert len(both.about["fingerprint"]) == 40


def test_a_profile_of_other_weights_is_refused(here: Path) -> None:
    with Path("spec.peft").open("a") as file:
        file.write("insert sparse() at sensitive(budget=100, samples=4, scale=1K, vectors=false)\n")
    assert invoke(*command()).status == 0
    given = ("spec.peft", "--profile", "p")
    assert invoke("plan", *given, "seed=1").status == 0  # it looks at no weights
    refused = invoke("apply", *given, "seed=1", "--out", "a")
    assert refused.codes == ["VR760"]
    assert "on tiny.py:build, weights random (seed 0)" in refused.err
    assert not Path("a").exists()
    assert invoke("apply", *given, "--out", "a").status == 0


@pytest.mark.parametrize(
    ("sites", "codes"),
    [
        ("blocks[9]", ["VR304"]),
        ("blocks[0].attn.gate", ["VR301"]),
        ("cls_token", ["VR767"]),
        ("blocks[0]\nfreeze norm", ["VR767"]),
        ("blocks[", ["VR108"]),
        ("module('patch_embed.norm.*')", ["VR302"]),
    ],
)
def test_sites_that_have_none(sites: str, codes: list[str], here: Path) -> None:
    result = invoke(*command("--activations", sites))
    assert (result.status, result.codes) == (1, codes), result.err
    assert not Path("p").exists()


def test_memory_is_bounded(here: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(activations, "LIMIT", 1000)
    result = invoke(*command("--activations", "blocks[*]"))
    assert result.codes == ["VR768"]
    assert "--tokens" in result.err
    assert (
        invoke(*command("--activations", "blocks[0]", "--samples", "3", "--tokens", "1")).status
        == 0
    )


def test_what_was_not_kept(here: Path) -> None:
    found = profile("blocks[0]", tiny())
    with pytest.raises(vr.VitrewriteError, match="VR767") as caught:
        found.activation("blocks[1]")
    assert "it holds: blocks[0].input, blocks[0].output" in caught.value.render()
