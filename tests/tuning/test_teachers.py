"""Teachers: the losses against their formulas, what is adapted, and what is refused."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import nn

import vitrewrite as vr
from tests.cli.invoke import invoke
from vitrewrite import catalog
from vitrewrite.data import Batch, Preprocessing, batches, open_data
from vitrewrite.models import create
from vitrewrite.tuning import Procedure, Run, Settings, tune
from vitrewrite.tuning.adapting import adapted
from vitrewrite.tuning.distillation import Distillation

SPEC = """model tiny.py:build(num_classes=3, drop_rate={dropout})
insert lora(rank=2, dropout=0) at blocks[*].attn.q
train head
"""
OTHER = "tiny.py:build(num_classes=3, depth=1, weights=random)"
ONE: dict[str, Any] = {"steps": 1, "log_every": 1, "batch": 431}  # of the 431 images


def rewritten(dropout: float = 0) -> Any:
    return vr.apply(SPEC.format(dropout=dropout))


def terms(folder: str) -> dict[str, float]:
    first = json.loads(Path(folder, "metrics.jsonl").read_text().splitlines()[0])
    found: dict[str, float] = first["terms"]
    return found


def scores(module: nn.Module) -> tuple[torch.Tensor, torch.Tensor]:
    """Of all images, and their labels."""
    data = open_data("digits:0-2", Preprocessing.of(rewritten().base))
    (batch,) = batches(data.train, 1000)
    with torch.no_grad():
        found: torch.Tensor = module.eval()(batch.images)
    return found, batch.labels


@pytest.mark.parametrize("distil", ["soft", "hard"])
def test_the_losses_are_those_of_the_papers(distil: str) -> None:
    draw = torch.Generator().manual_seed(0)
    student, teacher = (torch.randn(6, 5, generator=draw) for _ in range(2))
    settings = Settings(teacher="base", distil=distil, temperature=3.0, distil_weight=0.3)
    run: Any = SimpleNamespace(settings=settings, teacher=lambda _: teacher)
    batch = Batch(torch.zeros(6, 1), torch.zeros(6))
    found = Distillation(run, torch.device("cpu")).terms(run, batch, student)
    divergence = nn.KLDivLoss(reduction="batchmean")
    soft = divergence(F.log_softmax(student / 3, 1), F.softmax(teacher / 3, 1)) * 9
    loss = soft if distil == "soft" else F.cross_entropy(student, teacher.argmax(1))
    assert float(found["distillation"]) == pytest.approx(0.3 * float(loss), rel=1e-5)


def test_the_base_and_an_entry_of_the_model_teach(here: Path) -> None:
    found = {}
    for name, dropout in (("base", 0.0), ("forward", 0.5)):
        settings = Settings(steps=2, batch=32, log_every=1, lr=0.05, teacher=name)
        tune(rewritten(dropout), "digits:0-2", settings, out=f"{name}{dropout}")
        lines = Path(f"{name}{dropout}", "metrics.jsonl").read_text().splitlines()[:2]
        found[name, dropout] = [json.loads(line)["terms"]["distillation"] for line in lines]
    assert found["base", 0.0][0] == pytest.approx(0, abs=1e-6)  # nothing is changed yet
    assert found["base", 0.0][1] > 1e-4
    assert found["forward", 0.5][0] > 1e-3  # the teacher is in eval, the student is not


class Pupil(Procedure):
    """A pass that does with the teacher what it wants."""

    def terms(self, run: Run, batch: Any, output: Any) -> Mapping[str, torch.Tensor]:
        assert run.teacher is not None
        wanted = run.teacher(batch.images)
        assert not wanted.requires_grad
        return {"own": F.mse_loss(output, wanted)}


def test_a_pass_uses_the_teacher_and_it_stays_outside_of_what_is_trained(
    here: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(catalog.load("lora"), "procedure", lambda _: Pupil())
    settings = Settings(**ONE, teacher=OTHER, distil="none")
    result = tune(rewritten(), "digits:0-2", settings, out="out")
    student, labels = scores(rewritten().module)
    teacher, _ = scores(create("tiny.py:build", {"num_classes": 3, "depth": 1}))
    own, task = F.mse_loss(student, teacher), F.cross_entropy(student, labels)
    expected = {"task": float(task), "own": float(own)}
    assert terms("out") == pytest.approx(expected, rel=1e-4)
    assert result.training["teacher"]["model"] == OTHER
    kept = next(Path("out/checkpoints").glob("*-00000001/tensors.safetensors"))
    assert kept.stat().st_size < 50_000  # of a model with 100 kB


def test_what_it_says_is_kept(here: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from vitrewrite.tuning.teachers import Teacher

    calls: list[int] = []
    original = Teacher.__call__

    def counted(teacher: Teacher, images: torch.Tensor) -> torch.Tensor:
        calls.append(len(images))
        return original(teacher, images)

    monkeypatch.setattr(Teacher, "__call__", counted)
    deltas = []
    for name in (False, True):
        calls.clear()
        settings = Settings(epochs=3, batch=32, lr=0.01, teacher=OTHER, teacher_cache=name)
        deltas.append(tune(rewritten(), "digits:0-2", settings, out=f"{name}").delta())
        assert sum(calls[1:]) == (431 if name else 3 * 13 * 32)  # the first one asks for classes
    for key, value in deltas[0].items():
        assert torch.allclose(value, deltas[1][key], atol=1e-5)


def test_images_are_resized_and_normalised_for_it_and_that_is_told(here: Path) -> None:
    given = f"tune.teacher={OTHER.replace('depth=1', 'img_size=32')}"
    command = ("tune", "lora.peft", "data=digits:0-2", "num_classes=3", "tune.steps=1", given)
    result = invoke(*command, "--out", "out")
    assert result.status == 0, result.err
    assert "teacher   the teacher's images are resized from 16x16 to 32x32" in result.out
    import timm

    teacher = timm.create_model("resnet10t", num_classes=3, in_chans=1).eval()
    own = Preprocessing((1, 16, 16), {"mean": (0.5,), "std": (0.25,)})
    change, told = adapted(teacher, own)
    (mean,), (std,) = ([sum(v) / 3] for v in ((0.485, 0.456, 0.406), (0.229, 0.224, 0.225)))
    unit = torch.rand(2, 1, 16, 16)
    assert torch.allclose(change((unit - 0.5) / 0.25), (unit - mean) / std, atol=1e-5)
    assert [line.split(" by ")[0] for line in told] == ["the teacher's images are normalised"]


@pytest.mark.parametrize(
    ("settings", "code", "message"),
    [
        ({"teacher": "tiny.py:build(weights=random)"}, "VR864", "has 10 classes, and the model"),
        ({"teacher": "tiny.py:build(num_classes=3)"}, "VR864", "weights of the teacher .* not"),
        ({"teacher": OTHER.replace("depth=1", "in_chans=3")}, "VR864", "takes no images of 1x16"),
        ({"teacher": "forward_features"}, "VR864", "has an output of 17x32, and the model"),
        ({"teacher": "nothing(weights=random)"}, "VR310", "no model named 'nothing'"),
        ({"teacher": "tiny.py:build(weights='gone.safetensors')"}, "VR711", "gone.safetensors"),
        ({"teacher": "a b("}, "VR233", "names no teacher"),
        ({"teacher": "base", "teacher_cache": True, "augment": "standard"}, "VR865", "at random"),
        ({"teacher": "base", "teacher_cache": True, "cutmix": 1.0}, "VR865", "mixed"),
        ({"teacher": "forward", "teacher_cache": True}, "VR865", "weights that are trained"),
    ],
    ids=lambda value: str(value)[:40],
)
def test_a_teacher_that_does_not_fit_is_refused(
    settings: dict[str, Any], code: str, message: str, here: Path
) -> None:
    with pytest.raises(vr.VitrewriteError, match=message) as caught:
        tune(rewritten(), "digits:0-2", Settings(**settings), out="out")
    assert caught.value.code == code
    assert not (here / "out").exists()
