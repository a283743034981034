"""Hostile bodies, ids and tenants: every one is refused with a detail, in bounded memory, and the service goes on."""

import asyncio
import gzip
import hashlib
import json
import socket
import threading
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from typing import Any
from unittest.mock import patch

import httpx
import pytest

from batchfile import Ledger
from batchfile.testing import MemoryStore
from tests.helpers.lines import zstd
from tests.helpers.service import create_app
from tests.helpers.settings import Settings

LINES = "application/x-ndjson"
JSON = "application/json"
STAGE = "/v1/messages/batches"
NATIVE = "/api/batches"
MIB = 1024 * 1024
KEYS = {"acme": "bf_acme-key", "zeta": "bf_zeta-key"}
PAIRS = ",".join(f"{tenant}:{hashlib.sha256(key.encode()).hexdigest()}" for tenant, key in KEYS.items())


def bearer(tenant: str) -> dict[str, str]:
    return {"authorization": f"Bearer {KEYS[tenant]}"}


def in_pieces(*parts: tuple[bytes, int]) -> Iterator[bytes]:
    """Each part so many times, as a body that the test does not hold."""
    for part, times in parts:
        for _ in range(times):
            yield part


def refused(answer: httpx.Response, *statuses: int) -> str:
    """The detail of a refusal, which tells nothing of this machine."""
    assert answer.status_code in statuses, (answer.status_code, answer.text[:500])
    assert list(answer.json()) == ["detail"]
    detail: str = answer.json()["detail"]
    assert "Traceback" not in detail
    assert "/tmp/" not in detail
    assert len(detail) < 1000
    return detail


def is_refusal(body: dict[str, Any]) -> bool:
    """In any dialect: a path that only Anthropic's contract has is refused in its words."""
    return list(body) == ["detail"] or "message" in body["error"]


def num_batches(api: Any) -> int:
    return len(api.http.get(NATIVE, params={"limit": 1000}).json()["data"])


def packed_zeros(name: str) -> tuple[bytes, int]:
    """10 GB of zeros: one small packed piece and how often it comes."""
    if name == "gzip":
        return gzip.compress(bytes(100 * MIB), compresslevel=1), 100
    return zstd.compress(bytes(100 * MIB)), 100


@pytest.mark.parametrize("encoding", ["gzip", "zstd"])
def test_a_bomb_is_unpacked_no_further_than_the_limit(start_api: Any, watch: Any, encoding: str) -> None:
    api = start_api(BATCHFILE_API__BODY_BYTES_MAX=str(32 * MIB))
    piece = packed_zeros(encoding)
    with watch(api) as memory:
        answer = api.http.post(
            STAGE, content=in_pieces(piece), headers={"content-type": JSON, "content-encoding": encoding}
        )
    assert "bytes" in refused(answer, 413)
    assert memory.grown_bytes < 32 * MIB
    assert num_batches(api) == 0


def test_a_packed_body_may_not_ask_for_a_large_window(api: Any) -> None:
    options = {zstd.CompressionParameter.window_log: 30, zstd.CompressionParameter.enable_long_distance_matching: 1}
    body = zstd.compress(b'{"stage": "email"}' * 1_000_000, options=options)
    refused(api.http.post(STAGE, content=body, headers={"content-type": JSON, "content-encoding": "zstd"}), 400)


DOCUMENT = b'{"stage": "email", "requests": ['
DEEP = 1_000_000


