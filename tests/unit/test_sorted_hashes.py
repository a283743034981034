"""Hashes are sorted and results collected as if memory had no bound."""

from collections import Counter

import pytest
from hypothesis import given
from hypothesis import strategies as st

from batchfile.plan import sorted_hashes
from batchfile.plan.hash_file import NO_HASH
from batchfile.plan.range_buckets import RangeBuckets
from batchfile.plan.sorted_hashes import SortedHashes, number_of
from tests.helpers.lines import FinishedLine

DIGESTS = st.sampled_from([NO_HASH, *(bytes([n % 3, *range(14), n]) for n in range(7))])


@given(st.lists(DIGESTS, max_size=60), st.integers(1, 7), st.integers(1, 7))
def test_runs_are_merged_into_one_order(digests: list[bytes], run: int, block: int) -> None:
    with pytest.MonkeyPatch.context() as patched:
        patched.setattr(sorted_hashes, "RUN_RECORDS", run)
        patched.setattr(sorted_hashes, "BLOCK_RECORDS", block)
        with SortedHashes(digests) as made:
            found = [(record[:16], number_of(record)) for record in made]
    assert found == sorted((digest, number) for number, digest in enumerate(digests) if digest != NO_HASH)


@given(st.lists(st.integers(0, 4), max_size=40), st.sets(st.integers(0, 39)), st.sampled_from([0, 700, 10**6]))
def test_ranges_get_their_lines_in_order_however_little_fits(ranges: list[int], gaps: set[int], memory: int) -> None:
    found: dict[int, list[FinishedLine]] = {}
    with RangeBuckets(Counter(ranges), memory) as buckets:
        for number, n in enumerate(ranges):
            place = len(ranges) - number
            line = None if number in gaps else FinishedLine(place, "succeeded", b'{"a":[%d,"x"]}' % place)
            if buckets.add(n, line):
                found[n] = buckets.take(n)
    assert found.keys() == set(ranges)
    for n, lines in found.items():
        places = sorted(len(ranges) - at for at, one in enumerate(ranges) if one == n and at not in gaps)
        assert [line.line for line in lines] == places
        assert all(line.result == b'{"a":[%d,"x"]}' % line.line for line in lines)
