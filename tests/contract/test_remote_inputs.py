"""Inputs that are addresses: what comes through whole is run, and everything else is one clear sentence."""

import gzip
import json
import os
import socket
import ssl
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from datetime import UTC, datetime, timedelta
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from ipaddress import IPv4Address
from pathlib import Path
from types import SimpleNamespace

import pyarrow
import pyarrow.parquet
import pytest
from click.testing import CliRunner
from cryptography import x509
from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.hazmat.primitives.serialization import Encoding, NoEncryption, PrivateFormat
from cryptography.x509.oid import NameOID

import batchfile
from batchfile.errors import InvalidFile, OutputTaken, StoreUnavailable
from batchfile.testing import MemoryStore
from tests.helpers.cli import root
from tests.helpers.client import open_upload
from tests.helpers.local import RemoteFile, http_input, inspect, lines_of, remote_inputs

LINE = {"params": {"messages": [{"role": "user", "content": "hi there"}], "max_tokens": 4}}
LINES = b"".join(json.dumps({"custom_id": f"r{n}", **LINE}).encode() + b"\n" for n in range(3000))


class Site:
    """A server on loopback. `files`: what is at each path. `answers`: what to do instead. `asked`: the requests."""

    def __init__(self) -> None:
        self.files: dict[str, bytes] = {}
        self.answers: dict[str, Callable[[BaseHTTPRequestHandler], None]] = {}
        self.etags: dict[str, str] = {}
        self.asked: list[str] = []
        self.authorizations: list[str | None] = []
        site = self

        class Handler(BaseHTTPRequestHandler):
            protocol_version = "HTTP/1.1"

            def do_GET(self) -> None:
                path = self.path.partition("?")[0]
                site.asked.append(self.path)
                site.authorizations.append(self.headers.get("authorization"))
                if path in site.answers:
                    site.answers[path](self)
                elif path in site.files:
                    reply(self, site.files[path], **({"ETag": site.etags[path]} if path in site.etags else {}))
                else:
                    reply(self, b"nothing here", 404)

            def log_message(self, format: str, *args: object) -> None:
                pass

        self.server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self.server.handle_error = lambda request, client_address: None  # type: ignore[method-assign]
        self.url = f"http://127.0.0.1:{self.server.server_port}"


def reply(handler: BaseHTTPRequestHandler, data: bytes, status: int = 200, **headers: str) -> None:
    handler.send_response(status)
    for name, value in {"Content-Length": str(len(data)), **headers}.items():
        handler.send_header(name, value)
    handler.end_headers()
    try:
        handler.wfile.write(data)
    except OSError:  # the client has read enough
        handler.close_connection = True


