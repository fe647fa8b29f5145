"""`predict` and `export`: a result is used without its code being known."""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from PIL import Image

from tests.folders import reseal
from vitrewrite.errors import VerifyError
from vitrewrite.folder.predicting import Predictor
from vitrewrite.folder.reading import load_folder
from vitrewrite.folder.usage import Usage
from vitrewrite.interchange import exported
from vitrewrite.report.prediction import page_of

from .invoke import invoke


@pytest.fixture
def photo(inside: Path) -> str:
    Image.new("RGB", (40, 50), (200, 40, 90)).save("photo.png")
    return "photo.png"


def test_predict_is_what_the_model_computes(photo: str) -> None:
    result = invoke("predict", "out", photo, "--top", 3, "--out", "seen.png", "--json")
    assert result.status == 0, result.err
    ((seen,), out) = result.json["predictions"], result.json["out"]
    rewritten = load_folder(Path("out"))
    usage = Usage.of(rewritten)
    assert usage is not None
    with Image.open(photo) as image, torch.no_grad():
        pixels = usage.preprocessing.plain(whole=False)(image)
        scores = rewritten.module.eval()(usage.preprocessing.normalised(pixels)[None])
    expected = scores[0].double().softmax(-1).topk(3)
    assert [row["index"] for row in seen["classes"]] == expected.indices.tolist()
    assert [row["probability"] for row in seen["classes"]] == expected.values.tolist()
    assert seen["classes"][0]["class"] == f"class {expected.indices[0]}"
    with Image.open(out) as picture:
        assert (picture.format, picture.width) == ("PNG", 1000)


def test_predict_prints_lines(photo: str) -> None:
    first, *rows = invoke("predict", "out", photo).out.splitlines()
    assert first == photo
    assert len(rows) == 5
    assert rows[0].split()[1:3] == ["%", "class"]


def test_code_of_somebody_runs_only_if_trusted(photo: str) -> None:
    source = Path("out/model.py")
    source.write_text(source.read_text() + "\nopen('ran', 'w').close()\n")
    assert invoke("predict", "out", photo).codes == ["VR715"]
    reseal("out")
    for command in (("predict", "out", photo), ("export", "out", "--to", "pt2")):
        assert invoke(*command).codes == ["VR718"]
    assert not Path("ran").exists()
    assert invoke("predict", "out", photo, "--trust").status == 0
    assert Path("ran").exists()


@pytest.mark.parametrize(
    ("change", "code"),
    [({"mean": [0.5, 0.5]}, "VR595"), ({"dtype": "no"}, "VR595"), ({"more": 1}, "VR595"),
     ({"task": "other"}, "VR888")],
)  # fmt: skip
def test_preprocessing_that_makes_no_sense(
    photo: str, change: dict[str, object], code: str
) -> None:
    path = Path("out/preprocessing.json")
    path.write_text(json.dumps({**json.loads(path.read_text()), **change}))
    reseal("out")
    assert invoke("predict", "out", photo).codes == [code]


def test_predict_on_a_device(photo: str) -> None:
    expected = invoke("predict", "out", photo, "--json").json
    assert invoke("predict", "out", photo, "device=cpu", "--json").json == expected
    assert invoke("predict", "out", "device=cpu:0", photo).status == 0
    failed = invoke("predict", "out", photo, "device=nothing")
    assert (failed.status, failed.codes) == (2, ["VR904"])
    assert invoke("predict", "out", photo, "device=cpu", "device=cpu:0").codes == ["VR905"]
    assert invoke("predict", "out", "device=cpu").status == 2


def test_what_cannot_be_predicted(photo: str) -> None:
    assert invoke("predict", "out", "lora.peft").codes == ["VR742"]
    assert invoke("predict", "out").status == 2
    assert invoke("predict", ".", photo).codes == ["VR703"]


def test_export_to_pt2(inside: Path) -> None:
    result = invoke("export", "out", "--to", "pt2")
    assert result.status == 0, result.err
    first, why, checked, _ = result.out.splitlines()
    assert first == "exported  pt2: any batch, images of one size"
    assert why == "fixed     the model takes images of 32x32 only"
    assert checked.startswith("checked   1x32x32, 3x32x32: ")
    extra = {"preprocessing.json": ""}
    program = torch.export.load("out.pt2", extra_files=extra).module()
    images = torch.randn(5, 3, 32, 32)
    with torch.no_grad():
        expected = load_folder(Path("out")).module.eval()(images)
        torch.testing.assert_close(program(images), expected)
    assert json.loads(extra["preprocessing.json"])["outputs"] == 10