@pytest.mark.parametrize(
    ("parts", "media_type"),
    [
        pytest.param([(b"[" * DEEP, 1)], JSON, id="deep"),
        pytest.param([(b'{"a":' * DEEP, 1)], JSON, id="deep objects"),
        pytest.param([(DOCUMENT, 1), (b"[" * DEEP, 1), (b"]" * DEEP, 1), (b"]}", 1)], JSON, id="deep element"),
        pytest.param(
            [(DOCUMENT + b'{"custom_id": "a", "params": ', 1), (b'{"a":' * DEEP, 1), (b"1" + b"}" * DEEP + b"}]}", 1)],
            JSON,
            id="deep params",
        ),
        pytest.param(
            [(b'{"custom_id": "a", "params": {"a": ' + b"[" * DEEP + b"]" * DEEP + b"}}\n", 1)], LINES, id="deep line"
        ),
        pytest.param([(b"[" + b"1,1," * 1000, 1), (b"1,1," * 262_144, 100), (b"1]", 1)], JSON, id="many"),
        pytest.param([(DOCUMENT, 1), (b"1,1," * 262_144, 100), (b"1]}", 1)], JSON, id="many elements"),
        pytest.param([(DOCUMENT, 1), (b"{},{}," * 174_762, 100), (b"{}]}", 1)], JSON, id="many empty elements"),
        pytest.param(
            [(DOCUMENT + b'{"custom_id": "a", "params": {"a": [', 1), (b"1,1," * 262_144, 100), (b"1]}}]}", 1)],
            JSON,
            id="many in params",
        ),
        pytest.param([(b'{"stage": "', 1), (b"x" * MIB, 100), (b'"}', 1)], JSON, id="long stage"),
        pytest.param(
            [(DOCUMENT + b'{"params": {}, "custom_id": "', 1), (b"x" * MIB, 100), (b'"}]}', 1)], JSON, id="long id"
        ),
        pytest.param([(b'{"', 1), (b"x" * MIB, 100), (b'": 1}', 1)], JSON, id="long key"),
        pytest.param([(b'{"params": {}, "custom_id": "', 1), (b"x" * MIB, 100), (b'"}', 1)], LINES, id="long line"),
        pytest.param([(b"\n" * MIB, 100)], LINES, id="no lines"),
        pytest.param([(b"1" * MIB, 100)], JSON, id="long number"),
        pytest.param([(b"x" * MIB, 300)], JSON, id="300 MB"),
    ],
)
def test_a_bomb_of_json_is_refused_in_bounded_memory(
    api: Any, watch: Any, parts: list[tuple[bytes, int]], media_type: str
) -> None:
    with watch(api) as memory:
        answer = api.http.post(
            STAGE, params={"stage": "email"}, content=in_pieces(*parts), headers={"content-type": media_type}
        )
    refused(answer, 400, 413)
    assert memory.grown_bytes < 64 * MIB


@pytest.mark.parametrize(
    "body",
    [
        b'{"stage": "email", "requests": [{"custom_id": "\xff\xfe", "params": {}}]}',
        b'{"stage": "email\xc3", "requests": [{"custom_id": "a", "params": {}}]}',
        b'{"stage": "email", "requests": [{"custom_id": "\xed\xa0\x80", "params": {}}]}',
        b'{"stage": "email", "requests": [{"custom_id": "\\ud800", "params": {}}]}',
        b'{"stage": "email", "requests": [{"custom_id": "a\x00b", "params": {}}]}',
        b'{"stage": "email", "requests": [{"custom_id": "a", "params": {}}]}\x00',
        b"\x00" * 1000,
        b"\xff\xfe{\x00}\x00",
        b'{"stage": "email", "requests": [{"custom_id": "a", "params": {"max_tokens": NaN}}]}',
        b'{"stage": "email", "requests": [{"custom_id": "a", "params": {}},]}',
    ],
)
def test_what_is_no_json_text_creates_nothing(api: Any, body: bytes) -> None:
    before = num_batches(api)
    refused(api.http.post(STAGE, content=body, headers={"content-type": JSON}), 400)
    assert num_batches(api) == before


def test_nul_is_text(api: Any) -> None:
    message = '"params": {"messages": [{"role": "user", "content": "hi\\u0000"}]}'
    body = f'{{"stage": "email", "requests": [{{"custom_id": "a\\u0000b", {message}}}]}}'
    answer = api.http.post(STAGE, content=body, headers={"content-type": JSON})
    assert answer.status_code == 200, answer.text
    batch_id = answer.json()["id"]
    api.work(batch_id)
    found = api.http.get(f"{STAGE}/{batch_id}/results").json()["results"]
    assert [(line["custom_id"], line["status"]) for line in found] == [("a\0b", "succeeded")]


@pytest.mark.parametrize(
    "body",
    [
        '{"stage": "poetry", "stage": "email", "requests": [{"custom_id": "a", "params": {}}]}',
        '{"stage": "email", "requests": [{"custom_id": "a", "params": {}}], "requests": []}',
        '{"stage": "email", "requests": [{"custom_id": "a", "custom_id": "b", "params": {}}]}',
    ],
)
def test_a_key_that_is_given_twice_creates_nothing(api: Any, body: str) -> None:
    before = num_batches(api)
    answer = api.http.post(STAGE, content=body, headers={"content-type": JSON})
    refused(answer, 400)
    assert "is given twice; keep one of them" in answer.text
    assert num_batches(api) == before


