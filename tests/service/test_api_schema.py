"""The OpenAPI document and the service agree: every answer to generated requests has a documented status and shape."""

import hashlib
import itertools
from collections.abc import Iterator
from typing import Any

import pytest
import schemathesis
from hypothesis import HealthCheck, settings
from schemathesis.specs.openapi.checks import negative_data_rejection, positive_data_acceptance

from batchfile import Ledger
from batchfile.testing import MemoryStore
from tests.helpers.service import create_app
from tests.helpers.settings import Settings

KEY = "bf_schema-test"
KEYS = f"default:{hashlib.sha256(KEY.encode()).hexdigest()}"
BEARER = {"Authorization": f"Bearer {KEY}"}
BATCHES = "/api/batches"
# A schema cannot say that stages, pools and files are known ones, that no custom_id comes twice, that a file is one of
# requests, and which filters go together.
REFUSING = {("GET", BATCHES), ("POST", BATCHES), ("POST", "/api/check"), ("POST", "/api/requests")}
REFUSING |= {("GET", "/v1/messages/batches"), ("POST", "/v1/messages/batches"), ("POST", "/v1/batches")}


@schemathesis.serializer("application/x-ndjson")
def _lines(_: Any, value: Any) -> bytes:
    return value if isinstance(value, bytes) else str(value).encode("utf-8", "surrogatepass")


def _document() -> dict[str, Any]:
    app = create_app(Ledger(store=MemoryStore()), Settings(api_keys=KEYS), is_janitor=False)
    document: dict[str, Any] = schemathesis.openapi.from_asgi("/openapi.json", app).raw_schema
    return document


schema = schemathesis.openapi.from_dict(_document())


@pytest.fixture(scope="module")
def served(serve_api: Any, make_request: Any) -> Iterator[Any]:
    """A service with a batch of each kind: `served.batches` has their ids."""
    api = serve_api(BATCHFILE_API_KEYS=KEYS, BATCHFILE_API__OPEN_BATCHES_MAX="100000")
    bad = {"custom_id": "bad", "params": {"messages": []}}
    api.batches = {kind: api.submit("email", [make_request("a"), bad], **BEARER) for kind in ("ended", "deleted")}
    for batch_id in api.batches.values():
        api.work(batch_id)
    assert api.http.delete(f"{BATCHES}/{api.batches['deleted']}", headers=BEARER).status_code == 200
    api.batches["open"] = api.submit("email", [make_request("a")], **BEARER)
    api.batches["none"] = "batch_000000000000"
    return api


@schema.parametrize()
@settings(max_examples=20, derandomize=True, deadline=None, database=None, suppress_health_check=list(HealthCheck))
def test_generated_requests_get_documented_answers(case: Any, served: Any) -> None:
    if isinstance(case.body, dict) and isinstance(case.body.get("stage"), str):
        case.body["stage"] = "email"  # or nearly all would be refused for it
    asked = (case.method, case.operation.path)
    excluded = [positive_data_acceptance] if asked in REFUSING else []
    # One value of a list is any text.
    excluded += [negative_data_rejection] if asked == ("GET", BATCHES) else []
    case.call_and_validate(served.url, headers=BEARER, excluded_checks=excluded)


def test_requests_for_each_kind_of_batch_get_documented_answers(served: Any) -> None:
    operations = [operation.ok() for operation in schema.get_all_operations()]
    ours = [operation for operation in operations if "{batch_id}" in operation.path and operation.method != "delete"]
    headers: list[dict[str, str]] = [
        {},
        {"range": "bytes=0-9"},
        {"range": "bytes=999999999-"},
        {"if-none-match": "*"},
        {"accept": "application/x-ndjson"},
        {"Authorization": "Bearer nobody"},
    ]
    for operation, (kind, batch_id), more in itertools.product(ours, served.batches.items(), headers):
        if operation.path.endswith("cancel") and kind == "open":
            continue
        case = operation.Case(path_parameters={"batch_id": batch_id})
        case.call_and_validate(served.url, headers=BEARER | more)
