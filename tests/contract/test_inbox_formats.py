"""Dropped files of other formats, and files that end what reads them."""

import gzip
import io
import json
import signal
import sys
from collections.abc import Iterator
from contextlib import suppress
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from batchfile.errors import StoreUnavailable
from tests.contract.inbox_kit import World, native, still, world
from tests.helpers.lines import converter
from tests.helpers.plan import pending

if sys.version_info >= (3, 14):
    from compression import zstd
else:
    from backports import zstd

__all__ = ["still", "world"]


def parquet(num: int, **columns: list[Any]) -> bytes:
    table = {"custom_id": [f"r{n}" for n in range(num)], "prompt": [f"text {n}" for n in range(num)], **columns}
    out = io.BytesIO()
    pq.write_table(pa.table(table), out, row_group_size=50)
    return out.getvalue()


@pytest.mark.parametrize("name", ["a.jsonl.gz", "a.jsonl.zst", "a.parquet", "A.JSON", "b.json.gz"])
def test_other_formats_become_an_input_once_and_keep_their_name_in_the_outbox(world: World, name: str) -> None:
    plain = b"".join(json.dumps(native(f"r{n}")).encode() + b"\n" for n in range(120))
    array = json.dumps([json.loads(line) for line in plain.splitlines()], indent=1).encode()
    made = {
        "a.jsonl.gz": gzip.compress(plain),
        "a.jsonl.zst": zstd.compress(plain),
        "a.parquet": parquet(120),
        "A.JSON": array,
        "b.json.gz": gzip.compress(b'{"requests": %b}' % array),
    }
    world.store.put(f"inbox/mistral/{name}", made[name])
    world.janitor.tick()
    batch = world.only()
    assert (batch.state, batch.total) == ("open", 120)
    assert batch.input.key.startswith(f"batches/{batch.batch_id}/input-")
    world.run(batch)
    world.janitor.tick()
    receipt = world.document(f"mistral/{name}.receipt.json")
    assert receipt["counts"]["succeeded"] == 120
    assert receipt["input"]["path"] == f"inbox/mistral/{name}"
    assert receipt["results"]["path"] == f"outbox/mistral/{name}.results.jsonl"
    world.new_janitor("t").tick()
    assert len(world.batches()) == 1


@pytest.mark.parametrize(
    ("name", "data"),
    [
        ("a.csv", b'\xef\xbb\xbfid;prompt;lead\r\nr0;text 0;Ann\r\nr1;text 1;"B\nC"\r\nr2;;\r\n'),
        ("A.CSV.gz", gzip.compress(b"id,prompt\nr0,text 0\nr1,text 1\nr2,\n", mtime=0)),
        ("a.tsv", b"id\tprompt\nr0\ttext 0\nr1\ttext 1\nr2\t\n"),
        ("a.ndjson", b'{"id": "r0", "prompt": "text 0"}\n{"id": "r1", "prompt": "text 1"}\n{"id": "r2"}\n'),
        ("a.json", b'[{"id": "r0", "prompt": "text 0"}, {"id": "r1", "prompt": "text 1"}, {"id": "r2"}]'),
        ("a.parquet", parquet(2, lead=["Ann", "Bob"])),
    ],
)
def test_rows_with_a_column_prompt_run_and_bad_rows_fail_alone(still: World, name: str, data: bytes) -> None:
    assert still.clock is not None
    still.store.put(f"inbox/mistral/{name}", data)
    still.clock.sleep(10.0)
    still.janitor.tick()
    still.run(still.only())
    still.janitor.tick()
    results = [json.loads(line) for line in (still.out(f"mistral/{name}.results.jsonl") or b"").splitlines()]
    answers = [(one["custom_id"], one["message"] and one["message"]["content"][0]["text"]) for one in results]
    assert answers[:2] == [("r0", "text 0"), ("r1", "text 1")]
    errors = [(one["custom_id"], one["error"]["message"]) for one in results[2:]]
    assert name.endswith(".parquet") or [(one, "the prompt is empty" in said) for one, said in errors] == [("r2", True)]


