"""Decoder of image files to uint8 pixels, with PIL; a `DataError` names the file that failed.

Pixels are taken as they are stored: EXIF orientation and colour profiles are not applied, and
transparency is dropped.
"""

import io
import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass

import numpy as np
from PIL import Image, ImageOps, UnidentifiedImageError

from expunge.errors import DataError

# Formats that PIL decodes by itself; others (EPS, for one) would start programs on foreign files.
FORMATS = ("JPEG", "PNG", "WEBP", "BMP", "GIF", "PPM", "TIFF")
GRAY_MODES = ("1", "L")
WIDE_MODES = ("I", "F")  # the beginnings of PIL's modes with more than 8 bits a channel

Box = tuple[int, int, int, int]  # left, upper, right, lower


@dataclass(frozen=True)
class ImageFile:
    """A file wherever it lies: `name` is what messages call it, `read` gives its bytes."""

    name: str
    read: Callable[[], bytes]


@dataclass(frozen=True)
class Header:
    """What a file says of its image before it is decoded; sizes in pixels."""

    height: int
    width: int
    gray: bool
    suffix: str  # by the content, not by the file's name


@contextmanager
def refuse_bombs() -> Iterator[None]:
    """Make PIL's warning of a decompression bomb an error; enter it outside of any threads."""
    with warnings.catch_warnings():
        warnings.simplefilter("error", Image.DecompressionBombWarning)
        yield


@contextmanager
def _open_image(data: bytes, name: str) -> Iterator[Image.Image]:
    """Open an image; whatever its decoder raises, also later inside, becomes a `DataError`."""
    try:
        with Image.open(io.BytesIO(data), formats=FORMATS) as image:
            yield image
    except (DataError, MemoryError):
        raise
    except UnidentifiedImageError:
        raise DataError(
            f"{name} is no image; remove it, or replace it by one of {', '.join(FORMATS)}"
        ) from None
    except (Image.DecompressionBombError, Image.DecompressionBombWarning):
        raise DataError(
            f"{name} unpacks to more than {Image.MAX_IMAGE_PIXELS} pixels, as a decompression bomb "
            "does; remove it, or scale it down"
        ) from None
    except Exception as error:  # a decoder raises whatever its format's parser runs into
        raise DataError(
            f"{name} is a corrupt or truncated image ({error}); replace or remove it"
        ) from error


def read_header(file: ImageFile) -> Header:
    """Read the image's size and whether it is gray, without decoding its pixels."""
    with _open_image(file.read(), file.name) as image:
        if image.mode.startswith(WIDE_MODES):
            raise DataError(
                f"{file.name} has more than 8 bits a channel (PIL's mode {image.mode}); "
                "convert it to 8 bits"
            )
        suffix = f".{(image.format or 'image').lower()}"
        return Header(image.height, image.width, image.mode in GRAY_MODES, suffix)


def check_pixels(data: bytes, name: str) -> None:
    """Decode the image and drop the pixels; a JPEG at an eighth of its size, which is faster."""
    with _open_image(data, name) as image:
        image.draft(image.mode, (1, 1))
        image.load()


def decode_image(data: bytes, name: str, input_shape: tuple[int, int, int]) -> np.ndarray:
    """Decode to pixels_HWC, uint8, for an `input_shape` of (C, H, W) with 1 or 3 channels.

    An image of another size is scaled until it just covers the shape (bilinear, with antialiasing)
    and cut around its centre: for a square shape, its short side is scaled to the shape's side.

    Raises:
        DataError: the bytes are no image, or a corrupt or truncated one.
    """
    channels, height, width = input_shape
    with _open_image(data, name) as image:
        pixels = fit_image(_convert_channels(image, channels), height, width)
        return np.asarray(pixels, dtype=np.uint8).reshape(height, width, channels)


def decode_box(
    data: bytes, name: str, input_shape: tuple[int, int, int], choose_box: Callable[[int, int], Box]
) -> np.ndarray:
    """Decode the box that `choose_box` picks for the file's height and width, to pixels_HWC.

    It is as in `decode_image`, but the box is scaled to the shape whatever its proportions are.
    """
    channels, height, width = input_shape
    with _open_image(data, name) as image:
        box = choose_box(image.height, image.width)
        pixels = _convert_channels(image, channels).resize(
            (width, height), Image.Resampling.BILINEAR, box=box
        )
        return np.asarray(pixels, dtype=np.uint8).reshape(height, width, channels)


def _convert_channels(image: Image.Image, channels: int) -> Image.Image:
    # PIL warns of a palette with transparency that is converted to RGB without this step
    opaque = image.convert("RGBA") if "transparency" in image.info else image
    return opaque.convert("L" if channels == 1 else "RGB")


def fit_image(image: Image.Image, height: int, width: int) -> Image.Image:
    """Scale and cut the image to this size, as `decode_image` says."""
    if image.size == (width, height):
        return image
    return ImageOps.fit(image, (width, height), method=Image.Resampling.BILINEAR)
