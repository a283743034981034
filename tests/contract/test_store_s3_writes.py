"""Writes and deletes of the S3 store where answers are lost, refused or late, and servers that ignore conditions."""

import threading
from dataclasses import replace
from typing import Any

import pytest

from batchfile import open_store
from batchfile.errors import PreconditionFailed, StoreError, StoreUnavailable, StoreUnfit
from batchfile.testing import ManualClock
from tests.contract.store_s3_kit import BUCKET, Once, clients, read, store
from tests.helpers.store import PART_BYTES, conformance, prove_conditions, prove_store, s3_streams
from tests.helpers.store_s3 import S3Store

__all__ = ["clients", "store"]


@pytest.mark.parametrize("fault", ["drop", (503, "done"), (500, "done")])
def test_a_conditional_write_is_sent_once_and_its_lost_answer_is_no_refusal(
    store: S3Store, proxy: Any, fault: object
) -> None:
    proxy.fault = Once("PUT", fault)
    with pytest.raises(PreconditionFailed if fault == (500, "done") else StoreUnavailable):
        store.put("a.json", b"ours", absent=True)
    assert proxy.requests == ["PUT"]
    found = store.get("a.json")
    assert found is not None
    assert found.data == b"ours"


@pytest.mark.parametrize(
    ("status", "error"),
    [
        (404, PreconditionFailed),
        (409, PreconditionFailed),
        (412, PreconditionFailed),
        (500, PreconditionFailed),
        (429, StoreUnavailable),
        (502, StoreUnavailable),
        (503, StoreUnavailable),
        (504, StoreUnavailable),
        (501, StoreUnfit),
        (403, StoreError),
    ],
)
def test_every_answer_to_a_conditional_write_has_its_error(
    store: S3Store, proxy: Any, status: int, error: type[StoreError]
) -> None:
    proxy.fault = lambda method, path, headers: status
    for condition in ({"absent": True}, {"match": "0" * 32}):
        with pytest.raises(StoreError) as raised:
            store.put("a.json", b"x", **condition)  # type: ignore[arg-type]
        assert type(raised.value) is error
        assert str(status) in str(raised.value)


def test_an_unconditional_write_is_tried_again(store: S3Store, proxy: Any) -> None:
    proxy.fault = Once("PUT", 503, "drop")
    store.put("a", b"data")
    assert read(store, "a") == b"data"


@pytest.mark.parametrize("fault", ["late", "twice"])
def test_a_late_write_of_a_new_object_never_replaces_it(store: S3Store, proxy: Any, fault: str) -> None:
    """With SSE-KMS the same bytes would have another etag then, and what is pinned to the first could not be read."""
    proxy.fault = Once("PUT", fault)
    with store.writer("a", is_new=True) as writer:
        writer.write(b"requests")
        etag = writer.commit()
    assert read(store, "a", match=etag) == b"requests"
    assert proxy.send_late() == [412]
    assert read(store, "a", match=etag) == b"requests"


def test_a_new_object_is_written_again_where_its_race_was_lost_to_nobody(store: S3Store, proxy: Any) -> None:
    proxy.fault = Once("PUT", 409, 409)
    with store.writer("a", is_new=True) as writer:
        writer.write(b"requests")
        writer.commit()
    assert read(store, "a") == b"requests"


def test_a_new_object_whose_key_is_taken_is_refused(store: S3Store, proxy: Any) -> None:
    store.put("a", b"others")
    with store.writer("a", is_new=True) as writer:
        writer.write(b"requests")
        with pytest.raises(PreconditionFailed):
            writer.commit()
    assert read(store, "a") == b"others"


def test_a_new_object_that_is_always_refused_is_given_up(store: S3Store, proxy: Any) -> None:
    proxy.fault = lambda method, path, headers: 409 if method == "PUT" else "pass"
    with store.writer("a", is_new=True) as writer:
        writer.write(b"requests")
        with pytest.raises(StoreUnavailable, match="failed 5 times"):
            writer.commit()


