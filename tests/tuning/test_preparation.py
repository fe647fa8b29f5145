"""How images are given to a model: as recipes state it, as timm does it, kept in memory or not."""

from __future__ import annotations

import os
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import timm.data
import torch
from PIL import Image

import vitrewrite as vr
from vitrewrite.data import Data, Preprocessing, batches, loading, open_data
from vitrewrite.data.batch import Key
from vitrewrite.data.joint import LabelMap, MixedCrop
from vitrewrite.data.loading import (
    ProcessShare,
    TrainingOrder,
    automatic,
    training_batches,
)
from vitrewrite.data.pictures import converted, read_image
from vitrewrite.data.policies import mend, posterised
from vitrewrite.data.preprocessing import Preprocessing as Wanted
from vitrewrite.data.seeding import seed_all, seeded
from vitrewrite.errors import DataError
from vitrewrite.folder.reading import rewritten_folder
from vitrewrite.models.records import normalisation
from vitrewrite.tuning import Settings, tune

CONFIG: dict[str, Any] = {
    "mean": (0.4, 0.5, 0.6), "std": (0.2, 0.3, 0.25), "interpolation": "bicubic", "crop_pct": 0.8,
}  # fmt: skip
GREY = {"mean": (0.5,), "std": (0.5,), "interpolation": "bilinear"}


def wanted(**settings: Any) -> Wanted:
    return Preprocessing((3, 16, 16), CONFIG, Settings(**settings))


def opened(folder: Path, **settings: Any) -> Data:
    return open_data(f"{folder}?val=0.2", wanted(**settings))


def drawn(data: Data, seed: int) -> torch.Tensor:
    """The first image of a folder as it is drawn for a seed, normalised."""
    image = data.train[Key(0, seed)]
    assert not isinstance(image, DataError), image
    pixels = image[0]
    return data.train.wanted.normalised(pixels) if pixels.dtype == torch.uint8 else pixels


def first(data: Data) -> Image.Image:
    return converted(read_image(vars(data.train.source)["files"][data.train.indices[0]]), "RGB")


# -- timm's own -----------------------------------------------------------------------------------


@pytest.mark.parametrize("resize", ["model", "whole"])
def test_images_are_measured_as_timm_does_it(resize: str, pictures: Path, here: Path) -> None:
    made = vr.apply(
        f"model vit_tiny_patch16_224(depth=1)\ntrain head\ntune {{ resize = {resize} }}\n"
    )
    found = Preprocessing.of(made.base)
    data = open_data(f"{pictures}?val=0.2", found)
    mode = {"crop_pct": 1.0, "crop_mode": "squash"} if resize == "whole" else {"crop_pct": 0.9}
    expected: Any = timm.data.create_transform(
        (3, 224, 224), mean=(0.5,) * 3, std=(0.5,) * 3, interpolation="bicubic", **mode
    )
    for _ in range(2):  # read, and remembered
        images = next(batches(data.train, 1)).images
        assert torch.equal(images[0], expected(first(data)))


@pytest.mark.parametrize(
    ("settings", "options"),
    [
        ({"augment": "standard"}, {"scale": (0.08, 1), "hflip": 0.5, "color_jitter": 0.4}),
        (
            {"augment": "deit"},
            {"scale": (0.08, 1), "auto_augment": "rand-m9-mstd0.5-inc1", "re_prob": 0.25},
        ),
        ({"crop": 0.3, "erase": 1.0}, {"scale": (0.3, 1), "hflip": 0.0, "re_prob": 1.0}),
        ({"augment": "standard", "flip": 0.0}, {"hflip": 0.0, "color_jitter": 0.4}),
    ],
)
def test_images_are_drawn_as_timm_does_it(
    settings: dict[str, Any], options: dict[str, Any], pictures: Path
) -> None:
    data = opened(pictures, **settings)
    own = {"color_jitter": None, "re_mode": "pixel", "scale": (0.08, 1), **options}
    config = {k: v for k, v in CONFIG.items() if k != "crop_pct"}
    expected: Any = timm.data.create_transform((3, 16, 16), is_training=True, **config, **own)
    for seed in range(6):
        with seeded(seed):
            other = expected(first(data))
        for _ in range(2):
            torch.testing.assert_close(drawn(data, seed), other, atol=0, rtol=1e-6)


