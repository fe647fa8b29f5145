"""`show segmentation`: what it paints is what the model computes, and where its queries look."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from PIL import Image

import vitrewrite as vr
from tests.tuning.scenes import SPEC, model_folder, scenes
from vitrewrite import models
from vitrewrite.editing.taps import WeightsTap, observe
from vitrewrite.report.segmentation import SegmentationPicture, prepared
from vitrewrite.tasks.queries import semantic

from .invoke import invoke

pytest.importorskip("transformers")
pytestmark = pytest.mark.xdist_group("show-segmentation")


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A model, a spec, an image."""
    made = tmp_path_factory.mktemp("show")
    model_folder(made / "tiny")
    (made / "seg.peft").write_text(SPEC)
    scenes(made / "data", 96, training=1)
    return made


@pytest.fixture(autouse=True)
def here(folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    for path in folder.iterdir():
        (tmp_path / path.name).symlink_to(path)
    monkeypatch.chdir(tmp_path)
    return tmp_path


@pytest.fixture(scope="module")
def ours(folder: Path) -> Any:
    """The rewritten model, with a delta that acts."""
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(folder)
        made = vr.apply("seg.peft")
    torch.manual_seed(0)
    for name, tensor in made.delta().items():
        if "lora" in name:
            torch.nn.init.normal_(tensor)
    return made


IMAGE = "data/images/training/00.png"


def test_attention_is_that_of_transformers() -> None:
    model = models.create("hf:tiny", seed=0).eval()
    expected: dict[int, Any] = {}
    for index, layer in enumerate(model.model.transformer_module.decoder.layers):
        layer.cross_attn.register_forward_hook(
            lambda *given, i=index: expected.__setitem__(i, given[-1][1])
        )
    plain = vr.apply("# nothing\nmodel hf:tiny\n")
    images = torch.randn(2, 3, 96, 64)
    taps = [
        WeightsTap.of(plain.result.editor, layer.cross_attn)
        for layer in plain.result.anatomy.decoder.layers
    ]
    with torch.no_grad():
        output = model(images)
        places = [place for tap in taps for place in tap.places]
        found, seen = observe(plain.module.eval(), (images,), places)
    assert torch.equal(found["masks_queries_logits"], output.masks_queries_logits)
    assert len(taps) == 3
    for index, tap in enumerate(taps):
        torch.testing.assert_close(tap.weights(seen), expected[index])


def test_attention_of_the_fused_kind() -> None:
    import timm

    model = timm.create_model("vit_tiny_patch16_224", depth=2, img_size=32)
    rewritten = vr.apply("insert lora(rank=2) at blocks[*].attn.{q, v}\n", model)
    tap = WeightsTap.of(rewritten.result.editor, rewritten.result.anatomy.blocks[1].attn)
    assert tap is not None
    assert len(tap.places) == 2
    images = torch.randn(2, 3, 32, 32)
    with torch.no_grad():
        _, seen = observe(rewritten.module.eval(), (images,), tap.places)
        block = model.eval().blocks[1]
        stream = block.norm1(model.blocks[0](model._pos_embed(model.patch_embed(images))))
        q, k, _ = block.attn.qkv(stream).unflatten(-1, (3, 3, 64)).movedim(2, 0)
        q, k = q.transpose(1, 2), k.transpose(1, 2)
        expected = (q @ k.transpose(-2, -1) / 8).softmax(-1).mean(1)
    torch.testing.assert_close(tap.weights(seen), expected)


def test_what_is_shown_is_what_the_model_computes(ours: Any) -> None:
    with Image.open(IMAGE) as opened:
        image, pixels = prepared(ours, opened)
    assert image.shape == pixels.shape == (3, 64, 64)
    found = SegmentationPicture.of(ours, image, pixels)
    with torch.no_grad():
        output = ours.module.eval()(pixels[None])
    classes, masks = output["class_queries_logits"][0], output["masks_queries_logits"][0]
    assert torch.equal(found.labels, semantic(classes, masks, (64, 64)).argmax(0))
    shares = classes.softmax(-1)[:, :3]
    assert found.belief[1] == float(shares.max()) == float(shares[found.query].max())
    assert [look.stride for look in found.looks] == [32, 16, 8]
    assert [tuple(look.weights.shape) for look in found.looks] == [(2, 2), (4, 4), (8, 8)]
    assert all(float(look.weights.sum()) == pytest.approx(1) for look in found.looks)
    assert sum(found.shares.values()) == pytest.approx(1)
    other = SegmentationPicture.of(ours, image, pixels, (found.query + 1) % 6)
    assert not torch.equal(other.mask, found.mask)
    assert torch.equal(other.labels, found.labels)


def test_an_image_keeps_its_shape_in_multiples_of_the_stride(ours: Any) -> None:
    for size, expected in (((300, 300), (64, 64)), ((640, 160), (32, 128)), ((90, 100), (64, 64))):
        image, pixels = prepared(ours, Image.new("L", size, 128))
        assert image.shape == pixels.shape == (3, *expected)
        assert len(SegmentationPicture.of(ours, image, pixels).looks) == 3


def test_the_command(here: Path) -> None:
    given = ("show", "segmentation", "seg.peft", "--image", IMAGE, "--out", "seen.png")
    result = invoke(*given)
    assert result.status == 0, result.err
    with Image.open("seen.png") as picture:
        assert (picture.format, picture.mode) == ("PNG", "RGB")
        assert picture.width > picture.height > 500
        panel = picture.crop((24, 88, 484, 548)).getcolors(1 << 20)
    assert len(panel) > 1000  # the image itself
    assert "written   seen.png" in result.out
    found = invoke(*given, "--query", 2, "--json").json
    assert (found["query"], found["size"]) == (2, [64, 64])
    assert found["attention"] == {
        "decoder.layers[0]": [2, 2], "decoder.layers[1]": [4, 4], "decoder.layers[2]": [8, 8],
    }  # fmt: skip


def test_without_an_image_one_of_scikit_learn_is_taken(here: Path) -> None:
    assert invoke("apply", "seg.peft", "--out", "out").status == 0
    result = invoke("show", "segmentation", "out", "--out", "seen.png", "--json")
    assert result.status == 0, result.err
    assert result.json["size"] == [64, 64]
    assert invoke("show", "segmentation", "out", "rank=2", "--out", "a.png").codes == ["VR905"]


@pytest.mark.parametrize(
    ("given", "code", "status"),
    [
        (("seg.peft", "--image", "nothing.png"), "VR742", 1),
        (("seg.peft", "--image", "seg.peft"), "VR742", 1),
        (("seg.peft", "--image", IMAGE, "--query", "6"), "VR908", 2),
        (("seg.peft", "--image", IMAGE, "--out", "no/where/x.png"), "VR702", 1),
        (("lora_qv", "model=vit_tiny", "--image", IMAGE), "VR301", 1),
    ],
)
def test_what_is_refused(here: Path, given: tuple[str, ...], code: str, status: int) -> None:
    result = invoke("show", "segmentation", "--out", "seen.png", *given)
    assert (result.codes, result.status) == ([code], status)
    assert not Path("seen.png").exists()
