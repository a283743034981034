"""An HTTP pool whose endpoint fails, limits, refuses or is away: what is waited out, and what is the request's own."""

import json
import random
import socket
import time
from contextlib import ExitStack
from email.utils import formatdate
from typing import Any

import pytest
import structlog

from batchfile.engine.base import Finished
from batchfile.errors import SettingsError
from batchfile.types import Completion, Failure
from tests.contract.engine_http_kit import chat_server, engine, options, raw_request, request, run, server
from tests.helpers.endpoint import Failed, HttpEngine, Said, Throttled, Unserved, read_answer
from tests.helpers.endpoint import connection as http_connection
from tests.helpers.endpoint import engine as http_engine

__all__ = ["engine", "server"]


def test_no_more_than_the_bound_run_at_once(server: Any) -> None:
    engine = HttpEngine(options(server.url, concurrency=3))
    run(engine, *[request() for _ in range(20)])
    engine.close()
    assert 1 <= server.most_at_once <= 3


def test_a_server_error_is_tried_three_times_and_then_the_requests_failure(server: Any, engine: HttpEngine) -> None:
    server.script.extend({"status": 500, "text": '{"error": {"message": "out of cheese"}}'} for _ in range(3))
    [outcome] = run(engine, request())
    assert outcome == Failure(
        type="model_error", message="The endpoint answered 500: out of cheese (3 attempts)", http_status=500
    )
    assert len(server.seen) == 3


def test_an_error_with_status_200_repeats_no_key(server: Any) -> None:
    engine = HttpEngine(options(server.url, api_key="sk-canary"), random.Random(1))
    server.script.append({"status": 200, "text": '{"error": {"message": "no sk-canary", "code": 400}}'})
    [outcome] = run(engine, request())
    engine.close()
    message = "The endpoint answered 200 with an error: no ***"
    assert outcome == Failure(type="invalid_request_error", message=message, http_status=400)


def test_a_second_attempt_may_succeed(server: Any, engine: HttpEngine) -> None:
    server.script.extend([{"status": 500}, {"status": 200, "text": "no json"}])
    [outcome] = run(engine, request())
    assert isinstance(outcome, Completion)
    assert len(server.seen) == 3


@pytest.mark.parametrize("status", [429, 502, 503, 504, 520, 521, 522, 523, 525, 526, 530])
def test_an_endpoint_that_is_down_fails_no_request(server: Any, engine: HttpEngine, status: int) -> None:
    server.are_probes_scripted = True
    server.script.extend({"status": status} for _ in range(12))
    outcomes = run(engine, *[request() for _ in range(3)])
    assert all(isinstance(outcome, Completion) for outcome in outcomes)
    assert engine.stats().extra["num_unserved"] == 0
    assert engine.stats().down_s == 0


