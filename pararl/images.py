"""The one reader of pictures: whatever holds a picture gives the same pixels, and what cannot be read is refused with a reason.

``read_image`` takes a file, its bytes, the ``{"bytes", "path"}`` that data sets store, a list of one of these, an opened picture or an
array. It applies the orientation that a phone notes, lays what is transparent on white, and scales what has more than 8 bits a channel:

=================================== ================================================================================================
numbers                             become 0 .. 255 by
=================================== ================================================================================================
16-bit, and whole numbers of 32     / 257: 0 .. 65535 is the range of the 16-bit pictures that image libraries open as 32 bits
bits that lie in 0 .. 65535
floats                              the first of 0 .. 1, 0 .. 255 and 0 .. 65535 that holds them all
others                              their own lowest and highest
=================================== ================================================================================================

Pictures come one by one: a file that holds several frames, or more than ``PIXELS`` pixels, is refused.
"""

import io
import os
import warnings
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Literal

import numpy as np
from PIL import Image, ImageOps

FORMATS = ("PNG", "JPEG", "WEBP", "GIF", "TIFF", "BMP", "PPM", "AVIF", "JPEG2000")
"""What is read. To read some others, programs are run."""
PIXELS = 2**26
"""Most pixels of a picture, 8192 x 8192: a file of a few bytes can claim any number."""
WHITE = (255, 255, 255)
Fit = Literal["refuse", "crop", "pad"]


def read_image(value: Any, folder: Path = Path()) -> np.ndarray:
    """The pixels of a picture, uint8 [height, width, 3]; a path is relative to ``folder``. Raises ValueError that says what is wrong."""
    if isinstance(value, list | tuple):
        if len(value) != 1:
            raise ValueError(f"a prompt takes one picture, got a list of {len(value)}")
        return read_image(value[0], folder)
    if isinstance(value, Mapping):
        return read_image(_stored(value), folder)
    if isinstance(value, np.ndarray):
        return _rgb(_array(value))
    if isinstance(value, bytes | bytearray):
        return _decoded(bytes(value), "the picture")
    if isinstance(value, str | Path):
        return _decoded(_file(folder, value), str(value))
    if isinstance(value, Image.Image):
        return _of_picture(value, "the picture")
    raise ValueError(f"'image' must be a picture file, its bytes or an image column of datasets, got {type(value).__name__}")


