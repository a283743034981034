"""Batches in a store: whose they are, and how often they are looked up."""

from pathlib import Path
from typing import Any

import pytest

from batchfile.errors import InvalidRequest
from batchfile.places import find_batch, open_service_ledger
from batchfile.remote import store
from batchfile.remote.base import BatchView, Wanted
from batchfile.remote.store import StoreRemote
from batchfile.remote.upload import open_upload
from batchfile.settings import load_settings

LINE = '{"custom_id": "a", "params": {"messages": [{"role": "user", "content": "Hi."}], "max_tokens": 8}}'


def remote(folder: Path, tenant: str) -> StoreRemote:
    settings = load_settings()
    return StoreRemote(open_service_ledger(str(folder / "st"), settings), settings, tenant)


@pytest.fixture
def batch(tmp_path: Path) -> BatchView:
    (tmp_path / "in.jsonl").write_text(LINE)
    upload = open_upload(str(tmp_path / "in.jsonl"))
    return remote(tmp_path, "acme").submit(upload, Wanted(stage="email"), lambda num: None)


def test_a_batch_of_another_tenant_is_not_there(tmp_path: Path, batch: BatchView) -> None:
    others = remote(tmp_path, "zeta")
    calls: list[Any] = [others.batch, others.cancel, others.retry]
    for call in calls:
        with pytest.raises(InvalidRequest, match="no batch of the tenant zeta; --tenant names another"):
            call(batch.batch_id)
    with pytest.raises(InvalidRequest, match="no batch of the tenant zeta"):
        others.results(batch)
    assert remote(tmp_path, "acme").batch(batch.batch_id) == batch


def test_a_batch_that_is_watched_is_found_once(
    tmp_path: Path, batch: BatchView, monkeypatch: pytest.MonkeyPatch
) -> None:
    found: list[str] = []

    def counted(ledger: Any, name: str) -> Any:
        found.append(name)
        return find_batch(ledger, name)

    monkeypatch.setattr(store, "find_batch", counted)
    watching = remote(tmp_path, "acme")
    for _ in range(3):
        assert watching.batch(batch.batch_id).state == "open"
    assert found == [batch.batch_id]
    watching.cancel(batch.batch_id)
    assert watching.batch(batch.batch_id).has_ended
