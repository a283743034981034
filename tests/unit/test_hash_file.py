"""Two batches are compared and results collected as if memory had no bound."""

from collections.abc import Iterator
from hashlib import sha256

import pytest
from hypothesis import given
from hypothesis import strategies as st

from batchfile import Ledger
from batchfile.errors import BatchDamaged
from batchfile.plan import hash_file, range_buckets
from batchfile.plan.hash_file import NO_HASH, NO_LINE, pairs
from batchfile.plan.range_buckets import RangeBuckets
from batchfile.testing import MemoryStore
from tests.helpers.ledger import FileRef
from tests.helpers.store import Store, WrappedStore

HEADER = b"batchfile hash 1"
DIGESTS = st.lists(st.sampled_from([NO_HASH, *(bytes([n * 36, *range(14), n % 3]) for n in range(8))]), max_size=60)


class ChoppingStore(WrappedStore):
    """Its chunks have any size, as those of a network."""

    def __init__(self, inner: Store, size: int) -> None:
        super().__init__(inner)
        self._size = size

    def stream(self, key: str, start: int = 0, end: int | None = None, *, match: str | None = None) -> Iterator[bytes]:
        data = b"".join(super().stream(key, start, end, match=match))
        return (data[at : at + self._size] for at in range(0, len(data), self._size))


def put(ledger: Ledger, key: str, data: bytes) -> FileRef:
    ledger.store.put(key, data)
    return FileRef(key=key, size=len(data), sha256=sha256(data).hexdigest(), num_lines=len(data) // 16 - 1)


@given(DIGESTS, DIGESTS, st.integers(1, 70), st.integers(1, 100))
def test_the_kth_of_equal_hashes_is_paired_with_the_kth(
    old: list[bytes], new: list[bytes], portion: int, chunk: int
) -> None:
    ledger = Ledger(store=ChoppingStore(MemoryStore(), chunk))
    with pytest.MonkeyPatch.context() as patched:
        patched.setattr(hash_file, "PORTION_LINES", portion)
        files = [put(ledger, name, HEADER + b"".join(found)) for name, found in (("old", old), ("new", new))]
        made, num_unhashed = pairs(ledger, *files, lambda: None)
    expected = [NO_LINE] * len(old)
    for digest in {*old} - {NO_HASH}:
        olds, news = ([at for at, one in enumerate(found) if one == digest] for found in (old, new))
        for at, number in zip(olds, news, strict=False):
            expected[at] = number
    assert (list(made), num_unhashed) == (expected, old.count(NO_HASH))


@pytest.mark.parametrize("which", [0, 1])
@pytest.mark.parametrize("damage", ["short", "long", "changed", "newer", "empty", "many"])
def test_a_damaged_file_is_never_believed(which: int, damage: str) -> None:
    ledger = Ledger(store=MemoryStore())
    whole = HEADER + b"a" * 16 + b"b" * 16
    data = {
        "short": whole[:-1],
        "long": whole + b"c",
        "many": whole + b"a" * 160,
        "changed": whole[:-1] + b"c",
        "newer": HEADER[:-1] + b"2" + whole[16:],
        "empty": b"",
    }[damage]
    files = [put(ledger, name, whole) for name in ("old", "new")]
    if damage == "newer":
        files[which] = put(ledger, files[which].key, data)
    ledger.store.put(files[which].key, data)
    with pytest.raises(BatchDamaged, match=f"^{files[which].key}: "):
        pairs(ledger, *files, lambda: None)


@given(st.lists(st.integers(0, 4), max_size=40), st.integers(1, 9), st.sampled_from([0, 700, 10**6]))
def test_ranges_get_their_lines_in_order_however_little_fits(ranges: list[int], num: int, memory: int) -> None:
    found: dict[int, list[tuple[int, bytes]]] = {}
    with pytest.MonkeyPatch.context() as patched, RangeBuckets(ranges.count(n) for n in range(5)) as buckets:
        patched.setattr(range_buckets, "MEMORY_BYTES", memory)
        for start in range(0, len(ranges), num):
            for n in dict.fromkeys(ranges[start : start + num]):
                places = [len(ranges) - at for at in range(start, min(start + num, len(ranges))) if ranges[at] == n]
                if buckets.add(n, [(place, b'{"a": [%d,"x"]}' % place) for place in places]):
                    found[n] = buckets.take(n)
    assert found.keys() == set(ranges)
    for n, results in found.items():
        places = sorted(len(ranges) - at for at, one in enumerate(ranges) if one == n)
        assert results == [(place, b'{"a": [%d,"x"]}' % place) for place in places]