def test_without_a_crop_images_are_resized_and_then_changed(pictures: Path) -> None:
    data = opened(pictures, flip=0.5)
    plain = next(batches(data.train, 1)).images[0]
    found = [drawn(data, seed) for seed in range(20)]
    flips = sum(torch.equal(each, plain.flip(-1)) for each in found)
    assert 4 < flips < 16
    assert flips + sum(torch.equal(each, plain) for each in found) == 20
    distorted = opened(pictures, distort=True)
    assert len({drawn(distorted, seed).sum().item() for seed in range(8)}) > 4


# -- what a model is given ------------------------------------------------------------------------


def test_inputs_are_kept_in_the_folder(here: Path) -> None:
    spec = (here / "lora.peft").read_text().replace("epochs = 2", "steps = 1, inputs = unit")
    (here / "unit.peft").write_text(spec)
    made = vr.apply("unit.peft")
    trained = tune(made, "digits:0-1", out="out")
    assert trained.report["training"]["inputs"]["mean"] == (0.0,)
    again = rewritten_folder(Path("out"))
    for each in (made, again):
        found = Preprocessing.of(each.base)
        assert (found.config["mean"], found.config["std"]) == ((0.0,), (1.0,))
        assert each.module.pretrained_cfg["std"] == (1.0,)  # as many as the images have channels
    images = next(batches(open_data("digits", Preprocessing.of(again.base)).train, 99)).images
    assert (float(images.min()), float(images.max())) == (0, 1)


def test_inputs_may_be_names_or_numbers() -> None:
    assert normalisation("model") == {}
    assert normalisation("imagenet")["mean"] == (0.485, 0.456, 0.406)
    assert normalisation("0.5/0.25") == {"mean": (0.5,) * 3, "std": (0.25,) * 3}
    assert normalisation("0,0.1,0.2/1") == {"mean": (0.0, 0.1, 0.2), "std": (1.0,) * 3}


@pytest.mark.parametrize("text", ["untit", "0.5", "0.5/0", "1,2/1", "a/b", "1/2/3", ""])
def test_inputs_that_are_none(text: str, here: Path) -> None:
    spec = f'model tiny.py:build\ntrain head\ntune {{ inputs = "{text}" }}\n'
    with pytest.raises(DataError, match=r"3:8: VR755 inputs .* is neither a name nor MEAN/STD"):
        vr.plan(spec)


def test_what_images_cannot_have(pictures: Path) -> None:
    with pytest.raises(DataError, match=r"VR755 zoom = 2 is not for images with one label"):
        opened(pictures, zoom=2)
    with pytest.raises(DataError, match=r"VR755 augment = deit is not for signs\n.*'standard'"):
        open_data("digits", wanted(augment="deit"))
    for policy in ("random", "rand-q9", "v7"):
        with pytest.raises(DataError, match=rf"VR755 timm knows no policy '{policy}'"):
            opened(pictures, auto_augment=policy)


# -- label maps -----------------------------------------------------------------------------------


def test_a_crop_is_not_all_of_one_class() -> None:
    labels = torch.zeros(16, 64, dtype=torch.uint8)
    labels[:, 56:] = 1  # most crops see only one of the classes
    shares = {}
    for share in (1.0, 0.75):
        crop = MixedCrop((8, 8), share, {LabelMap: 255})
        with seeded(0):
            found = [crop(LabelMap(labels)) for _ in range(60)]
        shares[share] = sum(0.25 <= float((each == 1).float().mean()) <= 0.75 for each in found)
    assert shares[1.0] < 12
    assert shares[0.75] > 28


# -- memory ---------------------------------------------------------------------------------------


@pytest.mark.parametrize("workers", [0, 2])
@pytest.mark.parametrize("settings", [{}, {"augment": "deit"}])
def test_memory_changes_nothing(settings: dict[str, Any], workers: int, pictures: Path) -> None:
    found = []
    for cache in (1, 0):
        data = opened(pictures, cache=cache, **settings)
        order = TrainingOrder(
            20, 8, range(6), 5, ProcessShare(), augment=data.train.varies
        )  # images come again
        found.append(list(training_batches(data.train, order, workers)))
        share = (data.train.decoded if settings else data.train.resized).share
        assert share > 0.9 if cache else share == 0
    assert all(torch.equal(a.images, b.images) for a, b in zip(*found, strict=True))
    assert all(torch.equal(a.labels, b.labels) for a, b in zip(*found, strict=True))


