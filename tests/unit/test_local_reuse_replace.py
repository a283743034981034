"""How a new batch replaces the old one of an output, wherever a process dies, and what became of the files there."""

from pathlib import Path

import pytest

from batchfile import Ledger
from batchfile.errors import OutputTaken
from batchfile.testing import FaultyStore
from batchfile.testing.faulty_store import Phase
from tests.helpers.ledger import batches, ending
from tests.helpers.local import local_run, outputs
from tests.unit.local_reuse_kit import NUM, World, lines, wanted

pytestmark = pytest.mark.slow


class Gone(BaseException):
    """The process is no more: nothing may catch this and go on."""


def test_an_output_that_another_run_has_written_since_is_not_taken_back(tmp_path: Path) -> None:
    world = World(tmp_path)
    other = World(tmp_path / "other")
    ended = batches.end(other.ledger, other.old.batch_id, "canceled") and ending.finish(
        other.ledger, other.old.batch_id, runner="r"
    )
    assert ended is not None
    outputs.export(other.ledger, ended, world.options.output or "")
    world.append(lines(40))
    with pytest.raises(OutputTaken, match="was written by another run"):
        world.open()
    assert world.pointer.batch_id == world.old.batch_id


def _cut_at(world: World, number: int, phase: Phase) -> int:
    """Reuse in a process that ends at this write; how many writes there were."""
    seen = 0

    def on_call(now: int, verb: str, key: str, at: Phase) -> None:
        nonlocal seen
        seen = max(seen, now)
        if (now, at) >= (number, phase) and at == phase:
            raise Gone

    store = FaultyStore(world.ledger.store, on_call=on_call)
    try:
        world.open(Ledger(store=store))
    except Gone:
        return seen
    return 0


@pytest.mark.parametrize("phase", ["before", "after"])
def test_a_process_may_die_at_any_write_and_nothing_that_had_finished_is_lost(tmp_path: Path, phase: Phase) -> None:
    number = 0
    while True:
        number += 1
        world = World(tmp_path / str(number))
        world.input.write_bytes(lines(40) + world.input.read_bytes().replace(b'hi 3"', b'HI 3"'))
        if not _cut_at(world, number, phase):
            break
        opened = world.open()
        answers = wanted(40, *range(NUM))
        assert world.run(opened.batch) == [*answers[:4], ("r3", "HI 3"), *answers[5:]], number
        assert world.pointer.batch_id == opened.batch.batch_id
        known = {batch_id for batch_id in world.batch_ids() if batches.read_batch(world.ledger, batch_id) is not None}
        assert known == {opened.batch.batch_id}, number
    assert number > 20, "there were writes to die at"


def test_a_restart_after_such_a_death_leaves_no_batch_behind(tmp_path: Path) -> None:
    world = World(tmp_path)
    world.append(lines(40))
    with pytest.MonkeyPatch.context() as patched:
        patched.setattr(local_run, "plan_input", lambda *_, **__: (_ for _ in ()).throw(Gone()))
        with pytest.raises(Gone):
            world.open()
    assert world.pointer.replaces == world.old.batch_id
    opened = world.open(restart=True)
    known = {batch_id for batch_id in world.batch_ids() if batches.read_batch(world.ledger, batch_id) is not None}
    assert known == {opened.batch.batch_id}
    assert world.run(opened.batch) == wanted(*range(41), kept=0)


def test_results_and_errors_that_were_edited_by_hand_are_kept_before_new_ones_replace_them(tmp_path: Path) -> None:
    world, output, said = World(tmp_path), tmp_path / "out.jsonl", list[str]()
    world.run(world.old)
    for number in range(2):
        old = batches.read_batch(world.ledger, world.pointer.batch_id)
        assert old is not None
        outputs.export(world.ledger, old, str(output), said.append)
        output.write_bytes(output.read_bytes()[:100])
        world.append(lines(40 + number))
        opened = world.open()
        assert sum(opened.batch.reused.values()) == NUM + number, "what was edited is never the source"
        world.run(opened.batch)
    ended = batches.read_batch(world.ledger, world.pointer.batch_id)
    assert ended is not None
    outputs.export(world.ledger, ended, str(output), said.append)
    assert [text.split("kept as ")[1] for text in said] == ["out.jsonl.edited", "out.jsonl.edited1"]
    assert (tmp_path / "out.jsonl.edited").stat().st_size == 100
    assert len(output.read_bytes().splitlines()) == NUM + 2
