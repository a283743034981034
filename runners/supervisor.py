"""Starts, restarts and stops one runner process per engine slot. Independent of the store.

A runner stops when its standard input is closed (see worker.py), so none outlives this process, however it ends.
Runners are in separate sessions, so that Ctrl-C reaches them only through this process.
"""

import os
import random
import signal
import subprocess
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass

import structlog

from batchfile import logs
from batchfile.engine.vllm.cpu import BIND, core_shares, read_cpu
from batchfile.errors import SettingsError
from batchfile.settings import load_settings
from batchfile.signals import on_stop

from . import child
from .options import ProgramOptions, kind_of, pool_of

log = structlog.get_logger()

VISIBLE = "CUDA_VISIBLE_DEVICES"
_LIST_S_MAX = 30.0
LOOK_S = 0.1
# The wait before a restart doubles from the first value to the second, minus up to half of it at random.
RESTART_S = 1.0
RESTART_S_MAX = 30.0
HEALTHY_S = 60.0  # after a run of this length, the next restart uses the first wait
STOP_MARGIN_S = 60.0  # after the grace period: to checkpoint, release and free the GPU; then it is killed

OK, FAILED, REFUSED = 0, 1, 2
_STOPPED_EARLY = -signal.SIGTERM  # before it could catch the signal


def visible_gpus(environ: Mapping[str, str]) -> list[str]:
    """The GPUs in CUDA_VISIBLE_DEVICES if it is set, otherwise all GPUs of the machine."""
    given = environ.get(VISIBLE)
    if given is not None:
        return [name.strip() for name in given.split(",") if name.strip() not in {"", "-1"}]
    command = ["nvidia-smi", "--query-gpu=index", "--format=csv,noheader"]
    try:
        listed = subprocess.run(command, capture_output=True, text=True, timeout=_LIST_S_MAX, check=True).stdout
    except (OSError, subprocess.SubprocessError):
        return []  # no driver, so no GPUs
    return listed.split()


def plan_slots(gpus: list[str], gpus_per_engine: int, num_wanted: int | None) -> list[str | None]:
    """The value of CUDA_VISIBLE_DEVICES for each slot; None: unchanged. Raises: SettingsError.

    Without GPUs there is one slot, or `num_wanted`.
    """
    if not gpus:
        return [None] * (num_wanted or 1)
    if len(gpus) < gpus_per_engine:
        raise SettingsError(
            f"tensor_parallel_size of the pool is {gpus_per_engine}, but this machine has {len(gpus)} visible GPUs; "
            "lower it, or use a machine with more GPUs"
        )
    num_sets = len(gpus) // gpus_per_engine
    if num_wanted is not None and num_wanted > num_sets:
        raise SettingsError(f"--slots {num_wanted}: the {len(gpus)} GPUs fit only {num_sets} engines of this pool")
    starts = range(0, (num_wanted or num_sets) * gpus_per_engine, gpus_per_engine)
    return [",".join(gpus[start : start + gpus_per_engine]) for start in starts]


@dataclass(slots=True, kw_only=True)
class Slot:
    """`gpus`: its CUDA_VISIBLE_DEVICES. `cores`: of its engine on a CPU; None: vLLM chooses.

    `code`: the final exit code; None while it runs or waits for a restart.
    """

    number: int
    gpus: str | None
    cores: str | None = None
    process: subprocess.Popen[bytes] | None = None
    started_at: float = 0.0
    start_at: float = 0.0
    num_starts: int = 0
    num_deaths: int = 0  # in a row
    code: int | None = None


