"""A server that answers or reads a byte now and then holds no caller: each kind of request, each part of an answer."""

import socket
import ssl
import threading
import time
from collections.abc import Callable, Iterator
from datetime import UTC, datetime, timedelta
from ipaddress import ip_address
from pathlib import Path
from typing import Any, Literal

import pytest
from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.x509.oid import NameOID

from batchfile.errors import StoreUnavailable
from tests.helpers.store import PART_BYTES, s3_requests
from tests.helpers.store_s3 import S3Store, s3

TRICKLE_S = 0.05
HELD_S = 30.0  # then the answer is whole: a caller that is still there was held
LIMIT_S = 1.0
LARGE = b"x" * (4 * 1024 * 1024)

# What comes byte by byte: the head of an answer, its body of a known length, or in chunks, or up to the end of the
# connection; or the request is read like that.
Slow = Literal["head", "body", "chunks", "to the end", "request"]

LISTED = b"<ListBucketResult><Name>b</Name><KeyCount>0</KeyCount><IsTruncated>false</IsTruncated></ListBucketResult>"
STARTED = b"<InitiateMultipartUploadResult><UploadId>u</UploadId></InitiateMultipartUploadResult>"
UPLOADS = b"<ListMultipartUploadsResult><IsTruncated>false</IsTruncated></ListMultipartUploadsResult>"
COMPLETED = b"<CompleteMultipartUploadResult><ETag>x</ETag></CompleteMultipartUploadResult>"
DELETED = b"<DeleteResult></DeleteResult>"


class SlowServer:
    """Answers each request with success; the ones that `is_slow` says, slowly. `rate`: of reading, bytes a second."""

    def __init__(self, context: ssl.SSLContext | None = None) -> None:
        self._context = context
        self.slow: Slow | None = None
        self.is_slow: Callable[[str], bool] = lambda line: True
        self.rate = 0.0
        self.stop = threading.Event()
        self._listener = socket.socket()
        self._listener.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 32 * 1024)
        self._listener.bind(("127.0.0.1", 0))
        self._listener.listen(64)
        self.url = f"http{'' if context is None else 's'}://127.0.0.1:{self._listener.getsockname()[1]}"
        threading.Thread(target=self._accept, daemon=True).start()

    def close(self) -> None:
        self.stop.set()
        self._listener.close()

    def _accept(self) -> None:
        while True:
            try:
                connection, _ = self._listener.accept()
            except OSError:
                return
            threading.Thread(target=self._serve, args=(connection,), daemon=True).start()

    def _serve(self, connection: socket.socket) -> None:
        try:
            with connection if self._context is None else self._context.wrap_socket(connection, server_side=True) as it:
                while self._answer(it):
                    pass
        except OSError:
            return

    def _answer(self, connection: socket.socket) -> bool:
        data = b""
        while b"\r\n\r\n" not in data:
            piece = connection.recv(16 * 1024)
            if not piece:
                return False
            data += piece
        head, _, body = data.partition(b"\r\n\r\n")
        fields = dict(line.lower().split(": ", 1) for line in head.decode().split("\r\n")[1:])
        line = head.decode().split("\r\n", 1)[0]
        slow = self.slow if self.is_slow(line) else None
        if "expect" in fields:
            connection.sendall(b"HTTP/1.1 100 Continue\r\n\r\n")
        self._read(connection, int(fields.get("content-length", 0)) - len(body), slow)
        self._write(connection, line, slow)
        return slow != "to the end"

    def _read(self, connection: socket.socket, left: int, slow: Slow | None) -> None:
        until = time.monotonic() + HELD_S
        while left > 0:
            if slow == "request" and time.monotonic() < until:
                self.stop.wait(TRICKLE_S)
                left -= len(connection.recv(16))
                continue
            piece = connection.recv(16 * 1024)
            if not piece:
                raise OSError
            left -= len(piece)
            if self.rate:
                self.stop.wait(len(piece) / self.rate)

    def _write(self, connection: socket.socket, line: str, slow: Slow | None) -> None:
        body = b"" if line.startswith("HEAD") else answer_to(line)
        length = b"Content-Length: %d\r\n" % len(body)
        if slow == "chunks":
            length = b"Transfer-Encoding: chunked\r\n"
            body = b"".join(b"1\r\n%c\r\n" % byte for byte in body) + b"0\r\n\r\n"
        elif slow == "to the end":
            length = b"Connection: close\r\n"
        head = b'HTTP/1.1 200 OK\r\nETag: "x"\r\nLast-Modified: Mon, 30 Nov 2026 14:00:00 GMT\r\n' + length + b"\r\n"
        if slow in {"body", "chunks", "to the end"}:
            connection.sendall(head)
            self._trickle(connection, body)
        elif slow == "head":
            self._trickle(connection, head)
            connection.sendall(body)
        else:
            connection.sendall(head + body)

    def _trickle(self, connection: socket.socket, data: bytes) -> None:
        """The whole of it in `HELD_S`."""
        pause_s = HELD_S / max(1, len(data))
        for byte in data:
            connection.sendall(bytes([byte]))
            if self.stop.wait(pause_s):
                return


