import io
import struct
import zlib
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from expunge.data.images import ImageFile, check_pixels, decode_image, read_header, refuse_bombs
from expunge.errors import DataError


def encoded(image: Image.Image, kind: str = "PNG", **options: object) -> bytes:
    buffer = io.BytesIO()
    image.save(buffer, kind, **options)
    return buffer.getvalue()


def noise(mode: str, size: tuple[int, int] = (40, 30)) -> Image.Image:
    width, height = size
    channels = {"L": (), "RGB": (3,), "RGBA": (4,)}[mode]
    pixels = np.random.default_rng(2).integers(0, 256, (height, width, *channels), dtype=np.uint8)
    return Image.fromarray(pixels)


def png_header(width: int, height: int) -> bytes:
    """Return the beginning of a PNG of this size, enough for a reader to learn the size."""

    def chunk(kind: bytes, body: bytes) -> bytes:
        return (
            struct.pack(">I", len(body)) + kind + body + struct.pack(">I", zlib.crc32(kind + body))
        )

    size = struct.pack(">IIBBBBB", width, height, 1, 0, 0, 0, 0)
    return b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", size) + chunk(b"IDAT", zlib.compress(b"\0" * 9))


def test_lossless_pixels_come_back_unchanged() -> None:
    for mode, channels in (("L", 1), ("RGB", 3)):
        image = noise(mode)
        pixels = decode_image(encoded(image), "x.png", (channels, 30, 40))
        assert pixels.dtype == np.uint8
        np.testing.assert_array_equal(pixels, np.asarray(image).reshape(30, 40, channels))


def test_header_tells_size_gray_and_the_true_format() -> None:
    header = read_header(ImageFile("x.jpg", lambda: encoded(noise("L"))))
    assert (header.height, header.width, header.gray, header.suffix) == (30, 40, True, ".png")
    bits = noise("L").convert("1")
    assert read_header(ImageFile("x.png", lambda: encoded(bits))).gray
    assert not read_header(ImageFile("x.png", lambda: encoded(noise("RGBA")))).gray


def test_other_sizes_are_cut_around_the_centre_and_scaled() -> None:
    wide = noise("RGB", (60, 20))
    short_side = np.asarray(wide.resize((30, 10), Image.Resampling.BILINEAR))
    square = decode_image(encoded(wide), "x.png", (3, 10, 10))
    np.testing.assert_array_equal(square, short_side[:, 10:20])


def test_transparent_palettes_and_gray_become_rgb() -> None:
    palette = noise("RGB").convert("P")
    data = encoded(palette, transparency=bytes([0, 128, 255]))
    expected = np.asarray(palette.convert("RGB"))
    np.testing.assert_array_equal(decode_image(data, "x.png", (3, 30, 40)), expected)
    gray = decode_image(encoded(noise("L")), "x.png", (3, 30, 40))
    assert (gray == gray[..., :1]).all()


@pytest.mark.parametrize("kind", ["PNG", "JPEG", "BMP", "TIFF", "WEBP", "GIF"])
@pytest.mark.parametrize("share", [0.3, 0.8])
def test_a_truncated_image_is_named(kind: str, share: float) -> None:
    data = encoded(noise("RGB", (200, 160)), kind)
    cut = data[: int(len(data) * share)]
    for read in (
        lambda: decode_image(cut, "a/b.img", (3, 160, 200)),
        lambda: check_pixels(cut, "a/b.img"),
    ):
        with pytest.raises(DataError, match=r"^a/b.img is (a corrupt or truncated|no) image"):
            read()


def test_a_sound_image_passes_the_check() -> None:
    check_pixels(encoded(noise("RGB"), "JPEG"), "x.jpg")
    check_pixels(encoded(noise("L")), "x.png")


def test_a_corrupt_png_is_named() -> None:
    data = bytearray(encoded(noise("RGB")))
    data[len(data) // 2] ^= 255
    with pytest.raises(
        DataError, match=r"x.png is a corrupt or truncated image \(.*replace or remove"
    ):
        decode_image(bytes(data), "x.png", (3, 30, 40))


@pytest.mark.parametrize(
    "data", [b"", b"hello", b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 9 9\n"]
)
def test_what_is_no_image_is_named(data: bytes) -> None:
    with pytest.raises(
        DataError, match=r"notes.txt is no image; remove it, or replace it by one of JPEG"
    ):
        read_header(ImageFile("notes.txt", lambda: data))


def test_more_than_eight_bits_are_refused(tmp_path: Path) -> None:
    deep = Image.fromarray(np.full((4, 4), 60000, dtype=np.uint16))
    with pytest.raises(DataError, match=r"x.png has more than 8 bits a channel .*I;16"):
        read_header(ImageFile("x.png", lambda: encoded(deep)))


@pytest.mark.parametrize("side", [10_000, 20_000])  # where PIL warns, and where it raises by itself
def test_decompression_bombs_are_refused(side: int) -> None:
    bomb = png_header(side, side)
    with refuse_bombs(), pytest.raises(DataError, match=r"b.png unpacks to more than \d+ pixels"):
        read_header(ImageFile("b.png", lambda: bomb))
