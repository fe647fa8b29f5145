"""Label maps of all kinds: each pixel is the index of its class, to the last bit, or refused."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from vitrewrite.data import Data, Preprocessing, batches, open_data
from vitrewrite.errors import DataError

from .test_pictures import RGB, TURNS, png

VALUES = np.array([[0, 1, 2, 3, 1, 2], [3, 2, 1, 0, 0, 0], [1, 1, 1, 2, 2, 2], [0, 3, 0, 3, 0, 3]])


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    for kind, values in (("images", RGB), ("annotations", VALUES.astype(np.uint8))):
        for split in ("training", "validation"):
            path = tmp_path / "data" / kind / split / "a.png"
            path.parent.mkdir(parents=True)
            Image.fromarray(values).save(path)
    return tmp_path / "data"


def files(folder: Path) -> tuple[Path, Path]:
    return folder / "images/training/a.png", folder / "annotations/training/a.png"


def opened(name: object, outputs: int | None = 4, size: tuple[int, int] = (4, 6)) -> Data:
    plain = Preprocessing((3, *size), {"mean": (0.0,) * 3, "std": (1.0,) * 3})
    data = open_data(str(name), plain)
    if outputs is not None:
        data.check_head(outputs)
    return data


def labels(name: object, **options: object) -> list[list[int]]:
    return next(batches(opened(name, **options).train, 1)).labels[0].tolist()  # type: ignore[arg-type]


# -- what is read ---------------------------------------------------------------------------------


@pytest.mark.parametrize("depth", [1, 2, 4, 8, 16])
def test_grey_of_any_depth_is_the_class(depth: int, folder: Path) -> None:
    """Pillow spreads 2 and 4 bits over the range of 8: class 1 would be 85 or 17."""
    values = np.minimum(VALUES, 2**depth - 1)
    files(folder)[1].write_bytes(png(depth, 0, values))
    assert labels(folder) == values.tolist()


@pytest.mark.parametrize("transparency", [None, 2])
def test_a_palette_says_nothing_of_classes(transparency: int | None, folder: Path) -> None:
    image = Image.fromarray(VALUES.astype(np.uint8))
    image.putpalette([0, 0, 0, 9, 9, 9, 0, 0, 255, 255, 0, 0])
    options = {} if transparency is None else {"transparency": transparency}
    image.save(files(folder)[1], **options)
    assert labels(folder) == VALUES.tolist()


@pytest.mark.parametrize("turn", range(1, 9))
@pytest.mark.parametrize("marked", [False, True])
def test_a_map_belongs_to_the_image_as_one_sees_it(turn: int, marked: bool, folder: Path) -> None:
    """Drawn over the upright image, or beside its pixels with the same EXIF."""
    exif = Image.Exif()
    exif[0x0112] = turn
    image, target = files(folder)
    Image.fromarray(RGB).save(image, exif=exif)
    upright = TURNS[turn](VALUES.astype(np.uint8))
    if marked:
        Image.fromarray(VALUES.astype(np.uint8)).save(target, exif=exif)
    else:
        Image.fromarray(np.ascontiguousarray(upright)).save(target)
    height, width = upright.shape
    data = opened(folder, size=(height, width))
    found = next(batches(data.train, 1))
    assert found.labels[0].tolist() == upright.tolist()
    assert (found.images[0] * 255).round().movedim(0, -1).tolist() == TURNS[turn](RGB).tolist()


def test_none_and_the_classes_of_ade20k(folder: Path) -> None:
    values = np.where(VALUES == 3, 255, VALUES)
    Image.fromarray(values.astype(np.uint8)).save(files(folder)[1])
    assert labels(folder, outputs=3) == values.tolist()
    shifted = np.where((values == 0) | (values == 255), 255, values - 1)
    for path in folder.glob("annotations/*/a.png"):
        Image.fromarray(values.astype(np.uint8)).save(path)
    assert labels(f"ade20k:{folder}", outputs=2) == shifted.tolist()


# -- what is refused ------------------------------------------------------------------------------


def refusal(name: object, **options: object) -> str:
    with pytest.raises(DataError) as caught:
        labels(name, **options)
    return caught.value.render()


def test_values_that_no_class_has(folder: Path) -> None:
    target = files(folder)[1]
    Image.fromarray(np.where(VALUES == 3, 7, VALUES).astype(np.uint8)).save(target)
    told = refusal(folder)
    assert f"VR743 the label 7 of the map '{target}' of '{files(folder)[0]}' is outside" in told
    assert "valid: 0..3, and 255 for none" in told
    (folder / "classes.txt").write_text("a\nb\nc\n")  # fewer than the head could tell apart
    Image.fromarray((VALUES + 1).astype(np.uint8)).save(target)
    told = refusal(folder, outputs=10)
    assert "the labels 3, 4 of the map" in told
    assert "are outside the classes" in told
    assert "valid: 0..2, and 255 for none" in told
    assert "valid: 1..3, and 0 or 255 for none" in refusal(f"ade20k:{folder}", outputs=10)


@pytest.mark.parametrize("value", [256, 300, 65535])
@pytest.mark.parametrize("prefix", ["", "ade20k:"])
def test_there_are_at_most_255_classes(value: int, prefix: str, folder: Path) -> None:
    """Otherwise one of them would be 255, which is none; ADE20K's 256 would become that."""
    deep = np.where(VALUES == 0, value, VALUES).astype(np.uint16)
    Image.fromarray(deep).save(files(folder)[1])
    for outputs in (None, 400):
        told = refusal(f"{prefix}{folder}", outputs=outputs)
        assert f"VR743 the label {value} of the map" in told


def test_maps_that_cannot_be_used_are_found_before_anything_is_done(folder: Path) -> None:
    target, grey = files(folder)[1], Image.fromarray(VALUES.astype(np.uint8))
    cases = [
        (lambda: Image.fromarray(RGB).save(target), "3 channels"),
        (lambda: grey.convert("RGBA").save(target), "4 channels"),
        (lambda: grey.convert("LA").save(target), "2 channels"),
        (lambda: grey.save(target, "JPEG"), "no PNG, but JPEG"),  # whose values are not exact
        (lambda: grey.save(target, "TIFF"), "no PNG, but TIFF"),
        (lambda: grey.save(target, save_all=True, append_images=[grey.rotate(180)]), "2 frames"),
        (lambda: grey.resize((3, 4)).save(target), "it is 3x4, and the image 6x4"),
        (lambda: grey.transpose(Image.Transpose.ROTATE_90).save(target), "it is 4x6"),
        (lambda: target.write_bytes(b""), "it is empty"),
        (lambda: (target.unlink(), target.mkdir()), "has no label map"),
    ]
    for make, reason in cases:
        make()
        with pytest.raises(DataError, match=rf"VR747 (?s:.*)a.png' (?s:.*){reason}|{reason}"):
            opened(folder)


def test_the_size_is_that_of_the_upright_image(folder: Path) -> None:
    exif = Image.Exif()
    exif[0x0112] = 6
    Image.fromarray(RGB).save(files(folder)[0], exif=exif)
    assert "VR747" in refusal(folder)
    assert "it is 6x4, and the image 4x6" in refusal(folder)


def test_broken_images_and_maps_are_told_of_together(folder: Path) -> None:
    files(folder)[0].write_bytes(b"")
    (folder / "annotations/validation/a.png").write_bytes(b"nothing")
    told = refusal(folder)
    assert "VR742" in told
    assert "images/training/a.png" in told
    assert "VR747" in told
    assert "annotations/validation/a.png" in told
