"""Batches of a service over HTTP: wraps the async client in the synchronous interface.

The client has an event loop in a separate thread, so that it also works in a notebook, whose thread has a running loop.
"""

import asyncio
import threading
import uuid
import weakref
from collections.abc import AsyncGenerator, AsyncIterator, Callable, Container, Coroutine, Iterator
from concurrent.futures import Future
from contextlib import AbstractAsyncContextManager, suppress
from typing import TYPE_CHECKING, Any, NamedTuple, TypeVar

import msgspec

from batchfile.client.base import BatchFile, BatchStatus, Download, until_old
from batchfile.client.http_client import Client, FileHead, Pairs
from batchfile.errors import BatchfileError, InvalidFile, NotEnded, NotFound, TooLarge
from batchfile.ledger.batch_status import BatchStatusPage, Pool
from batchfile.ledger.records import HeartbeatRecord
from batchfile.local.options import EARLIER, OUTPUT
from batchfile.routing import check_pool, check_stage
from batchfile.types import RoutingTable

if TYPE_CHECKING:
    from batchfile.client.upload import Upload
    from batchfile.plan.options import CreateOptions

BATCHES = "/api/batches"
PAGE = 100

T = TypeVar("T")


class HttpRemote:
    """A batch is named by its id. Any number of threads may use it."""

    def __init__(self, url: str, api_key: str | None, on_wait: Callable[[str], None]) -> None:
        self._client = Client(url, api_key, on_wait=on_wait)
        self._loop = LoopThread(self._client)

    @property
    def place(self) -> str:
        return self._client.url

    def submit(self, upload: "Upload", options: "CreateOptions", on_bytes: Callable[[int], None]) -> BatchStatus:
        from batchfile.client.upload import repeatable

        routing = self.routing()  # reports a wrong address, key or stage before the file is sent
        if options.stage is not None:
            check_stage(routing.stages, options.stage)
        if options.pool is not None:
            check_pool(routing.pools, options.pool)
        query: Pairs = [("priority", str(options.priority)), ("strict", "true" if options.is_strict else "false")]
        query += [("stage", options.stage)] if options.stage else []
        query += [("pool", options.pool)] if options.pool else []
        query += [("reuse", options.reuse)] if options.reuse else []
        query += [("metadata", f"{name}={value}") for name, value in options.metadata.items()]
        with repeatable(upload) as source:
            sending = self._client.send_lines(
                BATCHES, BatchStatus, lambda: source.chunks(on_bytes), query=query, idempotency_key=uuid.uuid4().hex
            )
            try:
                return self._run(sending)
            except TooLarge as error:
                raise TooLarge(f"{error}; or submit it to the store of the service, as with --store") from None

    def batch(self, name: str) -> BatchStatus:
        return self._of(name, self._client.get(_path(name), BatchStatus))

    def batches(self) -> Iterator[BatchStatus]:
        after: str | None = None
        while True:
            page = self._page(limit=PAGE, after=after)
            yield from page.data
            if not page.has_more:
                return
            after = page.data[-1].batch_id

    def new_batches(self, seen: Container[str]) -> Iterator[BatchStatus]:
        return until_old(None if batch.batch_id in seen else batch for batch in self.batches())

    def cancel(self, name: str) -> BatchStatus:
        return self._of(name, self._client.post(f"{_path(name)}/cancel", BatchStatus))

    def delete(self, name: str, *, now: bool) -> str:
        kept = self._kept_by(name)
        query = [("now", "true")] if now else []
        try:
            deleted = self._of(name, self._client.delete(_path(name), _Deleted, query)).id
        except InvalidFile as error:  # the service answers a delete like this only for a batch that has not ended
            raise NotEnded(str(error)) from error
        if kept is not None:
            with suppress(NotFound):
                self._of(kept, self._client.delete(_path(kept), _Deleted, query))
        return deleted

    def _kept_by(self, name: str) -> str | None:
        """The batch of an earlier run of the same output, which this one keeps for its answers."""
        with suppress(BatchfileError):  # the delete says what is wrong
            batch = self.batch(name)
            kept = self.batch(batch.metadata[EARLIER]) if EARLIER in batch.metadata else None
            if kept is not None and kept.metadata.get(OUTPUT) == batch.metadata.get(OUTPUT):
                return kept.batch_id
        return None

    def rerun(self, name: str) -> BatchStatus:
        asking = self._client.post(f"{_path(name)}/retry", BatchStatus, idempotency_key=uuid.uuid4().hex)
        return self._of(name, asking)

    def download(self, batch: BatchStatus, file: BatchFile) -> Download | None:
        path = f"{_path(batch.batch_id)}/{file}"
        try:
            head: FileHead = self._run(self._client.head(path))
        except NotFound:
            return None
        return Download(
            size=head.size, sha256=head.etag, read=lambda start: self._each(self._client.file(path, head, start))
        )

    def live(self, batch_id: str) -> Iterator[list[bytes]]:
        return self._each(self._client.lines(f"{_path(batch_id)}/results", [("live", "true")]))

    def routing(self) -> RoutingTable:
        pools = self.pools()
        return RoutingTable(
            stages={stage: pool.name for pool in pools for stage in pool.stages},
            pools={pool.name: (pool.model,) for pool in pools},
        )

    def runners(self) -> list[HeartbeatRecord]:
        return self._run(self._client.get("/api/runners", list[HeartbeatRecord]))

    def pools(self) -> list[Pool]:
        return self._run(self._client.get("/api/pools", list[Pool]))

    def close(self) -> None:
        self._loop.close()

    def _page(self, *, limit: int, after: str | None = None) -> "BatchStatusPage":
        query = [("limit", str(limit))] + ([] if after is None else [("after", after)])
        return self._run(self._client.get(BATCHES, BatchStatusPage, query))

    def _of(self, name: str, asking: Coroutine[Any, Any, T]) -> T:
        try:
            return self._run(asking)
        except NotFound:
            raise NotFound(f"{name}: no such batch at {self.place}; `batchfile ls` lists them") from None

    def _run(self, asking: Coroutine[Any, Any, T]) -> T:
        return self._loop.run(asking)

    def _each(self, items: AsyncIterator[T]) -> Iterator[T]:
        async def step() -> T | None:
            return await anext(items, None)

        async def end() -> None:
            if isinstance(items, AsyncGenerator):
                await items.aclose()

        try:
            while (item := self._run(step())) is not None:
                yield item
        finally:
            with suppress(BatchfileError):  # the connection is closed, and so is the response
                self._loop.post(end())  # does not wait: a garbage collection may run this in any thread


