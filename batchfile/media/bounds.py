"""Bounds the work of decoding an image beyond its pixels. A few bytes can ask for minutes. Pure, except for a clock."""

import io
import re
import struct
import time
from collections import Counter
from collections.abc import Callable, Iterator

from batchfile.errors import InvalidRequest

SCANS_MAX = 100  # of a JPEG. Encoders write about ten; libtiff has the same limit for a JPEG in a TIFF
TEXTS_MAX = 16  # compressed ones in a PNG, such as color profiles; Pillow unpacks up to 1 MiB of each
DECODE_S = 10.0  # for opening an image, and again for its pixels

_SOS, _EOI = 0xDA, 0xD9
_ARITHMETIC = {0xC9, 0xCA, 0xCB, 0xCD, 0xCE, 0xCF}  # a scan of a few bytes may take long
_WITHOUT_LENGTH = {0x01, *range(0xD0, 0xD9)}
_MARKER = re.compile(rb"\xff[^\x00\xff\xd0-\xd7]", re.DOTALL)  # not a byte of pixels, not padding, not a restart
_PNG = b"\x89PNG\r\n\x1a\n"
_TIFF_SIZES = {1: 1, 2: 1, 3: 2, 4: 4, 5: 8, 6: 1, 7: 1, 8: 2, 9: 4, 10: 8, 11: 4, 12: 8, 13: 4, 16: 8, 17: 8, 18: 8}
_TILE_SIDES = (322, 323)


class TimedBytes(io.BytesIO):
    """An image that can be read for a limited time: decoders read it bit by bit. Raises: InvalidRequest."""

    def __init__(self, data: bytes, seconds: float = DECODE_S, clock: Callable[[], float] = time.monotonic) -> None:
        super().__init__(data)
        self._seconds, self._clock = seconds, clock
        self.restart()

    def restart(self) -> None:
        self._until = self._clock() + self._seconds

    def read(self, size: int | None = -1, /) -> bytes:
        if self._clock() >= self._until:
            raise InvalidRequest(f"takes longer than {self._seconds:g} s to decode; save it anew, or make it smaller")
        return super().read(size)


def check_work(data: bytes, pixels_max: int) -> None:
    """Raises: InvalidRequest for an image that asks for far more work than its pixels. Looks at no pixels."""
    if data.startswith(b"\xff\xd8"):
        markers = Counter(_jpeg_markers(data))
        if not _ARITHMETIC.isdisjoint(markers):
            raise InvalidRequest("is a JPEG with arithmetic coding, which browsers do not read either. Save it anew")
        scans = markers[_SOS]
        if scans > SCANS_MAX:
            raise InvalidRequest(f"is a JPEG with {scans:,} scans; the limit is {SCANS_MAX}. Save it anew")
    elif data.startswith(_PNG):
        texts = sum(1 for kind in _png_chunks(data) if kind in {b"zTXt", b"iTXt", b"iCCP"})
        if texts > TEXTS_MAX:
            raise InvalidRequest(f"is a PNG with {texts:,} compressed texts; the limit is {TEXTS_MAX}. Save it anew")
    elif data[:2] in {b"II", b"MM"}:
        _check_tiff(data, pixels_max)


def is_small_exif(data: bytes) -> bool:
    """Notes of a camera whose values overlap can take a thousand times their size in memory."""
    notes = data.removeprefix(b"Exif\0\0")
    return sum(size for _, size, _ in _tiff_tags(notes)) <= len(notes)


def _jpeg_markers(data: bytes) -> Iterator[int]:
    """Of the first picture, as libjpeg finds them: after each segment, the next marker, whatever is between them."""
    at = 2
    while found := _MARKER.search(data, at):
        marker, at = data[found.end() - 1], found.end()
        if marker == _EOI:
            return
        yield marker
        if marker not in _WITHOUT_LENGTH:
            at += int.from_bytes(data[at : at + 2])


def _png_chunks(data: bytes) -> Iterator[bytes]:
    at = len(_PNG)
    while at + 8 <= len(data):
        yield data[at + 4 : at + 8]
        at += 12 + int.from_bytes(data[at : at + 4])


def _check_tiff(data: bytes, pixels_max: int) -> None:
    tags = list(_tiff_tags(data))
    if sum(size for _, size, _ in tags) > len(data):
        raise InvalidRequest("is a damaged image: its tags say that they take more bytes than the file has")
    sides = {tag: value for tag, _, value in tags if tag in _TILE_SIDES}
    if sides.get(_TILE_SIDES[0], 0) * sides.get(_TILE_SIDES[1], 0) > pixels_max:
        raise InvalidRequest(f"has tiles of more than {pixels_max:,} pixels")


def _tiff_tags(data: bytes) -> Iterator[tuple[int, int, int]]:
    """Of the first directory: the tag, the bytes of its value, and the value if it is one number."""
    order = ">" if data[:2] == b"MM" else "<"
    is_big = data[2:4] in {b"+\0", b"\0+"}
    pointer, number, entry = ("Q", "Q", "HHQ8s") if is_big else ("L", "H", "HHL4s")
    try:
        (at,) = struct.unpack_from(order + pointer, data, 8 if is_big else 4)
        (total,) = struct.unpack_from(order + number, data, at)
        at += struct.calcsize(order + number)
        for at_entry in range(at, at + total * struct.calcsize(order + entry), struct.calcsize(order + entry)):
            tag, kind, count, value = struct.unpack_from(order + entry, data, at_entry)
            width = _TIFF_SIZES.get(kind, 0)
            one = value[:width] if count == 1 else b""
            yield tag, width * count, int.from_bytes(one, "big" if order == ">" else "little")
    except struct.error:
        return  # the file ends early, and Pillow says so
