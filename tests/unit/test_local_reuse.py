"""What the new batch of an output takes over from the old one after a change."""

import gzip
import json
import os
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest
from click.testing import CliRunner
from structlog.testing import capture_logs

from batchfile.errors import OutputTaken
from batchfile.ledger import shards
from batchfile.ledger.shards import Lease
from batchfile.local.previous_batch import nothing_reused, previous_of
from batchfile.local.work import work
from batchfile.plan.reuse_sources import UNKNOWN_THEN
from batchfile.testing import EchoEngine
from batchfile.types import Failure
from tests.helpers.cli import root
from tests.helpers.engine import EngineIdentity
from tests.helpers.ledger import BatchRecord, IdempotencyRecord, batches, ending, keys
from tests.helpers.lines import FinishedLine, encode_result
from tests.helpers.local import Opened
from tests.unit.local_reuse_kit import ENGINE, KEPT, NUM, OTHER, World, lines, wanted

pytestmark = pytest.mark.slow


def test_what_had_finished_is_kept_and_the_rest_runs_in_one_batch(tmp_path: Path) -> None:
    world = World(tmp_path)
    world.append(lines(40, 41, 42))
    opened = world.open()
    assert opened.is_new
    assert opened.notes[0] == "20 of 43 reused"
    assert opened.batch.total == 43
    assert world.run(opened.batch) == wanted(*range(43))
    assert world.batch_ids() == {opened.batch.batch_id}, "the old batch is gone"
    assert world.pointer == IdempotencyRecord(batch_id=opened.batch.batch_id, digest=opened.batch.input.sha256)


def test_a_batch_that_grew_grows_again(tmp_path: Path) -> None:
    world = World(tmp_path)
    world.append(lines(40))
    world.run(world.open().batch)
    world.append(lines(41))
    opened = world.open()
    assert opened.notes[0] == "41 of 42 reused"
    assert len(world.run(opened.batch)) == 42
    assert not world.open().is_new


def test_what_failed_is_run_again(tmp_path: Path) -> None:
    world = World(tmp_path)
    batches.end(world.ledger, world.old.batch_id, "canceled")
    ending.finish(world.ledger, world.old.batch_id, runner="r")
    world.append(lines(40))
    assert world.run(world.open().batch) == wanted(*range(41))


def test_rejected_and_repeated_lines_stay_so_and_a_new_repetition_is_rejected(tmp_path: Path) -> None:
    world = World(tmp_path, lines(*range(20)) + b"rubbish\n" + lines(3, 20))
    world.append(lines(4, 21))
    opened = world.open()
    rows = world.run(opened.batch)
    assert rows == [
        *wanted(*range(20)),
        (None, "invalid_request_error"),
        ("r3", "invalid_request_error"),
        ("r20", "hi 20"),
        ("r4", "invalid_request_error"),
        ("r21", "hi 21"),
    ]
    plan = batches.read_plan(world.ledger, opened.batch)
    assert plan.pools == {"local": {0: 2}, "_rejected": {0: 3}, "_reused": {0: 20}}


@pytest.mark.parametrize(
    ("more", "is_kept"),
    [(b"\n", True), (b"\r\n", True), (b"\n" + lines(2), True), (b" " + lines(2), False), (b"x", False)],
)
def test_a_last_line_without_newline_is_kept_only_where_it_has_ended(
    tmp_path: Path, more: bytes, is_kept: bool
) -> None:
    world = World(tmp_path, lines(0, 1).rstrip(b"\n"))
    world.append(more)
    assert sum(world.open().batch.reused.values()) == 1 + is_kept


def test_more_members_of_a_gzip_file_are_more_lines(tmp_path: Path) -> None:
    world = World(tmp_path, gzip.compress(lines(*range(NUM))), "in.jsonl.gz")
    world.append(gzip.compress(lines(40, 41)))
    assert world.run(world.open().batch) == wanted(*range(42))


def test_the_same_requests_in_another_packing_are_all_kept(tmp_path: Path) -> None:
    world = World(tmp_path, gzip.compress(lines(*range(NUM)), 1), "in.jsonl.gz")
    world.input.write_bytes(gzip.compress(lines(*range(NUM)), 9))
    assert world.run(world.open().batch) == wanted(*range(NUM))


def _answers(world: World, opened: Opened) -> dict[str | None, str]:
    return dict(world.run(opened.batch))