def nested(depth: int, opening: str = "[", closing: str = "]") -> str:
    return opening * depth + "1" + closing * depth


def asked(content: str, more: str = "") -> str:
    return f'"params": {{"messages": [{{"role": "user", "content": {content}}}]{more}}}'


ODD = {
    "deep metadata": asked('"x"') + ', "metadata": {"a": ' + nested(900) + "}",
    "deep params": '"params": {"messages": ' + nested(900) + "}",
    "deep objects": asked(nested(400, '{"a":', "}")),
    "huge number": asked('"x"', ', "max_tokens": ' + "9" * 4000),
    "huge float": asked('"x"', ', "temperature": 1e308'),
    "negative": asked('"x"', ', "max_tokens": -9223372036854775808'),
    "many messages": '"params": {"messages": [' + ",".join(['{"role":"user","content":"x"}'] * 20_000) + "]}",
    "long content": asked('"' + "x" * 10 * MIB + '"'),
    "no characters": asked(r'"\uffff\u0000\u202e"'),
    "many keys": '"params": {' + ",".join(f'"k{number}": 1' for number in range(50_000)) + "}",
    "x" * (4 * MIB): asked('"x"'),
}


def test_odd_requests_end_with_a_result_each(api: Any) -> None:
    """What the service has taken neither stops a runner nor the requests beside it."""
    requests = ",".join(f'{{"custom_id": "{name}", {rest}}}' for name, rest in ODD.items())
    body = f'{{"stage": "email", "requests": [{requests}]}}'
    answer = api.http.post(STAGE, content=body, headers={"content-type": JSON})
    assert answer.status_code == 200, answer.text
    batch_id = answer.json()["id"]
    api.work(batch_id)
    found = api.http.get(f"{STAGE}/{batch_id}/results").json()["results"]
    statuses = {line["custom_id"]: line["status"] for line in found}
    assert list(statuses) == list(ODD)
    assert statuses["x" * (4 * MIB)] == statuses["no characters"] == "succeeded"
    assert statuses["deep params"] == statuses["huge number"] == statuses["negative"] == "errored"


@pytest.mark.parametrize(
    "headers",
    [
        {"x-stainless-retry-count": b"\xb2"},
        {"x-stainless-retry-count": b"9" * 5000},
        {"x-stainless-retry-count": b"-1"},
        {"idempotency-key": b"\xff" * 200},
        {"idempotency-key": b"../../../etc/passwd"},
        {"content-encoding": b"identity"},
        {"x-request-id": b"x" * 1000},
    ],
)
def test_odd_headers_do_no_harm(api: Any, make_request: Any, headers: dict[str, bytes]) -> None:
    body = json.dumps({"stage": "email", "requests": [make_request("a")]}).encode()
    answer = api.http.post(STAGE, content=body, headers={"content-type": JSON.encode(), **headers})
    assert answer.status_code == 200, answer.text


def test_a_header_that_is_wrong_is_refused(api: Any, make_request: Any) -> None:
    body = json.dumps({"stage": "email", "requests": [make_request("a")]}).encode()
    for wrong, status in (
        ({"idempotency-key": "k" * 256}, 400),
        ({"content-encoding": "gzip, gzip"}, 415),
        ({"content-type": "x" * 5000}, 415),
        ({"content-type": "application/json; charset=utf-16"}, 200),
    ):
        answer = api.http.post(STAGE, content=body, headers={"content-type": JSON} | wrong)
        assert answer.status_code == status, answer.text
        if status != 200:
            refused(answer, status)


@pytest.mark.parametrize("asked", ["bytes=" + "9" * 5000 + "-", "bytes=-" + "9" * 5000, "bytes=\xb2-", "bytes=5-2"])
def test_a_range_that_is_no_range_sends_the_whole(api: Any, make_request: Any, asked: str) -> None:
    batch_id = api.submit("email", [make_request("a")])
    api.work(batch_id)
    answer = api.http.get(f"{NATIVE}/{batch_id}/results", headers={"range": asked.encode("latin-1")})
    assert answer.status_code == 200
    assert answer.json()["custom_id"] == "a"


