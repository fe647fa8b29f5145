"""Images with label maps: layouts, classes, transforms that keep both together, and refusals."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from vitrewrite.data import Preprocessing, batches, evaluation_batches, open_data
from vitrewrite.data.loading import ProcessShare, TrainingOrder, training_batches
from vitrewrite.errors import DataError
from vitrewrite.tuning import Settings

from .scenes import scenes

CONFIG = {"mean": (0.0,) * 3, "std": (1.0,) * 3}
PLAIN = Preprocessing((3, 32, 64), CONFIG)
RANDOM = replace(PLAIN, settings=Settings(zoom=2.0, flip=0.5, colour=0.4, one_class=1.0))


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    scenes(tmp_path / "data", 32, training=5, validation=2)
    return tmp_path / "data"


def write(path: Path, values: object, **options: object) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(np.array(values, dtype=np.uint8)).save(path, **options)


def test_a_folder_with_splits_or_without(folder: Path) -> None:
    data = open_data(str(folder), PLAIN)
    assert (len(data.train), len(data.val), data.classes, data.maps) == (5, 2, (), True)
    images, labels = next(batches(data.train, 5))
    assert (images.shape, labels.shape) == ((5, 3, 32, 64), (5, 32, 64))
    assert labels.dtype == torch.int64
    assert labels.unique().tolist() == [0, 1, 2]
    red, blue = (images.movedim(1, -1)[labels == k].median(0).values for k in (1, 2))
    torch.testing.assert_close(red * 255, torch.tensor([230.0, 60, 40]), atol=3, rtol=0)
    torch.testing.assert_close(blue * 255, torch.tensor([50.0, 90, 240]), atol=3, rtol=0)
    for kind in ("images", "annotations"):
        for split in ("training", "validation"):
            for path in (folder / kind / split).iterdir():
                path.rename(folder / kind / f"{split}-{path.name}")
            (folder / kind / split).rmdir()
    (folder / "annotations").rename(folder / "masks")
    (folder / "classes.txt").write_text("noise\nred\nblue\n")
    flat = open_data(f"{folder}?val=0.2", PLAIN)
    assert (len(flat.train), len(flat.val), flat.classes) == (6, 1, ("noise", "red", "blue"))
    assert not set(flat.train.indices) & set(flat.val.indices)
    assert flat.fingerprint != data.fingerprint
    with pytest.raises(DataError, match=r"VR743 .* has 3 classes .*\n.*num_labels=3"):
        flat.check_head(2)


def test_maps_of_ade20k_start_at_one(tmp_path: Path) -> None:
    indices = [[0, 1], [150, 2]]
    write(tmp_path / "images" / "training" / "a.jpg", np.zeros((2, 2, 3)))
    write(tmp_path / "images" / "validation" / "b.jpg", np.zeros((2, 2, 3)))
    for name in ("training/a.png", "validation/b.png"):
        write(tmp_path / "annotations" / name, indices)
    table = (
        "Idx\tRatio\tTrain\tVal\tStuff\tName\n1\t0.1\t9\t9\t1\twall\n2\t0.1\t9\t9\t1\tbuilding, e\n"
    )
    (tmp_path / "objectInfo150.txt").write_text(table)
    data = open_data(f"ade20k:{tmp_path}", PLAIN)
    data.check_head(150)
    assert data.classes == ("wall", "building")
    labels = next(batches(data.train, 1)).labels[0]
    assert labels[::31, ::63].tolist() == [[255, 0], [149, 1]]
    plain = open_data(str(tmp_path), PLAIN)
    plain.check_head(150)
    with pytest.raises(DataError, match=r"VR743 the label 150 of .*a.jpg' is outside the head"):
        list(batches(plain.train, 1))


def test_a_map_may_have_a_palette(folder: Path) -> None:
    path = folder / "annotations" / "training" / "00.png"
    expected = next(batches(open_data(str(folder), PLAIN).train, 1)).labels
    with Image.open(path) as opened:
        coloured = opened.copy()
    coloured.putpalette([0, 0, 0, 255, 0, 0, 0, 0, 255])
    coloured.save(path)
    assert coloured.mode == "P"
    assert torch.equal(next(batches(open_data(str(folder), PLAIN).train, 1)).labels, expected)


def test_random_transforms_move_images_and_maps_alike(tmp_path: Path) -> None:
    tiles = np.kron(np.arange(1, 17).reshape(4, 4), np.ones((8, 16)))
    for name in ("a", "b"):
        write(tmp_path / "images" / f"{name}.png", np.stack([tiles * 15] * 3, -1))
        write(tmp_path / "annotations" / f"{name}.png", tiles)
    data = open_data(f"{tmp_path}?val=0.5", RANDOM)
    order = TrainingOrder(1, 1, range(40), 3, ProcessShare(), augment=True)
    found = list(training_batches(data.train, order))
    again = list(training_batches(data.train, order))
    assert all(torch.equal(a.images, b.images) for a, b in zip(found, again, strict=True))
    margins = flips = 0
    for images, labels in found:
        image, indices = images[0, 0], labels[0]
        known = indices != 255
        margins += bool((~known).any())
        assert image[~known].eq(0).all()
        rows = indices[known.any(1)]
        flips += bool((rows[:, known.any(0)].diff(dim=1) < 0).any())
        pair = torch.stack([image[known], indices[known].float()])
        assert pair.corrcoef()[0, 1] > 0.95  # a tile is as bright as its label, wherever it went
    assert 5 < margins < 35
    assert 8 < flips < 32


def test_padding_of_an_evaluation(folder: Path) -> None:
    data = open_data(str(folder), PLAIN)
    parts = [list(evaluation_batches(data.train, 8, ProcessShare(rank, 2))) for rank in (0, 1)]
    padded = [bool((each < 0).all()) for part in parts for each in part[0].labels]
    assert padded == [False] * 5 + [True]


# -- what is refused ------------------------------------------------------------------------------


def test_folders_that_are_empty_or_otherwise(folder: Path, tmp_path: Path) -> None:
    with pytest.raises(DataError, match=r"VR740 .*\n.*annotations/training/a.png"):
        open_data(f"ade20k:{tmp_path}", PLAIN)
    for path in (folder / "images" / "training").iterdir():
        path.unlink()
    with pytest.raises(DataError, match=r"VR741 .* no image in"):
        open_data(str(folder), PLAIN)
    write(folder / "images" / "one.png", np.zeros((2, 2, 3)))
    for kind in ("images", "annotations"):
        for split in ("training", "validation"):
            (folder / kind / split).rename(tmp_path / f"{kind}-{split}")
    write(folder / "annotations" / "one.png", np.zeros((2, 2)))
    with pytest.raises(DataError, match=r"VR749 .* no validation part"):
        open_data(str(folder), PLAIN)
    with pytest.raises(DataError, match=r"VR752 val=0.5 leaves nothing .* of the 1 image"):
        open_data(f"{folder}?val=0.5", PLAIN)


def test_an_image_without_a_map(folder: Path) -> None:
    (folder / "annotations" / "validation" / "01.png").unlink()
    with pytest.raises(DataError, match=r"VR747 .*validation/01.png' .* no label map\n.*put it at"):
        open_data(str(folder), PLAIN)


@pytest.mark.parametrize(
    ("content", "reason"),
    [
        (np.zeros((32, 16)), "it is 16x32, and the image 32x32"),
        (np.zeros((32, 32, 3)), "it has 3 channels"),
        (b"no picture", "it is in no format of images"),
        (b"", "it is empty"),
    ],
)
def test_a_map_that_cannot_be_used(content: object, reason: str, folder: Path) -> None:
    path = folder / "annotations" / "training" / "03.png"
    path.write_bytes(content) if isinstance(content, bytes) else write(path, content)
    with pytest.raises(DataError, match=rf"VR747 .*training/03.png': .*{reason}"):
        open_data(str(folder), PLAIN)


@pytest.mark.parametrize("workers", [0, 1])
def test_a_map_that_is_cut_short(workers: int, folder: Path) -> None:
    path = folder / "annotations" / "training" / "03.png"
    path.write_bytes(path.read_bytes()[:60])
    data = open_data(str(folder), PLAIN)
    order = TrainingOrder(5, 5, range(1), 0, ProcessShare(), augment=False)
    with pytest.raises(DataError, match=r"VR747 .*training/03.png': .*truncated"):
        list(training_batches(data.train, order, workers))


def test_an_image_that_is_cut_short(folder: Path) -> None:
    path = folder / "images" / "training" / "02.png"
    path.write_bytes(path.read_bytes()[:200])
    with pytest.raises(DataError, match=r"VR742 cannot read the image '.*training/02.png'"):
        list(batches(open_data(str(folder), PLAIN).train, 5))
