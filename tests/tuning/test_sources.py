"""Which images of a source are taken, and the data sets of libraries."""

from __future__ import annotations

import struct
from collections import Counter
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from vitrewrite.data import Data, batches, open_data
from vitrewrite.errors import DataError

from .test_data import COLOUR, GREY, labels
from .test_scenes import PLAIN, write


def taken(name: object) -> tuple[Counter[int], Counter[int]]:
    """How many images of each class are trained on and measured on."""
    train, val = labels(open_data(str(name), COLOUR))
    return Counter(train), Counter(val)


def everything(data: Data) -> list[int]:
    return sorted((*data.train.indices, *data.val.indices))


# -- options --------------------------------------------------------------------------------------


def test_shots_and_images_and_shares(pictures: Path) -> None:
    assert taken(f"{pictures}?val=0.25") == ({0: 9, 1: 9}, {0: 3, 1: 3})
    assert taken(f"{pictures}?val=0.25&shots=4") == ({0: 4, 1: 4}, {0: 3, 1: 3})
    train, val = taken(f"{pictures}?images=20&val=0.2")
    assert (train.total() + val.total(), min(val.values())) == (20, 1)
    few = [open_data(f"{pictures}?val=0.25&shots=4&draw={n}", COLOUR) for n in (0, 0, 1)]
    assert few[0].fingerprint == few[1].fingerprint != few[2].fingerprint
    more = open_data(f"{pictures}?val=0.25&shots=8", COLOUR)
    assert more.val.indices == few[0].val.indices  # judged on the same images
    assert set(few[0].train.indices) < set(more.train.indices)


def test_folds_are_everything_once(pictures: Path) -> None:
    folds = [open_data(f"{pictures}?fold={n}&folds=5", COLOUR) for n in range(5)]
    assert sorted(i for each in folds for i in each.val.indices) == list(range(24))
    assert all(everything(each) == list(range(24)) for each in folds)
    assert all(set(labels(each)[1]) == {0, 1} for each in folds)


def test_a_stated_share_leaves_the_own_part_alone() -> None:
    own, stated = (open_data(name, GREY) for name in ("digits", "digits?val=0.2"))
    assert not {*own.val.indices} & {*stated.train.indices, *stated.val.indices}
    assert everything(stated) == sorted(own.train.indices)


def test_maps_are_divided_as_a_whole(tmp_path: Path) -> None:
    for number in range(6):
        write(tmp_path / "images" / f"{number}.png", np.zeros((2, 2, 3)))
        write(tmp_path / "annotations" / f"{number}.png", np.full((2, 2), number))
    data = open_data(f"{tmp_path}?fold=1&folds=3", PLAIN)
    assert (len(data.train), len(data.val)) == (4, 2)
    with pytest.raises(DataError, match=r"VR750 shots=1 .* have maps\n.*images="):
        open_data(f"{tmp_path}?val=0.5&shots=1", PLAIN)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ("", r"VR749 .* no validation part, and none is stated\n.*\?val=0.2"),
        ("?shots=3", "VR749"),
        ("?val=0.2&shots=11", "VR751 class 'dark' of .* has 10 images to train on, not 11"),
        ("?images=25&val=0.2", "VR751 .* has 24 images to train on, not 25"),
        ("?val=0.05", "VR752 val=0.05 leaves nothing .* of class 'dark', which has 12 images"),
        ("?fold=0&folds=13", "VR752 folds=13 leaves nothing .* of class 'dark'"),
        ("?fold=5&folds=5", r"VR750 data has no fold 5 of 5\n.*0\.\.4"),
        ("?fold=0", r"VR750 data has fold=0 alone\n.*folds=5"),
        ("?fold=0&folds=5&val=0.2", "VR750 data has val and fold"),
        ("?shot=4", r"VR750 data has no option 'shot'\n(?s:.*)did you mean 'shots'"),
        ("?shots=four", r"VR750 data cannot have shots='four'\n.*images per class"),
        ("?shots=0", "VR750"),
        ("?val=1", "VR750 .*\n.*between 0 and 1"),
        ("?val=nan", "VR750"),
        ("?val=0.2&val=0.3", "VR750 .* given twice"),
        ("?", "VR749"),
    ],
)
def test_options_that_cannot_be(options: str, message: str, pictures: Path) -> None:
    with pytest.raises(DataError, match=message):
        open_data(f"{pictures}{options}", COLOUR)


# -- libraries ------------------------------------------------------------------------------------


def mnist(folder: Path, **counts: int) -> None:
    """Files of MNIST: image n is as bright as n, and of class n % 10."""
    raw = folder / "MNIST" / "raw"
    raw.mkdir(parents=True)
    for part, count in counts.items():
        pixels = np.arange(count, dtype=np.uint8).repeat(28 * 28).tobytes()
        image = struct.pack(">IIII", 0x803, count, 28, 28) + pixels
        label = struct.pack(">II", 0x801, count) + bytes(n % 10 for n in range(count))
        (raw / f"{part}-images-idx3-ubyte").write_bytes(image)
        (raw / f"{part}-labels-idx1-ubyte").write_bytes(label)