class Supervisor:
    """`command`: starts the runner of a slot. `grace_s`: how long a stopping runner may finish requests in flight.

    `core_sets`: the cores of each slot's engine on a CPU; empty: vLLM chooses.
    """

    def __init__(
        self,
        gpu_sets: list[str | None],
        command: Callable[[int], list[str]],
        grace_s: float,
        core_sets: list[str | None] | None = None,
    ) -> None:
        cores = core_sets or [None] * len(gpu_sets)
        self._slots = [
            Slot(number=number, gpus=gpus, cores=own)
            for number, (gpus, own) in enumerate(zip(gpu_sets, cores, strict=True))
        ]
        self._command = command
        self._stop_s_max = grace_s + STOP_MARGIN_S
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
        """Runs until every slot has ended. Returns 2 if one rejected its settings, 1 if one failed, otherwise 0."""
        while any(slot.code is None for slot in self._slots):
            self._forward()
            for slot in self._slots:
                if slot.code is None:
                    self._check(slot)
            time.sleep(LOOK_S)
        codes = {slot.code for slot in self._slots} - {OK, _STOPPED_EARLY}
        return REFUSED if REFUSED in codes else FAILED if codes else OK

    def _forward(self) -> None:
        """The first signal stops the runners gracefully, the second quickly; a third or a timeout kills them."""
        now = time.monotonic()
        is_late = now >= self._kill_at
        if self._num_forwarded == self._num_signals and not is_late:
            return
        self._num_forwarded += 1
        if self._num_forwarded == 1:
            self._kill_at = now + self._stop_s_max
        is_last = is_late or self._num_forwarded > 2
        log.info("fleet.stopping", how="now" if self._num_forwarded > 1 else "gracefully", is_killed=is_last)
        for slot in self._slots:
            if slot.process is not None:
                slot.process.send_signal(signal.SIGKILL if is_last else signal.SIGTERM)
        if is_late:
            self._num_signals = self._num_forwarded
            self._kill_at = now + STOP_MARGIN_S

    def _check(self, slot: Slot) -> None:
        if slot.process is None:
            if self._num_signals:
                slot.code = OK
            elif time.monotonic() >= slot.start_at:
                self._start(slot)
            return
        code = slot.process.poll()
        if code is not None:
            self._on_exit(slot, slot.process, code)

    def _start(self, slot: Slot) -> None:
        environ = child.environment()
        if slot.gpus is not None:
            environ[VISIBLE] = slot.gpus
        if slot.cores is not None:
            environ.setdefault(BIND, slot.cores)
        slot.num_starts += 1
        slot.started_at = time.monotonic()
        slot.process = subprocess.Popen(
            self._command(slot.number), env=environ, stdin=subprocess.PIPE, start_new_session=True
        )
        log.info("child.started", slot=slot.number, child=slot.process.pid, gpus=slot.gpus, start=slot.num_starts)

    def _on_exit(self, slot: Slot, process: subprocess.Popen[bytes], code: int) -> None:
        slot.process = None
        if process.stdin is not None:
            process.stdin.close()
        # A rejected setting is final at the first start. Later it may be GPU memory that is not free yet.
        if code == OK or self._num_signals or (code == REFUSED and slot.num_starts == 1):
            slot.code = code
            log.info("child.ended", slot=slot.number, code=code)
            return
        now = time.monotonic()
        slot.num_deaths = 1 if now - slot.started_at >= HEALTHY_S else slot.num_deaths + 1
        longest_s = min(RESTART_S_MAX, RESTART_S * 2.0 ** min(slot.num_deaths - 1, 16))
        wait_s = longest_s * (0.5 + self._rng.random() / 2)
        slot.start_at = now + wait_s
        log.error("child.died", slot=slot.number, code=code, in_a_row=slot.num_deaths, again_in_s=round(wait_s, 1))


def supervise(options: ProgramOptions) -> int:
    """Raises: SettingsError before any runner starts."""
    settings = load_settings()
    logs.set_level(settings.log_level)
    pool = pool_of(settings, options.pool)
    kind = kind_of(pool, options)
    gpus = visible_gpus(os.environ) if kind == "vllm" else []
    gpu_sets = plan_slots(gpus, pool.tensor_parallel_size, options.num_slots)
    grace_s = settings.service_grace_s

    def command(slot: int) -> list[str]:
        return child.command(*options.arguments, "--slot", str(slot))

    is_on_cpu = kind == "vllm" and not gpus and pool.tensor_parallel_size == 1
    core_sets = core_shares(read_cpu().cores, len(gpu_sets)) if is_on_cpu else None
    return Supervisor(gpu_sets, command, grace_s, core_sets).run()
