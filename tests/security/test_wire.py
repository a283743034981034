"""Requests that two readers of HTTP could read in two ways, and bodies that are deeper or larger than they look."""

import gzip
import json
from typing import Any

import pytest

from tests.helpers.lines import zstd

POST = b"POST /v1/messages/batches?stage=email HTTP/1.1\r\nContent-Type: application/x-ndjson\r\nConnection: close\r\n"
HOST = b"Host: x\r\n"
LINE = b'{"custom_id": "a", "params": {"messages": [{"role": "user", "content": "hi"}]}}\n'
CHUNKED = b"\r\n%x\r\n%s\r\n0\r\n\r\n" % (len(LINE), LINE)
MIB = 1024 * 1024


def num_batches(api: Any) -> int:
    return len(api.http.get("/api/batches", params={"limit": 1000}).json()["data"])


@pytest.mark.parametrize(
    ("headers", "statuses"),
    [
        (HOST + b"Transfer-Encoding: chunked\r\n", {200}),
        (HOST + b"Transfer-Encoding: CHUNKED\r\n", {200}),
        (HOST + b"Transfer-Encoding: gzip, chunked\r\n", {501}),
        (HOST + b"Transfer-Encoding: chunked, chunked\r\n", {400, 501}),
        (HOST + b"Transfer-Encoding: chunked, gzip\r\n", {400, 501}),
        (HOST + b"Transfer-Encoding: xchunked\r\n", {400, 501}),
        (HOST + b"Transfer-Encoding: \x0bchunked\r\n", {400, 501}),
        (HOST + b"Transfer-Encoding: identity\r\n", {400, 501}),
        (HOST + b"Transfer-Encoding: chunked\r\nTransfer-Encoding: chunked\r\n", {400, 501}),
        (HOST + b"Transfer-Encoding: chunked\r\nTransfer-Encoding: identity\r\n", {400, 501}),
        (HOST + b"Transfer-Encoding:\r\n chunked\r\n", {400, 501}),
        (HOST + b"Transfer-Encoding : chunked\r\n", {400}),
        (HOST + b"Content-Length: 0\r\nTransfer-Encoding: chunked\r\n", {400}),
        (HOST + HOST + b"Transfer-Encoding: chunked\r\n", {400}),
        (HOST + b"Host: y\r\nTransfer-Encoding: chunked\r\n", {400}),
        (b"Transfer-Encoding: chunked\r\n", {400}),
        (HOST + b"X-Api-Key: a\r\nX-Api-Key: b\r\nTransfer-Encoding: chunked\r\n", {400}),
        (HOST + b"Authorization: Bearer a\r\nAuthorization: Bearer b\r\nTransfer-Encoding: chunked\r\n", {400}),
        (HOST + b"Expect: nonsense\r\nTransfer-Encoding: chunked\r\n", {200, 417}),
        (HOST + b"TE: trailers, deflate\r\nTransfer-Encoding: chunked\r\n", {200}),
    ],
)
def test_what_can_be_read_in_two_ways_makes_no_batch(api: Any, raw: Any, headers: bytes, statuses: set[int]) -> None:
    before = num_batches(api)
    answer = raw(api, POST + headers + CHUNKED)
    assert answer.status in statuses, answer
    assert num_batches(api) == before + (answer.status == 200)


def test_a_body_holds_no_second_request(api: Any, raw: Any) -> None:
    inner = b"POST /v1/messages/batches?stage=email HTTP/1.1\r\n" + HOST + b"Content-Length: 0\r\n\r\n"
    outer = b"GET /version HTTP/1.1\r\n" + HOST + b"Content-Length: %d\r\n\r\n" % len(inner)
    last = b"GET /version HTTP/1.1\r\n" + HOST + b"Connection: close\r\n\r\n"
    answer = raw(api, outer + inner + last)
    assert (answer.head + answer.body).count(b"HTTP/1.1 ") == 2


def test_posts_in_one_go_are_answered_each_in_order(api: Any, raw: Any) -> None:
    one = POST.replace(b"Connection: close\r\n", b"") + HOST + b"Transfer-Encoding: chunked\r\n" + CHUNKED
    bad = one.replace(LINE, LINE.replace(b'"custom_id"', b'"wrong_idd"'))
    last = POST + HOST + b"Content-Length: %d\r\n\r\n" % len(LINE) + LINE
    answer = raw(api, one + bad + one + last)
    statuses = [piece[:3] for piece in (answer.head + b"\r\n\r\n" + answer.body).split(b"HTTP/1.1 ")[1:]]
    assert statuses == [b"200", b"400", b"200", b"200"]


def test_a_client_that_asks_before_it_sends_is_told_of_a_refusal_first(api: Any, raw: Any) -> None:
    for target, length, status in ((b"/nope", 5, 404), (b"/v1/messages/batches", 10**12, 413)):
        head = b"POST %s HTTP/1.1\r\nExpect: 100-continue\r\nConnection: close\r\n" % target
        answer = raw(api, head + HOST + b"Content-Type: application/json\r\nContent-Length: %d\r\n\r\n" % length)
        assert answer.status == status, answer


DEEP = [b"[" * 500_000, b'{"a":' * 100_000, b'{"metadata":' + b'{"a":' * 5000 + b"1" + b"}" * 5001]
HUGE = [b"9" * 5000, b'{"bytes":1e400}', b'{"bytes":' + b"9" * 5000 + b"}", b'{"bytes":NaN}', b'{"bytes":-1}']


