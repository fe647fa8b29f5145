"""Images: what can be named, how they are split, ordered and transformed, and what is refused."""

from __future__ import annotations

from itertools import islice
from pathlib import Path

import pytest
import torch

import vitrewrite as vr
from vitrewrite.data import Data, Preprocessing, batches, evaluation_batches, open_data
from vitrewrite.data.batch import Batch
from vitrewrite.data.loading import ProcessShare, TrainingOrder, training_batches
from vitrewrite.errors import DataError
from vitrewrite.tuning import Settings

GREY = Preprocessing((1, 16, 16), {"mean": (0.5,), "std": (0.5,), "interpolation": "bilinear"})
CONFIG = {"mean": (0.5,) * 3, "std": (0.5,) * 3, "interpolation": "bilinear"}
COLOUR = Preprocessing((3, 16, 16), CONFIG, Settings(augment="standard"))


def labels(data: Data) -> tuple[list[int], list[int]]:
    parts = (data.train, data.val)
    return tuple([data.train.source.load(i)[1] for i in part.indices] for part in parts)  # type: ignore[return-value]


def test_digits_are_split_by_class_and_relabelled() -> None:
    whole, some = open_data("digits", GREY), open_data("digits:5-7,9", GREY)
    assert (len(whole.train) + len(whole.val), whole.classes) == (1797, tuple("0123456789"))
    assert some.classes == ("5", "6", "7", "9")
    train, val = labels(some)
    assert set(train) == set(val) == {0, 1, 2, 3}
    assert 0.19 < len(val) / len(train + val) < 0.2
    assert not set(some.train.indices) & set(some.val.indices)
    assert some.fingerprint != whole.fingerprint == open_data("digits", GREY).fingerprint
    other = [open_data(f"digits?val=0.3&draw={draw}", GREY) for draw in (0, 1)]
    assert other[0].fingerprint != other[1].fingerprint


def test_digits_look_like_digits() -> None:
    images, found = next(batches(open_data("digits", GREY).train, 200))
    assert images.shape == (200, 1, 16, 16)
    assert (float(images.min()), float(images.max())) == pytest.approx((-1, 1), abs=0.02)
    means = torch.stack([images[found == digit].mean(0).flatten() for digit in range(10)])
    nearest = torch.cdist(images.flatten(1), means).argmin(1)
    assert float((nearest == found).float().mean()) > 0.85


def test_a_folder_is_split_or_has_splits(pictures: Path) -> None:
    split = open_data(f"{pictures}?val=0.2", COLOUR)
    assert (len(split.train), len(split.val), split.classes) == (20, 4, ("dark", "light"))
    (pictures / "train").mkdir()
    for name in split.classes:
        (pictures / name).rename(pictures / "train" / name)
    assert len(open_data(f"{pictures}?val=0.2", COLOUR).train) == 20
    (pictures / "val" / "light").mkdir(parents=True)
    (pictures / "train" / "light" / "00.png").rename(pictures / "val" / "light" / "00.png")
    data = open_data(str(pictures), COLOUR)
    assert (len(data.train), len(data.val)) == (23, 1)
    assert labels(data)[1] == [1]
    assert len(data.train.joined(data.val)) == 24
    (dark, bright) = (next(batches(data.train, 23)).images[i].mean() for i in (0, 22))
    assert dark < -0.5 < 0.2 < bright


def test_data_sets_of_timm(pictures: Path) -> None:
    for part in ("train", "val"):
        (pictures / part).mkdir()
    for part in ("dark", "light"):
        (pictures / part).rename(pictures / "train" / part)
        (pictures / "val" / part).mkdir()
        (pictures / "train" / part / "03.png").rename(pictures / "val" / part / "03.png")
    data = open_data(f"timm:torch/image_folder@{pictures}", COLOUR)
    assert (len(data.train), len(data.val), data.classes) == (22, 2, ("dark", "light"))
    assert next(batches(data.val, 2)).labels.tolist() == [0, 1]
    assert labels(data)[0] == [0] * 11 + [1] * 11


def test_preprocessing_is_the_models_own() -> None:
    captured = vr.apply("train head\n", "vit_tiny_patch16_224").base
    found = Preprocessing.of(captured)
    assert (found.size, found.mode) == ((3, 224, 224), "RGB")
    assert found.config["mean"] == (0.5, 0.5, 0.5)
    assert (found.config["interpolation"], found.config["crop_pct"]) == ("bicubic", 0.9)


# -- order ----------------------------------------------------------------------------------------


def steps(images: object, share: ProcessShare, first: int = 0, workers: int = 0) -> list[Batch]:
    order = TrainingOrder(20, 8, range(first, 5), 7, share, augment=True)
    return list(training_batches(images, order, workers))  # type: ignore[arg-type]