def test_a_thousand_are_deleted_with_each_request(store: S3Store, proxy: Any) -> None:
    store.put("kept", b"x")
    store.put("a", b"x")
    proxy.requests.clear()
    store.delete_many([*(f"absent-{n}" for n in range(1500)), "a"])
    assert proxy.requests == ["POST", "POST"]
    assert [entry.key for entry in store.list("")] == ["kept"]


@pytest.mark.parametrize("status", [400, 403, 405])
def test_a_server_that_deletes_only_one_by_one_is_asked_to(store: S3Store, proxy: Any, status: int) -> None:
    for name in ("a", "b", "c", "d"):
        store.put(name, b"x")
    proxy.fault = lambda method, path, headers: status if method == "POST" else "pass"
    proxy.requests.clear()
    store.delete_many(["a", "b"])
    store.delete_many(["c", "d"])
    assert list(store.list("")) == []
    assert proxy.requests.count("POST") == 1
    assert proxy.requests.count("DELETE") == 4


def test_a_delete_of_many_that_is_not_answered_is_sent_again(store: S3Store, proxy: Any) -> None:
    store.put("a", b"x")
    proxy.fault = Once("POST", 503, "drop")
    store.delete_many(["a", "b"])
    assert list(store.list("")) == []


def test_what_a_killed_writer_left_is_freed_once_it_is_old(store: S3Store, folder: str) -> None:
    killed = store.writer("batches/a")
    killed.write(b"x" * (PART_BYTES + 10))
    others = store.writer("inbox/b")
    others.write(b"x" * (PART_BYTES + 10))

    def unfinished() -> list[str]:
        found = store._data.list_multipart_uploads(Bucket=BUCKET, Prefix=f"{folder}/")
        return [upload["Key"].removeprefix(f"{folder}/") for upload in found.get("Uploads", ())]

    assert store.abort_uploads("batches/", older_s=100 * 365 * 24 * 3600.0) == 0  # moto says of each that it is of 2010
    assert sorted(unfinished()) == ["batches/a", "inbox/b"]
    assert store.abort_uploads("batches/", older_s=0.0) == 1
    assert unfinished() == ["inbox/b"]
    others.__exit__(None, None, None)


def test_a_completed_upload_whose_answer_was_lost_is_a_success(store: S3Store, proxy: Any) -> None:
    with store.writer("large") as writer:
        writer.write(b"x" * (PART_BYTES + 10))

        lost: list[str] = []

        def lose(method: str, path: str, headers: dict[str, str]) -> str:
            if method == "POST" and "uploadId=" in path and not lost:
                lost.append(path)
                return "drop"
            return "pass"

        proxy.fault = lose
        etag = writer.commit()
    assert len(lost) == 1
    entry = store.head("large")
    assert entry is not None
    assert (entry.size, entry.etag) == (PART_BYTES + 10, etag)