def cut_off(handler: BaseHTTPRequestHandler) -> None:
    """Half of what it promises."""
    reply(handler, LINES[: len(LINES) // 2], **{"Content-Length": str(len(LINES)), "Connection": "close"})
    handler.close_connection = True


def cut_off_in_chunks(handler: BaseHTTPRequestHandler) -> None:
    """Whole lines, without the last chunk that says that this is all."""
    handler.send_response(200)
    handler.send_header("Transfer-Encoding", "chunked")
    handler.end_headers()
    part = b"".join(LINES.splitlines(keepends=True)[:100])
    handler.wfile.write(f"{len(part):x}\r\n".encode() + part + b"\r\n")
    handler.close_connection = True


def without_length(handler: BaseHTTPRequestHandler) -> None:
    handler.send_response(200)
    handler.send_header("Connection", "close")
    handler.end_headers()
    handler.wfile.write(LINES)
    handler.close_connection = True


def says(status: int) -> Callable[[BaseHTTPRequestHandler], None]:
    return lambda handler: reply(handler, b"secret detail", status)


def leads_to(where: str) -> Callable[[BaseHTTPRequestHandler], None]:
    return lambda handler: reply(handler, b"", 302, Location=where)


@pytest.fixture
def site(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Site]:
    monkeypatch.chdir(tmp_path)
    found = Site()
    thread = threading.Thread(target=found.server.serve_forever, daemon=True)
    thread.start()
    yield found
    found.server.shutdown()
    found.server.server_close()
    thread.join()


def read(url: str) -> bytes:
    return b"".join(lines_of(inspect(url)))


def test_a_file_at_an_address_is_run_like_a_local_one(site: Site) -> None:
    site.files["/more/in.jsonl"] = LINES
    receipt = batchfile.run(f"{site.url}/more/in.jsonl", "out.jsonl", engine="echo", progress=False)
    assert receipt.is_all_succeeded
    assert receipt.input.requests == 3000
    assert receipt.input.path == f"{site.url}/more/in.jsonl"


def test_compressed_files_and_parquet_are_read_at_addresses_too(site: Site, tmp_path: Path) -> None:
    pyarrow.parquet.write_table(
        pyarrow.table({"custom_id": ["a", "b"], "prompt": ["Write.", "More."]}), tmp_path / "in.parquet"
    )
    site.files |= {"/in.jsonl.gz": gzip.compress(LINES), "/in.parquet": (tmp_path / "in.parquet").read_bytes()}
    assert read(f"{site.url}/in.jsonl.gz") == LINES
    assert [json.loads(line)["custom_id"] for line in read(f"{site.url}/in.parquet").splitlines()] == ["a", "b"]


def authority(folder: Path) -> tuple[Path, Path]:
    """The files of a certificate for 127.0.0.1, which is its own authority, and of its key."""
    key = ec.generate_private_key(ec.SECP256R1())
    name = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, "a test")])
    now = datetime.now(UTC)
    made = (
        x509.CertificateBuilder(issuer_name=name, subject_name=name, public_key=key.public_key())
        .serial_number(x509.random_serial_number())
        .not_valid_before(now - timedelta(days=1))
        .not_valid_after(now + timedelta(days=1))
        .add_extension(x509.SubjectAlternativeName([x509.IPAddress(IPv4Address("127.0.0.1"))]), critical=False)
        .add_extension(x509.BasicConstraints(ca=True, path_length=0), critical=True)
        .sign(key, hashes.SHA256())
    )
    files = folder / "authority.pem", folder / "key.pem"
    files[0].write_bytes(made.public_bytes(Encoding.PEM))
    files[1].write_bytes(key.private_bytes(Encoding.PEM, PrivateFormat.PKCS8, NoEncryption()))
    return files


@pytest.mark.slow
def test_a_server_with_an_authority_of_its_own_is_read_once_that_is_named(site: Site, tmp_path: Path) -> None:
    certificate, key = authority(tmp_path)
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.load_cert_chain(certificate, key)
    site.server.socket = context.wrap_socket(site.server.socket, server_side=True)
    site.files["/in.jsonl"] = LINES
    address = f"https://127.0.0.1:{site.server.server_port}/in.jsonl"
    started = [sys.executable, "-m", "batchfile", "run", address, "-o", "out.jsonl", "--engine", "echo", "--limit", "3"]
    done = subprocess.run(started, capture_output=True, text=True, check=False)
    assert done.returncode == 4
    assert f"{address}: the download failed before the first byte: the certificate is not trusted: " in done.stderr
    assert "Name its authority with SSL_CERT_FILE" in done.stderr
    named = os.environ | {"SSL_CERT_FILE": str(certificate)}
    done = subprocess.run(started, capture_output=True, text=True, env=named, check=False)
    assert done.returncode == 0, done.stderr
    assert len(Path("out.jsonl").read_text().splitlines()) == 3