def test_a_person_is_told_which_endpoint_does_not_answer_the_check(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(http_engine, "CHECK_SILENCE_S_MAX", 0.1)
    said: list[str] = []
    with socket.create_server(("127.0.0.1", 0)) as silent:
        url = f"http://127.0.0.1:{silent.getsockname()[1]}"

        def say(line: str) -> None:
            said.append(line)
            connection, _ = silent.accept()
            silent.close()
            connection.close()

        with pytest.raises(SettingsError, match=f"the endpoint {url}/v1 "):
            http_engine.check_endpoint(options(url), say)
    assert said == [f"checking the endpoint {url}/v1 ..."]


def test_a_check_that_is_answered_says_nothing(server: Any) -> None:
    said: list[str] = []
    http_engine.check_endpoint(options(server.url), said.append)
    assert said == []


def test_a_refused_connection_is_waited_out() -> None:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    engine = HttpEngine(options(f"http://127.0.0.1:{port}"))
    engine.add(1, engine.prepare(request()))
    while engine.stats().extra["num_unserved"] < 5 or not engine.stats().down_s:
        assert engine.step() == []
    with chat_server.running(port):
        done = []
        while not done:
            done = engine.step()
    engine.close()
    assert isinstance(done[0].outcome, Completion)


def test_an_endpoint_that_answers_no_connection_is_waited_out(monkeypatch: pytest.MonkeyPatch) -> None:
    """As where a machine is gone or a firewall drops what comes: nothing refuses, and nothing answers."""
    monkeypatch.setattr(http_connection, "CONNECT_TIMEOUT_S", 0.2)
    with ExitStack() as sockets:
        silent = sockets.enter_context(socket.socket())
        silent.bind(("127.0.0.1", 0))
        silent.listen(0)
        for _ in range(4):  # its queue is full, and further connections hang
            waiting = sockets.enter_context(socket.socket())
            waiting.setblocking(False)
            waiting.connect_ex(silent.getsockname())
        engine = HttpEngine(options(f"http://127.0.0.1:{silent.getsockname()[1]}"))
        engine.add(1, engine.prepare(request()))
        while not engine.stats().down_s:
            assert engine.step() == []
        assert engine.stats().down_reason.endswith("/v1: no connection within 0.2 s")
        engine.close()


@pytest.mark.parametrize("status", [429, 503])
def test_retry_after_is_obeyed_by_its_request_and_holds_up_no_other(
    server: Any, engine: HttpEngine, status: int
) -> None:
    server.script.append({"status": status, "headers": {"Retry-After": "1"}})
    engine.add(0, engine.prepare(request("first")))
    while not server.seen:
        engine.step()
    started, done = time.monotonic(), []
    for key in range(1, 4):
        engine.add(key, engine.prepare(request("later")))
    while len(done) < 4:
        done += engine.step()
    assert [finished.key for finished in done][-1] == 0
    assert time.monotonic() - started >= 0.9


@pytest.mark.parametrize(
    ("value", "low", "high"),
    [
        ("7", 7, 7),
        ("Wed, 21 Oct 2015 07:28:00 GMT", 0, 0),
        ("Wed, 21 Oct 2099 07:28:00 GMT", 600, 600),
        ("86400", 600, 600),
        ("9" * 5000, 600, 600),
        ("Wed, 21 Oct 99999999 07:28:00 GMT", 0, 0),
        *((value, 0, 0) for value in ("", "soon", "-5", "1e9", "inf", "nan", "0", "\ud800", "1;2", "Wed, 99 Foo 2099")),
    ],
)
def test_a_retry_after_is_seconds_or_a_date_and_bounded(value: str, low: float, high: float) -> None:
    for status in (429, 503):
        answer = read_answer(Said(status, {"Retry-After": value}, b""), 10)
        assert isinstance(answer, Throttled | Unserved)
        assert low <= answer.retry_after_s <= high


def test_a_retry_after_that_is_a_date_is_that_far_from_now() -> None:
    soon = formatdate(time.time() + 100, usegmt=True)
    answer = read_answer(Said(429, {"Retry-After": soon}, b""), 10)
    assert isinstance(answer, Throttled)
    assert 90 < answer.retry_after_s <= 100


@pytest.mark.parametrize(
    ("words", "is_too_large"),
    [
        ("Request too large for m on tokens per min (TPM): Limit 30000, Requested 35000. Reduce it.", True),
        ("Request too large for model `m`: Limit: 6,000, Requested: 12,000", True),
        ("Request too large", True),
        ("Rate limit reached for m on tokens per min (TPM): Limit 10000, Used 9000, Requested 4000.", False),
        ("Rate limit reached. Limit 3 / min. Please try again in 20s.", False),
        ("You exceeded your current quota", False),
        ("", False),
    ],
)
def test_a_429_that_says_that_the_request_is_over_a_limit_is_told_apart(words: str, is_too_large: bool) -> None:
    for data in (json.dumps({"error": {"message": words}}), words):
        answer = read_answer(Said(429, {}, data.encode()), 10)
        assert isinstance(answer, Throttled)
        assert answer.is_too_large is is_too_large


def test_a_request_that_is_too_large_for_a_rate_limit_fails_at_once(server: Any, engine: HttpEngine) -> None:
    told = "Request too large for m on tokens per min (TPM): Limit 30000, Requested 35000."
    server.script.append({"status": 429, "text": json.dumps({"error": {"message": told}})})
    [outcome] = run(engine, request())
    assert outcome == Failure(type="rate_limit_error", message=f"The endpoint answered 429: {told}", http_status=429)
    assert len(server.seen) == 1


def test_a_request_that_cloudflare_gave_up_waiting_for_spends_an_attempt() -> None:
    assert isinstance(read_answer(Said(524, {}, b""), 10), Failed)


def test_a_server_that_breaks_the_connection_of_one_request_each_time_fails_it(server: Any, engine: HttpEngine) -> None:
    server.script.extend(chat_server.BREAK for _ in range(3))
    [outcome] = run(engine, request())
    assert isinstance(outcome, Failure)
    assert outcome.message.startswith("The endpoint's connection broke: ")
    assert outcome.message.endswith("(3 attempts)")


def test_a_timeout_spends_an_attempt(server: Any) -> None:
    engine = HttpEngine(options(server.url, timeout_s=0.2))
    server.script.extend([5.0, 5.0, 5.0])
    [outcome] = run(engine, request())
    engine.close()
    assert outcome == Failure(type="model_error", message="The endpoint did not answer within 0.2 s. (3 attempts)")


@pytest.mark.parametrize(
    ("status", "body", "kind", "words"),
    [
        (400, '{"error": {"message": "temperature is wrong"}}', "invalid_request_error", "temperature is wrong"),
        (422, '{"detail": "no such thing"}', "invalid_request_error", "no such thing"),
        (403, '{"error": "not this one"}', "permission_error", "not this one"),
        (404, '{"message": "no such model"}', "not_found_error", "no such model"),
        (418, "", "invalid_request_error", "(no message)"),
    ],
)
def test_a_refused_request_is_errored_at_once_in_the_servers_words(
    server: Any, engine: HttpEngine, status: int, body: str, kind: str, words: str
) -> None:
    run(engine, request())  # it has answered well: its address and its key are right
    server.script.append({"status": status, "text": body})
    [outcome] = run(engine, request())
    assert isinstance(outcome, Failure)
    assert (outcome.type, outcome.http_status) == (kind, status)
    assert words in outcome.message
    assert len(server.seen) == 2


@pytest.mark.parametrize(
    ("told", "words"),
    [
        ({"status": 401, "text": '{"error": "who are you"}'}, "it answered 401: who are you"),
        ({"status": 403, "text": "not from here"}, "it answered 403: not from here"),
        ({"status": 404, "text": "no such model"}, "it answered 404: no such model"),
        ({"status": 302, "headers": {"Location": "/login"}}, "it answered 302 and redirects to /login"),
        ({"status": 200, "text": "<html>Sign in", "content_type": "text/html"}, "it answered 200: a web page"),
    ],
)
def test_a_wrong_address_or_key_is_waited_out_and_said_and_fails_no_request(
    server: Any, engine: HttpEngine, told: dict[str, Any], words: str
) -> None:
    server.always = told
    engine.add(1, engine.prepare(request()))
    with structlog.testing.capture_logs() as events:
        while not (events and engine.stats().down_reason):
            assert engine.step() == []
    assert engine.stats().down_reason.startswith(f"{server.url}/v1: {words}")
    assert engine.stats().down_status in {None, told["status"]}
    assert (engine.stats().down_status is None) == (told["status"] < 400)
    assert [event["event"] for event in events] == ["endpoint.down"]
    assert words in events[0]["reason"]
    server.always = None
    done: list[Finished] = []
    while not done:
        done = engine.step()
    assert isinstance(done[0].outcome, Completion)


GONE = [
    {"status": 404, "text": "<html>Not Found", "content_type": "text/html"},
    {"status": 403, "text": "<html>Forbidden", "content_type": "text/html"},
    {"status": 404, "text": "404 page not found"},
    {"status": 404},
    {"status": 200, "text": "<html>Welcome", "content_type": "text/html"},
]


@pytest.mark.parametrize("told", GONE)
@pytest.mark.parametrize("kind", ["chat", "embedding"])
def test_a_proxy_that_has_lost_its_endpoint_is_waited_out_and_fails_no_request(
    server: Any, engine: HttpEngine, told: dict[str, Any], kind: str
) -> None:
    one = request() if kind == "chat" else raw_request("embedding", "a")
    run(engine, one)
    server.are_probes_scripted = True
    server.script.extend(told for _ in range(12))
    [outcome] = run(engine, one)
    assert isinstance(outcome, Completion)


@pytest.mark.parametrize(
    "told",
    [
        *GONE,
        {"status": 401, "text": "who are you"},
        {"status": 302, "headers": {"Location": "/captcha"}, "text": "found"},
        {"status": 502, "text": "<html><head><style>x</style></head><body>Bad\n Gateway", "content_type": "text/html"},
        {"status": 520},
    ],
)
def test_what_a_firewall_refuses_is_that_requests_own_after_three_attempts(
    server: Any, engine: HttpEngine, told: dict[str, Any]
) -> None:
    """The endpoint itself can be reached: waiting for it would hold up every other request, and for ever."""
    run(engine, request())
    server.script.extend(told for _ in range(3))
    [outcome] = run(engine, request())
    assert isinstance(outcome, Failure)
    assert outcome.message.startswith(f"The endpoint answered {told['status']}: ")
    assert outcome.message.endswith("(3 attempts)")
    assert len(server.seen) == 4


def test_a_key_that_is_taken_away_fails_nothing_but_one_missing_path_does(server: Any, engine: HttpEngine) -> None:
    server.script.append({"status": 404, "text": '{"detail": "no embeddings here"}'})
    [outcome] = run(engine, raw_request("embedding", "a"))
    assert isinstance(outcome, Failure)
    run(engine, request())
    server.script.append({"status": 401})
    [outcome] = run(engine, request())
    assert isinstance(outcome, Completion)


def test_an_endpoint_that_breaks_every_connection_fails_no_request(server: Any, engine: HttpEngine) -> None:
    server.are_probes_scripted = True
    server.script.extend(chat_server.BREAK for _ in range(8))
    [outcome] = run(engine, request())
    assert isinstance(outcome, Completion)


def hasty(url: str) -> HttpEngine:
    return HttpEngine(options(url, wait_for_endpoint=False), random.Random(1))


@pytest.mark.parametrize("status", [401, 200])
def test_an_endpoint_that_never_answered_well_ends_an_engine_that_shall_not_wait(server: Any, status: int) -> None:
    server.are_probes_scripted = True
    told = {"error": {"message": "who are you", "code": 401}}
    server.script.extend({"status": status, "text": json.dumps(told)} for _ in range(50))
    engine = hasty(server.url)
    with pytest.raises(SettingsError, match=r"requires an API key \(401: who are you\): set OPENAI_API_KEY"):
        run(engine, *[request() for _ in range(8)])
    engine.close()


@pytest.mark.parametrize("status", [429, 502, 503, 504, 530])
def test_an_endpoint_that_is_busy_is_waited_for_whatever_it_answered_before(server: Any, status: int) -> None:
    server.are_probes_scripted = True
    server.script.extend({"status": status, "text": "<html>soon"} for _ in range(12))
    engine = hasty(server.url)
    [outcome] = run(engine, request())
    engine.close()
    assert isinstance(outcome, Completion)


@pytest.mark.parametrize("told", [{"status": 401}, {"status": 302}, {"status": 200, "content_type": "text/html"}])
def test_after_one_good_answer_a_wrong_address_or_key_is_waited_out(server: Any, told: dict[str, Any]) -> None:
    engine = hasty(server.url)
    run(engine, request())
    server.are_probes_scripted = True
    server.script.extend(told for _ in range(12))
    [outcome] = run(engine, request())
    engine.close()
    assert isinstance(outcome, Completion)
