"""Batches as people read them. Pure."""

import json
from typing import Any

import pytest

from batchfile import BatchStatus
from batchfile.cli import progress
from batchfile.cli.batch_text import as_json, below, end_line, end_lines, list_lines, pool_line, status_line, strip
from batchfile.cli.progress import Follower
from batchfile.errors import InvalidRequest
from batchfile.ledger.batch_status import PoolProgress, Waiting
from batchfile.types import FailureGroup
from tests.unit.statuses import status


def pool(num_shards: int, num_done: int = 0, num_leased: int = 0) -> PoolProgress:
    return PoolProgress(num_shards=num_shards, num_done=num_done, num_leased=num_leased, num_requests=0, num_finished=0)


def batch(**more: Any) -> BatchStatus:
    counts = {"total": 10, "succeeded": 4, "errored": 1, "input_tokens": 1000, "output_tokens": 50}
    return status(**counts | {"created_at": 100.0, "updated_at": 100.0} | more)


@pytest.mark.parametrize(
    ("progress", "text"),
    [
        (pool(5, 2, 1), "██▒··"),
        (pool(1), "·"),
        (pool(4, 4), "████"),
        (pool(1000, 500, 250), "█████▒▒···"),
        (pool(1000, 0, 1), "▒·········"),
        (pool(0), ""),
    ],
)
def test_a_strip_has_a_cell_for_each_shard_or_for_several(progress: PoolProgress, text: str) -> None:
    assert strip(progress, 10) == text


def test_lines_say_how_far_a_batch_is_and_how_it_ended() -> None:
    assert status_line(batch(), 160.0) == (
        "batch_a  open  5/10 requests, 1 failed, 1,000 tokens in, 50 out, 1 min 00 s"
    )
    assert pool_line("mistral", pool(5, 2, 1)) == "mistral  ██▒··  2/5 shards, 1 running"
    ended = batch(state="ended", reason="completed", ended_at=103.0)
    assert end_line(ended) == "batch_a: 4 of 10 requests succeeded in 3.0 s; 1 failed"
    failed = batch(state="ended", reason="failed", ended_at=103.0, detail="line 3: no")
    assert end_line(failed).endswith("it ended early (failed: line 3: no)")


def test_usage_that_is_not_known_is_said_next_to_the_sums() -> None:
    view = batch(usage_unknown=3)
    assert "1,000 tokens in, 50 out (usage unknown for 3 results), " in status_line(view, 100.0)
    assert as_json(view)["usage_unknown"] == 3


def test_a_list_has_a_header_and_columns_as_wide_as_what_is_in_them() -> None:
    dropped = batch(
        batch_id="batch_" + 32 * "c", state="ended", reason="completed", stage="email", inbox_path="inbox/email/a.jsonl"
    )
    short = batch(total=2_000, succeeded=990, errored=1_005, rejected=5, expired=5, stage="subject", updated_at=104.0)
    header, *rows = list_lines([dropped, short], 160.0)
    assert header.split() == [
        "ID",
        "CREATED",
        "AGE",
        "STATE",
        "DONE",
        "RATE",
        "WITHOUT",
        "ANSWER",
        "FILE",
        "OR",
        "STAGE",
    ]
    assert rows[0].split()[0] == dropped.batch_id
    assert rows[0].endswith(
        "1 min 00 s  ended         5/10                                      1 failed  inbox/email/a.jsonl"
    )
    assert rows[1].endswith("1 min 00 s  open   2,000/2,000  500.0/s  5 rejected, 1,000 failed, 5 expired  subject")
    assert header.index("STATE") == rows[0].index("ended") == rows[1].index("open")
    assert list_lines([], 160.0) == []
    assert "RATE" not in list_lines([dropped], 160.0)[0], "no empty column"
    canceled = batch(state="ended", reason="canceled", succeeded=2, errored=0, canceled=8)
    assert "  ended:canceled  10/10      8 canceled" in list_lines([canceled], 160.0)[1]
    assert "ended (canceled)  10/10 requests, 8 canceled, " in status_line(canceled, 0)
    odd = batch(inbox_path="inbox/email/\x1b[2Jb\nc é.jsonl")
    assert list_lines([odd], 160.0)[1].endswith("  inbox/email/?[2Jb?c é.jsonl")