def test_parquet_is_downloaded_once(site: Site, tmp_path: Path) -> None:
    pyarrow.parquet.write_table(pyarrow.table({"review": ["good", "bad"] * 30_000}), tmp_path / "in.parquet")
    site.files["/in.parquet"] = (tmp_path / "in.parquet").read_bytes()
    address = f"{site.url}/in.parquet"
    for command in (
        ["run", address, "-o", "out.csv", "--engine", "echo"],
        ["run", address, "-o", "more/", "--engine", "echo"],
        ["validate", address],
        ["estimate", address],
    ):
        site.asked.clear()
        done = CliRunner().invoke(root, [*command, "--prompt", "{{ review }}", "--limit", "2"])
        assert done.exit_code == 0, done.output
        assert len(site.asked) == 2, "the first bytes, and the whole file"
    assert Path("out.csv").read_text() == "review,answer,error\ngood,good,\nbad,bad,\n"


def test_a_redirect_is_followed(site: Site) -> None:
    site.files["/there.jsonl"] = LINES
    site.answers["/here.jsonl"] = leads_to("/there.jsonl")
    assert read(f"{site.url}/here.jsonl") == LINES


@pytest.mark.parametrize(
    ("answer", "words"),
    [
        (says(404), r"there is no such file \(HTTP 404\); check the address"),
        (says(403), r"access is denied \(HTTP 403\); use an address with credentials, or a signed one"),
        (says(401), r"access is denied \(HTTP 401\)"),
        (says(503), "the server answered HTTP 503; try again later"),
        (says(206), "the server answered HTTP 206"),
        (leads_to("/in.jsonl"), "the download failed before the first byte: more than 10 redirects"),
        (without_length, "the server does not say where the file ends"),
        (cut_off, "before the end of the file: the connection was closed; run the command again"),
        (cut_off_in_chunks, "before the end of the file: the connection was closed; run the command again"),
    ],
)
def test_what_does_not_come_through_whole_is_one_sentence_and_nothing_runs(
    site: Site, answer: Callable[[BaseHTTPRequestHandler], None], words: str
) -> None:
    site.answers["/in.jsonl"] = answer
    with pytest.raises(InvalidFile, match=words) as raised:
        batchfile.run(f"{site.url}/in.jsonl", "out.jsonl", engine="echo", progress=False)
    assert str(raised.value).startswith(f"{site.url}/in.jsonl: ")
    assert "secret detail" not in str(raised.value)
    assert not Path("out.jsonl").exists()
    assert not list(batchfile.open_store(".batchfile").list("batches/"))
    with pytest.raises(InvalidFile, match=words):
        list(open_upload(f"{site.url}/in.jsonl").chunks(lambda num: None))


def test_a_redirect_away_from_encryption_is_not_followed() -> None:
    def hop(url: str) -> SimpleNamespace:
        return SimpleNamespace(url=SimpleNamespace(scheme=url.partition(":")[0]))

    answer = SimpleNamespace(status=200, headers={}, history=[hop("https://a")], **vars(hop("http://b")))
    with pytest.raises(InvalidFile, match="n: redirects from https to http, which is not encrypted"):
        http_input._head_of("n", answer)  # type: ignore[arg-type]


def test_https_to_a_server_of_http_says_why(site: Site) -> None:
    address = f"https://127.0.0.1:{site.server.server_address[1]}/in.jsonl"
    with pytest.raises(InvalidFile, match="the server does not speak TLS as https needs it; check the address"):
        inspect(address)


def test_an_address_that_nobody_serves_says_why() -> None:
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        url = f"http://127.0.0.1:{free.getsockname()[1]}/in.jsonl"
    with pytest.raises(InvalidFile, match="Connection refused"):
        inspect(url)
    for address in ("https://", "http://[::1/in.jsonl"):
        with pytest.raises(InvalidFile, match="is not a valid address"):
            inspect(address)


