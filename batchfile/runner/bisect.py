"""Which request kills the engine? Pure bookkeeping over the requests that were in flight at each death.

Three deaths in common make suspects. They run alone: all of them, then halves of what died again, down to one. One that
kills an engine alone is poison. An innocent request runs again, and is never errored.
"""

from dataclasses import dataclass

from batchfile.runner.active import PendingRequest

DEATHS_OF_A_SUSPECT = 3


@dataclass(frozen=True, slots=True, kw_only=True)
class Verdicts:
    """What to do with the requests that were in flight: run again, run alone (in this order), or error."""

    again: list[PendingRequest]
    alone: list[list[PendingRequest]]
    poison: list[PendingRequest]


def judge(in_flight: list[PendingRequest], *, was_alone: bool) -> Verdicts:
    """After an engine's death with `in_flight` on board. Counts the death on each item."""
    for item in in_flight:
        item.deaths += 1
    if was_alone:
        if len(in_flight) == 1:
            return Verdicts(again=[], alone=[], poison=in_flight)
        half = (len(in_flight) + 1) // 2
        return Verdicts(again=[], alone=[in_flight[:half], in_flight[half:]], poison=[])
    suspects = [item for item in in_flight if item.deaths >= DEATHS_OF_A_SUSPECT]
    again = [item for item in in_flight if item.deaths < DEATHS_OF_A_SUSPECT]
    return Verdicts(again=again, alone=[suspects] if suspects else [], poison=[])
