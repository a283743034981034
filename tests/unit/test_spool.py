"""A body onto disk: whole or refused, never in memory, and nothing is left of it."""

import asyncio
import errno
import gzip
import hashlib
import os
import zlib
from collections.abc import AsyncIterator
from pathlib import Path
from unittest.mock import patch

import pytest

from api.http.errors import Refusal
from api.http.spool import SpoolLimits, spool
from batchfile.errors import InvalidFile, TooLarge
from batchfile.lines.file_formats import FEED_BYTES, Unpacker, zstd

LIMITS = SpoolLimits(bytes_max=10_000_000, wait_s=60.0)
TEXT = b'{"custom_id": "a", "params": {}}\n' * 50_000


async def chunks_of(data: bytes, size: int) -> AsyncIterator[bytes]:
    for at in range(0, len(data), size):
        yield data[at : at + size]


def spooled(
    data: bytes,
    encoding: str | None = None,
    *,
    chunk: int = 65536,
    length: int | None = None,
    limits: SpoolLimits = LIMITS,
) -> bytes:
    """What came to disk, after its size and digest were checked."""

    async def go() -> bytes:
        stream = chunks_of(data, chunk)
        async with spool(stream, content_encoding=encoding, content_length=length, limits=limits) as body:
            found = bytes(body.view())
            assert (body.size, body.sha256) == (len(found), hashlib.sha256(found).hexdigest())
            return found

    return asyncio.run(go())


@pytest.mark.parametrize("chunk", [1000, 65536, 3_000_000])
@pytest.mark.parametrize("encoding", [None, "", "identity", "gzip", "x-gzip", " GZip ", "zstd"])
def test_a_body_is_what_was_packed(encoding: str | None, chunk: int) -> None:
    pack = {"gzip": gzip.compress, "zstd": zstd.compress}.get(
        (encoding or "").strip().lower().removeprefix("x-"), bytes
    )
    assert spooled(pack(TEXT), encoding, chunk=chunk) == TEXT


@pytest.mark.parametrize(("encoding", "pack"), [("gzip", gzip.compress), ("zstd", zstd.compress)])
def test_several_packed_pieces_in_a_row_are_one_body(encoding: str, pack: object) -> None:
    packed = [pack(piece) for piece in (b"one\n", b"", b"two\n" * 1_000_000)]  # type: ignore[operator]
    assert spooled(b"".join(packed), encoding, chunk=7777) == b"one\n" + b"two\n" * 1_000_000


def test_an_empty_body_is_a_body() -> None:
    assert spooled(b"") == b""
    assert spooled(b"", "gzip") == b""


def test_a_body_of_exactly_the_limit_is_taken_and_one_byte_more_is_not() -> None:
    limits = SpoolLimits(bytes_max=1000, wait_s=60.0)
    assert len(spooled(b"x" * 1000, limits=limits)) == 1000
    with pytest.raises(TooLarge, match="1,000 bytes"):
        spooled(b"x" * 1001, limits=limits)


def test_a_length_over_the_limit_is_refused_before_anything_is_read() -> None:
    async def never() -> AsyncIterator[bytes]:
        raise AssertionError("the body was read")
        yield b""

    async def go() -> None:
        async with spool(never(), content_encoding=None, content_length=10_000_001, limits=LIMITS):
            raise AssertionError("it was taken")

    with pytest.raises(TooLarge):
        asyncio.run(go())


@pytest.mark.parametrize("encoding", ["gzip", "zstd"])
def test_a_bomb_is_refused_by_what_it_unpacks_to(encoding: str) -> None:
    pack = gzip.compress if encoding == "gzip" else zstd.compress
    with pytest.raises(TooLarge):
        spooled(pack(b"\0" * 20_000_000), encoding)


@pytest.mark.parametrize("encoding", ["gzip", "zstd"])
@pytest.mark.parametrize("cut", [1, 10, 100])
def test_packed_data_that_ends_early_is_refused(encoding: str, cut: int) -> None:
    pack = gzip.compress if encoding == "gzip" else zstd.compress
    with pytest.raises(InvalidFile, match="is truncated"):
        spooled(pack(b"text" + os.urandom(5000))[:-cut], encoding)


@pytest.mark.parametrize("encoding", ["gzip", "zstd"])
def test_what_is_not_packed_as_it_says_is_refused(encoding: str) -> None:
    with pytest.raises(InvalidFile, match=f"is not {encoding} data"):
        spooled(b'{"stage": "email"}', encoding)


def test_a_zstd_frame_that_wants_much_memory_is_refused() -> None:
    options = {zstd.CompressionParameter.window_log: 27, zstd.CompressionParameter.content_size_flag: 0}
    packer = zstd.ZstdCompressor(options=options)
    packed = packer.compress(b"x" * 1000) + packer.flush()
    with pytest.raises(InvalidFile, match="zstd"):
        spooled(packed, "zstd")