@pytest.mark.parametrize(
    ("name", "data", "why"),
    [
        (
            "a.csv",
            b"review,n\nok,1\n",
            "a.csv: is CSV with the columns review, n, not requests; write a prompt over its columns: "
            "`batchfile run a.csv --prompt '... {{ review }} ...' -o answers.csv`",
        ),
        ("a.csv", b"prompt,prompt\na,b\n", "has 2 columns named 'prompt'"),
        ("a.csv", b"prompt,messages\na,b\n", "has both columns prompt and messages"),
        ("a.csv", b"prompt\ncaf\xe9\n", "line 2: byte 0xe9 is not UTF-8; save the file as UTF-8"),
        ("a.csv", b'prompt\n"never closed\n', "a quote in the record that begins on line 2 is never closed"),
        ("a.csv", b"prompt\n", "has a header and no rows"),
        ("a.json", b'{"requests": [{"review": "ok"}]}', "is a JSON array of rows with the column review, not requests"),
        ("a.parquet", parquet(3, n=[1, 2, 3]).replace(b"prompt", b"frompt"), "is a Parquet table with the columns"),
        ("a.jsonl", b"%PDF-1.7\n%\xe2\xe3\xcf\xd3\n1 0 obj\n", "is a PDF"),
        ("a.jsonl", b"\x89PNG\r\n\x1a\n\0\0\0\rIHDR", "is a PNG image"),
        ("a.jsonl.gz", gzip.compress(gzip.compress(b"{}", mtime=0), mtime=0), "is compressed twice"),
        ("a.jsonl.gz", gzip.compress(json.dumps(native("a")).encode() * 2000, mtime=0)[:-40], "is truncated"),
        ("a.jsonl.gz", b"no gzip at all", "is named .gz but is not gzip data"),
        ("a.jsonl.zst", zstd.compress(b"x" * 1000)[:-5], "zstd data"),
        ("a.parquet", parquet(3)[:-20], "the Parquet data is damaged"),
        ("a.parquet", parquet(3).replace(b"prompt", b"frompt"), "column"),
        ("a.jsonl", "\ufeff{}".encode("utf-16"), "is UTF-16 text; save it as UTF-8"),
        ("a.jsonl", b"PK\x03\x04 and so on", "is a zip archive"),
        ("a.jsonl", b'{"review": "ok"}\n', "is JSONL of rows with the column review, not requests; write a prompt"),
        ("a.json", b'["one", "two"]', "is a JSON array, but not of objects"),
        ("a.json", b'[{"custom_id": "a", "params": {}}, oops]', "is not valid JSON: "),
    ],
)
def test_a_file_that_can_not_be_read_is_rejected_with_the_reason(
    still: World, name: str, data: bytes, why: str
) -> None:
    assert still.clock is not None
    still.store.put(f"inbox/mistral/{name}", data)
    still.clock.sleep(10.0)
    still.janitor.tick()
    told = still.document(f"mistral/{name}.rejected.json")
    assert why in told["message"]
    assert told["message"].startswith(f"inbox/mistral/{name}: ")
    assert still.only().reason == "failed"


def converter_that_dies(monkeypatch: pytest.MonkeyPatch, by: signal.Signals) -> None:
    command = [sys.executable, "-c", f"import os; os.kill(os.getpid(), {by.value})"]
    monkeypatch.setattr(converter, "_command", lambda *args: command)


def test_a_file_that_ends_what_reads_it_is_rejected_at_once(still: World, monkeypatch: pytest.MonkeyPatch) -> None:
    assert still.clock is not None
    converter_that_dies(monkeypatch, signal.SIGSEGV)
    still.store.put("inbox/mistral/a.parquet", parquet(3))
    still.clock.sleep(10.0)
    still.janitor.tick()
    assert "crashed the process reading it (signal 11)" in still.document("mistral/a.parquet.rejected.json")["message"]
    assert still.only().reason == "failed"


