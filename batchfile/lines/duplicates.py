"""Finds ids that were used twice, in 8 bytes an id: hashes first, the ids themselves on a second pass."""

from array import array

_BUCKETS = 256  # each is made a set in turn, so that the peak is one bucket's


class DuplicateFinder:
    """For use within one process: Python seeds its string hash anew in each."""

    def __init__(self) -> None:
        self._buckets = [array("q") for _ in range(_BUCKETS)]

    def add(self, custom_id: str) -> None:
        value = hash(custom_id)
        self._buckets[value % _BUCKETS].append(value)

    def merge(self, other: "DuplicateFinder") -> None:
        """Take what a fork of this process has added: it has the same seed."""
        for mine, theirs in zip(self._buckets, other._buckets, strict=True):
            mine.extend(theirs)

    def suspects(self) -> set[int]:
        """Hashes that were added twice: duplicates, or (rarely) two ids with one hash."""
        found: set[int] = set()
        for bucket in self._buckets:
            if len(set(bucket)) != len(bucket):
                seen: set[int] = set()
                for value in bucket:
                    if value in seen:
                        found.add(value)
                    seen.add(value)
        return found

    @staticmethod
    def is_suspect(custom_id: str, suspects: set[int]) -> bool:
        return hash(custom_id) in suspects