@pytest.mark.parametrize("encoding", ["br", "deflate", "gzip, gzip", "compress"])
def test_an_unknown_encoding_is_415(encoding: str) -> None:
    with pytest.raises(Refusal, match="use gzip, zstd or none") as refused:
        spooled(zlib.compress(b"x"), encoding)
    assert refused.value.status == 415


def test_a_body_that_stalls_is_408() -> None:
    async def stalls() -> AsyncIterator[bytes]:
        yield b"{"
        await asyncio.Event().wait()

    async def go() -> None:
        limits = SpoolLimits(bytes_max=1000, wait_s=0.01)
        async with spool(stalls(), content_encoding=None, content_length=None, limits=limits):
            raise AssertionError("it was taken")

    with pytest.raises(Refusal) as refused:
        asyncio.run(go())
    assert refused.value.status == 408


def test_a_body_that_breaks_off_is_the_callers_error_and_leaves_nothing(tmp_path: Path) -> None:
    async def breaks() -> AsyncIterator[bytes]:
        yield b"x" * 3_000_000
        raise ConnectionResetError

    async def go() -> None:
        limits = SpoolLimits(bytes_max=10_000_000, wait_s=60.0, folder=tmp_path)
        async with spool(breaks(), content_encoding=None, content_length=None, limits=limits):
            raise AssertionError("it was taken")

    with pytest.raises(ConnectionResetError):
        asyncio.run(go())
    assert list(tmp_path.iterdir()) == []


def test_the_spooled_file_has_no_name(tmp_path: Path) -> None:
    async def go() -> None:
        limits = SpoolLimits(bytes_max=10_000_000, wait_s=60.0, folder=tmp_path)
        async with spool(chunks_of(TEXT, 65536), content_encoding=None, content_length=None, limits=limits) as body:
            assert body.size == len(TEXT)
            assert list(tmp_path.iterdir()) == []

    asyncio.run(go())


def test_a_full_disk_is_503_and_says_so(monkeypatch: pytest.MonkeyPatch) -> None:
    def full(fd: int, data: bytes) -> int:
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr("api.http.spool.os.write", full)
    with pytest.raises(Refusal, match="no disk space") as refused:
        spooled(b"x")
    assert refused.value.status == 503
    assert refused.value.headers["Retry-After"]


EMPTY_MEMBERS = {
    "gzip": gzip.compress(b"", mtime=0),
    "zstd": zstd.compress(b""),
    "skipped": b"\x50\x2a\x4d\x18\0\0\0\0",
}


@pytest.mark.parametrize("member", EMPTY_MEMBERS.values(), ids=EMPTY_MEMBERS)
def test_members_that_hold_nothing_are_rejected_after_a_bounded_number(member: bytes) -> None:
    """Each costs as much as a thousand bytes, and none counts against the size limit."""
    encoding = "gzip" if member[:2] == b"\x1f\x8b" else "zstd"
    with pytest.raises(InvalidFile, match=r"over 10,000 (members|frames) that are nearly empty"):
        spooled(member * 50_000, encoding)


@pytest.mark.parametrize(("encoding", "pack"), [("gzip", gzip.compress), ("zstd", zstd.compress)])
def test_many_members_that_hold_text_are_one_body(encoding: str, pack: object) -> None:
    """As bgzip and log shippers write them."""
    assert spooled(pack(b"x" * 1100) * 11_000, encoding, limits=SpoolLimits(bytes_max=2**24, wait_s=60.0))  # type: ignore[operator]


def test_unpacking_copies_no_more_than_a_few_bytes_for_each_that_comes_in() -> None:
    """What a member leaves unused is copied once for each member: only ever the rest of a small piece."""
    packed = EMPTY_MEMBERS["gzip"] * 9_000
    copied = []

    class Counting:
        def __init__(self) -> None:
            self._one = zlib.decompressobj(31)

        def decompress(self, data: bytes, most: int) -> bytes:
            copied.append(len(data))
            return self._one.decompress(data, most)

        def __getattr__(self, name: str) -> object:
            return getattr(self._one, name)

    with patch.dict("batchfile.lines.file_formats._NEW", {"gzip": Counting}):
        unpacker = Unpacker("gzip", "the body", "send it again")
        assert b"".join(unpacker.unpack(packed)) == b""
        unpacker.finish()
    assert max(copied) <= FEED_BYTES


def test_packed_bytes_count_against_the_limit_too() -> None:
    """A stream of empty blocks unpacks to nothing at all."""
    packer = zlib.compressobj(6, zlib.DEFLATED, 31)
    packed = b"".join(packer.flush(zlib.Z_SYNC_FLUSH) for _ in range(3))
    body = packed[:10] + b"\0\0\0\xff\xff" * 30_000
    with pytest.raises(TooLarge, match="100,000 bytes"):
        spooled(body, "gzip", limits=SpoolLimits(bytes_max=100_000, wait_s=60.0))