@pytest.mark.parametrize("path", ["/v1/batches", "/v1/uploads", f"/v1/uploads/upload_{'0' * 32}/complete"])
@pytest.mark.parametrize("body", [*DEEP, *HUGE], ids=range(len(DEEP) + len(HUGE)))
def test_a_small_document_that_is_deep_or_huge_is_refused(api: Any, path: str, body: bytes) -> None:
    answer = api.http.post(path, content=body, headers={"content-type": "application/json"})
    assert answer.status_code == 400, answer.text
    assert not api.events("request.failed")


@pytest.mark.parametrize("path", ["/api/batches", "/v1/batches", "/v1/messages/batches", "/v1/files", "/v1/models"])
def test_numbers_and_cursors_of_a_query_do_no_harm(api: Any, path: str) -> None:
    for query in ("limit=" + "9" * 5000, "limit=%D9%A3x", "limit=NaN", "limit=-1", "limit=0x10"):
        assert api.http.get(f"{path}?{query}").status_code == 400, query
    for query in ("after=%00", "after=..%2f..", "after_id=..%2fbatch.json", "before_id=%ff", "after=" + "a" * 5000):
        # Our own routes reject parameters that they do not know.
        wanted = {200, 400, 404} if path == "/api/batches" else {200, 404}
        assert api.http.get(f"{path}?{query}").status_code in wanted, query
    assert not api.events("request.failed")


TRICKS = [
    "..",
    "../../batches/x/batch.json",
    "%2e%2e%2f",
    "a\0b",
    "é" * 300,
    "x" * 5000,
    "file-" + "0" * 31 + "\n",
    "C:\\x",
]


@pytest.mark.parametrize("trick", TRICKS, ids=range(len(TRICKS)))
def test_a_trick_in_a_document_finds_nothing(api: Any, trick: str) -> None:
    wanted = {"input_file_id": trick, "endpoint": "/v1/chat/completions", "completion_window": "24h"}
    assert api.http.post("/v1/batches", json=wanted).status_code == 400
    announced = {"filename": trick, "mime_type": "application/jsonl", "purpose": "batch", "bytes": 5}
    begun = api.http.post("/v1/uploads", json=announced)
    assert begun.status_code in {200, 400}
    if begun.status_code == 200:
        done = api.http.post(f"/v1/uploads/{begun.json()['id']}/complete", json={"part_ids": [trick]})
        assert done.status_code == 400
    assert not api.events("request.failed")


PLACES = ["/v1/files/{}", "/v1/files/{}/content", "/v1/batches/{}", "/v1/models/{}"]
POSTS = ["/v1/uploads/{}/cancel", "/v1/batches/{}/cancel", "/v1/messages/batches/{}/cancel", "/api/batches/{}/cancel"]
IDS = ["..", "%2e%2e%2f%2e%2e", "%00", "%ff", "a" * 20_000, "file-%00", "upload_..%2f..", "batch_" + "0" * 31 + "%0a"]


@pytest.mark.parametrize("trick", IDS, ids=range(len(IDS)))
def test_a_trick_in_any_id_finds_nothing(api: Any, raw: Any, trick: str) -> None:
    asked = (
        [("GET", path) for path in PLACES] + [("DELETE", path) for path in PLACES] + [("POST", path) for path in POSTS]
    )
    for method, path in asked:
        head = f"{method} {path.format(trick)} HTTP/1.1\r\nHost: x\r\nConnection: close\r\nContent-Length: 0\r\n\r\n"
        answer = raw(api, head.encode())
        assert answer.status in {400, 404, 405}, (method, path, answer)
    assert not api.events("request.failed")


@pytest.mark.parametrize("encoding", ["gzip", "zstd"])
def test_a_packed_form_is_unpacked_no_further_than_its_limit(start_api: Any, watch: Any, encoding: str) -> None:
    api = start_api(BATCHFILE_API__FILE_BYTES_MAX=str(16 * MIB))
    head = b'--b\r\nContent-Disposition: form-data; name="file"; filename="f"\r\n\r\n'
    pack = gzip.compress if encoding == "gzip" else zstd.compress
    packed = [pack(head), *[pack(bytes(100 * MIB))] * 20]
    headers = {"content-type": "multipart/form-data; boundary=b", "content-encoding": encoding}
    with watch(api) as memory:
        refused = api.http.post("/v1/files", content=iter(packed), headers=headers)
    assert refused.status_code == 413, refused.text
    assert memory.grown_bytes < 32 * MIB
    assert api.http.get("/v1/files").json()["data"] == []


def test_an_upload_takes_no_more_than_it_announced_and_as_much_again(api: Any) -> None:
    announced = {"filename": "f", "mime_type": "application/jsonl", "purpose": "batch", "bytes": 1000}
    upload_id = api.http.post("/v1/uploads", json=announced).json()["id"]
    statuses = [
        api.http.post(f"/v1/uploads/{upload_id}/parts", files={"data": bytes(900)}).status_code for _ in range(5)
    ]
    assert statuses == [200, 200, 200, 400, 400]


def test_a_form_with_countless_fields_or_a_path_for_a_name_is_harmless(api: Any) -> None:
    many = {f"field{number}": "x" for number in range(200)}
    refused = api.http.post("/v1/files", data=many, files={"file": b"{}"})
    assert refused.status_code in {400, 413}
    name = "../../../etc/passwd"
    made = api.http.post("/v1/files", data={"purpose": "batch"}, files={"file": (name, b"{}")})
    assert json.loads(made.text)["filename"] == name, "it is only shown, in JSON"
    assert api.http.get(f"/v1/files/{made.json()['id']}/content").headers["content-type"] == "application/octet-stream"
