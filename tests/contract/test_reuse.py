"""Which results a new batch takes over from ended ones, and that no request gets the result of another."""

import pytest

from batchfile.ledger import batches
from tests.contract.reuse_kit import World, from_, line


def rows(*numbers: int, shift: int = 0) -> list[bytes]:
    return [line(f"r{n + shift}", f"lead {n}") for n in numbers]


@pytest.mark.parametrize(
    ("changed", "generated"),
    [
        (rows(*range(40)), []),
        (rows(*range(39, -1, -1)), []),
        (rows(*range(40), 40, 41), ["r40", "r41"]),
        (rows(*range(10), *range(20, 40)), []),
        (rows(*range(40), shift=7), []),
        (rows(*range(5), 77, *range(5, 40)), ["r77"]),
        (rows(*range(5)), []),
    ],
    ids=["same", "reversed", "appended", "deleted", "renamed", "inserted", "fewer"],
)
def test_only_what_changed_is_generated(changed: list[bytes], generated: list[str]) -> None:
    world = World()
    old = world.finished("old", rows(*range(40)))
    planned = world.plan("new", changed, from_(old))
    assert planned.num_reused == len(changed) - len(generated)
    assert planned.reused_from == {"old": planned.num_reused}
    assert planned.reuse_note is None
    created = world.create("new", planned)
    assert created.reused == planned.reused_from
    ended = world.run("new")
    assert world.generated.custom_ids == generated
    fresh = World()
    assert world.answers(ended) == fresh.answers(fresh.finished("new", changed))
    assert ended.usage.output_tokens == (0 if not generated else ended.usage.output_tokens)


def test_a_damaged_or_missing_object_of_the_source_is_told_and_everything_is_generated() -> None:
    world = World()
    old = world.finished("old", rows(*range(40)))
    hashes = batches.read_plan(world.ledger, old).hashes
    assert hashes is not None
    assert old.results is not None
    found = {key: world.store.get(key) for key in (hashes.key, old.results.key, old.plan_key)}
    for key, stored in found.items():
        assert stored is not None
        for number, damaged in enumerate(
            (None, stored.data[:-1], stored.data[:-20], b"", stored.data[:50] + stored.data)
        ):
            world.store.delete(key) if damaged is None else world.store.put(key, damaged)
            planned = world.plan(f"new-{number}", rows(*range(40)), from_(old))
            assert planned.num_reused == 0, (key, number)
            assert "no result of old was reused" in (planned.reuse_note or ""), (key, number)
        world.store.put(key, stored.data)
    assert world.plan("whole", rows(*range(40)), from_(old)).num_reused == 40
