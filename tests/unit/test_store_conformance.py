"""A store that ignores conditions is found out; one that keeps them is not."""

from pathlib import Path

import pytest

from batchfile.errors import StoreUnavailable, StoreUnfit
from batchfile.store.conformance import HEAVY, prove_conditions
from batchfile.testing import FaultyStore, ManualClock, MemoryStore
from tests.helpers.store import DirectoryStore


class IgnoresAbsent(MemoryStore):
    def put(self, key: str, data: bytes, *, absent: bool = False, match: str | None = None) -> str:
        return super().put(key, data, match=match)


class IgnoresMatch(MemoryStore):
    def put(self, key: str, data: bytes, *, absent: bool = False, match: str | None = None) -> str:
        return super().put(key, data, absent=absent)


class CreatesOnMatch(MemoryStore):
    """As MinIO did before October 2025: If-Match on a missing key succeeded."""

    def put(self, key: str, data: bytes, *, absent: bool = False, match: str | None = None) -> str:
        return super().put(key, data, absent=absent, match=match if self.get(key) else None)


class AcknowledgesOnly(MemoryStore):
    """Says yes to a replacement and does nothing."""

    def put(self, key: str, data: bytes, *, absent: bool = False, match: str | None = None) -> str:
        return super().put(key, data, absent=absent) if match is None else "0" * 32


@pytest.mark.parametrize("liar", [IgnoresAbsent, IgnoresMatch, CreatesOnMatch, AcknowledgesOnly])
@pytest.mark.parametrize("heavy", [False, True])
def test_a_liar_is_unfit_and_told_what_to_use_instead(liar: type[MemoryStore], heavy: bool) -> None:
    store = liar()
    with pytest.raises(StoreUnfit, match=r"work would be lost silently.*Use AWS S3"):
        prove_conditions(store, heavy=heavy, clock=ManualClock())
    assert list(store.list("")) == []


@pytest.mark.parametrize("heavy", [False, True])
def test_an_honest_store_is_proven_and_left_as_it_was(tmp_path: Path, heavy: bool) -> None:
    for store in (MemoryStore(), DirectoryStore(tmp_path / str(heavy), fsync=False)):
        store.put("mine", b"1")
        proof = prove_conditions(store, heavy=heavy, clock=ManualClock())
        assert not proof.unclear
        assert all(num >= (HEAVY.num_rounds if heavy else 1) for num in proof.kept.values())
        assert [entry.key for entry in store.list("")] == ["mine"]


def test_a_store_that_does_not_answer_is_unavailable_and_not_unfit() -> None:
    store = FaultyStore(MemoryStore())
    store.is_down = True
    with pytest.raises(StoreUnavailable):
        prove_conditions(store, clock=ManualClock())
