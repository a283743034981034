"""A result is only ever taken for exactly the same request, however much others look like it."""

import json
import random
from collections import defaultdict
from dataclasses import replace

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from batchfile.types import Choice, Completion, Failure, Usage
from tests.contract.reuse_kit import World, from_
from tests.helpers.ledger import BatchRecord, HashingWriter, ShardRecord, batches, keys, load, update_batch
from tests.helpers.lines import decode_envelope, decode_part, decode_result, encode_result

CHAT = "/v1/chat/completions"


def lookalike(rng: random.Random, custom_id: str, *, is_openai: bool) -> bytes:
    """One of some thousand requests that differ from each other in a byte, in where a byte is, or in nothing at all."""
    content = "".join(rng.choices('ab"\\ ', k=rng.randrange(4)))
    params: dict[str, object] = {"messages": [{"role": "user", "content": content}]}
    for name, values in {
        "system": ("", "a", "b", content),
        "temperature": (0, 0.0, 1, -0.0),
        "seed": (0, 1, 10),
        "max_tokens": (1, 11, 1.0),
        "model": ("a", "metadata", "b"),
    }.items():
        if rng.random() < 0.3:
            params[name] = rng.choice(values)
    if rng.random() < 0.3:
        params = dict(reversed(params.items()))
    line: dict[str, object] = {"custom_id": custom_id}
    if is_openai:
        if rng.random() < 0.5:
            params["metadata"] = {"row": rng.choice("ab")}
        line |= {"method": "POST", "url": rng.choice((CHAT, CHAT[3:])), "body": params}
    else:
        line |= {"params": params}
        if rng.random() < 0.5:
            line["metadata"] = {"row": rng.randrange(99)}
    separators = (",", ":") if rng.random() < 0.7 else (", ", ": ")
    return json.dumps(line, separators=separators, ensure_ascii=rng.random() < 0.5).encode()


def request_of(line: bytes) -> str:
    """What makes two lines the same request, written down at length."""
    envelope = decode_envelope(line)
    carried = envelope.carried.decode()
    members = members_of(carried)
    if envelope.format == "openai" and members.pop("metadata", None):
        carried = f"without metadata {sorted(members.items())}"
    return json.dumps([envelope.format, envelope.method, envelope.url, carried])


def members_of(text: str) -> dict[str, str]:
    """The members of an object, each as it is written."""
    decoder = json.JSONDecoder()
    members, at = {}, 1
    while True:
        key, end = decoder.raw_decode(text, at + (text[at] == " "))
        start = text.index(":", end) + 1
        start += text[start] == " "
        _, end = decoder.raw_decode(text, start)
        members[key] = text[start:end]
        if text[end] == "}":
            return members
        at = end + 1


def put_source(world: World, lines: list[bytes], rng: random.Random) -> tuple[BatchRecord, list[bool]]:
    """An ended batch whose answers name their requests and their places; one of ten failed."""
    world.create("old", world.plan("old", lines))
    has_succeeded = [rng.random() < 0.9 for _ in lines]
    with HashingWriter(world.ledger, keys.results_key("old", "n")) as writer:
        for number, line in enumerate(lines):
            text = f"{number} {request_of(line)}"
            answer = Completion(choices=(Choice(text, "end_turn"),), usage=Usage())
            failure = Failure(type="api_error", message="no")
            outcome = answer if has_succeeded[number] else failure
            writer.write_lines([encode_result(decode_envelope(line).custom_id, outcome, "m")])
        results = writer.commit()
    found = update_batch(
        world.ledger, keys.batch_key("old"), lambda record: replace(record, state="ended", results=results)
    )
    assert found is not None
    return found.record, has_succeeded


def reused(world: World, first_of: list[int], pools: dict[str, dict[int, int]]) -> dict[int, tuple[str, str]]:
    """By line of the new batch: the custom_id and the text of the result that it took."""
    taken: dict[int, tuple[str, str]] = {}
    for n in pools.get(keys.REUSED_POOL, {}):
        found = load(world.ledger, keys.shard_key("new", keys.REUSED_POOL, n), ShardRecord)
        assert found is not None
        for part in found.record.parts:
            stored = world.store.get(part.key)
            assert stored is not None
            for item in decode_part(stored.data):
                result = decode_result(item.result)
                assert result.message is not None
                assert first_of[n] + item.line not in taken
                taken[first_of[n] + item.line] = (result.custom_id or "", result.message.content[0].text)
    return taken


def check(seed: int, num_old: int, num_new: int, *, is_openai: bool) -> int:
    """Plan lookalikes with lookalikes as their source, and compare with a plain rule. Returns how many were reused."""
    rng = random.Random(seed)
    world = World()
    old = [lookalike(rng, f"old-{n}", is_openai=is_openai) for n in range(num_old)]
    new = [lookalike(rng, f"new-{n}", is_openai=is_openai) for n in range(num_new)]
    source, has_succeeded = put_source(world, old, rng)
    planned = world.plan("new", new, from_(source, is_sampled_too=True))

    places: dict[str, list[int]] = defaultdict(list)
    for number, line in enumerate(old):
        places[request_of(line)].append(number)
    num_seen: dict[str, int] = defaultdict(int)
    expected: dict[int, tuple[str, str]] = {}
    for number, line in enumerate(new):
        request = request_of(line)
        k = num_seen[request]
        num_seen[request] += 1
        if k < len(places[request]) and has_succeeded[places[request][k]]:
            expected[number] = (f"new-{number}", f"{places[request][k]} {request}")

    assert planned.reuse_note is None
    plan = planned.plan
    taken = reused(world, [span.first for span in plan.ranges], plan.pools)
    assert taken == expected
    assert planned.num_reused == len(expected)
    assert sum(num for pool in plan.pools.values() for num in pool.values()) == num_new
    assert batches.read_batch(world.ledger, "new") is None
    return len(expected)


@settings(max_examples=10, deadline=None)
@given(st.integers(0, 2**32), st.integers(1, 400), st.integers(1, 400), st.booleans())
def test_no_lookalike_gets_the_result_of_another(seed: int, num_old: int, num_new: int, is_openai: bool) -> None:
    check(seed, num_old, num_new, is_openai=is_openai)


@pytest.mark.parametrize("is_openai", [False, True])
def test_of_some_thousand_lookalikes_many_are_equal(is_openai: bool) -> None:
    assert check(1, 3000, 3000, is_openai=is_openai) > 500


@pytest.mark.long
@pytest.mark.parametrize("is_openai", [False, True])
def test_no_lookalike_of_a_million_gets_the_result_of_another(is_openai: bool) -> None:
    assert check(1, 1_000_000, 1_000_000, is_openai=is_openai) > 100_000
