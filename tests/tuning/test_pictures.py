"""Pictures of all kinds: what the model gets of them, and what is refused by name."""

from __future__ import annotations

import io
import os
import struct
import zlib
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image, ImageFile

from vitrewrite.data import Preprocessing, batches, open_data
from vitrewrite.data.pictures import converted, read_image
from vitrewrite.errors import DataError

COLOUR = Preprocessing((3, 4, 6), {"mean": (0.0,) * 3, "std": (1.0,) * 3})
GREY = Preprocessing((1, 4, 6), {"mean": (0.0,), "std": (1.0,)})
PLAIN = {"interpolation": "nearest", "crop_pct": 1.0}
# 4 rows of 6 pixels, so that each way to turn them gives something else.
VALUES = np.arange(24, dtype=np.uint8).reshape(4, 6) * 10
RGB = np.stack([VALUES, 255 - VALUES, VALUES // 2], -1)
TURNS: dict[int, Callable[[np.ndarray], np.ndarray]] = {
    1: lambda v: v, 2: lambda v: v[:, ::-1], 3: lambda v: v[::-1, ::-1], 4: lambda v: v[::-1],
    5: lambda v: v.swapaxes(0, 1), 6: lambda v: v.swapaxes(0, 1)[:, ::-1],
    7: lambda v: v.swapaxes(0, 1)[::-1, ::-1], 8: lambda v: v.swapaxes(0, 1)[::-1],
}  # fmt: skip


def wanted(channels: int, height: int = 4, width: int = 6) -> Preprocessing:
    plain = {"mean": (0.0,) * channels, "std": (1.0,) * channels, **PLAIN}
    return Preprocessing((channels, height, width), plain)


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """Two classes with two black images each, the first of which tests replace."""
    for name in ("a/0.png", "a/1.png", "b/0.png", "b/1.png"):
        path = tmp_path / "data" / name
        path.parent.mkdir(parents=True, exist_ok=True)
        Image.new("RGB", (6, 4)).save(path)
    return tmp_path / "data"


def tensor(folder: Path, name: str, channels: int = 3) -> np.ndarray:
    """What a model gets of one image, (H, W) or (H, W, C), from 0 to 255."""
    data = open_data(f"{folder}?val=0.5", wanted(channels))
    images = data.train.joined(data.val)
    place = [images.source.where(i).endswith(f"{name}'") for i in images.indices].index(True)
    pixels = list(batches(images, 1))[place].images[0]
    assert 0 <= float(pixels.min()) <= float(pixels.max()) <= 1
    values = (pixels * 255).movedim(0, -1).numpy()
    return values[..., 0] if channels == 1 else values


def chunk(kind: bytes, data: bytes) -> bytes:
    return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))


