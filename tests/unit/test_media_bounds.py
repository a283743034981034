"""Small images that ask for much work: they are refused before they are decoded, and real ones are not."""

import io
from itertools import count
from struct import pack
from zlib import compress, crc32

import pytest
from PIL import Image

from batchfile.errors import InvalidRequest
from batchfile.media import decode
from batchfile.media.bounds import SCANS_MAX, TEXTS_MAX, TimedBytes, is_small_exif
from tests.media_kit import png


def encoded(kind: str, **options: object) -> bytes:
    made = io.BytesIO()
    Image.effect_noise((64, 48), 80).convert("RGB").save(made, kind, **options)
    return made.getvalue()


def with_scans(number: int) -> bytes:
    """A progressive JPEG that repeats its last scan, up to this number of scans."""
    data = encoded("JPEG", progressive=True)
    last = data[data.rindex(b"\xff\xda") : -2]
    return data[:-2] + last * (number - data.count(b"\xff\xda")) + data[-2:]


def png_with(kind: bytes, data: bytes, number: int) -> bytes:
    chunk = pack(">I", len(data)) + kind + data + pack(">I", crc32(kind + data))
    plain = png()
    return plain[:33] + chunk * number + plain[33:]


def notes(values: int, size: int) -> bytes:
    """A TIFF directory of tags that all name the same bytes."""
    tags = b"".join(pack("<HHLL", 40_000 + tag, 7, size, 8) for tag in range(values))
    return b"II*\0" + pack("<LH", 8, values) + tags + bytes(4 + size)


@pytest.mark.parametrize("kind", ["JPEG", "PNG", "WEBP", "GIF", "BMP", "TIFF"])
def test_plain_images_of_each_format_are_read(kind: str) -> None:
    assert decode.pixels_of(decode.open_image(encoded(kind))).size == (64, 48)


@pytest.mark.parametrize("fits", [True, False])
def test_the_scans_of_a_jpeg_are_counted(fits: bool) -> None:
    if fits:
        assert decode.pixels_of(decode.open_image(with_scans(SCANS_MAX))).size == (64, 48)
        return
    with pytest.raises(InvalidRequest, match=r"is a JPEG with 101 scans; the limit is 100"):
        decode.open_image(with_scans(SCANS_MAX + 1))


def test_a_jpeg_with_arithmetic_coding_is_named() -> None:
    with pytest.raises(InvalidRequest, match="is a JPEG with arithmetic coding"):
        decode.open_image(with_scans(10).replace(b"\xff\xc2", b"\xff\xca", 1))


def test_only_the_first_picture_of_a_jpeg_counts() -> None:
    """A thumbnail in its notes, a film behind it and a comment may have bytes that look like scans."""
    marks = b"\xff\xda" * 200
    data = encoded("JPEG", progressive=True, comment=marks) + marks
    assert decode.pixels_of(decode.open_image(data)).size == (64, 48)


@pytest.mark.parametrize("kind", [b"zTXt", b"iTXt", b"iCCP"])
def test_a_png_has_few_compressed_texts(kind: bytes) -> None:
    data = {b"zTXt": b"a\0\0", b"iTXt": b"a\0\1\0\0\0", b"iCCP": b"a\0\0"}[kind] + compress(bytes(1000))
    assert decode.pixels_of(decode.open_image(png_with(kind, data, TEXTS_MAX))).size == (4, 3)
    with pytest.raises(InvalidRequest, match="is a PNG with 17 compressed texts; the limit is 16"):
        decode.open_image(png_with(kind, data, TEXTS_MAX + 1))


@pytest.mark.parametrize("kind", ["PNG", "GIF", "WEBP"])
def test_only_the_first_picture_of_an_animation_is_decoded(kind: str) -> None:
    frames = [Image.new("RGB", (4, 3), (shade, 0, 0)) for shade in range(0, 250, 5)]
    made = io.BytesIO()
    frames[0].save(made, kind, save_all=True, append_images=frames[1:])
    image = decode.open_image(made.getvalue())
    assert decode.pixels_of(image).getpixel((0, 0)) == (0, 0, 0)


def test_tags_of_a_tiff_do_not_share_their_bytes() -> None:
    with pytest.raises(InvalidRequest, match="more bytes than the file has"):
        decode.open_image(notes(1000, 100_000))


def test_a_tile_of_a_tiff_has_no_more_pixels_than_an_image() -> None:
    sides = b"".join(pack("<HHLL", tag, 4, 1, 30_000) for tag in (322, 323))
    with pytest.raises(InvalidRequest, match="tiles of more than 40,000,000 pixels"):
        decode.open_image(b"II*\0" + pack("<LH", 8, 2) + sides + bytes(4))


def test_notes_of_a_camera_that_share_their_bytes_are_not_read(monkeypatch: pytest.MonkeyPatch) -> None:
    assert not is_small_exif(b"Exif\0\0" + notes(1000, 1000))
    assert is_small_exif(b"Exif\0\0" + notes(1, 1000))
    read: list[object] = []
    monkeypatch.setattr("PIL.ImageOps.exif_transpose", lambda image, **_: read.append(image))
    decode.pixels_of(decode.open_image(encoded("JPEG", exif=b"Exif\0\0" + notes(1000, 1000))))
    assert not read
    decode.pixels_of(decode.open_image(encoded("JPEG", exif=b"Exif\0\0" + notes(1, 1000))))
    assert len(read) == 1


def test_an_image_is_read_for_a_limited_time() -> None:
    """Here each look at the clock takes a second."""
    ticks = count()
    data = TimedBytes(bytes(100), seconds=5, clock=lambda: float(next(ticks)))
    assert [data.read(1) for _ in range(4)] == [b"\0"] * 4
    with pytest.raises(InvalidRequest, match="takes longer than 5 s to decode"):
        data.read(1)
    data.restart()
    assert data.read(1) == b"\0"


@pytest.mark.parametrize("kind", ["GIF", "BMP"])
def test_a_decoder_that_takes_long_is_stopped(kind: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """While it is opened, and while its pixels are read."""
    now = [0.0]

    class Timed(TimedBytes):
        def __init__(self, data: bytes) -> None:
            super().__init__(data, clock=lambda: now[0])

        def restart(self) -> None:
            super().restart()
            now[0] += 11.0

    monkeypatch.setattr(decode, "TimedBytes", Timed)
    with pytest.raises(InvalidRequest, match="takes longer than 10 s"):
        decode.open_image(encoded(kind))
    image = Image.open(waiting := TimedBytes(encoded(kind), clock=lambda: now[0]))
    monkeypatch.setattr(waiting, "restart", lambda: now.append(now.pop() + 11.0))
    monkeypatch.setattr(decode, "TimedBytes", TimedBytes)
    with pytest.raises(InvalidRequest, match="takes longer than 10 s"):
        decode.pixels_of(image)