@pytest.mark.parametrize("num_bytes", [None, 10])
def test_a_server_that_falls_silent_is_given_up(
    site: Site, monkeypatch: pytest.MonkeyPatch, num_bytes: int | None
) -> None:
    monkeypatch.setattr(http_input, "SILENCE_S", 0.05)
    is_over = threading.Event()

    def stalls(handler: BaseHTTPRequestHandler) -> None:
        if num_bytes is not None:
            reply(handler, LINES[:num_bytes], **{"Content-Length": str(len(LINES))})
        is_over.wait(600.0)

    site.answers["/in.jsonl"] = stalls
    try:
        with pytest.raises(InvalidFile, match="the server does not answer; run the command again"):
            read(f"{site.url}/in.jsonl")
    finally:
        is_over.set()


def test_an_empty_file_is_rejected(site: Site) -> None:
    site.files["/in.jsonl"] = b""
    with pytest.raises(InvalidFile, match="is empty; it needs at least one request line"):
        inspect(f"{site.url}/in.jsonl")


def test_a_file_that_changes_while_it_is_read_is_rejected(site: Site) -> None:
    site.files["/in.jsonl"] = LINES
    site.etags["/in.jsonl"] = '"1"'
    source = inspect(f"{site.url}/in.jsonl")
    site.etags["/in.jsonl"] = '"2"'
    with pytest.raises(InvalidFile, match="was changed while it was read"):
        list(lines_of(source))


def test_credentials_are_sent_and_never_shown(site: Site) -> None:
    site.files["/in.jsonl"] = LINES
    url = site.url.replace("http://", "http://me:my-password@") + "/in.jsonl?signature=my-signature"
    receipt = batchfile.run(url, "out.jsonl", engine="echo", progress=False)
    assert all(given is not None and given.startswith("Basic ") for given in site.authorizations)
    assert site.asked[-1].endswith("?signature=my-signature")
    assert receipt.input.path == f"{site.url}/in.jsonl"
    kept = b"".join(path.read_bytes() for path in Path().rglob("*") if path.is_file())
    assert b"my-password" not in kept
    assert b"my-signature" not in kept
    site.answers["/in.jsonl"] = says(403)
    with pytest.raises(InvalidFile) as raised:
        inspect(url)
    assert "my-" not in str(raised.value)


def test_a_file_that_is_unchanged_is_not_downloaded_again(site: Site) -> None:
    site.files["/in.jsonl"] = LINES
    site.etags["/in.jsonl"] = '"1"'
    url = f"{site.url}/in.jsonl"
    first = batchfile.run(url, "out.jsonl", engine="echo", progress=False)
    num_asked = len(site.asked)
    assert batchfile.run(url, "out.jsonl", engine="echo", progress=False) == first
    assert len(site.asked) == num_asked + 1
    site.etags["/in.jsonl"] = '"2"'  # written again, with the same content
    assert batchfile.run(url, "out.jsonl", engine="echo", progress=False) == first


def test_lines_that_were_added_at_an_address_are_run_and_other_changes_are_not(site: Site) -> None:
    url, more = f"{site.url}/in.jsonl", json.dumps({"custom_id": "more", **LINE}).encode()
    site.files["/in.jsonl"] = LINES
    first = batchfile.run(url, "out.jsonl", engine="echo", progress=False)
    site.files["/in.jsonl"] = LINES + more
    second = batchfile.run(url, "out.jsonl", engine="echo", progress=False)
    assert (second.reused, second.reused_from, second.input.requests) == (3000, {first.batch_id: 3000}, 3001)
    site.files["/in.jsonl"] = more.replace(b"hi there", b"bye")
    with pytest.raises(OutputTaken, match="the input has changed"):
        batchfile.run(url, "out.jsonl", engine="echo", progress=False)


def test_a_limit_downloads_no_more_than_it_needs(site: Site) -> None:
    site.files["/in.jsonl"] = LINES * 2000  # about 200 MiB, which nobody reads to the end
    receipt = batchfile.run(f"{site.url}/in.jsonl", "out.jsonl", engine="echo", limit=5, progress=False)
    assert receipt.input.requests == 5


