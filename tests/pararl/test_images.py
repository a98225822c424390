"""The same picture has the same pixels however it is stored, nothing is clipped, and what is no single whole picture is refused."""

import io
import struct
import zlib
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from pararl.images import FORMATS, PIXELS, fitted, read_image

RNG = np.random.default_rng(0)
PIXELS_RGB = RNG.integers(0, 256, (20, 30, 3), dtype=np.uint8)
GREY = np.arange(256, dtype=np.uint8).reshape(16, 16)


def stored(picture: Image.Image | np.ndarray, form: str = "PNG", **options: Any) -> bytes:
    file = io.BytesIO()
    (Image.fromarray(picture) if isinstance(picture, np.ndarray) else picture).save(file, form, **options)
    return file.getvalue()


def test_a_picture_has_the_same_pixels_in_every_container(tmp_path: Path) -> None:
    content = stored(PIXELS_RGB)
    (tmp_path / "a.png").write_bytes(content)
    opened = Image.open(io.BytesIO(content))
    holders: list[Any] = ["a.png", str(tmp_path / "a.png"), tmp_path / "a.png", content, bytearray(content), opened, PIXELS_RGB]
    holders += [
        {"bytes": content, "path": None},
        {"bytes": content, "path": "gone.png"},
        {"bytes": None, "path": "a.png"},
        {"path": "a.png"},
    ]
    holders += [[holder] for holder in holders]
    for holder in holders:
        found = read_image(holder, tmp_path)
        assert found.dtype == np.uint8 and np.array_equal(found, PIXELS_RGB), holder


@pytest.mark.parametrize("form", ["PNG", "TIFF", "BMP", "PPM", "WEBP", "JPEG2000"])
def test_a_picture_has_the_same_pixels_in_every_lossless_format(form: str) -> None:
    assert form in FORMATS
    assert np.array_equal(read_image(stored(PIXELS_RGB, form, **({"lossless": True} if form == "WEBP" else {}))), PIXELS_RGB)


@pytest.mark.parametrize("form", ["PNG", "TIFF", "WEBP"])
@pytest.mark.parametrize("orientation", range(1, 9))
def test_a_picture_is_turned_as_its_exif_says(form: str, orientation: int) -> None:
    """The rows that a camera stores, by the table of the EXIF standard: which side of the picture the 0th row and column are."""
    turns = [lambda x: x, np.fliplr, lambda x: np.rot90(x, 2), np.flipud, lambda x: x.swapaxes(0, 1), lambda x: np.rot90(x, 1)]
    turns += [lambda x: np.rot90(x, 2).swapaxes(0, 1), lambda x: np.rot90(x, 3)]
    exif = Image.Exif()
    exif[0x0112] = orientation
    content = stored(
        np.ascontiguousarray(turns[orientation - 1](PIXELS_RGB)), form, exif=exif, **({"lossless": True} if form == "WEBP" else {})
    )
    assert np.array_equal(read_image(content), PIXELS_RGB)


def test_what_is_transparent_is_white_whatever_says_so() -> None:
    clear = np.zeros((4, 5), bool)
    clear[1, 2] = clear[3, 0] = True
    expected = np.where(clear[..., None], 255, np.uint8(40)).repeat(3, -1)
    alpha = np.where(clear, 0, 255).astype(np.uint8)
    grey, colour = np.full((4, 5), 40, np.uint8), np.full((4, 5, 3), 40, np.uint8)
    palette = Image.fromarray(np.where(clear, 1, 0).astype(np.uint8), "P")
    palette.putpalette([40, 40, 40, 200, 0, 0])
    marked = np.where(clear, 7, 40).astype(np.uint8)
    for content in (
        stored(np.dstack([colour, alpha])),
        stored(np.dstack([grey, alpha])),
        stored(np.dstack([colour, alpha]), "WEBP", lossless=True),
        stored(np.dstack([colour, alpha]), "TIFF"),
        stored(palette, transparency=1),
        stored(palette, transparency=b"\xff\x00"),
        stored(palette, "GIF", transparency=1),
        stored(marked, transparency=7),
        stored(np.dstack([marked] * 3), transparency=(7, 7, 7)),
        stored(marked.astype(np.uint16) * 257, transparency=7 * 257),
    ):
        assert np.array_equal(read_image(content), expected), Image.open(io.BytesIO(content))
    half = read_image(stored(np.full((1, 1, 4), [0, 0, 0, 51], np.uint8)))
    assert abs(int(half[0, 0, 0]) - 204) <= 1, "a fifth of black on white"


