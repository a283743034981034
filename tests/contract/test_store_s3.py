"""What only a bucket does: answers that get lost, cut short or mean something else. Moto behind a spoiling proxy."""

import os
from collections.abc import Callable
from datetime import UTC, datetime
from typing import Any

import pytest
import structlog

from batchfile import open_store
from batchfile.errors import ObjectChanged, SettingsError, StoreError, StoreUnavailable, StoreUnfit
from batchfile.testing import ManualClock
from tests.contract.store_s3_kit import BUCKET, Once, clients, read, store
from tests.helpers.store import PART_BYTES, s3_streams
from tests.helpers.store_s3 import S3Store, s3

__all__ = ["clients", "store"]
CLOSED_PORT = 9  # discard; nobody listens there


@pytest.mark.parametrize("fault", ["cut", "drop", "short", 503])
def test_a_read_that_broke_is_read_again(store: S3Store, proxy: Any, fault: object) -> None:
    data = os.urandom(300_000)
    etag = store.put("a", data)
    proxy.fault = Once("GET", fault)
    found = store.get("a")
    assert found is not None
    assert found.data == data
    proxy.fault = Once("GET", fault, "pass", fault)
    assert read(store, "a", match=etag) == data
    assert read(store, "a", 7, 200_000) == data[7:200_000]


def test_a_stream_goes_on_where_it_broke(store: S3Store, proxy: Any) -> None:
    data = os.urandom(5 * 1024 * 1024)
    store.put("a", data)
    ranges: list[str] = []

    def cut(method: str, path: str, headers: dict[str, str]) -> str:
        ranges.append(headers.get("Range", ""))
        return "cut" if len(ranges) <= 2 else "pass"

    proxy.fault = cut
    assert read(store, "a") == data
    assert ranges[0] == "bytes=0-"
    assert ranges[1].startswith("bytes=2")
    assert len(ranges) == 3


@pytest.mark.parametrize(("start", "end"), [(0, None), (0, 56), (10, None), (10, 50)])
def test_a_body_that_is_always_too_short_is_never_taken_for_the_end(
    store: S3Store, proxy: Any, start: int, end: int | None
) -> None:
    """46 of 56 bytes, and nothing in the answer's own length says so."""
    store.put("a", b"x" * 56)
    proxy.fault = lambda method, path, headers: "short"
    with pytest.raises(StoreUnavailable, match="ended 1 bytes early"):  # each attempt brings half of what is left
        read(store, "a", start, end)
    with pytest.raises(StoreUnavailable, match="ended 28 bytes early"):
        store.get("a")


def test_a_listing_that_is_cut_short_is_not_taken_for_a_whole_one(store: S3Store, proxy: Any) -> None:
    store.put("a", b"1")
    proxy.fault = Once("GET", "short")
    assert [entry.key for entry in store.list("")] == ["a"]
    proxy.fault = lambda method, path, headers: "short"
    with pytest.raises(StoreUnavailable):
        list(store.list(""))


def test_an_answer_past_the_end_of_an_object_that_is_longer_is_not_its_end(store: S3Store, proxy: Any) -> None:
    store.put("a", b"x" * 56)
    proxy.fault = Once("GET", 416)
    assert read(store, "a") == b"x" * 56
    proxy.fault = lambda method, path, headers: 416 if method == "GET" else "pass"
    for ask in (lambda: read(store, "a"), lambda: store.get("a")):
        with pytest.raises(StoreUnavailable):
            ask()


def test_another_range_than_was_asked_for_is_refused(store: S3Store, proxy: Any) -> None:
    def shift(method: str, path: str, headers: dict[str, str]) -> str:
        if "Range" in headers:
            headers["Range"] = "bytes=0-6"
        return "pass"

    store.put("a", b"0123456789")
    proxy.fault = shift
    for start, end in ((5, 7), (5, None), (0, 6)):
        with pytest.raises(StoreUnfit, match="ignores the range"):
            read(store, "a", start, end)


