"""Pictures, recordings and a server that delivers them badly, for tests of media."""

import io
import threading
import time
import wave
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from struct import pack
from typing import Any
from zlib import compress, crc32

from PIL import Image

BOMB_SIDE = 30_000


def png(width: int = 4, height: int = 3, color: tuple[int, ...] = (255, 0, 0), mode: str = "RGB") -> bytes:
    made = io.BytesIO()
    Image.new(mode, (width, height), color).save(made, "PNG")
    return made.getvalue()


def bomb() -> bytes:
    """A PNG of a few hundred bytes that says it has 900 million pixels."""

    def chunk(kind: bytes, data: bytes) -> bytes:
        return pack(">I", len(data)) + kind + data + pack(">I", crc32(kind + data))

    header = pack(">IIBBBBB", BOMB_SIDE, BOMB_SIDE, 1, 0, 0, 0, 0)
    return (
        b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", header) + chunk(b"IDAT", compress(bytes(200_000))) + chunk(b"IEND", b"")
    )


def wav(seconds: float = 0.5, rate: int = 8000) -> bytes:
    made = io.BytesIO()
    with wave.open(made, "wb") as file:
        file.setnchannels(1)
        file.setsampwidth(2)
        file.setframerate(rate)
        file.writeframes(bytes(2 * int(seconds * rate)))
    return made.getvalue()


class MediaServer(ThreadingHTTPServer):
    """`objects`: what each path delivers, after `delay_s`. Paths under /fault/ misbehave as their names say.

    `asked`: how often each path was requested.
    """

    daemon_threads = True
    request_queue_size = 128

    def __init__(self, objects: dict[str, bytes], delay_s: float = 0.0) -> None:
        super().__init__(("127.0.0.1", 0), _Handler)
        self.objects, self.delay_s = objects, delay_s
        self.asked: Counter[str] = Counter()
        self.is_over = threading.Event()

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.server_address[1]}"

    def handle_error(self, request: Any, client_address: Any) -> None:
        """A client that gives up is no news."""


class _Handler(BaseHTTPRequestHandler):
    server: MediaServer

    def log_message(self, *_: Any) -> None:
        pass

    def do_GET(self) -> None:
        path = self.path.partition("?")[0]
        self.server.asked[path] += 1
        time.sleep(self.server.delay_s)
        if path.startswith("/fault/"):
            getattr(self, "_" + path.removeprefix("/fault/").partition("/")[0])()
        elif path in self.server.objects:
            self._send(200, self.server.objects[path])
        else:
            self._send(404, b"no such image")

    def _send(self, status: int, body: bytes, **headers: str) -> None:
        self.send_response(status)
        for name, value in {"Content-Length": str(len(body)), **headers}.items():
            self.send_header(name, value)
        self.end_headers()
        self.wfile.write(body)

    def _hang(self) -> None:
        """Sends a byte now and then."""
        self.send_response(200)
        self.end_headers()
        while not self.server.is_over.wait(0.02):
            self.wfile.write(b"x")

    def _short(self) -> None:
        """Says that it sends more than it does."""
        self._send(200, png(), **{"Content-Length": "100000"})

    def _long(self) -> None:
        """Never ends, without a length."""
        self.send_response(200)
        self.end_headers()
        while not self.server.is_over.is_set():
            self.wfile.write(bytes(1 << 16))

    def _inside(self) -> None:
        """Redirects to another port of this machine."""
        port = self.server.server_address[1] + 1
        self._send(302, b"", Location=f"http://127.0.0.1:{port}/secret.png")

    def _metadata(self) -> None:
        """Redirects to where clouds keep the credentials of a machine."""
        self._send(302, b"", Location="http://169.254.169.254/latest/meta-data/")

    def _malformed(self) -> None:
        self._send(302, b"", Location="http://[1/a.png")

    def _moved(self) -> None:
        self._send(302, b"", Location="/a.png")

    def _bomb(self) -> None:
        self._send(200, bomb())

    def _page(self) -> None:
        self._send(200, b"<!DOCTYPE html><p>Sign in", **{"Content-Type": "text/html"})

    def _busy(self) -> None:
        """Answers 503 once."""
        is_first = self.server.asked[self.path] == 1
        self._send(503 if is_first else 200, png())


@contextmanager
def media_server(objects: dict[str, bytes] | None = None, delay_s: float = 0.0) -> Iterator[MediaServer]:
    server = MediaServer({"/a.png": png()} if objects is None else objects, delay_s)
    thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.05}, daemon=True)
    thread.start()
    try:
        yield server
    finally:
        server.is_over.set()
        server.shutdown()
        server.server_close()
        thread.join()
