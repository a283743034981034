"""Starts, restarts and stops one process per slot: the runners of a fleet, or the replicas of a local run.

A process stops when its standard input is closed (see child.py), so none outlives this one, however it ends. Processes
are in separate sessions, so that Ctrl-C reaches them only through this one. Independent of the store.
"""

import os
import random
import signal
import subprocess
import threading
import time
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, field

import structlog

from batchfile.machine.child import is_ready
from batchfile.signals import on_stop

log = structlog.get_logger()

LOOK_S = 0.1
# The wait before a restart doubles from the first value to the second, minus up to half of it at random.
RESTART_S = 1.0
RESTART_S_MAX = 30.0
RESTART_WATCHED_S_MAX = 5.0  # where slots are given up: a person waits
HEALTHY_S = 60.0  # after a run of this length, the next restart uses the first wait
STOP_MARGIN_S = 60.0  # after the grace period: to checkpoint, release and free the GPU; then it is killed
LOADS_MAX = 3  # in a row, of a slot that is given up if it never gets ready
DEATHS_MAX = 16  # the same if it was: so many find the request that ends a process, alone among 1,024
STAGGER_S = 1.0  # between two starts of a group that is warm: vLLM looks for free ports, and may find the same
LAST_WORDS_S = 1.0  # to read what an ended process has reported: its own children may keep the pipe open
VLLM_PORT, PORTS_EACH = "VLLM_PORT", 64

OK, FAILED, REFUSED = 0, 1, 2
_STOPPED_EARLY = -signal.SIGTERM  # before it could catch the signal


@dataclass(frozen=True, slots=True, kw_only=True)
class SlotPlan:
    """How to start the process of a slot, and what it gets on its standard input.

    `group`: slots with the same model. The first to start compiles it, and the others start when one is ready.
    """

    command: Sequence[str]
    environ: Mapping[str, str] = field(default_factory=dict)
    group: str = ""
    stdin: bytes = b""


@dataclass(slots=True, kw_only=True)
class Slot:
    """`code`: the final exit code; None while it runs or waits for a restart."""

    number: int
    plan: SlotPlan
    process: subprocess.Popen[bytes] | None = None
    reader: threading.Thread | None = None
    started_at: float = 0.0
    start_at: float = 0.0
    num_starts: int = 0
    num_deaths: int = 0  # in a row
    was_ready: bool = False  # any of its processes
    code: int | None = None


