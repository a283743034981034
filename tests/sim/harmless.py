"""Breaks of the protocol that cost time or a repeated generation, not a result: that nothing is found is by design."""

from tests.helpers.ledger import Lease, batches, ending, keys
from tests.helpers.runner import Checkpointer
from tests.sim.mutants import Mutant, closes, judged, replaced
from tests.sim.store import ProcessStore

HARMLESS: dict[str, Mutant] = {
    # The holder drops a shard that it still has, or redoes a claim: its own next look finds the record. Time only.
    "a refused write is taken for lost": judged(lambda found, ours, verdict: "lost" if verdict == "again" else verdict),
    # The next write of a holder that lost its lease is refused all the same: it generates in vain, and commits nothing.
    "a holder that cannot write continues to dispatch": replaced(Lease, "may_dispatch", lambda *_: True),
    # Only the record says who holds a shard, so nothing depends on the file lock or the runner's death being known.
    "dead runners are never known to be dead": replaced(ProcessStore, "is_process_dead", lambda *_: False),
    # The next poll finds the same: change notifications, queue entries and heartbeats are hints.
    "no change is ever notified": replaced(batches, "notify", lambda *_: None),
    # A process that claims a shard without a record looks at the batch after its write, and closes it itself: the fence
    # before is for the day on which that look is not answered.
    "a cancel closes only what was claimed": lambda: closes(known=True),
    # What stays behind is in nobody's way, and retention removes it.
    "nothing is swept after the end": replaced(ending, "sweep_parts", lambda *_: None),
    # A batch id has one body, the idempotency record sees to that: what is written over its input is the same bytes.
    "two uploads write one object": replaced(
        keys, "input_key", lambda batch_id, _: f"batches/{batch_id}/input-x.jsonl"
    ),
    # What is assembled is the same bytes each time: the key of its own is for the day on which a part is damaged.
    "two assemblies write one object": replaced(
        keys, "results_key", lambda batch_id, _: f"batches/{batch_id}/results-x.jsonl"
    ),
    # Its leases expire instead, and its lines run again.
    "shards are never given back at a stop": replaced(Checkpointer, "release_all", lambda self: None),
}