def test_order_and_augmentation_depend_on_the_seed_alone(pictures: Path) -> None:
    images = open_data(f"{pictures}?val=0.2", COLOUR).train
    whole = steps(images, ProcessShare())
    assert [len(b.labels) for b in whole] == [8] * 5
    assert not torch.equal(whole[0].images, whole[2].images)
    torch.manual_seed(99)
    again = steps(images, ProcessShare(), first=3, workers=2)
    assert all(torch.equal(a.images, b.images) for a, b in zip(whole[3:], again, strict=True))
    parts = [steps(images, ProcessShare(rank, 2, pieces=2)) for rank in range(2)]
    for number, batch in enumerate(whole):
        pieces = [parts[rank][2 * number + piece] for piece in range(2) for rank in range(2)]
        assert torch.equal(torch.cat([p.images for p in pieces]), batch.images)
        assert torch.equal(torch.cat([p.labels for p in pieces]), batch.labels)


def test_reading_images_leaves_the_generators_alone(pictures: Path) -> None:
    images = open_data(f"{pictures}?val=0.2", COLOUR).train
    torch.manual_seed(3)
    expected = torch.rand(4)
    torch.manual_seed(3)
    order = TrainingOrder(20, 8, range(1), 7, ProcessShare(), augment=True)
    for key in next(iter(order)):
        images[key]
    assert torch.equal(torch.rand(4), expected)


def test_processes_evaluate_every_image_once(pictures: Path) -> None:
    images = open_data(f"{pictures}?val=0.2", COLOUR).train
    found = [list(evaluation_batches(images, 4, ProcessShare(rank, 3))) for rank in range(3)]
    assert [len(each) for each in found] == [2, 2, 2]
    real = torch.cat([b.labels[b.labels >= 0] for each in found for b in each])
    assert real.sort().values.tolist() == [0] * 10 + [1] * 10


def test_batches_can_be_shuffled_and_limited() -> None:
    images = open_data("digits", GREY).train
    sizes = [len(b.labels) for b in batches(images, 40, seed=1, limit=100)]
    assert sizes == [40, 40, 20]
    (first,), (second,) = (islice(batches(images, 40, seed=s), 1) for s in (1, 2))
    assert not torch.equal(first.labels, second.labels)


# -- bad input ------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("name", "code"),
    [
        ("digit", "VR740"),
        ("nowhere/at/all", "VR740"),
        ("digits:7-5", "VR740"),
        ("digits:10", "VR740"),
        ("digits:0-3-5", "VR740"),
        ("tiny.py", "VR740"),
        ("timm:torch/nothing@.", "VR740"),
        ("timm:torch/cifar10@.", "VR740"),
        ("timm:@nowhere", "VR740"),
        ("\x00", "VR740"),
        ("empty", "VR741"),
        ("hollow", "VR741"),
        ("lonely?val=0.5", "VR752"),
    ],
)
def test_data_that_is_missing_or_empty(name: str, code: str, pictures: Path, here: Path) -> None:
    (here / "empty").mkdir()
    (here / "hollow" / "class").mkdir(parents=True)
    (here / "hollow" / "class" / "notes.txt").write_text("no image")
    (here / "lonely" / "class").mkdir(parents=True)
    (pictures / "dark" / "00.png").rename(here / "lonely" / "class" / "00.png")
    with pytest.raises(DataError) as caught:
        open_data(name, COLOUR)
    assert caught.value.code == code
    assert "\n" not in caught.value.message


def test_a_validation_class_that_training_lacks(pictures: Path) -> None:
    (pictures / "train").mkdir()
    (pictures / "dark").rename(pictures / "train" / "dark")
    (pictures / "val").mkdir()
    (pictures / "light").rename(pictures / "val" / "light")
    with pytest.raises(DataError, match=r"VR740 .*'light' that 'train' lacks"):
        open_data(str(pictures), COLOUR)


@pytest.mark.parametrize("workers", [0, 1])
@pytest.mark.parametrize("content", [b"", b"no image at all", "cut"])
def test_an_image_that_cannot_be_read(content: bytes | str, workers: int, pictures: Path) -> None:
    path = pictures / "light" / "05.png"
    path.write_bytes(path.read_bytes()[:200] if isinstance(content, str) else content)

    def read() -> None:
        data = open_data(f"{pictures}?val=0.2", COLOUR)
        assert content == "cut"  # its head can be read
        order = TrainingOrder(24, 24, range(1), 0, ProcessShare(), augment=False)
        list(training_batches(data.train.joined(data.val), order, workers))

    with pytest.raises(DataError, match=r"VR742 cannot read the image '.*light/05.png'"):
        read()


def test_labels_have_to_fit_the_head(pictures: Path) -> None:
    data = open_data(f"{pictures}?val=0.2", COLOUR)
    with pytest.raises(DataError, match=r"VR743 .* has 2 classes and the head 1 outputs"):
        data.check_head(1)
    data.check_head(2)
    odd = Data("odd", data.train, data.val, ())
    odd.check_head(1)
    with pytest.raises(DataError, match=r"VR743 the label 1 of .* is outside the head"):
        list(batches(odd.train, 20))


def test_a_model_of_something_else_than_images() -> None:
    import timm

    model = timm.create_model("vit_tiny_patch16_224", depth=1, in_chans=4)
    with pytest.raises(DataError, match="VR744"):
        Preprocessing.of(vr.apply("train head\n", model).base)


def test_digits_need_scikit_learn(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(__import__("sys").modules, "sklearn.datasets", None)
    with pytest.raises(DataError, match="VR745"):
        open_data("digits", GREY)
