"""A rerun: the requests of an ended batch that got no answer run again where they would have run."""

import pytest

from batchfile.errors import InvalidFile
from batchfile.types import Defaults, RoutingTable
from tests.contract.inbox_kit import World, native, still
from tests.helpers.ledger import batches, ending
from tests.helpers.plan import plan_input, rerun

__all__ = ["still"]


@pytest.mark.parametrize(("folder", "pool"), [("llama", "llama"), ("org/m", "mistral"), ("email", "mistral")])
def test_a_dropped_batch_is_retried_in_the_pool_of_its_folder_as_often_as_one_likes(
    still: World, folder: str, pool: str
) -> None:
    still.drop(f"{folder}/a.jsonl", native("good"), b"{rubbish\n")
    assert still.clock is not None
    still.clock.sleep(3600)
    still.janitor.tick()
    batch = still.run(still.only(), pool)
    for _ in range(2):
        again = rerun(still.ledger, batch)
        assert (again.total, again.stage, again.metadata) == (1, batch.stage, {"retry_of": batch.batch_id})
        assert again.routing == batch.routing
        batch = still.run(again, pool)
        assert batch.counts.errored == 1


def test_a_rerun_of_a_pools_folder_ignores_what_the_lines_say_as_the_first_batch_did(still: World) -> None:
    still.drop("llama/a.jsonl", native("hinted", metadata={"model_hint": "mistral"}))
    assert still.clock is not None
    still.clock.sleep(3600)
    still.janitor.tick()
    batches.end(still.ledger, still.only().batch_id, "canceled")
    ended = ending.finish(still.ledger, still.only().batch_id, runner="s")
    assert ended is not None
    again = rerun(still.ledger, ended)
    assert list(batches.read_plan(still.ledger, again).pools) == ["llama"]
    assert still.run(again, "llama").counts.succeeded == 1


def test_a_batch_of_one_machine_is_not_retried_here(still: World) -> None:
    still.store.put("batches/b/input-x.jsonl", b"{rubbish\n")
    routing = RoutingTable(everything="local")
    planned = plan_input(still.ledger, "b", "batches/b/input-x.jsonl", routing=routing, stage=None)
    draft = batches.Draft(batch_id="b", routing=routing, defaults=Defaults())
    ended = still.run(batches.create(still.ledger, draft, planned), "local")
    with pytest.raises(InvalidFile, match="was run on one machine; give its errors file to `batchfile run`"):
        rerun(still.ledger, ended)
