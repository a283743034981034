"""A total limit of time for each request to a bucket. A client's own timeouts are between two bytes.

It begins before the request is sent and ends with the answer: with the head of it where an object is read, because
`s3_body` has limits for the rest. It grows with what is sent. What takes longer is broken off: its connection is shut
down, and the thread that waits there finds it broken. Every connection of botocore in the process can be watched; only
those of a client that was given to `bound` are.
"""

import socket
import threading
import time
from contextlib import suppress
from dataclasses import dataclass
from typing import Any

import structlog
from botocore import awsrequest

log = structlog.get_logger()

CALL_S = 60.0
COMPLETE_S = 600.0  # of an upload in parts: the store may put them together for minutes
SENT_BYTES_PER_S = 16 * 1024  # a slower link is taken for a broken one
_TICK_S = 0.5

_COMPLETE = "CompleteMultipartUpload"


@dataclass(slots=True, eq=False)
class _Call:
    """One request. `until` is monotonic. `sock`: of an answer that is read, after its connection gave it away."""

    limit_s: float
    until: float
    connection: Any = None
    sock: Any = None
    is_cut: bool = False


class _Current(threading.local):
    call: _Call | None = None


_current = _Current()


class _Watch:
    """Breaks off what is over. One thread for the process, which sleeps while there is nothing to watch."""

    def __init__(self) -> None:
        self._changed = threading.Condition()
        self._calls: set[_Call] = set()
        self._thread: threading.Thread | None = None

    def add(self, call: _Call) -> None:
        with self._changed:
            self._calls.add(call)
            if self._thread is None or not self._thread.is_alive():  # as after a fork
                self._thread = threading.Thread(target=self._run, name="s3-deadlines", daemon=True)
                self._thread.start()
            elif len(self._calls) == 1:
                self._changed.notify()

    def remove(self, call: _Call) -> None:
        with self._changed:
            self._calls.discard(call)
            call.connection = call.sock = None

    def _run(self) -> None:
        with self._changed:
            while True:
                now = time.monotonic()
                for call in [call for call in self._calls if call.until <= now]:
                    if _cut(call):
                        self._calls.discard(call)
                self._changed.wait(_TICK_S if self._calls else None)


_watch = _Watch()


def _cut(call: _Call) -> bool:
    """False: there is no connection yet, for which its own timeout holds."""
    sock = call.sock or getattr(call.connection, "sock", None)
    if sock is None:
        return False
    call.is_cut = True
    with suppress(OSError):
        if isinstance(sock, socket.socket):
            socket.socket.shutdown(sock, socket.SHUT_RDWR)  # of a TLS socket too: its own would change how it reads
        else:  # TLS within the TLS of a proxy
            sock.close()
    return True


class _Watched:
    """What is mixed into botocore's connections."""

    sock: Any

    def connect(self) -> None:
        self._show()
        super().connect()  # type: ignore[misc]

    def request(self, *args: Any, **more: Any) -> None:
        self._show()
        super().request(*args, **more)  # type: ignore[misc]

    def getresponse(self, *args: Any, **more: Any) -> Any:
        if _current.call is not None:
            _current.call.sock = self.sock
        return super().getresponse(*args, **more)  # type: ignore[misc]

    def _show(self) -> None:
        if _current.call is not None:
            _current.call.connection = self


class _WatchedHTTP(_Watched, awsrequest.AWSHTTPConnection):  # type: ignore[misc]
    pass


class _WatchedHTTPS(_Watched, awsrequest.AWSHTTPSConnection):  # type: ignore[misc]
    pass


def _install() -> None:
    """urllib3 documents `ConnectionCls` as the place for a class of one's own. botocore's pools must have it.

    Raises: ImportError where they do not: then nothing here would have an effect.
    """
    kinds = ((awsrequest.AWSHTTPConnectionPool, _WatchedHTTP), (awsrequest.AWSHTTPSConnectionPool, _WatchedHTTPS))
    for pool, watched in kinds:
        if not issubclass(watched, pool.ConnectionCls):
            raise ImportError(f"{pool.__name__} of botocore makes connections of a kind that cannot be watched")
        pool.ConnectionCls = watched


_install()


def bound(client: Any) -> None:
    """Give every request of this client of boto3's a limit."""
    events = client.meta.events
    events.register("before-send.s3", _begin)
    events.register("response-received.s3", _end)
    events.register("after-call-error.s3", _end)


def forget() -> None:
    """What follows in this thread has nothing to do with the last request."""
    _current.call = None


def cut_after_s() -> float | None:
    """After how many seconds this thread's last request was broken off; None: it was not."""
    call = _current.call
    return call.limit_s if call is not None and call.is_cut else None


def _begin(request: Any, event_name: str, **_: Any) -> None:
    _end()
    sent = int(request.headers.get("Content-Length", 0))
    limit_s = (COMPLETE_S if event_name.endswith(_COMPLETE) else CALL_S) + sent / SENT_BYTES_PER_S
    _current.call = _Call(limit_s=limit_s, until=time.monotonic() + limit_s)
    _watch.add(_current.call)


def _end(**_: Any) -> None:
    if _current.call is not None:
        _watch.remove(_current.call)