def test_a_file_whose_converter_is_killed_is_tried_three_times(still: World, monkeypatch: pytest.MonkeyPatch) -> None:
    """As by a machine that has no memory left: it may be the file, or not."""
    assert still.clock is not None
    converter_that_dies(monkeypatch, signal.SIGKILL)
    still.store.put("inbox/mistral/a.parquet", parquet(3))
    still.clock.sleep(10.0)
    for _ in range(3):
        still.janitor.tick()
        assert still.only().state == "planning"
        still.janitor.tick()  # nobody tries before the lease is over
        still.clock.sleep(still.ledger.limits.lease_ttl_s + 1)
    still.janitor.tick()
    told = still.document("mistral/a.parquet.rejected.json")
    assert told["message"].startswith("inbox/mistral/a.parquet: 3 processes crashed one after another while they")
    assert still.only().reason == "failed"


def test_a_file_that_kills_three_processes_is_rejected_by_the_fourth(
    still: World, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert still.clock is not None
    deaths: list[str] = []

    def die(*args: Any, **more: Any) -> Any:
        deaths.append("died")
        raise KeyboardInterrupt  # as far from an answer as a process can be here

    still.store.put("inbox/mistral/a.jsonl", json.dumps(native("a")).encode())
    still.clock.sleep(10.0)
    monkeypatch.setattr(pending, "plan_input", die)
    for n in range(3):
        with pytest.raises(KeyboardInterrupt):
            still.new_janitor(f"s{n}", still.new_ledger(n)).tick()
        still.clock.sleep(still.ledger.limits.lease_ttl_s + 1)
        still.janitor.tick()  # asks whether it lives
        still.clock.sleep(still.ledger.limits.lease_ttl_s + 1)
    still.janitor.tick()
    assert len(deaths) == 3
    assert "3 processes crashed one after another" in still.document("mistral/a.jsonl.rejected.json")["message"]


def test_two_deaths_are_chance_and_a_planning_that_was_given_back_is_none(
    still: World, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert still.clock is not None
    still.store.put("inbox/mistral/a.jsonl", json.dumps(native("a")).encode())
    still.clock.sleep(10.0)
    plan_input = pending.plan_input
    ends = iter([KeyboardInterrupt, StoreUnavailable, StoreUnavailable, KeyboardInterrupt, StoreUnavailable, None])

    def fail(*args: Any, **more: Any) -> Any:
        error = next(ends)
        if error is None:
            return plan_input(*args, **more)
        raise error

    monkeypatch.setattr(pending, "plan_input", fail)
    for _ in range(7):  # after each of the two deaths, once only to ask
        with suppress(KeyboardInterrupt):
            still.janitor.tick()
        assert still.only().state == "planning"
        still.clock.sleep(still.ledger.limits.lease_ttl_s + 1)
    still.janitor.tick()
    assert (still.only().state, still.only().total) == ("open", 1)
    assert next(ends, "all of them came") == "all of them came"


def test_a_store_that_fails_while_parquet_is_read_rejects_nothing(
    still: World, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert still.clock is not None
    still.store.put("inbox/mistral/a.parquet", parquet(3))
    still.clock.sleep(10.0)
    stream = still.store.stream
    calls = iter(range(100))

    def failing(key: str, *args: Any, **more: Any) -> Iterator[bytes]:
        if key.endswith(".parquet") and next(calls) == 1:
            raise StoreUnavailable("503")
        return stream(key, *args, **more)

    monkeypatch.setattr(still.store, "stream", failing)
    still.janitor.tick()
    assert still.only().state == "planning"
    still.clock.sleep(1.0)
    still.janitor.tick()
    assert (still.only().state, still.only().total) == ("open", 3)