def test_numbers_of_more_than_eight_bits_are_scaled_by_their_range_and_never_clipped() -> None:
    expected = np.repeat(GREY[..., None], 3, -1)
    deep = GREY.astype(np.uint16) * 257
    low = deep.astype(np.int32)
    for name, content in {
        "PNG of 16 bits": stored(deep),
        "TIFF of 16 bits": stored(deep, "TIFF"),
        "TIFF of 16 bits, big-endian": stored(deep.astype(">u2"), "TIFF"),
        "PGM of 16 bits": stored(deep, "PPM"),
        "TIFF of 32 bits": stored(low, "TIFF"),
        "TIFF of 32 bits, beyond 16": stored(low * 1000, "TIFF"),
        "TIFF of 32 bits, signed": stored((GREY.astype(np.int32) - 128) * 2**23, "TIFF"),
        "floats to 1": stored((GREY / 255).astype(np.float32), "TIFF"),
        "floats to 255": stored(GREY.astype(np.float32), "TIFF"),
        "floats to 65535": stored(deep.astype(np.float32), "TIFF"),
        "floats around 0": stored((GREY / 127.5 - 1).astype(np.float32), "TIFF"),
    }.items():
        assert np.array_equal(read_image(content), expected), name
    for array in (GREY, GREY[..., None], deep, GREY / 255, np.dstack([GREY] * 3) / 255, np.dstack([deep] * 3)):
        assert np.array_equal(read_image(array), expected), array.dtype
    assert not read_image(np.full((2, 2), -5.0)).any(), "a range of nothing"
    with pytest.raises(ValueError, match="not finite"):
        read_image(stored(np.array([[np.nan, 1]], np.float32), "TIFF"))


def test_every_mode_of_pillow_is_read() -> None:
    modes = (
        "1",
        "L",
        "LA",
        "La",
        "P",
        "PA",
        "RGB",
        "RGBA",
        "RGBa",
        "RGBX",
        "CMYK",
        "YCbCr",
        "LAB",
        "HSV",
        "I",
        "F",
        "I;16",
        "I;16B",
        "I;16L",
    )
    for mode in modes:
        assert read_image(Image.new(mode, (3, 2))).shape == (2, 3, 3), mode


def png_of(width: int, height: int) -> bytes:
    """A PNG that claims a size and holds next to nothing."""

    def chunk(kind: bytes, data: bytes) -> bytes:
        return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))

    head = struct.pack(">IIBBBBB", width, height, 8, 0, 0, 0, 0)
    return b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", head) + chunk(b"IDAT", zlib.compress(b"\0" * 10)) + chunk(b"IEND", b"")


@pytest.mark.parametrize(
    ("width", "told"), [(8193, "pixels, more than"), (12_000, "pixels, more than"), (60_000, "60000|decompression bomb")]
)
def test_a_file_that_claims_more_pixels_than_are_read_is_refused_unread(width: int, told: str) -> None:
    assert width * width > PIXELS
    with pytest.raises(ValueError, match=told):
        read_image(png_of(width, width))


@pytest.mark.parametrize("form", ["GIF", "WEBP", "PNG", "TIFF", "AVIF"])
def test_several_frames_are_no_picture(form: str) -> None:
    frames = [Image.fromarray(PIXELS_RGB), Image.fromarray(PIXELS_RGB[::-1].copy())]
    with pytest.raises(ValueError, match="holds 2 frames"):
        read_image(stored(frames[0], form, save_all=True, append_images=frames[1:]))