@pytest.mark.parametrize(
    ("change", "num"),
    [
        (lambda data: data.replace(b"hi 30", b"HI 30") + lines(40), KEPT),
        (lambda data: data.replace(b'hi 3"', b'HI 3"'), KEPT - 1),
        (lambda data: lines(40) + data, KEPT),
        (lambda data: b"".join(reversed(data.splitlines(keepends=True))), KEPT),
        (lambda data: data[: len(data) // 2], KEPT),
        (lambda data: data.rstrip(b"\n"), KEPT),
        (lambda data: data.replace(b'id": "r', b'id": "s'), KEPT),
        (gzip.compress, KEPT),
    ],
)
def test_whatever_changed_only_other_requests_run(tmp_path: Path, change: Callable[[bytes], bytes], num: int) -> None:
    world = World(tmp_path)
    world.input.write_bytes(change(world.input.read_bytes()))
    opened = world.open()
    assert sum(opened.batch.reused.values()) == num
    assert [*_answers(world, opened).values()].count("kept") == num
    assert world.pointer.batch_id == opened.batch.batch_id


def test_results_that_are_not_in_the_input_now_are_kept_and_come_back(tmp_path: Path) -> None:
    world = World(tmp_path)
    first = world.run(world.open().batch)
    few = world.open(limit=5)
    assert few.notes == (
        "5 of 5 reused",
        "35 finished answers belong to requests that are not in the input now; they are kept in the store, and reused "
        "if their requests come back",
    )
    assert world.run(few.batch) == first[:5]
    world.input.write_bytes(lines(1, 2))
    world.run(world.open().batch)
    world.input.write_bytes(lines(*range(NUM)))
    again = world.open()
    assert again.notes[0] == f"{NUM} of {NUM} reused"
    assert world.run(again.batch) == first
    known = {name for name in world.batch_ids() if batches.read_batch(world.ledger, name) is not None}
    assert known == {again.batch.batch_id}, "nothing is kept that the last one has"


def test_of_two_batches_the_one_with_more_other_results_is_kept(tmp_path: Path) -> None:
    world = World(tmp_path)
    world.run(world.open().batch)
    world.input.write_bytes(lines(*range(30), *range(100, 160)))  # so the first batch is kept for 10 of its results
    second = world.open()
    assert second.notes[1].startswith("10 finished answers belong to requests")
    first = world.run(second.batch)
    few = world.open(limit=20)
    assert few.notes[1] == (
        "70 finished answers belong to requests that are not in the input now; they are kept in the store, and reused "
        "if their requests come back"
    )
    world.run(few.batch)
    again = world.open()
    assert again.notes == ("90 of 90 reused",)
    assert world.run(again.batch) == first


def test_answers_that_only_an_earlier_batch_has_stay_there(tmp_path: Path) -> None:
    world = World(tmp_path)
    world.run(world.open().batch)
    world.run(world.open(limit=5).batch)
    fewer = world.open(limit=4)
    assert fewer.notes[1] == (
        "1 finished answer belongs to a request that is not in the input now; 36 answers of an earlier run stay in the "
        "store"
    )
    world.run(fewer.batch)
    assert world.open().notes == (f"{NUM} of {NUM} reused",)


def test_an_output_is_one_line_of_a_list_and_is_deleted_as_a_whole(tmp_path: Path) -> None:
    world = World(tmp_path)
    first = world.open().batch
    world.run(first)
    few = world.open(limit=5).batch
    world.run(few)
    place = ["--store", str(tmp_path / "store")]
    listed = CliRunner().invoke(root, ["ls", *place])
    assert [row.split()[0] for row in listed.stdout.splitlines()] == ["ID", few.batch_id]
    assert listed.stderr == "not listed: 1 earlier run whose answers are kept for reuse (--json)\n"
    listed = CliRunner().invoke(root, ["ls", "--json", *place])
    assert [json.loads(row)["batch_id"] for row in listed.stdout.splitlines()] == [few.batch_id, first.batch_id]
    deleted = CliRunner().invoke(root, ["delete", few.batch_id, "--now", *place])
    assert deleted.exit_code == 0, deleted.output
    assert {name for name in world.batch_ids() if batches.read_batch(world.ledger, name) is not None} == set()


def test_a_restart_removes_what_was_kept_too(tmp_path: Path) -> None:
    world = World(tmp_path)
    world.run(world.open().batch)
    world.run(world.open(limit=5).batch)
    opened = world.open(restart=True)
    known = {name for name in world.batch_ids() if batches.read_batch(world.ledger, name) is not None}
    assert known == {opened.batch.batch_id}


@pytest.mark.parametrize(
    ("options", "told"),
    [
        ({"max_tokens": 7}, "the default max_tokens was not given and is 7 now"),
        ({"temperature": 0.5}, "the default temperature was not given and is 0.5 now"),
        ({"engine": OTHER}, "the chat template was not given and has changed"),
        ({"stage": "email"}, "the stage was not given and is 'email' now"),
    ],
)
def test_where_no_request_is_the_same_nothing_is_lost(tmp_path: Path, options: dict[str, object], told: str) -> None:
    world = World(tmp_path)
    told = "the chat template has changed" if "chat" in told else told
    with pytest.raises(
        OutputTaken, match=rf"20 finished answers of a run that differs: {told}\. .*--restart"
    ) as caught:
        world.open(**options)  # type: ignore[arg-type]
    every = "because a changed default or stage makes every request a different one"
    assert (every in str(caught.value)) is ("engine" not in options)
    opened = world.open()
    assert world.run(opened.batch) == wanted(*range(NUM)), "the command of before resumes"


def test_other_requests_are_refused_and_the_old_input_finishes_the_run(tmp_path: Path) -> None:
    world = World(tmp_path)
    data = world.input.read_bytes()
    world.input.write_bytes(lines(*range(100, 110)))
    with pytest.raises(OutputTaken) as caught:
        world.open()
    assert str(caught.value).endswith(
        "the input has changed. None of them can be reused: no request is the same as one that has succeeded. Requests "
        "are compared byte by byte: a file that was written anew with other spaces or key order counts as changed. "
        "Choose another output, or add --restart to discard them"
    )
    assert world.pointer.batch_id == world.old.batch_id
    assert len(world.batch_ids()) == 1, "nothing is left of the attempt"
    world.input.write_bytes(data)
    opened = world.open(engine=None)
    assert world.run(opened.batch) == wanted(*range(NUM)), "also with an engine of which nothing is known"


def test_what_failed_is_not_worth_a_refusal(tmp_path: Path) -> None:
    world = World(tmp_path, b"rubbish\n" + lines(1))
    world.ledger.store.delete(keys.shard_key(world.old.batch_id, "local", 0))
    world.input.write_bytes(lines(7))
    assert world.run(world.open().batch) == wanted(7, kept=0)


@pytest.mark.parametrize("was", [None, OTHER])
def test_answers_of_an_unknown_or_another_engine_are_never_taken_over_unasked(
    tmp_path: Path, was: EngineIdentity | None
) -> None:
    world = World(tmp_path)
    world.ledger.store.delete(keys.shard_key(world.old.batch_id, "local", 0))
    world.finish_some(world.old, 5, engine=was)
    world.append(lines(40))
    why = "it is unknown which model made them" if was is None else "the model or its settings have changed"
    with pytest.raises(OutputTaken, match=rf"the input has changed\. None of them can be reused: {why}") as caught:
        world.open()
    assert batches.read_batch(world.ledger, world.old.batch_id) == world.old, "it was not ended"
    assert ("--reuse" in str(caught.value)) is (was is None)
    if was is not None:
        with pytest.raises(OutputTaken):
            world.open(reuse=True)
        return
    opened = world.open(reuse=True)
    assert world.run(opened.batch) == wanted(*range(41), kept=5)
    assert world.open().is_new is False


def test_that_asked_for_answers_are_of_another_model_is_said(tmp_path: Path) -> None:
    world = World(tmp_path)
    world.ledger.store.delete(keys.shard_key(world.old.batch_id, "local", 0))
    world.finish_some(world.old, 5, engine=None)
    opened = world.open(model="other", reuse=True)
    told = "the model was 'echo' and is 'other' now: --reuse has kept the answers from before"
    assert opened.notes[:2] == ("5 of 40 reused", told)


def test_of_an_endpoint_it_is_said_how_answers_are_kept(tmp_path: Path) -> None:
    world = World(tmp_path)
    wanted = replace(world.options, engine="http").identity("other")
    error = nothing_reused(previous_of(world.ledger, world.old), wanted, UNKNOWN_THEN)
    assert str(error).endswith(
        "None of them can be reused: nobody knows whether the HTTP endpoint has answered with the model that would "
        "answer now. Add --reuse to keep the answers to equal requests, choose another output, or add --restart to "
        "discard them"
    )


def test_answers_of_two_engines_are_not_taken_over(tmp_path: Path) -> None:
    world = World(tmp_path)
    plan = batches.read_plan(world.ledger, world.old)
    held = shards.claim(world.ledger, world.old, plan, "local", 0, runner="other")
    assert isinstance(held, Lease)
    line = FinishedLine(KEPT, "errored", encode_result("r20", Failure(type="x", message="x"), ""))
    shards.checkpoint(world.ledger, held, [line], has_dispatched=True, fingerprints=("other",))
    shards.release(world.ledger, held)
    world.append(lines(40))
    with pytest.raises(OutputTaken, match="they were made by several models"):
        world.open(reuse=True)


def test_an_engine_that_is_unknown_now_takes_over_nothing_unasked(tmp_path: Path) -> None:
    world = World(tmp_path)
    world.append(lines(40))
    with pytest.raises(OutputTaken, match=r"it is unknown which model would run now.*--reuse"):
        world.open(engine=None)
    assert world.run(world.open(engine=None, reuse=True).batch) == wanted(*range(41))


def _work(world: World, batch: BatchRecord, **options: str) -> None:
    work(world.ledger, [batch.batch_id], lambda: EchoEngine(**options), "r", lambda runner: None, lambda batch: None)  # type: ignore[arg-type]


@pytest.mark.parametrize("is_reused", [False, True])
def test_a_model_that_turns_out_to_be_another_one_adds_nothing(tmp_path: Path, *, is_reused: bool) -> None:
    world = World(tmp_path)
    if is_reused:
        world.append(lines(40))
    opened = world.open(engine=ENGINE if is_reused else None)
    assert opened.is_new is is_reused
    told = "20 finished answers of a run that differs: BATCHFILE_ECHO_THINKING was not given and is 'other' now"
    with pytest.raises(
        OutputTaken, match=rf"{told}\. None of them can be reused: the model or its settings have changed"
    ):
        _work(world, opened.batch, thinking="other")
    _work(world, opened.batch)
    assert len(world.run(opened.batch)) == NUM + is_reused


def test_answers_count_whose_engine_was_not_known_when_their_run_began(tmp_path: Path) -> None:
    world = World(tmp_path)
    batch = world.open(engine=None, restart=True).batch
    world.finish_some(batch, 5)
    with pytest.raises(OutputTaken, match=r"5 finished answers of an earlier run\. None of them"):
        _work(world, batch, thinking="other")
    _work(world, batch)
    with pytest.raises(OutputTaken, match="40 finished answers of a run that differs: the chat template has changed"):
        world.open(engine=OTHER)
    assert not world.open().is_new


def test_answers_of_an_engine_that_nobody_knows_are_completed_by_any(tmp_path: Path) -> None:
    world = World(tmp_path)
    batch = world.open(engine=None, restart=True).batch
    world.finish_some(batch, 5, engine=None)
    _work(world, batch, thinking="other")
    assert not world.open(engine=None).is_new


def test_another_context_length_says_how_the_answers_can_be_kept(tmp_path: Path) -> None:
    world = World(tmp_path)
    longer = EngineIdentity({**ENGINE.parts, "the context length": "4096"})
    told = "the context length was not given and is 4096 now.*run its errors file with the new one.*`batchfile merge`"
    with pytest.raises(OutputTaken, match=told):
        world.open(engine=longer)
    with pytest.raises(OutputTaken, match=f"--limit was not given and is 30 now; {told}"):
        world.open(engine=longer, limit=30)


def test_a_rewrite_of_the_same_size_and_time_is_noticed(tmp_path: Path) -> None:
    world = World(tmp_path)
    before = world.input.stat()
    data = world.input.read_bytes()
    with world.input.open("r+b") as file:
        file.write(data.replace(b"hi 30", b"HI 30"))
    os.utime(world.input, ns=(before.st_atime_ns, before.st_mtime_ns))
    assert _answers(world, world.open())["r30"] == "HI 30"


def test_the_old_content_again_finishes_a_run_that_its_change_had_ended(tmp_path: Path) -> None:
    world = World(tmp_path)
    data = world.input.read_bytes()
    world.input.write_bytes(data[:100])
    batches.end(world.ledger, world.old.batch_id, "input_changed")
    ending.finish(world.ledger, world.old.batch_id, runner="r")
    world.input.write_bytes(data)
    assert world.run(world.open().batch) == wanted(*range(NUM))


def test_damaged_results_are_not_taken_over_and_the_output_keeps_its_batch(tmp_path: Path) -> None:
    world = World(tmp_path)
    batches.end(world.ledger, world.old.batch_id, "canceled")
    ended = ending.finish(world.ledger, world.old.batch_id, runner="r")
    assert ended is not None
    assert ended.results is not None
    data = b"".join(world.ledger.store.stream(ended.results.key))
    world.ledger.store.put(ended.results.key, data.replace(b"kept", b"KEPT", 1))
    world.append(lines(40))
    with pytest.raises(OutputTaken, match=r"None of them can be reused: its results are damaged: "):
        world.open()
    world.ledger.store.put(ended.results.key, data)
    assert world.run(world.open().batch) == wanted(*range(41))


def test_damaged_hashes_are_said_and_nothing_is_lost(tmp_path: Path) -> None:
    world = World(tmp_path)
    hashes = batches.read_plan(world.ledger, world.old).hashes
    assert hashes is not None
    world.ledger.store.put(hashes.key, b"\0" * hashes.size)
    world.append(lines(40))
    with capture_logs() as logged, pytest.raises(OutputTaken) as caught:
        world.open()
    assert str(caught.value).endswith(
        "None of them can be reused: its plan or the hashes of its requests are damaged. Choose another output, or add "
        "--restart to discard them"
    )
    assert [entry["log_level"] for entry in logged if entry["event"] == "reuse.skipped"] == ["info"], "said once"
    assert world.open(restart=True).batch.total == 41
