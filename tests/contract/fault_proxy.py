"""An HTTP proxy in front of an S3 server that spoils what a test tells it to.

`fault` sees each request (method, path, headers; it may change the headers) and names what happens to it.
"""

import http.client
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any
from urllib.parse import urlsplit

SLOW_PAUSE_S = 0.02
PAGE = b"<html><body>Please wait a moment</body></html>"

# pass: untouched. reset: not done, the connection closes. drop: done, but the connection closes instead of an answer.
# cut: half the body, then closed. short: half the body, as if that were all. slow: the body byte by byte, with pauses.
# late: kept for `send_late`, and the connection closes. twice: `drop`, and kept as well.
# whole: a Range is ignored. page: a web page of a proxy on the way, with status 200; not done. foreign: done, and the
# page in the place of the body, with the fields of the answer. An int: answered with that status and not done.
# (int, "done"): done, answered with it.
# (int, "412"): passed on, and where the answer is 412 it becomes that status.
Fault = str | int | tuple[int, str]
Headers = dict[str, str]
OnRequest = Callable[[str, str, Headers], Fault]


class FaultProxy:
    def __init__(self, url: str, upstream: str) -> None:
        self.url = url
        self.upstream = urlsplit(upstream).netloc
        self.fault: OnRequest = lambda method, path, headers: "pass"
        self.requests: list[str] = []  # the methods, in order
        self.late: list[tuple[str, str, bytes, Headers]] = []

    def send_late(self) -> list[int]:
        """What was kept arrives now, when nobody waits for it any more; the statuses of the answers."""
        kept, self.late = self.late, []
        return [self.pass_on(*request)[0] for request in kept]

    def pass_on(self, method: str, path: str, body: bytes, headers: Headers) -> tuple[int, bytes, Headers]:
        upstream = http.client.HTTPConnection(self.upstream, timeout=30)
        upstream.request(method, path, body, headers)
        found = upstream.getresponse()
        answer = found.status, found.read(), dict(found.getheaders())
        upstream.close()
        return answer


class _Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    proxy: FaultProxy

    def forward(self) -> None:
        headers = dict(self.headers.items())
        body = self.rfile.read(int(headers.get("Content-Length") or 0))
        self.proxy.requests.append(self.command)
        if headers.pop("Expect", ""):
            pass  # http.server has answered it already
        fault = self.proxy.fault(self.command, self.path, headers)
        if isinstance(fault, int):
            self.answer(fault, {}, b"")
            return
        if fault == "page":
            self.answer(200, {"Content-Type": "text/html"}, PAGE)
            return
        if fault in {"late", "twice"}:
            self.proxy.late.append((self.command, self.path, body, headers))
        if fault in {"reset", "late"}:
            self.close_connection = True
            return
        if fault == "whole":
            headers.pop("Range", None)
        status, answer, fields = self.proxy.pass_on(self.command, self.path, body, headers)
        if fault in {"drop", "twice"}:
            self.close_connection = True
            return
        if isinstance(fault, tuple) and fault[1] in {"done", str(status)}:
            status, answer, fields = fault[0], b"", {}
        if fault == "short" and status in {200, 206}:
            answer = answer[: len(answer) // 2]
        if fault == "foreign" and status in {200, 206}:
            answer = PAGE
        self.answer(status, fields, answer, is_cut=fault == "cut", is_slow=fault == "slow")

    def answer(self, status: int, fields: Headers, body: bytes, *, is_cut: bool = False, is_slow: bool = False) -> None:
        self.send_response_only(status)
        length = fields.get("Content-Length") if self.command == "HEAD" else None
        for name, value in fields.items():
            if name.lower() not in {"content-length", "connection", "transfer-encoding"}:
                self.send_header(name, value)
        self.send_header("Content-Length", length or str(len(body)))
        self.end_headers()
        if is_cut:
            body = body[: len(body) // 2]
            self.close_connection = True
        if is_slow:
            for at in range(len(body)):
                self.wfile.write(body[at : at + 1])
                time.sleep(SLOW_PAUSE_S)
            return
        self.wfile.write(body)

    do_GET = do_PUT = do_POST = do_DELETE = do_HEAD = forward

    def log_message(self, format: str, *args: Any) -> None:
        pass


class _Server(ThreadingHTTPServer):
    request_queue_size = 128
    daemon_threads = True

    def handle_error(self, request: Any, client_address: Any) -> None:
        pass  # a client that went away


@contextmanager
def fault_proxy(upstream: str) -> Iterator[FaultProxy]:
    handler = type("Handler", (_Handler,), {})
    server = _Server(("127.0.0.1", 0), handler)
    proxy = FaultProxy(f"http://127.0.0.1:{server.server_address[1]}", upstream)
    handler.proxy = proxy  # type: ignore[attr-defined]
    thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.02}, daemon=True)
    thread.start()
    try:
        yield proxy
    finally:
        server.shutdown()
        server.server_close()
        thread.join()