def test_of_a_phones_picture_with_a_preview_behind_it_the_picture_is_read() -> None:
    frames = [Image.fromarray(PIXELS_RGB), Image.fromarray(PIXELS_RGB[:10, :10].copy())]
    found = read_image(stored(frames[0], "MPO", save_all=True, append_images=frames[1:], quality=95))
    alone = read_image(stored(frames[0], "JPEG", quality=95))
    assert np.array_equal(found, alone)


@pytest.mark.parametrize("form", FORMATS)
def test_a_truncated_file_is_refused_wherever_it_ends(form: str) -> None:
    content = stored(PIXELS_RGB, form)
    for end in [0, 1, 8, *RNG.integers(9, len(content) - 8, 12).tolist()]:
        with pytest.raises(ValueError, match=r"the picture|no picture"):
            read_image(content[:end])


def test_a_png_whose_bytes_changed_is_refused() -> None:
    content = bytearray(stored(PIXELS_RGB))
    content[len(content) // 2] ^= 1
    with pytest.raises(ValueError, match="cannot be decoded"):
        read_image(bytes(content))


@pytest.mark.parametrize(
    ("value", "told"),
    [
        (b"", "no picture"),
        (b"not a picture", "no picture"),
        (b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 2 2\n", "no picture"),
        ([], "takes one picture, got a list of 0"),
        (["a.png", "b.png"], "takes one picture, got a list of 2"),
        ({"bytes": None, "path": None}, "'bytes' .* or a 'path', got NoneType"),
        ({"bytes": "aGVsbG8=", "path": None}, "'bytes' .*got str"),
        ({"url": "x"}, "'bytes' and 'path', got 'url'"),
        (5, "got int"),
        ("gone.png", "no picture gone.png"),
        ("", "no picture"),
        ("a\0b", "no picture|null"),
        ("x" * 5000, "no picture|cannot be read"),
        (np.zeros((0, 3, 3), np.uint8), r"\[0, 3, 3\]"),
        (np.zeros((2, 2, 5), np.uint8), r"\[2, 2, 5\]"),
        (np.zeros((2, 2), np.int64), "int64"),
        (np.full((2, 2), np.inf), "not finite"),
    ],
)
def test_what_is_no_picture_is_told(tmp_path: Path, value: Any, told: str) -> None:
    with pytest.raises(ValueError, match=told):
        read_image(value, tmp_path)


def test_an_empty_file_and_a_folder_are_no_pictures(tmp_path: Path) -> None:
    (tmp_path / "empty.png").touch()
    (tmp_path / "folder.png").mkdir()
    for name in ("empty.png", "folder.png"):
        with pytest.raises(ValueError, match=name):
            read_image(name, tmp_path)


def test_a_crop_is_the_middle_of_the_shape_that_is_wanted() -> None:
    wide = np.zeros((8, 24, 3), np.uint8)
    wide[:, 8:16] = 90  # the middle third, which alone is square
    assert (fitted(wide, (4, 4), "crop") == 90).all()
    assert (fitted(wide.swapaxes(0, 1).copy(), (4, 4), "crop") == 90).all()


def test_padding_shows_all_of_a_picture_on_white() -> None:
    wide = np.full((8, 16, 3), 90, np.uint8)
    found = fitted(wide, (8, 8), "pad")
    assert (found[2:6] == 90).all() and (found[:2] == 255).all() and (found[6:] == 255).all()
    assert fitted(np.full((1, 5000, 3), 90, np.uint8), (8, 8), "pad").shape == (8, 8, 3)


def test_a_picture_of_the_right_size_is_left_as_it_is_and_another_is_refused() -> None:
    for how in ("refuse", "crop", "pad"):
        assert fitted(PIXELS_RGB, (20, 30), how) is PIXELS_RGB
    with pytest.raises(ValueError, match=r"\[20, 30\] pixels, \[30, 20\] are read .*curriculum.image_fit"):
        fitted(PIXELS_RGB, (30, 20), "refuse")
