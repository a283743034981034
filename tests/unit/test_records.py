"""Records of other versions: read where they can be, rewritten only where nothing of them is lost."""

import json
from typing import Any

import msgspec
import pytest

from batchfile.errors import BatchDamaged, RecordNewer
from batchfile.types import Counts, Defaults, RoutingTable, Usage
from tests.helpers.ledger import (
    BatchRecord,
    FileRef,
    InputRef,
    LineError,
    Origin,
    PartRef,
    Plan,
    PlanRules,
    Range,
    ShardRecord,
    check_known,
    decode,
    encode,
    unknown_fields,
)

PART = PartRef(key="p", size=1, sha256="s")
SHARD = ShardRecord(
    pool="m", n=0, num_lines=4, state="leased", lease="l", runner="r", parts=(PART, PART), bisect_set=(1, 2)
)
BATCH = BatchRecord(
    batch_id="b",
    created_at=1.0,
    expires_at=2.0,
    input=InputRef(key="k", etag="e", size=1, sha256="s", format="native"),
    plan_key="p",
    total=1,
    routing=RoutingTable(pools={"m": ("a", "b")}, stages={"email": "m"}),
    defaults=Defaults(output_schema={"type": "object", "properties": {"version": {}}}),
    origin=Origin(kind="k", name="n", facts={"asked": [{"for": 1.5}]}),
    rules=PlanRules(endpoint="/v1"),
    problems=(LineError(code="c", message="m"),),
    results=FileRef(key="r", size=1, sha256="s", num_lines=1),
    metadata={"anything": "goes"},
    counts=Counts(succeeded=1),
    usage=Usage(input_tokens=1),
)
PLAN = Plan(ranges=(Range(start=0, end=9, first=0, first_row=1, num_lines=1),), pools={"m": {0: 1}})


@pytest.mark.parametrize("record", [BATCH, SHARD, PLAN], ids=lambda record: type(record).__name__)
def test_what_this_version_wrote_has_nothing_unknown(record: Any) -> None:
    data = encode(record)
    assert decode(data, type(record)) == record
    assert unknown_fields(data, record) == ()
    assert unknown_fields(json.dumps(json.loads(data), indent=1).encode(), record) == (), "however it is written"


@pytest.mark.parametrize("record", [BATCH, SHARD, PLAN], ids=lambda record: type(record).__name__)
def test_what_an_older_version_wrote_has_nothing_unknown(record: Any) -> None:
    older = {name: value for name, value in json.loads(encode(record)).items() if name not in {"gpu_s", "usage"}}
    data = json.dumps(older).encode()
    check_known(data, decode(data, type(record)))


@pytest.mark.parametrize(
    ("record", "path"),
    [
        (BATCH, "fingerprint"),
        (BATCH, "input.fingerprint"),
        (BATCH, "problems.fingerprint"),
        (BATCH, "origin.fingerprint"),
        (BATCH, "rules.fingerprint"),
        (BATCH, "results.fingerprint"),
        (BATCH, "counts.fingerprint"),
        (BATCH, "usage.fingerprint"),
        (BATCH, "routing.fingerprint"),
        (BATCH, "defaults.fingerprint"),
        (SHARD, "fingerprint"),
        (SHARD, "parts.fingerprint"),
        (PLAN, "ranges.fingerprint"),
    ],
)
def test_a_field_of_a_newer_version_is_found_wherever_it_is(record: Any, path: str) -> None:
    """It can be read; a rewrite is refused."""
    document = json.loads(encode(record))
    place: Any = document
    *parents, name = path.split(".")
    for parent in parents:
        place = place[parent]
        place = place[-1] if isinstance(place, list) else place
    place[name] = {"any": "thing"}
    data = json.dumps(document).encode()
    assert decode(data, type(record)) == record
    assert unknown_fields(data, record) == (path,)
    with pytest.raises(RecordNewer, match=rf"{path}\): a newer batchfile wrote it; upgrade this process"):
        check_known(data, record)


@pytest.mark.parametrize(
    "changes", [{"version": 2}, {"version": 2, "total": "many"}, {"version": 9, "state": "folded"}]
)
def test_a_newer_version_is_told_from_damage(changes: dict[str, Any]) -> None:
    data = json.dumps(json.loads(encode(BATCH)) | changes).encode()
    with pytest.raises(RecordNewer, match=rf"has version {changes['version']}, .*; upgrade this process"):
        decode(data, BatchRecord)


@pytest.mark.parametrize(
    "data",
    [b"", b"\0" * 400, encode(BATCH)[:-40], b"<html>busy</html>", b"{}", b"[]", b"\xff\xfe", b"[" * 100_000, b"null"],
)
def test_what_is_not_a_record_is_damage_and_not_newer(data: bytes) -> None:
    with pytest.raises(BatchDamaged) as caught:
        decode(data, BatchRecord)
    assert not isinstance(caught.value, RecordNewer)


def test_the_literals_of_a_record_are_closed() -> None:
    """A new value needs a new version: here it would be damage, which a cancel may replace."""
    data = msgspec.json.encode(json.loads(encode(BATCH)) | {"state": "folded"})
    with pytest.raises(BatchDamaged):
        decode(data, BatchRecord)