class Supervisor:
    """`grace_s`: how long a stopping process may finish requests in flight. `gives_up`: a slot whose processes end one
    after another has failed; otherwise it is started again for ever.

    `on_report` gets a slot's number and each line that its process reports, in another thread; `on_exit` the slot and
    the exit code of a process that has ended, before the slot is started again or has its final code.
    """

    def __init__(
        self,
        plans: Sequence[SlotPlan],
        grace_s: float,
        *,
        gives_up: bool = False,
        on_report: Callable[[int, bytes], None] = lambda number, line: None,
        on_exit: Callable[[Slot, int], None] = lambda slot, code: None,
    ) -> None:
        self.slots = [Slot(number=number, plan=plan) for number, plan in enumerate(plans)]
        self._stop_s_max = grace_s + STOP_MARGIN_S
        self._gives_up = gives_up
        self._on_report, self._on_exit = on_report, on_exit
        self._warm: set[str] = set()  # groups of which a process has been ready
        self._start_at = 0.0
        self._rng = random.Random()
        self._num_signals = 0
        self._num_forwarded = 0
        self._kill_at = float("inf")

    def run(self) -> int:
        """Calls `reconcile` in the main thread, with SIGTERM and SIGINT as `stop`."""
        on_stop(self.stop)
        return self.reconcile()

    def stop(self) -> None:
        """Callable from any thread. Stops gracefully the first time, quickly the second, at once the third."""
        self._num_signals += 1

    def reconcile(self) -> int:
        """Runs until every slot has ended. Returns 2 if one rejected its settings, 1 if one failed, otherwise 0.

        If it is interrupted, all processes are killed.
        """
        try:
            while any(slot.code is None for slot in self.slots):
                self._forward()
                for slot in self.slots:
                    if slot.code is None:
                        self._check(slot)
                time.sleep(LOOK_S)
        finally:
            for slot in self.slots:
                if slot.process is not None:
                    slot.process.kill()
                    slot.process.wait()
        codes = {slot.code for slot in self.slots} - {OK, _STOPPED_EARLY}
        return REFUSED if REFUSED in codes else FAILED if codes else OK

    def _forward(self) -> None:
        """The first signal stops the processes gracefully, the second quickly; a third or a timeout kills them."""
        now = time.monotonic()
        is_late = now >= self._kill_at
        if self._num_forwarded == self._num_signals and not is_late:
            return
        self._num_forwarded += 1
        if self._num_forwarded == 1:
            self._kill_at = now + self._stop_s_max
        is_last = is_late or self._num_forwarded > 2
        log.info("fleet.stopping", how="now" if self._num_forwarded > 1 else "gracefully", is_killed=is_last)
        for slot in self.slots:
            if slot.process is not None:
                slot.process.send_signal(signal.SIGKILL if is_last else signal.SIGTERM)
        if is_late:
            self._num_signals = self._num_forwarded
            self._kill_at = now + STOP_MARGIN_S

    def _check(self, slot: Slot) -> None:
        if slot.process is None:
            if self._num_signals:
                slot.code = OK
            elif self._may_start(slot):
                self._start(slot)
            return
        code = slot.process.poll()
        if code is not None:
            self._end(slot, slot.process, code)

    def _may_start(self, slot: Slot) -> bool:
        """One at a time compiles the model, and loads it from disk into memory; then the others find it there."""
        if time.monotonic() < max(slot.start_at, self._start_at):
            return False
        group = slot.plan.group
        return group in self._warm or not any(one.process for one in self.slots if one.plan.group == group)

    def _start(self, slot: Slot) -> None:
        environ = {**os.environ, **slot.plan.environ}
        if (port := environ.get(VLLM_PORT, "")).isdigit():
            environ[VLLM_PORT] = str(int(port) + slot.number * PORTS_EACH)
        slot.num_starts += 1
        slot.started_at = time.monotonic()
        self._start_at = slot.started_at + STAGGER_S * (slot.plan.group in self._warm)
        slot.process = process = subprocess.Popen(
            slot.plan.command, env=environ, stdin=subprocess.PIPE, stdout=subprocess.PIPE, start_new_session=True
        )
        slot.reader = threading.Thread(target=self._read, args=(slot, process), name="reports", daemon=True)
        slot.reader.start()
        assert process.stdin is not None
        with suppress(BrokenPipeError):  # it has ended already
            process.stdin.write(slot.plan.stdin)
            process.stdin.flush()
        about = dict(slot.plan.environ) | ({"group": slot.plan.group} if slot.plan.group else {})
        about.pop("PYTHONPATH", None)
        log.info("child.started", slot=slot.number, child=process.pid, start=slot.num_starts, **about)

    def _read(self, slot: Slot, process: subprocess.Popen[bytes]) -> None:
        assert process.stdout is not None
        with process.stdout as lines:
            for line in lines:
                if is_ready(line):
                    slot.was_ready = True
                    self._warm.add(slot.plan.group)
                self._on_report(slot.number, line)

    def _end(self, slot: Slot, process: subprocess.Popen[bytes], code: int) -> None:
        slot.process = None
        if process.stdin is not None:
            with suppress(BrokenPipeError):
                process.stdin.close()
        if slot.reader is not None:
            slot.reader.join(LAST_WORDS_S)
        now = time.monotonic()
        slot.num_deaths = 1 if now - slot.started_at >= HEALTHY_S else slot.num_deaths + 1
        is_given_up = self._gives_up and slot.num_deaths >= (DEATHS_MAX if slot.was_ready else LOADS_MAX)
        # A rejected setting is final at the first start. Later it may be GPU memory that is not free yet.
        if code == OK or self._num_signals or (code == REFUSED and slot.num_starts == 1) or is_given_up:
            slot.code = code
            log.info("child.ended", slot=slot.number, code=code)
        else:
            bound_s = RESTART_WATCHED_S_MAX if self._gives_up else RESTART_S_MAX
            longest_s = min(bound_s, RESTART_S * 2.0 ** min(slot.num_deaths - 1, 16))
            wait_s = longest_s * (0.5 + self._rng.random() / 2)
            slot.start_at = now + wait_s
            tell = log.info if self._gives_up else log.error  # where a person waits, `on_exit` tells it in words
            tell("child.died", slot=slot.number, code=code, in_a_row=slot.num_deaths, again_in_s=round(wait_s, 1))
        self._on_exit(slot, code)