class Bucket(MemoryStore):
    """`is_cut`: a stream breaks off after its first bytes. `num_streams`: how often a whole object was read."""

    is_cut = False
    num_streams = 0

    def stream(self, key: str, start: int = 0, end: int | None = None, *, match: str | None = None) -> Iterator[bytes]:
        self.num_streams += end is None
        if self.is_cut and end is None:
            yield from super().stream(key, 0, 1000, match=match)
            raise StoreUnavailable(f"{key}: the response ended 5 bytes early")
        yield from super().stream(key, start, end, match=match)


@pytest.fixture
def bucket(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Bucket:
    """What is at s3://bucket."""
    monkeypatch.chdir(tmp_path)
    store = Bucket()
    monkeypatch.setattr(remote_inputs, "open_store", lambda url, prove: store)
    return store


def test_an_object_of_a_bucket_is_run_and_not_read_again_while_it_is_unchanged(bucket: Bucket) -> None:
    bucket.put("some/in.jsonl", LINES)
    first = batchfile.run("s3://bucket/some/in.jsonl", "out.jsonl", engine="echo", progress=False)
    assert (first.input.path, first.input.requests) == ("s3://bucket/some/in.jsonl", 3000)
    num_streams = bucket.num_streams
    assert batchfile.run("s3://bucket/some/in.jsonl", "out.jsonl", engine="echo", progress=False) == first
    assert bucket.num_streams == num_streams


def test_an_object_that_cannot_be_read_to_its_end_is_rejected(bucket: Bucket) -> None:
    bucket.put("in.jsonl", LINES)
    bucket.is_cut = True
    with pytest.raises(InvalidFile, match=r"s3://bucket/in.jsonl: cannot be read to its end: .* ended 5 bytes early"):
        batchfile.run("s3://bucket/in.jsonl", "out.jsonl", engine="echo", progress=False)
    assert not list(batchfile.open_store(".batchfile").list("batches/"))


def test_an_object_that_is_replaced_while_it_is_read_is_rejected(bucket: Bucket) -> None:
    bucket.put("in.jsonl", LINES)
    source = inspect("s3://bucket/in.jsonl")
    bucket.put("in.jsonl", LINES + LINES)
    with pytest.raises(InvalidFile, match="was changed while it was read"):
        list(lines_of(source))


def test_the_commands_that_read_a_file_read_addresses(site: Site) -> None:
    site.files["/in.jsonl"] = LINES
    checked = CliRunner().invoke(root, ["validate", f"{site.url}/in.jsonl"])
    assert (checked.exit_code, checked.output.split(" (")[0]) == (0, f"{site.url}/in.jsonl: 3,000 requests")
    counted = CliRunner().invoke(root, ["stats", f"{site.url}/in.jsonl"])
    assert "  requests      3,000\n" in counted.output
    estimated = CliRunner().invoke(root, ["estimate", f"{site.url}/in.jsonl"])
    assert "  requests       3,000\n" in estimated.output
    submitted = CliRunner().invoke(root, ["submit", f"{site.url}/in.jsonl", "--store", "st", "--stage", "email"])
    assert submitted.exit_code == 0, submitted.output
    assert batchfile.connect("st").batch(submitted.stdout.strip()).last_status.total == 3000


def test_a_download_that_nobody_reads_on_ends(site: Site) -> None:
    site.files["/in.jsonl"] = LINES * 500
    before = {thread.name for thread in threading.enumerate()}
    chunks = inspect(f"{site.url}/in.jsonl").remote
    assert isinstance(chunks, RemoteFile)
    begun = iter(chunks.chunks())
    next(begun)
    del begun
    deadline = time.monotonic() + 600.0  # only against a hang
    while any(thread.name == "batchfile-download" for thread in threading.enumerate()):
        assert time.monotonic() < deadline
        time.sleep(0.01)
    assert "batchfile-download" not in before