def _path(batch_id: str) -> str:
    """Raises: NotFound for an invalid id."""
    if not batch_id.replace("_", "").replace("-", "").isalnum() or not batch_id.isascii():
        raise NotFound(f"{batch_id!r} is not a batch id; `batchfile ls` lists them")
    return f"{BATCHES}/{batch_id}"


class _Deleted(msgspec.Struct, frozen=True):
    id: str


class _Started(NamedTuple):
    loop: asyncio.AbstractEventLoop
    over: asyncio.Event


class LoopThread:
    """An event loop in a thread. `resource` is entered at once, and left on close, garbage collection or exit.

    Any number of threads may call `run`. Raises: what entering `resource` raises.
    """

    def __init__(self, resource: AbstractAsyncContextManager[object]) -> None:
        started: Future[_Started] = Future()
        thread = threading.Thread(
            target=lambda: asyncio.run(_serve(resource, started)), name="batchfile-http", daemon=True
        )
        thread.start()
        self._loop, over = started.result()
        self.close = weakref.finalize(self, _end, self._loop, over, thread)

    def run(self, asking: Coroutine[Any, Any, T]) -> T:
        """What the coroutine returns or raises. An interrupt of the caller cancels it."""
        future = self.post(asking)
        try:
            return future.result()
        except BaseException:
            future.cancel()
            raise

    def post(self, asking: Coroutine[Any, Any, T]) -> Future[T]:
        """The same without waiting for it. Raises: BatchfileError where the connection is closed."""
        if not self.close.alive:
            asking.close()
            raise BatchfileError("the connection is closed; connect again")
        return asyncio.run_coroutine_threadsafe(asking, self._loop)


async def _serve(resource: AbstractAsyncContextManager[object], started: Future[_Started]) -> None:
    try:
        async with resource:
            over = asyncio.Event()
            started.set_result(_Started(asyncio.get_running_loop(), over))
            await over.wait()
    except Exception as error:
        if started.done():
            raise
        started.set_exception(error)  # the caller waits for the future


def _end(loop: asyncio.AbstractEventLoop, over: asyncio.Event, thread: threading.Thread) -> None:
    loop.call_soon_threadsafe(over.set)
    if thread is not threading.current_thread():  # a garbage collection may run this in that thread
        thread.join()