def test_data_sets_of_torchvision(tmp_path: Path) -> None:
    mnist(tmp_path, train=30, t10k=10)
    data = open_data(f"torchvision:MNIST@{tmp_path}", GREY)
    assert (len(data.train), len(data.val), len(data.classes)) == (30, 10, 10)
    images, found = next(batches(data.train, 30))
    assert found.tolist() == [n % 10 for n in range(30)]
    assert (images[29, 0, 0, 0] * 0.5 + 0.5).item() == pytest.approx(29 / 255)
    few = open_data(f"torchvision:MNIST@{tmp_path}?shots=2", GREY)
    assert Counter(labels(few)[0]) == dict.fromkeys(range(10), 2)


def test_a_data_set_with_splits_by_name(pictures: Path) -> None:
    root = pictures.parent / "country211"
    for number, split in enumerate(("train", "valid")):
        for name in ("dark", "light"):
            (root / split / name).mkdir(parents=True)
            (pictures / name / f"0{number}.png").rename(root / split / name / "a.png")
    data = open_data(f"torchvision:Country211@{pictures.parent}", COLOUR)
    assert labels(data) == ([0, 1], [0, 1])


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("torchvision:MNSIT@.", r"VR740 .*no data set 'MNSIT'\n.*did you mean 'MNIST'"),
        ("torchvision:MNIST@.", "VR740 .*not found"),
        ("torchvision:FakeData@.", "VR749"),
        ("hf:nowhere", "VR740"),
        ("cityscapes:.", "VR740 .*leftImg8bit"),
    ],
)
def test_data_sets_that_are_not_there(name: str, message: str, here: Path) -> None:
    with pytest.raises(DataError, match=message):
        open_data(name, COLOUR)


def test_data_sets_that_hugging_face_wrote(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    library = pytest.importorskip("datasets")
    features = library.Features(
        {"img": library.Image(), "fine": library.ClassLabel(names=["a", "b"])}
    )
    rows = [{"img": Image.new("RGB", (4, 4), (40 * n, 0, 0)), "fine": n % 2} for n in range(6)]
    whole = library.Dataset.from_list(rows, features=features)
    whole.save_to_disk(tmp_path / "whole")
    library.DatasetDict(train=whole, test=whole.select([1, 2])).save_to_disk(tmp_path / "split")
    data = open_data(f"hf:{tmp_path}/split", COLOUR)
    assert (len(data.train), len(data.val), data.classes) == (6, 2, ("a", "b"))
    images, found = next(batches(data.val, 2))
    assert found.tolist() == [1, 0]
    assert images[:, 0, 0, 0].tolist() == pytest.approx([40 / 127.5 - 1, 80 / 127.5 - 1], abs=1e-6)
    with pytest.raises(DataError, match="VR749"):
        open_data(f"hf:{tmp_path}/whole", COLOUR)
    assert taken(f"hf:{tmp_path}/whole?val=0.4&shots=1") == ({0: 1, 1: 1}, {0: 1, 1: 1})
    whole.remove_columns("fine").save_to_disk(tmp_path / "bare")
    with pytest.raises(DataError, match=r"VR740 .*no column of labels, but img"):
        open_data(f"hf:{tmp_path}/bare", COLOUR)
    monkeypatch.setitem(__import__("sys").modules, "datasets", None)
    with pytest.raises(DataError, match=r"VR745 .*\n.*vitrewrite\[datasets\]"):
        open_data(f"hf:{tmp_path}/split", COLOUR)


# -- Cityscapes -----------------------------------------------------------------------------------


def test_the_layout_of_cityscapes(tmp_path: Path) -> None:
    ids = np.array([[0, 7], [33, 11]])  # unlabelled, road, bicycle, building
    for split in ("train", "val"):
        write(tmp_path / f"leftImg8bit/{split}/bonn/a_leftImg8bit.png", np.zeros((2, 2, 3)))
        write(tmp_path / f"gtFine/{split}/bonn/a_gtFine_labelIds.png", ids)
    write(tmp_path / "gtFine/val/bonn/a_gtFine_labelTrainIds.png", [[255, 0], [18, 2]])
    for name in (str(tmp_path), f"cityscapes:{tmp_path}"):
        data = open_data(name, PLAIN)
        data.check_head(19)
        assert (len(data.classes), data.classes[0], data.classes[18]) == (19, "road", "bicycle")
        for part in (data.train, data.val):
            found = next(batches(part, 1)).labels[0]
            assert found[::31, ::63].tolist() == [[255, 0], [18, 2]]
            assert found.dtype == torch.int64
    write(tmp_path / "gtFine/train/bonn/a_gtFine_labelIds.png", np.full((2, 2), 40))
    with pytest.raises(DataError, match="VR743 the label 40 of the map"):
        list(batches(open_data(str(tmp_path), PLAIN).train, 1))
    (tmp_path / "gtFine/train/bonn/a_gtFine_labelIds.png").unlink()
    with pytest.raises(DataError, match=r"VR747 .*a_leftImg8bit.png' .* no label map"):
        open_data(str(tmp_path), PLAIN)