def fitted(pixels: np.ndarray, size: tuple[int, int], how: Fit) -> np.ndarray:
    """The picture in ``size``, its height and width. crop: as much of its middle as has that shape. pad: all of it, on white.

    Raises ValueError for another size under refuse.
    """
    height, width = size
    if pixels.shape[:2] == size:
        return pixels
    picture = Image.fromarray(pixels)
    if how == "crop":
        scale = max(width / picture.width, height / picture.height)
        wide, high = max(1, min(picture.width, round(width / scale))), max(1, min(picture.height, round(height / scale)))
        left, top = (picture.width - wide) // 2, (picture.height - high) // 2
        # Cut first, so that nothing from beyond it shines in.
        part = picture.crop((left, top, left + wide, top + high))
        return np.array(part.resize((width, height), Image.Resampling.BICUBIC))
    if how == "pad":
        scale = min(width / picture.width, height / picture.height)
        part = picture.resize((max(1, round(picture.width * scale)), max(1, round(picture.height * scale))), Image.Resampling.BICUBIC)
        sheet = Image.new("RGB", (width, height), WHITE)
        sheet.paste(part, ((width - part.width) // 2, (height - part.height) // 2))
        return np.array(sheet)
    raise ValueError(f"its image has {list(pixels.shape[:2])} pixels, {list(size)} are read (resize it, or set --curriculum.image_fit)")


def _stored(value: Mapping[str, Any]) -> Any:
    """What a data set stores of a picture: its bytes, or where these are not kept its path."""
    if not value.keys() <= {"bytes", "path"}:
        raise ValueError(f"a stored picture has 'bytes' and 'path', got {', '.join(map(repr, list(value)[:5]))}")
    found = value.get("path") if value.get("bytes") is None else value["bytes"]
    if not isinstance(found, str if value.get("bytes") is None else bytes | bytearray):
        raise ValueError(f"a stored picture has 'bytes' (not as text) or a 'path', got {type(found).__name__}")
    return found


def _file(folder: Path, name: str | Path) -> bytes:
    place = folder / name
    try:
        if not place.is_file():
            raise ValueError(f"there is no picture {name!s} (looked for {place})")
        if not os.path.getsize(place):
            raise ValueError(f"{name!s} is empty")
        return place.read_bytes()
    except OSError as error:
        raise ValueError(f"{name!s} cannot be read: {error.strerror or error}") from error


class _Refused(ValueError):
    """What is wrong with a picture, in words."""


def _decoded(content: bytes, name: str) -> np.ndarray:
    """The pixels that the bytes of a file hold."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # of damaged notes beside the pixels, and of sizes for which `_check_one` has a limit of its own
        try:
            # A first pass of its own: checksums, and the end of a file that decoders do not need, are looked at by `verify` alone.
            with Image.open(io.BytesIO(content), formats=FORMATS) as picture:
                _check_one(picture, name)
                picture.verify()
            with Image.open(io.BytesIO(content), formats=FORMATS) as picture:
                return _of_picture(picture, name)
        except _Refused:
            raise
        except Image.UnidentifiedImageError as error:
            raise _Refused(f"{name} is no picture, or none that is read here ({', '.join(FORMATS)})") from error
        except Exception as error:  # decoders raise whatever broken bytes lead them to
            raise _Refused(f"{name} cannot be decoded: {type(error).__name__}: {error}") from error


def _check_one(picture: Image.Image, name: str) -> None:
    """Raise ValueError unless it is one picture of a size that is read."""
    if picture.width * picture.height > PIXELS:
        raise _Refused(f"{name} has {picture.width} x {picture.height} pixels, more than the {PIXELS:,} that are read")
    if not picture.width * picture.height:
        raise _Refused(f"{name} has no pixels: {picture.width} x {picture.height}")
    frames = getattr(picture, "n_frames", 1)  # which formats that hold one picture do not have
    if frames > 1 and picture.format != "MPO":  # a JPEG of a phone, with previews and depths behind the picture
        raise _Refused(f"{name} holds {frames} frames: give one picture")


def _of_picture(picture: Image.Image, name: str) -> np.ndarray:
    """The pixels of an opened picture; reading them is what fails where its file is broken."""
    _check_one(picture, name)
    try:
        return _rgb(ImageOps.exif_transpose(picture))  # phones store the sensor's rows, and say how to turn them
    except _Refused:
        raise
    except Exception as error:  # as in `_decoded`, for a picture that somebody else has opened
        raise _Refused(f"{name} cannot be decoded: {type(error).__name__}: {error}") from error


def _rgb(picture: Image.Image) -> np.ndarray:
    """uint8 [height, width, 3]."""
    if picture.mode.startswith(("I", "F")):
        values = np.asarray(picture)
        grey = _scaled(values)
        clear = picture.info.get("transparency")
        if isinstance(clear, int):
            grey[values == clear] = 255
        return np.repeat(grey[..., None], 3, axis=-1)
    if picture.mode == "La":
        picture = picture.convert("LA")
    if picture.has_transparency_data:
        picture = Image.alpha_composite(Image.new("RGBA", picture.size, (*WHITE, 255)), picture.convert("RGBA"))
    return np.array(picture.convert("RGB"), np.uint8)


def _scaled(values: np.ndarray) -> np.ndarray:
    """uint8 of numbers of more than 8 bits, by the table above. Raises ValueError for numbers that are not finite."""
    numbers = values.astype(np.float64)
    if not np.isfinite(numbers).all():
        raise _Refused("the picture holds numbers that are not finite")
    lowest, highest = numbers.min(), numbers.max()
    tops = (1.0, 255.0, 65535.0) if values.dtype.kind == "f" else (65535.0,)
    top = next((top for top in tops if 0 <= lowest and highest <= top), None)
    if top is None:
        # Halves, because the difference of two floats may be larger than any float.
        span = highest / 2 - lowest / 2
        return np.rint((numbers / 2 - lowest / 2) / span * 255).astype(np.uint8) if span else np.zeros(values.shape, np.uint8)
    return np.rint(numbers * (255 / top)).astype(np.uint8)


def _array(values: np.ndarray) -> Image.Image:
    """A picture of an array [height, width] or [height, width, channels]: grey, grey and alpha, RGB or RGBA."""
    if values.ndim == 3 and values.shape[-1] == 1:
        values = values[..., 0]
    channels = values.shape[-1] if values.ndim == 3 else 1
    if values.ndim not in (2, 3) or channels not in (1, 2, 3, 4) or not values.size:
        raise ValueError(f"an array of pixels is [height, width] or [height, width, 1 to 4], got {list(values.shape)}")
    if values.dtype != np.uint8 and values.dtype != np.uint16 and values.dtype.kind != "f":
        raise ValueError(f"an array of pixels holds uint8, uint16 or floats, got {values.dtype}")
    if values.shape[0] * values.shape[1] > PIXELS:
        raise ValueError(f"the array has {values.shape[0]} x {values.shape[1]} pixels, more than the {PIXELS:,} that are read")
    return Image.fromarray(np.ascontiguousarray(values if values.dtype == np.uint8 else _scaled(values)))
