"""The net is known to catch: each break of the protocol is found in ordinary schedules, within the budget of CI."""

from itertools import chain

import pytest

from tests.sim.harmless import HARMLESS
from tests.sim.mutants import MUTANTS, applied
from tests.sim.simulation import run, shrink
from tests.sim.world import Broken

pytestmark = pytest.mark.usefixtures("simulated")

SCHEDULES_MAX = 3000
# By the schedule that found them; where code or scene have changed since, they are looked for again, which takes long:
# `python -m tests.sim.find_mutants` names the schedules of now.
FOUND_IN = {
    "a batch expires by the clock of the process that looks": 34,
    "a batch that lives can be deleted": 21,
    "a batch that was set aside is left alone for ever": 35,
    "a cancel changes an ended batch": 39,
    "a cancel closes nothing": 33,
    "a cancel knows only what was claimed": 9,
    "a done record is written again": 47,
    "a file in the inbox is claimed without a condition": 2,
    "a file that kills its planners is never found": 40,
    "a first attempt takes its retry's place": 841,
    "a line that kills its runner is never found": 11,
    "a part's key does not name the lease": 11,
    "a record under our lease is ours, whatever its seq": 51,
    "a repeated checkpoint reuses its seq": 311,
    "a second assembly replaces the first": 113,
    "a second plan replaces the first": 240,
    "a stranger's record is overwritten on its own etag": 1,
    "a takeover drops the parts": 11,
    "a takeover forgets all that was done": 11,
    "a timeout is taken for success": 154,
    "a zombie goes on writing": 6,
    "an abandoned create is not fenced": 469,
    "batch records are written without a condition": 1,
    "each attempt at a webhook has an id of its own": 5,
    "every lease has the same id": 1,
    "lines are counted before they are committed": 1,
    "lines that are done run again": 11,
    "results go by the clock of the process that looks": 17,
    "the batch that sorts first is always claimed from": 30,
    "the idempotency record comes after the batch": 1,
    "the tenant whose name sorts last is always next": 174,
    "two writes have one id": 356,
    "what came of an older version is told too": 77,
    "what is refused of one batch stops the others": 91,
}


@pytest.mark.parametrize("name", MUTANTS)
def test_a_broken_protocol_is_noticed(name: str) -> None:
    with applied(MUTANTS[name]):
        seeds = chain([FOUND_IN.get(name, 0)], range(SCHEDULES_MAX))
        assert any(isinstance(run(seed).error, Broken) for seed in seeds)  # a promise, not any error


@pytest.mark.parametrize("num", [6, pytest.param(300, marks=pytest.mark.long)])
@pytest.mark.parametrize("name", HARMLESS)
def test_what_only_costs_time_breaks_no_promise(name: str, num: int) -> None:
    with applied(HARMLESS[name]):
        for seed in range(num):
            outcome = run(seed)
            assert outcome.error is None, f"seed {seed}: {outcome.error!r}"


def test_a_failing_schedule_shrinks_to_the_faults_that_matter() -> None:
    with applied(MUTANTS["a takeover drops the parts"]):
        outcome = next(found for seed in range(SCHEDULES_MAX) if isinstance((found := run(seed)).error, Broken))
        shrunk = shrink(outcome)
    assert shrunk.error is not None
    assert len(shrunk.struck) <= len(outcome.struck)