def png(depth: int, colour: int, values: np.ndarray, *chunks: bytes) -> bytes:
    """A PNG of any depth, which Pillow does not write."""
    rows = [format(0, "08b") + "".join(format(int(v), f"0{depth}b") for v in r) for r in values]
    rows = [row + "0" * (-len(row) % 8) for row in rows]
    data = b"".join(int(row, 2).to_bytes(len(row) // 8, "big") for row in rows)
    size = struct.pack(">IIBBBBB", values.shape[1], values.shape[0], depth, colour, 0, 0, 0)
    body = (chunk(b"IHDR", size), *chunks, chunk(b"IDAT", zlib.compress(data)), chunk(b"IEND", b""))
    return b"\x89PNG\r\n\x1a\n" + b"".join(body)


# -- what is taken --------------------------------------------------------------------------------


@pytest.mark.parametrize("kind", ["PNG", "TIFF", "PPM", "big", "12 bits"])
def test_grey_of_more_than_8_bits_is_scaled(kind: str, folder: Path) -> None:
    path, deep = folder / "a" / "0.png", VALUES.astype(np.uint16) * 257
    if kind == "12 bits":
        image = Image.fromarray(VALUES.astype(np.uint16))
        assert np.asarray(converted(image, "L")).max() == round(230 / 257)
        deep = np.array([[0, 4095, 2048, 1024]], dtype=np.uint16)
        bits = "".join(format(int(v), "012b") for v in deep[0])
        raw = int(bits, 2).to_bytes(6, "big")
        tags = [(256, 4), (257, 1), (258, 12), (259, 1), (262, 1), (273, 8), (277, 1), (278, 1),
                (279, 6)]  # fmt: skip
        tags_raw = b"".join(struct.pack("<HHIHH", tag, 3, 1, v, 0) for tag, v in tags)
        head = struct.pack("<2sHI", b"II", 42, 14)
        path.write_bytes(head + raw + struct.pack("<H", len(tags)) + tags_raw + bytes(4))
        found = np.asarray(read_image(path))
        assert found.tolist() == [[0, 255, 128, 64]]
        return
    if kind == "big":
        path.write_bytes(png(16, 0, deep))
    else:
        Image.fromarray(deep).save(path, kind)
    np.testing.assert_allclose(tensor(folder, "a/0.png", 1), VALUES, atol=1e-4)
    np.testing.assert_allclose(tensor(folder, "a/0.png"), np.stack([VALUES] * 3, -1), atol=1e-4)


def test_16_bits_of_colour_are_scaled(folder: Path) -> None:
    rows = (RGB.astype(np.uint16) * 257).reshape(4, -1)
    data = png(16, 2, rows)
    size = struct.pack(">IIBBBBB", 6, 4, 16, 2, 0, 0, 0)
    data = data[:8] + chunk(b"IHDR", size) + data[33:]
    (folder / "a" / "0.png").write_bytes(data)
    np.testing.assert_allclose(tensor(folder, "a/0.png"), RGB, atol=1e-4)


@pytest.mark.parametrize("mode", ["P", "P transparent", "P bytes", "RGBA", "CMYK", "YCbCr"])
def test_colours_in_other_modes(mode: str, folder: Path) -> None:
    image = Image.fromarray(RGB)
    options: dict[str, object] = {}
    if mode.startswith("P"):
        image = image.quantize(64)
        if mode != "P":
            options["transparency"] = 3 if mode == "P transparent" else bytes(range(64))
    elif mode == "RGBA":
        image.putalpha(Image.fromarray(VALUES))  # colours are as they are stored
    else:
        image = image.convert(mode)
    kind = "TIFF" if mode in ("CMYK", "YCbCr") else "PNG"
    image.save(folder / "a" / "0.png", kind, **options)
    rounding = 3.01 if mode == "YCbCr" else 1.01
    np.testing.assert_allclose(tensor(folder, "a/0.png"), RGB, atol=rounding)


def test_a_jpeg_of_a_press(folder: Path) -> None:
    """CMYK as Adobe writes it, with all values turned round."""
    image = Image.new("RGB", (6, 4), (200, 40, 90)).convert("CMYK")
    image.save(folder / "a" / "0.jpg", quality=100)
    np.testing.assert_allclose(tensor(folder, "a/0.jpg")[0, 0], (200, 40, 90), atol=3)


@pytest.mark.parametrize("depth", [1, 2, 4, 8])
def test_few_bits_and_transparent_grey(depth: int, folder: Path) -> None:
    top = 2**depth - 1
    values = np.minimum(np.arange(24).reshape(4, 6), top)
    (folder / "a" / "0.png").write_bytes(png(depth, 0, values))
    np.testing.assert_allclose(tensor(folder, "a/0.png", 1), values * 255 / top, atol=1e-4)
    pair = Image.merge("LA", [Image.fromarray(VALUES), Image.new("L", (6, 4), 7)])
    pair.save(folder / "a" / "0.png")
    np.testing.assert_allclose(tensor(folder, "a/0.png", 1), VALUES, atol=1e-4)


@pytest.mark.parametrize("kind", ["GIF", "WEBP", "PNG", "TIFF"])
def test_of_several_frames_the_first(kind: str, folder: Path) -> None:
    first, second = Image.new("RGB", (6, 4), "red"), Image.new("RGB", (6, 4), "blue")
    options = {"lossless": True} if kind == "WEBP" else {}
    path = folder / "a" / "0.png"
    first.save(path, kind, save_all=True, append_images=[second], **options)
    assert tensor(folder, "a/0.png")[0, 0].tolist() == [255, 0, 0]


@pytest.mark.parametrize("turn", range(1, 9))
@pytest.mark.parametrize("kind", ["PNG", "TIFF", "WEBP"])
def test_an_image_is_turned_upright(turn: int, kind: str, folder: Path) -> None:
    exif = Image.Exif()
    exif[0x0112] = turn
    options = {"lossless": True} if kind == "WEBP" else {}
    Image.fromarray(RGB).save(folder / "a" / "0.png", kind, exif=exif, **options)
    found = np.asarray(converted(read_image(folder / "a" / "0.png"), "RGB"))
    np.testing.assert_array_equal(found, TURNS[turn](RGB))


def test_a_turned_jpeg_and_damaged_exif(folder: Path) -> None:
    exif = Image.Exif()
    exif[0x0112] = 6
    halves = np.zeros((64, 96, 3), np.uint8)
    halves[:, :48] = 255  # bright on the left: after a quarter to the right, on top
    Image.fromarray(halves).save(folder / "a" / "0.jpg", exif=exif)
    found = tensor(folder, "a/0.jpg", 1)
    assert found[0].min() > 250
    assert found[-1].max() < 5
    unknown = b"MM\0*\0\0\0\x08\0\x01\x01\x12\0\x03\0\0\0\x01\0\x63\0\0"  # orientation 99
    for bad in (b"Exif\0\0nonsense", b"Exif\0\0" + unknown):
        Image.fromarray(halves).save(folder / "a" / "0.jpg", exif=bad)
        assert tensor(folder, "a/0.jpg", 1)[0].max() > 250


def test_a_suffix_may_be_wrong(folder: Path) -> None:
    Image.fromarray(RGB).save(folder / "a" / "0.jpg", "BMP")
    np.testing.assert_allclose(tensor(folder, "a/0.jpg"), RGB, atol=1e-4)


def test_folders_that_are_links_and_loops(folder: Path, tmp_path: Path) -> None:
    (tmp_path / "elsewhere").mkdir()
    Image.new("RGB", (6, 4)).save(tmp_path / "elsewhere" / "2.png")
    (folder / "a" / "more").symlink_to(tmp_path / "elsewhere")
    (folder / "a" / "x.jpg").mkdir()  # a folder like others
    Image.new("RGB", (6, 4)).save(folder / "a" / "x.jpg" / "3.png")
    (folder / "a" / "x.jpg" / "up").symlink_to("..")
    (folder / "a" / "link.png").symlink_to("1.png")
    (folder / "b" / os.fsdecode(b"\xff.png")).write_bytes((folder / "b" / "1.png").read_bytes())
    data = open_data(f"{folder}?val=0.5", wanted(3))
    assert len(data.train) + len(data.val) == 8
    assert len(data.fingerprint) == 40


# -- what is refused ------------------------------------------------------------------------------


def bomb(path: Path) -> None:
    size = struct.pack(">IIBBBBB", 20_000, 20_000, 1, 0, 0, 0, 0)
    path.write_bytes(b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", size) + chunk(b"IDAT", b""))


def large(path: Path) -> None:
    """More than is allowed, and less than what Pillow itself refuses."""
    size = struct.pack(">IIBBBBB", 10_000, 9_000, 1, 0, 0, 0, 0)
    path.write_bytes(b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", size) + chunk(b"IDAT", b""))


def loop(path: Path) -> None:
    path.symlink_to(path.name)


BROKEN: list[tuple[Callable[[Path], object], str]] = [
    (Path.touch, "it is empty"),
    (lambda p: p.write_bytes(b"no image"), "in no format"),
    (lambda p: p.write_bytes(b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 9 9\n"), "in no format"),
    (bomb, "more pixels than the 89,478,485"),
    (large, "more pixels than the 89,478,485"),
    (lambda p: p.symlink_to("nowhere"), "No such file"),
    (loop, "symbolic links"),
    (os.mkfifo, "no regular file"),
]


@pytest.mark.parametrize("number", range(len(BROKEN)))
def test_broken_files_are_named_before_anything_is_done(number: int, folder: Path) -> None:
    make, reason = BROKEN[number]
    make(folder / "b" / "5.jpg")
    with pytest.raises(DataError, match=rf"VR742 cannot read the image '.*b/5.jpg': .*{reason}"):
        open_data(f"{folder}?val=0.5", wanted(3))


def test_broken_files_are_told_of_together(folder: Path) -> None:
    for number in range(25):
        (folder / "b" / f"x{number:02}.png").write_bytes(b"")
    with pytest.raises(DataError, match=r"VR742 .*x00.png'") as caught:
        open_data(f"{folder}?val=0.5", wanted(3))
    text = caught.value.render()
    assert [f"x{n:02}.png" in text for n in range(25)] == [True] * 10 + [False] * 15
    assert "note: and 15 more" in text


@pytest.mark.parametrize("kind", ["PNG", "JPEG", "GIF", "WEBP", "TIFF", "BMP"])
@pytest.mark.parametrize("lenient", [False, True])
def test_files_that_are_cut_short(kind: str, lenient: bool, folder: Path) -> None:
    """Also where a library has made Pillow lenient, which would give grey pixels."""
    stream = io.BytesIO()
    noise = np.random.default_rng(0).integers(0, 255, (40, 40, 3), np.uint8)
    Image.fromarray(noise).save(stream, kind)
    data = stream.getvalue()
    (folder / "a" / "0.png").write_bytes(data[: len(data) * 2 // 3])
    ImageFile.LOAD_TRUNCATED_IMAGES = lenient
    try:
        with pytest.raises(DataError, match=r"VR742 cannot read the image '.*a/0.png'"):
            tensor(folder, "a/0.png")
        assert ImageFile.LOAD_TRUNCATED_IMAGES is lenient
    finally:
        ImageFile.LOAD_TRUNCATED_IMAGES = False


@pytest.mark.parametrize("dtype", [np.int32, np.float32])
def test_numbers_without_a_white(dtype: type, folder: Path) -> None:
    Image.fromarray(VALUES.astype(dtype)).save(folder / "a" / "0.tif")
    with pytest.raises(DataError, match=r"VR742 .*a/0.tif': .*32 bits"):
        tensor(folder, "a/0.tif")


def test_a_limit_that_the_user_lifts(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", 23)
    with pytest.raises(DataError, match=r"more pixels than the 23"):
        open_data(f"{folder}?val=0.5", wanted(3))
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", None)
    assert torch.equal(
        next(batches(open_data(f"{folder}?val=0.5", wanted(3)).train, 1)).images,
        torch.zeros(1, 3, 4, 6),
    )