def test_parts_are_sent_several_at_a_time_and_become_one_object_in_order(
    store: S3Store, proxy: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    size = 5 * 1024 * 1024  # the least that S3 takes
    monkeypatch.setattr(s3_streams, "PART_BYTES", size)
    meeting = threading.Barrier(2)  # the first two go on only together
    parts: list[str] = []

    def meet(method: str, path: str, headers: dict[str, str]) -> str:
        if "partNumber=" in path:
            parts.append(path)
            if len(parts) <= 2:
                meeting.wait(30)
        return "pass"

    proxy.fault = meet
    data = b"".join(bytes([letter]) * (size // 2) for letter in b"abcdefghi")
    with store.writer("parts") as writer:
        writer.write(data)
        writer.commit()
    assert len(parts) == 5
    assert b"".join(store.stream("parts")) == data


def only_unquoted(method: str, path: str, headers: dict[str, str]) -> object:
    """A server that accepts an etag only without quotes."""
    etag = headers.get("If-Match", "")
    if method != "PUT" or not etag:
        return "pass"
    if etag.startswith('"'):
        return 412
    headers["If-Match"] = f'"{etag}"'
    return "pass"


def test_unquoted_etags_are_learnt(store: S3Store, proxy: Any) -> None:
    proxy.fault = only_unquoted
    assert not store.prove(clock=ManualClock()).unclear
    etag = store.put("a.json", b"1")
    store.put("a.json", b"2", match=etag)


def test_unquoted_etags_are_learnt_before_a_test_at_length(
    proxy: Any, spoiled: Any, folder: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As `batchfile doctor` tests a store."""
    monkeypatch.setattr(conformance, "HEAVY", conformance.LIGHT)
    proxy.fault = only_unquoted
    assert not prove_store(f"s3://{BUCKET}/{folder}?endpoint={spoiled.url}").unclear


@pytest.mark.parametrize("header", ["If-Match", "If-None-Match"])
def test_a_server_that_ignores_a_condition_is_unfit(store: S3Store, proxy: Any, header: str) -> None:
    def ignore(method: str, path: str, headers: dict[str, str]) -> str:
        if method == "PUT":
            headers.pop(header, None)
        return "pass"

    proxy.fault = ignore
    with pytest.raises(StoreUnfit, match=r"(?s)work would be lost.*Use AWS S3"):
        store.prove(clock=ManualClock())
    proxy.fault = lambda method, path, headers: "pass"
    assert list(store.list("")) == []


@pytest.mark.parametrize("server", ["rclone", "s3rver"])
def test_a_real_server_that_ignores_conditions_is_refused_at_its_opening(
    server: str, request: pytest.FixtureRequest
) -> None:
    url = request.getfixturevalue(f"{server}_url")
    with pytest.raises(StoreUnfit, match="work would be lost"):
        open_store(f"s3://{BUCKET}/x?endpoint={url}")


def test_a_server_that_refuses_every_etag_is_unfit(store: S3Store, proxy: Any) -> None:
    proxy.fault = lambda method, path, headers: 412 if headers.get("If-Match") and method == "PUT" else "pass"
    with pytest.raises(StoreUnfit, match="own etag is rejected"):
        store.prove(clock=ManualClock())


def test_a_server_that_refuses_every_creation_is_unfit(store: S3Store, proxy: Any) -> None:
    proxy.fault = lambda method, path, headers: 412 if headers.get("If-None-Match") and method == "PUT" else "pass"
    with pytest.raises(StoreUnfit, match="rejected"):
        prove_conditions(store, clock=ManualClock())


def test_too_many_requests_prove_nothing_and_convict_nobody(store: S3Store, proxy: Any) -> None:
    proxy.fault = lambda method, path, headers: (
        429 if method == "PUT" and {"If-Match", "If-None-Match"} & set(headers) else "pass"
    )
    found = prove_conditions(store, clock=ManualClock())
    assert found.unclear
    assert set(found.kept.values()) == {0}


def test_a_bucket_that_is_too_busy_to_be_proven_is_not_opened_yet(
    proxy: Any, spoiled: Any, folder: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    url = f"s3://{BUCKET}/{folder}?endpoint={spoiled.url}"
    proxy.fault = lambda method, path, headers: (
        429 if method == "PUT" and "If-None-Match" in headers and "proof/" in path else "pass"
    )
    with monkeypatch.context() as patch:
        patch.setattr(conformance, "LIGHT", replace(conformance.LIGHT, budget_s=1.0))
        with pytest.raises(StoreUnavailable, match=r"too busy to prove .*: of several writers that create one object"):
            open_store(url)
    proxy.fault = lambda method, path, headers: "pass"
    open_store(url).close()


def test_losers_may_be_answered_500_or_409(store: S3Store, proxy: Any) -> None:
    for status in (500, 409):
        proxy.fault = lambda method, path, headers, status=status: (status, "412") if method == "PUT" else "pass"
        assert not store.prove(clock=ManualClock()).unclear
