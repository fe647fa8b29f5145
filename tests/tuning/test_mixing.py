"""Mixup and cutmix: timm's own on the same draws, soft labels in the loss, what is refused."""

from __future__ import annotations

import copy
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import timm.data
import torch
import torch.nn.functional as F

from vitrewrite.data import Batch
from vitrewrite.errors import TuneError
from vitrewrite.language.settings import Settings
from vitrewrite.tasks import Classification, Dense
from vitrewrite.tuning.checks import check_settings
from vitrewrite.tuning.mixing import Mixing


def run_of(epoch: float = 0.0, **settings: Any) -> Any:
    return SimpleNamespace(settings=Settings(**settings), task=Classification(5), epoch=epoch)


def batch() -> Batch:
    draw = torch.Generator().manual_seed(0)
    return Batch(torch.rand(6, 3, 8, 8, generator=draw), torch.arange(6) % 5)


@pytest.mark.parametrize("mode", ["batch", "pair", "elem"])
@pytest.mark.parametrize("smoothing", [0.0, 0.1])
def test_images_and_labels_are_those_of_timm(mode: str, smoothing: float) -> None:
    library: Any = timm.data
    expected = library.Mixup(0.8, 1.0, None, 0.9, 0.5, mode, True, smoothing, 5)
    settings = {"mixup": 0.8, "cutmix": 1.0, "mix_prob": 0.9, "mix_mode": mode}
    mixing, given = Mixing(run_of(**settings, label_smoothing=smoothing)), batch()
    for seed in range(6):
        np.random.seed(seed)
        images, labels = mixing(given)
        np.random.seed(seed)
        wanted, targets = expected(copy.deepcopy(given.images), given.labels)
        assert torch.equal(images, wanted)
        assert torch.equal(labels, targets)
        assert torch.equal(given.images, batch().images)


def test_the_loss_takes_shares_of_classes_and_smooths_them_once() -> None:
    scores = torch.randn(6, 5, generator=torch.Generator().manual_seed(1))
    np.random.seed(3)
    labels = Mixing(run_of(mixup=1.0, label_smoothing=0.2))(batch()).labels
    found = Classification(5).loss(scores, labels, smoothing=0.2)
    expected = -(labels * F.log_softmax(scores, -1)).sum(-1).mean()
    assert float(found) == pytest.approx(float(expected), abs=1e-6)
    # Nothing mixed, smoothed labels: as if hard labels were smoothed in the loss.
    off = Mixing(run_of(1.0, mixup=1.0, label_smoothing=0.2, mix_off_epoch=1))(batch())
    plain = F.cross_entropy(scores, batch().labels, label_smoothing=0.2)
    assert torch.equal(off.images, batch().images)
    assert float(Classification(5).loss(scores, off.labels, smoothing=0.2)) == pytest.approx(
        float(plain), abs=1e-6
    )


class _Hundred(Any):  # type: ignore[misc]
    varies = False

    def __len__(self) -> int:
        return 100


@pytest.mark.parametrize(
    ("settings", "task", "code", "message"),
    [
        ({"mixup": 0.5}, Dense(3), "VR858", "mixup = 0.5 mixes images with one label"),
        ({"cutmix": 1.0}, Dense(3), "VR858", "cutmix = 1 mixes images with one label"),
        ({"mixup": 1.0, "batch": 6, "accumulate": 2}, Classification(3), "VR853", "has 3 images"),
    ],
)
def test_what_cannot_be_mixed(settings: Any, task: Any, code: str, message: str) -> None:
    engine: Any = SimpleNamespace(processes=1)
    with pytest.raises(TuneError, match=message) as caught:
        check_settings(Settings(**settings), _Hundred(), task, engine)
    assert caught.value.code == code
