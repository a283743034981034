"""200 batches of mixed origin in one store: each listing, page by page, with the clients that use it."""

import itertools
import json
from collections.abc import Iterator
from typing import Any

import anthropic
import openai
import pytest

from batchfile import Ledger
from batchfile.types import Defaults
from tests.helpers.inbox import DroppedFile, FileRecord, Inbox, inbox_records, stored_files
from tests.helpers.ledger import Draft, SetAside
from tests.helpers.plan import pending
from tests.helpers.settings import load_settings
from tests.helpers.store import open_service_ledger
from tests.service.openai_kit import CHAT, direct

NUM_DROPPED = 100  # more than one page of OpenAI's listing, in a row as well
NUM_OF_FILES = 40
NUM_PLAIN = 60
ORIGINS = "d" * 30 + "fdp" * 30 + "d" * 40 + "f" * 10 + "p" * 30


def drafts(ledger: Ledger) -> Iterator[tuple[str, Draft]]:
    routing, now = load_settings().routing(), ledger.clock.now()
    for number, origin in enumerate(ORIGINS):
        digits = 32 if origin == "f" or (origin == "d" and number % 2) else 12  # older releases: 32 for dropped files
        batch_id = f"batch_{number:0{digits}x}"
        yield origin, Draft(batch_id=batch_id, routing=routing, defaults=Defaults(), created_at=now - 1000 + number)


def fill(ledger: Ledger) -> dict[str, list[str]]:
    """The ids by origin, newest first, and those of all."""
    made: dict[str, list[str]] = {"d": [], "f": [], "p": [], "all": []}
    for origin, draft in drafts(ledger):
        name = f"elsewhere/{draft.batch_id}.jsonl"
        ledger.store.put(name, b"x")
        if origin == "f":
            file = FileRecord(
                file_id="file-" + draft.batch_id[-32:],
                tenant="default",
                filename="in.jsonl",
                purpose="batch",
                key=name,
                size=1,
                sha256="",
                created_at=1e9,
                expires_at=1e11,
            )
            pending.create(ledger, draft, stored_files.source(ledger, file, endpoint=CHAT, requests_max=1))
        else:
            dropped = DroppedFile(key=name, etag="e", modified_at=1e9)
            pending.create(ledger, draft, inbox_records.source(dropped, 1))
        for kind in (origin, "all"):
            made[kind].insert(0, draft.batch_id)
    return made


@pytest.fixture(scope="module")
def listed(serve_api: Any) -> tuple[Any, dict[str, list[str]]]:
    api = serve_api()
    return api, fill(open_service_ledger(api.store, load_settings()))


@pytest.fixture(scope="module")
def client(listed: Any) -> Iterator[openai.OpenAI]:
    with openai.OpenAI(base_url=f"{listed[0].url}/v1", api_key="x", http_client=direct(), max_retries=0) as one:
        yield one


def test_the_batches_are_of_mixed_origin(listed: Any) -> None:
    _, made = listed
    assert {kind: len(ids) for kind, ids in made.items()} == {
        "d": NUM_DROPPED,
        "f": NUM_OF_FILES,
        "p": NUM_PLAIN,
        "all": 200,
    }


@pytest.mark.parametrize("limit", [1, 3, 20, 40, 100])
def test_openai_lists_every_batch_of_a_file_and_pages_are_full(listed: Any, client: Any, limit: int) -> None:
    _, made = listed
    pages = list(client.batches.list(limit=limit).iter_pages())
    assert [batch.id for page in pages for batch in page.data] == made["f"]
    assert [len(page.data) for page in pages[:-1]] == [limit] * (len(pages) - 1)
    assert len(pages) == -(-NUM_OF_FILES // limit)
    assert [page.has_more for page in pages] == [True] * (len(pages) - 1) + [False]


@pytest.mark.parametrize("kind", ["d", "f", "p"])
def test_openai_lists_after_a_batch_of_any_origin(listed: Any, client: Any, kind: str) -> None:
    _, made = listed
    for cursor in made[kind][:: max(1, len(made[kind]) // 5)]:
        older = made["all"][made["all"].index(cursor) + 1 :]
        wanted = [batch_id for batch_id in older if batch_id in made["f"]]
        assert [batch.id for batch in client.batches.list(limit=30, after=cursor)] == wanted


@pytest.mark.parametrize("limit", [7, 100])
def test_anthropic_lists_every_batch_in_both_directions(listed: Any, limit: int) -> None:
    api, made = listed
    with anthropic.Anthropic(
        base_url=api.url, api_key="x", http_client=anthropic.DefaultHttpxClient(trust_env=False), max_retries=0
    ) as one:
        batches = one.messages.batches
        assert [batch.id for batch in batches.list(limit=limit)] == made["all"]
        newer = [batch.id for batch in batches.list(limit=limit, before_id=made["all"][-1])]
    assert sorted(newer) == sorted(made["all"][:-1])


@pytest.mark.parametrize("limit", [7, 200])
def test_the_native_listing_has_every_batch(listed: Any, limit: int) -> None:
    api, made = listed
    found: list[str] = []
    for _ in itertools.count():
        params: dict[str, Any] = {"limit": limit} | ({"after": found[-1]} if found else {})
        page = api.http.get("/api/batches", params=params).json()
        found += [batch["id"] for batch in page["data"]]
        if not page["has_more"]:
            break
        assert len(page["data"]) == limit
    assert found == made["all"]


def test_ids_of_dropped_files_are_not_like_those_of_uploaded_ones(tmp_path: Any) -> None:
    ledger = open_service_ledger(str(tmp_path / "store"), load_settings())
    line = {"custom_id": "a", "params": {"messages": [{"role": "user", "content": "hi"}], "max_tokens": 4}}
    ledger.store.put("inbox/email/a.jsonl", json.dumps(line).encode() + b"\n")
    inbox = Inbox(ledger, load_settings().routing())
    while not (made := [entry.key for entry in ledger.store.list("batches/")]):
        inbox.look(SetAside(ledger))
    assert len(made[0].split("/")[1]) == len("batch_") + 24