def test_what_is_in_memory_is_not_read_again(
    pictures: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    data = opened(pictures)
    before = [batch.images for batch in batches(data.train, 8)]
    monkeypatch.setattr(type(data.train.source), "load", None)
    assert all(
        torch.equal(a, b.images) for a, b in zip(before, batches(data.train, 8), strict=True)
    )


def test_memory_has_a_limit(tmp_path: Path) -> None:
    for name in ("a/0.png", "a/1.png", "a/2.png", "a/3.png", "a/4.png", "a/5.png"):
        path = tmp_path / "data" / name
        path.parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray(np.full((400, 400, 3), 9, np.uint8)).save(path)
    plain = replace(wanted(cache=1), size=(3, 400, 400))
    data = open_data(f"{tmp_path}/data?val=0.2", plain)
    assert len({float(b.images.sum()) for b in batches(data.train, 1)}) == 1
    assert data.train.resized.share == 2 / len(data.train)  # of 480,000 bytes each
    assert data.train.resized.closed


@pytest.mark.parametrize("policy", ["rand-m10-inc1", "original", "augmix-m9-w3", "3a"])
def test_policies_run_with_every_pillow(policy: str) -> None:
    """From version 12 on it refuses to posterise to no bit, which timm asks for."""
    transform: Any = timm.data.create_transform(24, is_training=True, auto_augment=policy)
    mend(transform.transforms)
    image = Image.fromarray(torch.arange(24 * 24 * 3).remainder(251).view(24, 24, 3).byte().numpy())
    seed_all(0)
    for _ in range(60):
        transform(image)
    assert posterised(image, 0).getextrema() == ((0, 0),) * 3


# -- order and workers ----------------------------------------------------------------------------


@pytest.mark.parametrize(
    "settings",
    [
        {"augment": "deit"},
        {"augment": "standard", "distort": True},
        {"flip": 0.5, "resize": "whole", "inputs": "unit"},
        {"auto_augment": "augmix-m3-w3"},
        {"crop": 0.3, "colour": 0.2, "erase": 1.0},
    ],
)
def test_a_run_that_goes_on_sees_the_same_images(settings: dict[str, Any], pictures: Path) -> None:
    found = []
    for first in (0, 3):
        images = opened(pictures, **settings).train
        order = TrainingOrder(20, 8, range(first, 6), 5, ProcessShare(), augment=images.varies)
        found.append(list(training_batches(images, order)))
        torch.manual_seed(first)
    assert all(torch.equal(a.images, b.images) for a, b in zip(found[0][3:], found[1], strict=True))


def test_workers_are_there_while_they_help(pictures: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    images = opened(pictures).train
    order = TrainingOrder(20, 5, range(12), 5, ProcessShare(), augment=False)
    assert automatic(images, drawn=True) == 0  # so few are read in no time
    expected = list(training_batches(images, order))
    monkeypatch.setattr(loading, "_FEW", 2)
    monkeypatch.setattr(os, "sched_getaffinity", lambda _: {0, 1}, raising=False)
    assert automatic(images, drawn=False) == 0  # they are in memory
    images = opened(pictures).train
    assert automatic(images, drawn=False) == automatic(images, drawn=True) == 1
    asked: list[int] = []
    original = loading.loaded

    def loaded(images: Any, order: Any, workers: int) -> Any:
        asked.append(workers)
        return original(images, order, workers)

    monkeypatch.setattr(loading, "loaded", loaded)
    found = list(training_batches(images, order))
    assert asked == [1, 0]  # the first epoch fills the memory
    assert all(torch.equal(a.images, b.images) for a, b in zip(expected, found, strict=True))
    assert automatic(open_data("digits", Preprocessing((1, 8, 8), GREY)).train, drawn=True) == 0
    monkeypatch.setattr(os, "sched_getaffinity", lambda _: set(range(99)), raising=False)
    assert automatic(images, drawn=True) == 8
    monkeypatch.setenv("LOCAL_WORLD_SIZE", "33")
    assert automatic(images, drawn=True) == 2
