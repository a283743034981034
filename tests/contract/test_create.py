"""From a body to a committed batch, over every kind of store: what is refused, what exists, and what a repeat finds."""

import json
from itertools import pairwise

import pytest

from batchfile import Ledger, Runner, RunnerOptions
from batchfile.errors import InvalidFile, RequestRefused, StoreUnavailable, TooLarge
from batchfile.testing import EchoEngine, FaultyStore, run_alone
from tests.contract.create_kit import JSON, LINES, Service, document, lines, request, service
from tests.helpers.ledger import BatchRecord, StatusReader, batches, ending
from tests.helpers.ledger import keys as ledger_keys
from tests.helpers.service import Refusal
from tests.helpers.store import Store

__all__ = ["service"]


# -- what exists afterwards


@pytest.mark.parametrize("content_type", [JSON, LINES])
def test_a_body_becomes_a_batch_in_any_store(store: Store, content_type: str) -> None:
    service = Service(store)
    requests = [request(number, metadata={"note": "é\n😀"}) for number in range(500)]
    body = document(requests) if content_type == JSON else lines(requests)
    batch = service.post(body, content_type, stage=None if content_type == JSON else "email")
    standing = batches.read_batch(service.ledger, batch.batch_id)
    assert standing == batch
    assert service.input(batch) == requests
    assert (batch.total, batch.stage, batch.tenant) == (500, "email", "t")
    assert (batch.defaults.max_tokens, batch.defaults.temperature) == (2048, 0.2)
    assert service.pools(batch) == {"mistral": 500}
    assert ledger_keys.check_batch_id(batch.batch_id).startswith("batch_")
    assert len(batch.batch_id) == len("batch_") + 12


def test_the_plan_of_an_upload_covers_its_input_exactly(service: Service) -> None:
    batch = service.post(document([request(number) for number in range(1000)]))
    ranges = batches.read_plan(service.ledger, batch).ranges
    assert (ranges[0].start, ranges[-1].end) == (0, batch.input.size)
    assert all(one.end == two.start for one, two in pairwise(ranges))
    assert [span.first for span in ranges] == list(range(0, 1000, 32))


@pytest.mark.parametrize("content_type", [None, "", JSON, "application/json; charset=utf-8", "application/vnd.x+json"])
def test_json_is_read_under_its_names(service: Service, content_type: str | None) -> None:
    assert service.post(document([request(1)]), content_type).total == 1


@pytest.mark.parametrize("content_type", [LINES, "application/jsonl", "APPLICATION/NDJSON; charset=utf-8"])
def test_lines_are_read_under_their_names(service: Service, content_type: str) -> None:
    assert service.post(lines([request(1)]), content_type, stage="email").total == 1


@pytest.mark.parametrize("content_type", ["text/plain", "application/x-www-form-urlencoded", "application/xml"])
def test_another_content_type_is_415(service: Service, content_type: str) -> None:
    with pytest.raises(Refusal, match="send application/json or application/x-ndjson") as refused:
        service.post(document([request(1)]), content_type)
    assert refused.value.status == 415


def test_what_is_wrong_inside_params_refuses_nothing(service: Service) -> None:
    batch = service.post(document([{"custom_id": "a", "params": {"max_tokens": "many", "nonsense": 1}}, request(1)]))
    assert service.pools(batch) == {"mistral": 2}


@pytest.mark.parametrize("content_type", [JSON, LINES])
def test_half_of_a_character_is_an_error_of_its_request_alone(service: Service, content_type: str) -> None:
    """As JavaScript sends a string that was cut inside an emoji."""
    cut = {"custom_id": "cut", "params": {"messages": [{"role": "user", "content": "Hi \ud83d"}]}}
    requests = [request(1), cut, request(2)]
    body = document(requests) if content_type == JSON else lines(requests)
    batch = service.post(body, content_type, stage="email")
    assert service.input(batch) == requests, "as it was sent"
    options = RunnerOptions(runner_id="r", pool="mistral", only=batch.batch_id, is_janitor=False)
    run_alone(Runner(service.ledger, EchoEngine, options), until=lambda: finished(service, batch) == 3)
    ended = ending.finish(service.ledger, batch.batch_id, runner="end")
    assert ended is not None
    assert ended.results is not None
    rows = [json.loads(row) for row in b"".join(service.store.stream(ended.results.key)).splitlines()]
    assert [row["status"] for row in rows] == ["succeeded", "errored", "succeeded"]
    assert rows[1]["error"]["message"] == r"params: \ud83d is half of a character; cut strings between characters"


# -- what is refused, and where it says the error is


@pytest.mark.parametrize(
    ("body", "message"),
    [
        (b"", "the body is empty"),
        (b"{", "not valid JSON"),
        (document([request(1)], stage=None), "stage: is missing; use one of email, polish, sales_intel, subject"),
        (document([request(1)], stage="emial"), "stage: 'emial' is unknown; use one of email, polish"),
        (document([]), "requests: is empty"),
        (document([request(1)], model_hint="gpt"), "model_hint: 'gpt' is not a pool, model or alias; pools are"),
        (document([request(1), 5]), r"requests\[1\]: must be an object"),
        (document([request(1), {"params": {}}]), r"requests\[1\].custom_id: is missing"),
        (document([{"custom_id": "", "params": {}}]), r"requests\[0\].custom_id: is empty"),
        (
            document([{"custom_id": 7.5, "params": {}}]),
            r"requests\[0\].custom_id: must be a string or a whole",
        ),
        (document([request(1), {"custom_id": "a\ud83d", "params": {}}]), r"requests\[1\]: .*\\ud83d is half of a char"),
        (document([{"custom_id": "a"}]), r"requests\[0\].params: is missing"),
        (document([{"custom_id": "a", "params": []}]), r"requests\[0\].params: must be an object, got a list"),
        (document([{"custom_id": "a", "body": {}}]), r"requests\[0\].params: is missing"),
        (document([request(1, metdata={})]), r"requests\[0\].metdata: unknown field; did you mean metadata"),
        (
            document([request(1), request(2, metadata={"model_hint": "gpt"})]),
            r"requests\[1\].metadata.model_hint: 'gpt' is not a pool, model or alias; pools are llama-70b, mistral",
        ),
        (
            document([request(number) for number in [1, 2, 3, 4, 5, 6, 7, 4]]),
            r"requests\[7\].custom_id: 'lead_4_email' was used by requests\[3\]; make it unique",
        ),
    ],
)
def test_a_refused_document_says_where_and_leaves_nothing(service: Service, body: bytes, message: str) -> None:
    with pytest.raises(InvalidFile, match=message):
        service.post(body)
    assert service.keys() == []