TRICKS = [
    b"..",
    b"../../../../etc/passwd",
    b"%2e%2e",
    b"%2e%2e%2f%2e%2e%2fetc%2fpasswd",
    b"..%2fbatch.json",
    b"%00",
    b"batch_000000000000%00.json",
    b"%ff%fe",
    b"%",
    b"%zz",
    b"\xc3\xa9",
    b"%F0%9F%9A%80",
    b"a" * 60_000,
    b"batch_" + b"0" * 5000,
    b"batch_00000000000\xd9\xa0",
    b"batch_000000000000%0a",
    b"*",
    b".",
    b"//etc/passwd",
    b"batch_000000000000;x=1",
    b"C:\\windows",
    b"{batch_id}",
    b"' OR 1=1 --",
]


@pytest.mark.parametrize("trick", TRICKS, ids=range(len(TRICKS)))
def test_a_trick_in_an_id_finds_nothing(api: Any, raw: Any, trick: bytes) -> None:
    paths = [STAGE + "/{}", STAGE + "/{}/results", NATIVE + "/{}", NATIVE + "/{}/results?live=1", NATIVE + "/{}/errors"]
    paths += ["/api/pools/{}", "/api/pools/{}/scale"]
    for path in paths:
        before, after = path.encode().split(b"{}")
        for method in (b"GET", b"DELETE"):
            answer = raw(
                api, method + b" " + before + trick + after + b" HTTP/1.1\r\nHost: x\r\nConnection: close\r\n\r\n"
            )
            assert answer.status in {400, 404, 405}, answer
            assert b"root:" not in answer.body
            # A target that is no HTTP is refused by the server itself, in plain text.
            assert answer.body == b"Invalid HTTP request received." or is_refusal(json.loads(answer.body))
    for query in (b"after=", b"limit="):
        answer = raw(api, b"GET /api/batches?" + query + trick + b" HTTP/1.1\r\nHost: x\r\nConnection: close\r\n\r\n")
        assert answer.status in {400, 404}, answer
    assert api.process.poll() is None
    assert not api.events("request.failed")


def test_another_tenants_batch_looks_like_none(start_api: Any, make_request: Any) -> None:
    api = start_api(BATCHFILE_API_KEYS=PAIRS)
    batches = [api.submit("email", [make_request("secret")], **bearer("acme")) for _ in range(2)]
    api.work(batches[1])
    before = [api.http.get(f"{NATIVE}/{batch_id}", headers=bearer("acme")).json() for batch_id in batches]
    routes = [
        ("GET", STAGE + "/{}"),
        ("GET", STAGE + "/{}/results"),
        ("GET", NATIVE + "/{}"),
        ("DELETE", NATIVE + "/{}"),
    ]
    routes += [("POST", NATIVE + "/{}/cancel"), ("GET", NATIVE + "?after={}")]
    routes += [(method, NATIVE + "/{}/" + file) for method in ("GET", "HEAD") for file in ("results", "errors")]
    routes += [(method, NATIVE + "/{}/results?live=true") for method in ("GET", "HEAD")]
    extras: list[dict[str, str]] = [
        {},
        {"range": "bytes=0-9"},
        {"if-none-match": "*"},
        {"accept": LINES},
        {"accept-encoding": "gzip"},
    ]
    for method, route in routes:
        for more in extras:
            headers = bearer("zeta") | more
            missing = api.http.request(method, route.format("batch_000000000000"), headers=headers)
            assert missing.status_code == 404
            for batch_id in batches:
                theirs = api.http.request(method, route.format(batch_id), headers=headers)
                assert (theirs.status_code, theirs.content) == (404, missing.content), (method, route)
                assert theirs.headers.keys() == missing.headers.keys()
                assert api.http.request(method, route.format(batch_id), headers=more).status_code == 401
    after = [api.http.get(f"{NATIVE}/{batch_id}", headers=bearer("acme")).json() for batch_id in batches]
    assert after == before
    for path in ("/metrics", "/healthz", "/docs", "/openapi.json"):
        assert not [word for word in ("acme", "zeta", *batches) if word in api.http.get(path).text]