def test_a_record_that_comes_byte_by_byte_is_given_up(
    store: S3Store, proxy: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(s3, "READ_ATTEMPTS", 2)
    store.put("a.json", b"x" * 200)
    proxy.fault = lambda method, path, headers: "slow" if method == "GET" else "pass"
    monkeypatch.setattr(s3_streams, "RECORD_S", 0.1)
    with pytest.raises(StoreUnavailable, match=r"a.json: only \d+ bytes arrived in 0 s"):
        store.get("a.json")
    monkeypatch.setattr(s3_streams, "RECORD_S", 600.0)
    found = store.get("a.json")
    assert found is not None
    assert found.data == b"x" * 200


def test_a_stream_that_comes_byte_by_byte_is_read_again_and_then_given_up(
    store: S3Store, proxy: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    data = os.urandom(200)
    store.put("a", data)
    monkeypatch.setattr(s3_streams, "STREAM_WINDOW_S", 0.1)
    proxy.fault = Once("GET", "slow")
    assert read(store, "a") == data
    proxy.requests.clear()
    proxy.fault = lambda method, path, headers: "slow"
    with pytest.raises(StoreUnavailable, match=r"only \d+ bytes arrived in 0 s"):
        read(store, "a")
    assert proxy.requests == ["GET"] * s3.SLOW_ATTEMPTS
    monkeypatch.setattr(s3_streams, "STREAM_BYTES_MIN", 1)  # slow as the server is, it is fast enough
    assert read(store, "a") == data


def test_a_reader_that_takes_its_time_is_not_taken_for_a_slow_store(
    store: S3Store, proxy: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    data = os.urandom(3 * 1024 * 1024)
    store.put("a", data)
    monkeypatch.setattr(s3_streams, "STREAM_WINDOW_S", 60.0)
    clock = ManualClock()
    monkeypatch.setattr(s3_streams, "time", clock)
    proxy.requests.clear()
    found = []
    for chunk in store.stream("a"):
        found.append(chunk)
        clock.sleep(3600.0)
    assert b"".join(found) == data
    assert proxy.requests == ["GET"]


def test_a_stream_that_broke_never_goes_on_in_another_version(store: S3Store, proxy: Any) -> None:
    first, second = b"1" * 3 * 1024 * 1024, b"2" * 3 * 1024 * 1024
    store.put("a", first)
    proxy.fault = Once("GET", "cut")
    stream = iter(store.stream("a"))
    assert set(next(stream)) == {ord("1")}
    store.put("a", second)
    with pytest.raises(ObjectChanged):
        list(stream)


def test_a_store_that_ignores_ranges_is_refused(store: S3Store, proxy: Any) -> None:
    store.put("a", b"0123456789")
    proxy.fault = lambda method, path, headers: "whole"
    for start, end in ((5, 7), (5, None), (0, 7)):
        with pytest.raises(StoreUnfit, match="ignores the range"):
            read(store, "a", start, end)
    assert read(store, "a", 0, 10) == b"0123456789"


def test_a_read_gives_up_after_a_written_number_of_attempts(store: S3Store, proxy: Any) -> None:
    store.put("a", b"data")
    proxy.fault = lambda method, path, headers: "drop"
    proxy.requests.clear()
    with pytest.raises(StoreUnavailable):
        store.get("a")
    assert proxy.requests == ["GET"] * s3.READ_ATTEMPTS


def test_nobody_there_is_unavailable(s3_credentials: None) -> None:
    with pytest.raises(StoreUnavailable, match="no connection to the store"):
        open_store(f"s3://{BUCKET}/x?endpoint=http://127.0.0.1:{CLOSED_PORT}")


def test_a_missing_bucket_is_said_to_be_missing(moto_url: str) -> None:
    with pytest.raises(StoreError, match="the bucket does not exist"):
        open_store(f"s3://no-such-bucket/x?endpoint={moto_url}")


def test_denied_access_names_what_is_needed(store: S3Store, proxy: Any) -> None:
    proxy.fault = lambda method, path, headers: 403
    with pytest.raises(StoreError, match="s3:PutObject") as raised:
        store.prove(clock=ManualClock())
    assert not isinstance(raised.value, StoreUnavailable)


def test_missing_credentials_are_named(moto_url: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("AWS_ACCESS_KEY_ID")
    with pytest.raises(StoreError, match="AWS_ACCESS_KEY_ID"):
        open_store(f"s3://{BUCKET}/x?endpoint={moto_url}")


def test_a_url_opens_the_bucket_it_names(moto_url: str, folder: str) -> None:
    store = open_store(f"s3://{BUCKET}/{folder}/deep/?endpoint={moto_url}&region=eu-central-1")
    assert isinstance(store, S3Store)
    assert store.url == f"s3://{BUCKET}/{folder}/deep?endpoint={moto_url}&region=eu-central-1"
    store.put("a/b.json", b"1")
    again = open_store(store.url)
    upper = open_store(f"s3://{BUCKET}/{folder}?endpoint={moto_url}", prove=False)
    assert [entry.key for entry in again.list("")] == ["a/b.json"]
    assert [entry.key for entry in upper.list("")] == ["deep/a/b.json"]
    for opened in (store, again, upper):
        opened.close()  # type: ignore[attr-defined]


def test_the_endpoint_may_come_from_the_environment(
    moto_url: str, folder: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("AWS_ENDPOINT_URL", moto_url)
    store = open_store(f"s3://{BUCKET}/{folder}")
    store.put("a", b"1")
    assert [entry.key for entry in store.list("")] == ["a"]
    store.close()  # type: ignore[attr-defined]


def test_a_name_that_can_be_no_key_is_passed_over_and_said_once(moto: S3Store, folder: str) -> None:
    names = {f"{folder}//a.jsonl", f"{folder}/b\\c.jsonl", f"{folder}/d.jsonl/"}
    for name in (*names, f"{folder}/", f"{folder}/e//", f"{folder}/good.jsonl"):
        moto._data.put_object(Bucket=BUCKET, Key=f"some/prefix/{name}", Body=b"" if name.endswith("//") else b"x")
    moto._data.put_object(Bucket=BUCKET, Key=f"some/prefix/{folder}/", Body=b"")
    with structlog.testing.capture_logs() as events:
        for _ in range(2):
            assert [entry.key for entry in moto.list(f"{folder}/")] == [f"{folder}/good.jsonl"]
    assert sorted(event["key"] for event in events if event["event"] == "store.skipped_keys") == sorted(names)


def test_what_a_console_leaves_for_an_empty_folder_is_no_object(moto: S3Store, folder: str) -> None:
    moto._data.put_object(Bucket=BUCKET, Key=f"some/prefix/{folder}/inbox/", Body=b"")
    moto.put(f"{folder}/inbox/a.jsonl", b"{}")
    assert [entry.key for entry in moto.list(f"{folder}/")] == [f"{folder}/inbox/a.jsonl"]


@pytest.mark.parametrize(
    ("url", "said"),
    [
        ("s3://", "has no bucket"),
        ("s3:bucket/x", "is not a store"),
        ("gs://bucket/x", "is not a store"),
        ("https://bucket.example", "is not a store"),
        ("s3://key:secret@bucket/x", "credentials do not belong"),
        ("s3://bucket/x?endpont=http://127.0.0.1", "'endpont' is unknown"),
        ("", "is empty"),
        ("memory:x", "is not a store"),
    ],
)
def test_a_url_of_no_known_form_is_refused_with_what_is_accepted(url: str, said: str) -> None:
    with pytest.raises(SettingsError, match=said):
        open_store(url)


@pytest.mark.parametrize(
    "spelling",
    ["2026-11-23T22:30:00.000Z", "2026-11-23T22:30:00Z", "2026-11-23T22:30:00", "Mon, 23 Nov 2026 22:30:00 GMT"],
)
def test_a_time_is_read_however_a_server_spells_it(spelling: str) -> None:
    assert s3._parse_time(spelling).timestamp() == datetime(2026, 11, 23, 22, 30, tzinfo=UTC).timestamp()


VERBS: dict[str, Callable[[S3Store], object]] = {
    "get": lambda store: store.get("a"),
    "get-if-changed": lambda store: store.get_if_changed("a", "other"),
    "head": lambda store: store.head("a"),
    "stream": lambda store: read(store, "a"),
    "pinned-stream": lambda store: read(store, "a", match="other"),
    "range": lambda store: read(store, "a", 2, 4),
    "put": lambda store: store.put("a", b"2"),
    "conditional-put": lambda store: store.put("b", b"2", absent=True),
    "list": lambda store: list(store.list("")),
}


@pytest.mark.parametrize("verb", VERBS)
def test_a_web_page_in_the_place_of_an_answer_is_no_answer(
    store: S3Store, proxy: Any, verb: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A proxy on the way says it with status 200; nothing is taken from it."""
    monkeypatch.setattr(s3, "READ_PAUSE_S", 0.0)
    store.put("a", b"12345")
    proxy.fault = lambda method, path, headers: "page"
    with pytest.raises(StoreUnavailable):
        VERBS[verb](store)
    proxy.fault = lambda method, path, headers: "pass"
    assert read(store, "a") == b"12345"


@pytest.mark.parametrize("fault", ["page", (503, "done")])
def test_a_large_object_is_not_there_before_a_store_has_answered_for_each_part(
    store: S3Store, proxy: Any, fault: object
) -> None:
    proxy.fault = lambda method, path, headers: fault if "uploadId" in path and method == "PUT" else "pass"

    def write() -> None:
        with store.writer("large") as writer:
            writer.write(bytes(PART_BYTES + 1))
            writer.commit()

    with pytest.raises(StoreUnavailable):
        write()
    proxy.fault = lambda method, path, headers: "pass"
    assert store.head("large") is None