@pytest.mark.parametrize(
    ("body", "message"),
    [
        (b"", "contains no requests"),
        (b"\n \n", "contains no requests"),
        (lines([request(1)]) + b"\n\n\n{rubbish", "line 4: is not valid JSON"),
        (b'\n\n{"custom_id": 5.5, "params": {}}', "line 3: custom_id: must be a string or a whole number, got 5.5"),
        (lines([request(1), request(2), request(1)]), "line 3: custom_id: 'lead_1_email' was used on line 1"),
        (lines([request(1)]) + b'\n{"custom_id": "\xff", "params": {}}', "line 2: is not valid UTF-8"),
    ],
)
def test_refused_lines_say_where_and_leave_nothing(service: Service, body: bytes, message: str) -> None:
    with pytest.raises(InvalidFile, match=message):
        service.post(body, LINES, stage="email")
    assert service.keys() == []


def test_a_refusal_knows_which_request_it_is_about(service: Service) -> None:
    with pytest.raises(RequestRefused) as refused:
        service.post(document([request(1), request(2), {}]))
    assert refused.value.index == 2


def test_lines_need_their_stage_in_the_query(service: Service) -> None:
    with pytest.raises(InvalidFile, match=r"stage: is missing; add \?stage=NAME to the URL, with one of email, "):
        service.post(lines([request(1)]), LINES)


def test_two_different_stages_are_refused(service: Service) -> None:
    with pytest.raises(InvalidFile, match="send only one of them"):
        service.post(document([request(1)]), stage="polish")


def test_more_requests_than_the_limit_are_too_large(service: Service) -> None:
    rows = b",".join(b'{"custom_id":"%d","params":{}}' % number for number in range(50_001))
    with pytest.raises(TooLarge, match="more than 50,000 requests"):
        service.post(b'{"stage":"email","requests":[%b]}' % rows)
    assert service.keys() == []


def test_blank_lines_are_no_way_around_the_limit(service: Service) -> None:
    with pytest.raises(TooLarge, match="more than 50,000 lines"):
        service.post(b"\n" * 50_001, LINES, stage="email")
    assert service.keys() == []


def test_a_store_that_fails_commits_nothing_and_the_same_again_completes(service: Service) -> None:
    def fail(number: int, verb: str, key: str, phase: str) -> None:
        if key.startswith("queue/"):
            raise StoreUnavailable("away")

    broken = Ledger(store=FaultyStore(service.store, on_call=fail), clock=service.clock)
    body = document([request(1)])
    with pytest.raises(StoreUnavailable):
        service.post(body, ledger=broken, idempotency_key="k")
    assert not any(key.endswith("batch.json") for key in service.keys("batches/"))
    batch = service.post(body, idempotency_key="k")
    assert service.keys(ledger_keys.QUEUE_PREFIX) == [
        ledger_keys.queue_key("mistral", batch.priority, batch.created_at, batch.batch_id)
    ]


# -- routing


def test_a_hint_of_the_whole_is_for_requests_that_say_none(service: Service) -> None:
    requests = [request(1), request(2, metadata={"model_hint": "mistral"}), request(3, metadata={"other": 1})]
    batch = service.post(document(requests, model_hint="big"))
    assert service.pools(batch) == {"llama-70b": 2, "mistral": 1}


def test_a_hint_of_the_whole_may_be_an_adapter(service: Service) -> None:
    batch = service.post(document([request(1)], model_hint="short"))
    assert (service.pools(batch), batch.defaults.model) == ({"mistral": 1}, "short")
    assert service.post(document([request(1)], model_hint="big")).defaults.model is None


def test_planner_and_runners_route_a_hinted_batch_alike(service: Service) -> None:
    requests = [request(n, **({"metadata": {"model_hint": "mistral"}} if n % 3 else {})) for n in range(100)]
    batch = service.post(document(requests, model_hint="big"))
    for pool in ("mistral", "llama-70b"):
        options = RunnerOptions(runner_id=pool, pool=pool, only=batch.batch_id, is_janitor=False)
        runner = Runner(service.ledger, lambda: EchoEngine(num_slots=4), options)
        done = {"mistral": 66, "llama-70b": 100}[pool]
        run_alone(runner, until=lambda done=done: finished(service, batch) == done)  # type: ignore[misc]
    ended = ending.finish(service.ledger, batch.batch_id, runner="end")
    assert ended is not None
    assert ended.results is not None
    rows = [json.loads(row) for row in b"".join(service.store.stream(ended.results.key)).splitlines()]
    assert [row["custom_id"] for row in rows] == [item["custom_id"] for item in requests]
    assert {row["status"] for row in rows} == {"succeeded"}


def finished(service: Service, batch: BatchRecord) -> int:
    found = StatusReader(service.ledger).read(batch.batch_id)
    assert found is not None
    return found.status.counts.finished