def test_reasons_have_a_count_an_example_and_what_to_do_once_for_each_type() -> None:
    def group(type: str, message: str, num: int, **more: Any) -> FailureGroup:
        return FailureGroup(type=type, message=message, num_requests=num, advice=f"Fix {type}.", **more)

    groups = (
        group("invalid", "too \x1b[2J long", 1_200, line=1_041, custom_id="lead\x07"),
        group("model_error", "it answered …", 3, line=2, http_status=500, example="it answered \x1b[2J5"),
        group("invalid", "no messages", 2),
    )
    failed = batch(total=2_000, errored=1_210, rejected=1_202, canceled=4, failures=groups)
    assert below(failed) == [
        "  1,200 invalid: too ?[2J long; for example line 1,041 (lead?)",
        "      Fix invalid.",
        "  3 model_error 500: it answered …; for example line 2: it answered ?[2J5",
        "      Fix model_error.",
        "  2 invalid: no messages",
        "  9 for other reasons",
    ]
    assert end_lines(failed) == [
        "batch_a: 4 of 2,000 requests succeeded; 1,202 rejected, 8 failed, 4 canceled",
        *below(failed),
    ]
    assert below(failed, num_reasons=1)[2:] == ["  14 for other reasons"]
    assert below(batch()) == [], "a batch of an older version has no reasons"


def test_what_a_batch_waits_for_is_below_its_pools() -> None:
    waiting = Waiting(pool="mistral", cause="no_runner", message="No live runner for pool mistral for 14 min")
    held = batch(pools={"mistral": pool(5, 2, 1)}, waiting_for=(waiting,), detail="a detail")
    assert [line.strip() for line in below(held)] == ["a detail", pool_line("mistral", pool(5, 2, 1)), waiting.message]


def test_why_nothing_was_reused_is_said() -> None:
    note = "nothing was reused: the results of batch_b were not used: it is unknown which model made them"
    assert below(batch(reuse_note=note)) == [f"  {note}"]
    waiting = Waiting(pool="mistral", cause="no_runner", message="No live runner")
    shown = as_json(batch(reuse_note=note, waiting_for=(waiting,)))
    assert shown["reuse_note"] == note
    assert json.loads(json.dumps(shown))["waiting_for"] == [
        {"pool": "mistral", "cause": "no_runner", "message": "No live runner", "since": None}
    ]


def test_only_a_batch_of_which_everything_succeeded_counts_as_such() -> None:
    whole = {"succeeded": 10, "errored": 0}
    assert batch(state="ended", reason="completed", **whole).is_all_succeeded
    assert not batch(state="ended", reason="completed").is_all_succeeded
    assert not batch(**whole).is_all_succeeded
    assert not batch(state="ended", reason="failed", total=0, succeeded=0, errored=0).is_all_succeeded


@pytest.fixture
def without_pauses(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(progress, "LOOK_S", 0.0)


@pytest.mark.usefixtures("without_pauses")
def test_a_batch_is_followed_to_its_end_and_a_change_is_said_once(capsys: pytest.CaptureFixture[str]) -> None:
    looks = iter([batch(), batch(state="ending"), batch(state="ended", reason="completed", ended_at=103.0)])
    heard: list[BatchStatus] = []
    (ended,) = Follower(lambda: [next(looks)], heard.append).run()
    assert ended.has_ended
    assert heard == [ended]
    said = capsys.readouterr().err.splitlines()
    assert [row.split()[1] for row in said] == ["open", "ending"]


@pytest.mark.usefixtures("without_pauses")
def test_of_several_batches_each_end_is_told_once_and_as_it_comes() -> None:
    def ended(name: str) -> BatchStatus:
        return batch(batch_id=name, state="ended", reason="completed", ended_at=103.0)

    looks = [[ended("a"), batch(batch_id="b")], [ended("a"), ended("b")]]
    heard: list[tuple[str, int]] = []
    Follower(lambda: looks.pop(0), lambda one: heard.append((one.batch_id, len(looks)))).run()
    assert heard == [("a", 1), ("b", 0)]


def test_a_batch_that_is_not_there_is_not_waited_for() -> None:
    def look() -> list[BatchStatus]:
        raise InvalidRequest("no such batch")

    with pytest.raises(InvalidRequest):
        Follower(look, lambda one: None).run()