def answer_to(line: str) -> bytes:
    method, path, _ = line.split(" ")
    if method == "POST" and "uploads" in path:
        return STARTED
    if method == "POST" and "uploadId" in path:
        return COMPLETED
    if method == "POST":
        return DELETED
    if method == "GET" and "uploads" in path:
        return UPLOADS
    return LISTED if method == "GET" else b""


@pytest.fixture(scope="module")
def server() -> Iterator[SlowServer]:
    found = SlowServer()
    yield found
    found.close()


@pytest.fixture(scope="module")
def store(server: SlowServer, s3_credentials: None) -> Iterator[S3Store]:
    """Its requests are tried once."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setitem(s3._DATA, "retries", {"total_max_attempts": 1, "mode": "standard"})
        found = S3Store("b", endpoint_url=server.url)
    yield found
    found.close()


@pytest.fixture
def limits(monkeypatch: pytest.MonkeyPatch, server: SlowServer) -> Iterator[pytest.MonkeyPatch]:
    monkeypatch.setattr(s3_requests, "CALL_S", LIMIT_S)
    monkeypatch.setattr(s3_requests, "COMPLETE_S", LIMIT_S)
    monkeypatch.setattr(s3_requests, "SENT_BYTES_PER_S", 1024**3)
    monkeypatch.setattr(s3, "READ_ATTEMPTS", 1)
    yield monkeypatch
    server.slow, server.is_slow, server.rate = None, lambda line: True, 0.0


def write_large(store: S3Store) -> None:
    with store.writer("k", is_new=True) as writer:
        writer.write(b"x" * (PART_BYTES + 1))
        writer.commit()


CALLS: dict[str, Callable[[S3Store], Any]] = {
    "get": lambda store: store.get("k"),
    "stream": lambda store: b"".join(store.stream("k")),
    "head": lambda store: store.head("k"),
    "list": lambda store: list(store.list("")),
    "put": lambda store: store.put("k", b"1"),
    "put if absent": lambda store: store.put("k", b"1", absent=True),
    "put if it matches": lambda store: store.put("k", b"1", match="x"),
    "put new": lambda store: store.writer("k", is_new=True).commit(),
    "delete": lambda store: store.delete("k"),
    "delete many": lambda store: store.delete_many(["k", "l"]),
    "abort": lambda store: store.abort_uploads("", older_s=0.0),
    "write parts": write_large,
}


@pytest.mark.parametrize("call", CALLS)
def test_an_answer_whose_head_comes_byte_by_byte_is_broken_off(
    store: S3Store, server: SlowServer, limits: pytest.MonkeyPatch, call: str
) -> None:
    server.slow = "head"
    with pytest.raises(StoreUnavailable, match="within 1 s"):
        CALLS[call](store)


@pytest.mark.parametrize("slow", ["body", "chunks", "to the end"])
@pytest.mark.parametrize("call", ["list", "delete many", "abort", "write parts"])
def test_an_answer_whose_body_comes_byte_by_byte_is_broken_off(
    store: S3Store, server: SlowServer, limits: pytest.MonkeyPatch, call: str, slow: Slow
) -> None:
    server.slow = slow
    with pytest.raises(StoreUnavailable):
        CALLS[call](store)


@pytest.mark.parametrize("step", ["uploads", "partNumber", "uploadId=u HTTP"])
def test_each_step_of_an_upload_in_parts_is_broken_off(
    store: S3Store, server: SlowServer, limits: pytest.MonkeyPatch, step: str
) -> None:
    server.slow, server.is_slow = "head", lambda line: step in line and not line.startswith("DELETE")
    with pytest.raises(StoreUnavailable, match="within"):
        write_large(store)


@pytest.mark.parametrize("absent", [False, True])
def test_a_request_that_is_read_byte_by_byte_is_broken_off(
    store: S3Store, server: SlowServer, limits: pytest.MonkeyPatch, absent: bool
) -> None:
    server.slow = "request"
    with pytest.raises(StoreUnavailable, match="within"):
        store.put("k", LARGE, absent=absent)


def certificate(folder: Path) -> ssl.SSLContext:
    """Of a server of 127.0.0.1, in `folder`/cert.pem, with its key."""
    key = ec.generate_private_key(ec.SECP256R1())
    name = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, "127.0.0.1")])
    now = datetime.now(UTC)
    made = (
        x509.CertificateBuilder()
        .subject_name(name)
        .issuer_name(name)
        .public_key(key.public_key())
        .serial_number(x509.random_serial_number())
        .not_valid_before(now - timedelta(days=1))
        .not_valid_after(now + timedelta(days=1))
        .add_extension(x509.SubjectAlternativeName([x509.IPAddress(ip_address("127.0.0.1"))]), critical=False)
        .add_extension(x509.BasicConstraints(ca=True, path_length=None), critical=True)
        .sign(key, hashes.SHA256())
    )
    pem = serialization.Encoding.PEM
    private = key.private_bytes(pem, serialization.PrivateFormat.PKCS8, serialization.NoEncryption())
    (folder / "cert.pem").write_bytes(made.public_bytes(pem))
    (folder / "key.pem").write_bytes(private)
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.load_cert_chain(folder / "cert.pem", folder / "key.pem")
    return context


@pytest.mark.parametrize(("call", "slow"), [("list", "body"), ("list", "chunks"), ("put", "head"), ("put", "request")])
def test_the_same_over_tls(
    call: str, slow: Slow, limits: pytest.MonkeyPatch, tmp_path: Path, s3_credentials: None
) -> None:
    tls = SlowServer(certificate(tmp_path))
    limits.setenv("AWS_CA_BUNDLE", str(tmp_path / "cert.pem"))
    limits.setitem(s3._DATA, "retries", {"total_max_attempts": 1, "mode": "standard"})
    store = S3Store("b", endpoint_url=tls.url)
    assert CALLS[call](store) == ("x" if call == "put" else [])
    tls.slow = slow
    with pytest.raises(StoreUnavailable, match="within 1 s"):
        store.put("k", LARGE) if slow == "request" else CALLS[call](store)
    tls.slow = None
    assert CALLS[call](store) == ("x" if call == "put" else [])
    store.close()
    tls.close()


def test_a_large_object_over_a_slow_link_that_moves_is_written(
    store: S3Store, server: SlowServer, limits: pytest.MonkeyPatch
) -> None:
    """It takes longer than a small one may, as the limit grows with its size."""
    limits.setattr(s3_requests, "SENT_BYTES_PER_S", len(LARGE) / HELD_S)
    server.rate = len(LARGE) / (3 * LIMIT_S)
    started_at = time.monotonic()
    assert store.put("k", LARGE) == "x"
    assert time.monotonic() - started_at > LIMIT_S


def test_a_large_conditional_write_has_the_time_of_a_large_one(
    server: SlowServer, limits: pytest.MonkeyPatch, s3_credentials: None
) -> None:
    limits.setattr(s3_requests, "SENT_BYTES_PER_S", len(LARGE) / HELD_S)
    limits.setitem(s3._CONTROL, "read_timeout", LIMIT_S)
    server.rate = len(LARGE) / (3 * LIMIT_S)
    store = S3Store("b", endpoint_url=server.url)
    assert store.put("k", LARGE, absent=True) == "x"
    assert store.put("k", LARGE, match="x") == "x"
    store.close()


def test_a_connection_that_was_used_in_time_is_not_broken_off_later(
    store: S3Store, server: SlowServer, limits: pytest.MonkeyPatch
) -> None:
    for _ in range(3):
        assert store.put("k", b"1") == "x"
        time.sleep(LIMIT_S)
    assert not s3_requests._watch._calls


def test_what_is_broken_off_is_sent_again(server: SlowServer, limits: pytest.MonkeyPatch, s3_credentials: None) -> None:
    lines: list[str] = []

    def is_first(line: str) -> bool:
        lines.append(line)
        return len(lines) == 1

    server.slow, server.is_slow = "head", is_first
    store = S3Store("b", endpoint_url=server.url)
    assert store.put("k", b"1") == "x"
    assert len(lines) == 2
    store.close()