def test_one_key_sent_by_many_at_once_is_one_batch(start_api: Any, make_request: Any) -> None:
    api = start_api(BATCHFILE_API__IN_FLIGHT_MAX="400")
    document = {"stage": "email", "requests": [make_request("a")]}

    with (
        httpx.Client(timeout=120, limits=httpx.Limits(max_connections=None), trust_env=False) as http,
        ThreadPoolExecutor(300) as pool,
    ):

        def post(_: int) -> tuple[int, Any]:
            answer = http.post(f"{api.url}{STAGE}", json=document, headers={"idempotency-key": "one"})
            return answer.status_code, answer.json()

        answers = list(pool.map(post, range(300)))
    assert {status for status, _ in answers} == {200}
    assert len({body["id"] for _, body in answers}) == 1
    assert num_batches(api) == 1


def test_a_busy_key_is_refused_and_probes_are_not(start_api: Any) -> None:
    api = start_api(BATCHFILE_API__IN_FLIGHT_MAX="1")
    with socket.create_connection(("127.0.0.1", api.port)) as busy:
        busy.sendall(
            b"POST /v1/messages/batches HTTP/1.1\r\nHost: x\r\nExpect: 100-continue\r\nContent-Length: 9\r\n\r\n"
        )
        assert busy.recv(100).startswith(b"HTTP/1.1 100")
        answer = api.http.get(NATIVE)
        refused(answer, 429)
        assert int(answer.headers["retry-after"]) > 0
        for path in ("/healthz", "/ready", "/metrics", "/version"):
            assert api.http.get(path).status_code == 200


class StuckStore(MemoryStore):
    """Reads of batches wait until they are let go."""

    def __init__(self) -> None:
        super().__init__()
        self.let_go = threading.Event()

    def get(self, key: str) -> Any:
        if "batch_" in key:
            self.let_go.wait(30)
        return super().get(key)


def test_probes_answer_while_every_thread_is_busy() -> None:
    store = StuckStore()
    app = create_app(Ledger(store=store), Settings(), is_janitor=False)

    async def ask() -> tuple[list[int], set[int]]:
        asyncio.get_running_loop().set_default_executor(ThreadPoolExecutor(2))
        async with httpx.AsyncClient(transport=httpx.ASGITransport(app), base_url="http://x") as http:
            waiting = [asyncio.create_task(http.get(f"{NATIVE}/batch_00000000000{number}")) for number in range(8)]
            await asyncio.sleep(0)
            try:
                probed = [(await http.get(path)).status_code for path in ("/ready", "/healthz", "/metrics", "/version")]
                is_busy = not any(task.done() for task in waiting)
            finally:
                store.let_go.set()
            found = {answer.status_code for answer in await asyncio.gather(*waiting)}
        assert is_busy
        return probed, found

    assert asyncio.run(ask()) == ([200] * 4, {404})


def test_head_and_options_of_every_path_are_answered_without_a_body(api: Any, make_request: Any, raw: Any) -> None:
    batch_id = api.submit("email", [make_request("a")])
    document = api.http.get("/openapi.json").json()
    for path in [*document["paths"], "/metrics", "/docs", "/openapi.json"]:
        url = path.replace("{batch_id}", batch_id).replace("{pool}", "mistral").encode()
        expected = {200, 400, 404, 405}  # as GET answers, see test_api_ignored.py
        head = raw(api, b"HEAD " + url + b" HTTP/1.1\r\nHost: x\r\nConnection: close\r\n\r\n")
        assert head.status in expected, (path, head)
        assert head.body == b""
        live = raw(api, b"HEAD " + url + b"?live=true HTTP/1.1\r\nHost: x\r\nConnection: close\r\n\r\n")
        assert live.status in expected
        options = raw(api, b"OPTIONS " + url + b" HTTP/1.1\r\nHost: x\r\nConnection: close\r\n\r\n")
        assert (options.status, options.body) == (204, b"")
        for method in document["paths"].get(path, {}):
            assert method.upper().encode() in options.head


def test_what_anyone_may_read_is_rendered_before_the_first_request() -> None:
    """However many ask, each request only copies bytes."""
    app = create_app(Ledger(store=MemoryStore()), Settings(), is_janitor=False)

    async def read(path: str) -> httpx.Response:
        async with httpx.AsyncClient(transport=httpx.ASGITransport(app), base_url="http://localhost") as client:
            return await client.get(path)

    with (
        patch("api.http.openapi._render", side_effect=AssertionError("the page was rendered again")),
        patch("json.dumps", side_effect=AssertionError("the document was written again")),
    ):
        for path in ("/docs", "/openapi.json"):
            assert asyncio.run(read(path)).status_code == 200
