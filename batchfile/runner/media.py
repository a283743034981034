"""Reads the media of requests in threads of its own, ahead of the engine. Then the preparer prepares them.

The threads start when the first such request arrives.
"""

import threading

from batchfile.errors import InvalidRequest
from batchfile.media.loader import DecodeGate, MediaLoader
from batchfile.runner.preparer import fail
from batchfile.runner.state import Job, SharedState

THREADS_MAX = 32  # objects that are fetched at once
WAIT_S = 0.05


class MediaThreads:
    """One thread calls `tick`, which starts the others."""

    def __init__(self, state: SharedState) -> None:
        self._state = state
        self._gate = DecodeGate(self._held, lambda: state.is_ending)
        self._loader = MediaLoader(self._gate.room)
        self._num_threads = 0

    def tick(self) -> bool:
        """Start a thread if requests wait; False: not now."""
        if self._num_threads >= THREADS_MAX or not len(self._state.to_load):
            return False
        self._num_threads += 1
        threading.Thread(target=self._work, name=f"media-{self._num_threads}", daemon=True).start()
        return True

    def wait(self) -> None:
        if self._num_threads >= THREADS_MAX:
            self._state.is_over.wait(1.0)
        else:
            self._state.to_load.wait(WAIT_S)

    def _work(self) -> None:
        state = self._state
        while not state.is_over.is_set():
            try:
                if not self.load_next():
                    state.to_load.wait(WAIT_S)
            except BaseException as error:  # noqa: BLE001 the run re-raises it
                state.failure = error
                return

    def load_next(self) -> bool:
        """Load one request; False: none waits, or there is no room now."""
        state = self._state
        job = state.to_load.take() if state.may_prefetch and self._gate.is_open else None
        if job is None:
            return False
        began_at = state.now()
        if not job.item.shard.is_dropped:
            self._load(job)
        state.to_load.charge(job, state.now() - began_at)
        return True

    def _load(self, job: Job) -> None:
        state, item = self._state, job.item
        assert state.info is not None, "an engine is there before anything is claimed"
        rules = state.options.media_rules(item.shard.held.batch)
        try:
            with self._loader.load(job.request, rules, state.info.media, job.batch_id) as loaded:
                item.media, item.media_bytes = loaded.media, loaded.size
                item.size += loaded.size
                state.attempts.add(Job(item, loaded.request, job.is_alone))
        except InvalidRequest as error:
            fail(state, item.shard, item.line, item.custom_id, error)

    def _held(self) -> int:
        return self._state.attempts.size + self._state.ready.size_bytes