def test_export_to_onnx(inside: Path) -> None:
    import numpy as np
    import onnxruntime

    result = invoke("export", "out", "--to", "onnx", "--out", "m.onnx", "--json")
    assert result.status == 0, result.err
    assert (result.json["opset"], result.json["dynamic"]) == (18, ["batch"])
    assert result.json["max_error"] < 1e-5
    session = onnxruntime.InferenceSession("m.onnx", providers=["CPUExecutionProvider"])
    (scores,) = session.run(["scores"], {"image": np.zeros((4, 3, 32, 32), np.float32)})
    assert scores.shape == (4, 10)


def test_export_needs_its_packages(inside: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "onnxscript", None)
    result = invoke("export", "out", "--to", "onnx")
    assert result.codes == ["VR597"]
    assert "pip install 'vitrewrite[onnx]'" in result.err
    assert not Path("out.onnx").exists()


def sizes() -> torch.nn.Module:
    from timm.models.vision_transformer import VisionTransformer

    import vitrewrite as vr

    torch.manual_seed(0)
    small = {"img_size": 32, "patch_size": 8, "embed_dim": 16, "depth": 1, "num_heads": 2}
    model = VisionTransformer(**small, num_classes=3, dynamic_img_size=True)
    made = vr.apply("insert lora(rank=2) at blocks[*].attn.{q, v}\n", model)
    assert not Usage.of(made).fixed  # type: ignore[union-attr]
    return made.module


def test_the_size_of_images_is_dynamic_where_the_model_takes_several() -> None:
    found = exported.export(sizes(), "pt2", (3, 32, 32), fixed=False, about={})
    assert (found.sizes, found.reason) == (True, "")
    assert found.checked[-1] == (2, 64, 48)


def test_what_deviates_is_no_export(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(exported, "_apart", lambda expected, found: 2e-4)
    with pytest.raises(VerifyError) as caught:
        exported.export(torch.nn.Conv2d(3, 2, 3), "pt2", (3, 8, 8), fixed=True, about={})
    assert caught.value.code == "VR599"
    with pytest.raises(VerifyError) as caught:
        exported.export(Breaks(), "pt2", (3, 8, 8), fixed=True, about={})
    assert caught.value.code == "VR598"


class Breaks(torch.nn.Module):
    """Nothing that a graph can hold."""

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return x if float(x.sum()) > 0 else -x


class Halves(torch.nn.Module):
    """Class 1 in the left half of an image, class 0 in the right one."""

    def __init__(self, queries: bool) -> None:
        super().__init__()
        self.queries = queries

    def forward(self, x: torch.Tensor) -> Any:
        left = torch.zeros(1, 2, x.shape[2] // 4, x.shape[3] // 4)
        left[:, 1, :, : left.shape[3] // 2] = 9.0
        if not self.queries:
            return left + left.flip(-1).flip(1)
        classes = torch.tensor([[[9.0, 0.0, 0.0], [0.0, 9.0, 0.0]]])
        return {"class_queries_logits": classes, "masks_queries_logits": left * 2 - 9}


@pytest.mark.parametrize(("task", "size"), [("dense", (32, 32)), ("queries", (16, 64))])
def test_a_map_of_classes(task: str, size: tuple[int, int]) -> None:
    usage = Usage(
        task=task,
        size=(3, 32, 32),
        fixed=task == "dense",
        multiple=(16, 16),
        dtype="float32",
        mean=(0.5,) * 3,
        std=(0.5,) * 3,
        interpolation="bilinear",
        crop_pct=1.0,
        crop_mode="squash",
        stated=True,
        outputs=2,
        classes=("road", "tree"),
    )
    photo = Image.new("RGB", (200, 50), (90, 140, 60))
    seen = Predictor(Halves(task == "queries"), usage).predict("photo.png", photo, 5)
    assert seen.labels is not None
    assert tuple(seen.labels.shape) == size
    assert int(seen.labels[0, 0]) == 1
    assert {index for index, _ in seen.shares} == {0, 1}
    assert "tree" in str(seen)
    assert page_of([seen], "halves").width == 1000
