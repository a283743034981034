"""What a hostile byte costs: CPU time for each byte, next to that of a plain body in the same process.

Ratios, so that no machine is too slow for it; each time is the best of two.
"""

import gzip
import hashlib
import json
import random
import time
from collections.abc import Callable
from contextlib import suppress

import pytest

from batchfile import Ledger
from batchfile.errors import BatchfileError
from batchfile.testing import ManualClock, MemoryStore
from batchfile.types import RoutingTable
from tests.helpers.lines import Unpacker, zstd
from tests.helpers.plan import CreateOptions, plan_input
from tests.helpers.service import Refusal, create
from tests.helpers.settings import Settings

BYTES = 32 * 1024
TRIES = 2
# Measured: 250 for lines of one byte, each of which is answered like a request of a hundred; 13 for one of brackets.
RATIO_MAX = 400.0
GROWTH = 4
GROWTH_MAX = 9.0  # of the time with four times the size: 4 is linear, 16 is quadratic
LOCAL = RoutingTable(everything="local")


class Body:
    """A spooled body in memory."""

    def __init__(self, data: bytes) -> None:
        self._data = data
        self.size = len(data)
        self.sha256 = hashlib.sha256(data).hexdigest()

    def view(self) -> memoryview:
        return memoryview(self._data)

    def scratch(self) -> memoryview:
        return memoryview(bytearray(self._data))


def request(custom_id: str, content: object = "word " * 200, **more: object) -> bytes:
    params = {"messages": [{"role": "user", "content": content}], "max_tokens": 8, **more}
    return json.dumps({"custom_id": custom_id, "params": params}).encode() + b"\n"


def filled(size: int, line: bytes) -> bytes:
    """As many of the line as make a body of that size."""
    return line * max(1, size // len(line))


PLAIN = b"".join(request(f"r{number}", "x") for number in range(BYTES // len(request("r000", "x"))))
HOSTILE: dict[str, Callable[[int], bytes]] = {
    "blank-lines": lambda size: b"\n" * size,
    "empty-objects": lambda size: filled(size, b"{}\n"),
    "nonsense": lambda size: filled(size, b"x\n"),
    "one-line-of-spaces": lambda size: b" " * size + b"\n",
    "open-brackets": lambda size: b"[" * size + b"\n",
    "many-lines-of-open-brackets": lambda size: filled(size, b"[" * 500 + b"\n"),
    "closed-brackets": lambda size: b'{"custom_id": "a", "params": ' + b"[" * (size // 2) + b"]" * (size // 2) + b"}\n",
    "open-objects": lambda size: b'{"a":' * (size // 5) + b"\n",
    "digits": lambda size: b'{"custom_id": "a", "params": {"max_tokens": ' + b"9" * size + b"}}\n",
    "exponents": lambda size: filled(size, b'{"custom_id": "a", "params": {"max_tokens": 1e99999999}}\n'),
    "one-id": lambda size: filled(size, request("same", "x")),
    "long-ids": lambda size: b"".join(request("i" * 6_000 + str(number), "x") for number in range(size // 6_000)),
    "many-keys": lambda size: (
        b'{"custom_id": "a", "params": {' + b",".join(b'"k%d": 1' % n for n in range(size // 12)) + b"}}\n"
    ),
    "one-key": lambda size: b'{"custom_id": "a", "params": {' + b",".join([b'"k": 1'] * (size // 8)) + b"}}\n",
    "colliding-metadata": lambda size: (
        b'{"custom_id": "a", "metadata": {' + b",".join([b'"": ""'] * (size // 7)) + b"}}\n"
    ),
    "escapes": lambda size: (
        b'{"custom_id": "a", "params": {"messages": [{"role": "user", "content": "'
        + b"\\u0041" * (size // 6)
        + b'"}]}}\n'
    ),
    "lone-surrogates": lambda size: (
        b'{"custom_id": "a", "params": {"messages": [{"role": "user", "content": "'
        + b"\\ud800" * (size // 6)
        + b'"}]}}\n'
    ),
    "backslashes": lambda size: b'{"custom_id": "' + b"\\\\" * (size // 2) + b'"}\n',
    "no-utf-8": lambda size: b'{"custom_id": "' + b"\xff" * size + b'"}\n',
    "many-messages": lambda size: (
        b'{"custom_id": "a", "params": {"messages": ['
        + b",".join([b'{"role": "user", "content": "x"}'] * (size // 33))
        + b"]}}\n"
    ),
    "many-parts": lambda size: request("a", [{"type": "text", "text": "x"}] * (size // 30)),
    "many-stops": lambda size: request("a", "x", stop_sequences=["x"] * (size // 5)),
    "deep-schema": lambda size: (
        request("a", "x") + b'{"custom_id": "b", "params": ' + b'{"a":' * 2000 + b"1" + b"}" * 2000 + b"}\n"
    ),
    "carriage-returns": lambda size: b"\r" * size,
    "lines-of-carriage-returns": lambda size: filled(size, b"\r\n"),
    "byte-order-marks": lambda size: filled(size, "\ufeff\n".encode()),
    "nul": lambda size: b"\0" * size,
}


def planned(data: bytes) -> None:
    """As a local run, a stored file and a dropped file are read."""
    clock = ManualClock()
    ledger = Ledger(store=MemoryStore(clock), clock=clock, rng=random.Random(1))
    ledger.store.put("batches/b/input-n.jsonl", data)
    with suppress(BatchfileError):
        plan_input(ledger, "b", "batches/b/input-n.jsonl", routing=LOCAL)


def uploaded(data: bytes) -> None:
    """As the body of a create is read."""
    clock = ManualClock()
    ledger = Ledger(store=MemoryStore(clock), clock=clock, rng=random.Random(1))
    with suppress(BatchfileError, Refusal):
        create.create_batch(
            ledger,
            Settings(),
            Body(data),  # type: ignore[arg-type]  # what is asked of a spooled body
            CreateOptions(tenant="t", stage="email", retry_count=0, arrived_at=clock.monotonic()),
            content_type="application/x-ndjson",
        )


def as_document(data: bytes) -> None:
    """As the one JSON document that some callers send."""
    clock = ManualClock()
    ledger = Ledger(store=MemoryStore(clock), clock=clock, rng=random.Random(1))
    rows = b",".join(data.splitlines())
    with suppress(BatchfileError, Refusal):
        create.create_batch(
            ledger,
            Settings(),
            Body(b'{"requests": [' + rows + b"]}"),  # type: ignore[arg-type]  # what is asked of a spooled body
            CreateOptions(tenant="t", stage="email", retry_count=0, arrived_at=clock.monotonic()),
            content_type="application/json",
        )


WAYS: dict[str, Callable[[bytes], None]] = {"planned": planned, "uploaded": uploaded, "document": as_document}


def cpu_s_per_mib(read: Callable[[bytes], None], data: bytes) -> float:
    best = float("inf")
    for _ in range(TRIES):
        began = time.process_time()
        read(data)
        best = min(best, time.process_time() - began)
    return best * 1024 * 1024 / len(data)


@pytest.fixture(scope="module")
def plain() -> dict[str, float]:
    return {way: cpu_s_per_mib(read, PLAIN) for way, read in WAYS.items()}


@pytest.mark.parametrize("way", WAYS)
@pytest.mark.parametrize("name", HOSTILE)
def test_no_byte_costs_much_more_than_a_plain_one_however_many_there_are(
    plain: dict[str, float], name: str, way: str
) -> None:
    small = cpu_s_per_mib(WAYS[way], HOSTILE[name](BYTES))
    assert small / plain[way] < RATIO_MAX
    large = cpu_s_per_mib(WAYS[way], HOSTILE[name](GROWTH * BYTES))
    # What costs less than ten plain bodies tells nothing about growth: noise would.
    assert large / small < GROWTH_MAX / GROWTH or large < 10 * plain[way]


def unpacked(kind: str, data: bytes) -> None:
    unpacker = Unpacker(kind, "a", "send it again")  # type: ignore[arg-type]  # gzip or zstd
    with suppress(BatchfileError):
        for at in range(0, len(data), 64 * 1024):
            for _ in unpacker.unpack(data[at : at + 64 * 1024]):
                pass
        unpacker.finish()


@pytest.mark.parametrize(("kind", "pack"), [("gzip", gzip.compress), ("zstd", zstd.compress)])
@pytest.mark.parametrize("of", [b"", b"x", b"\n" * 1000], ids=["nothing", "a-byte", "a-thousand"])
def test_no_packed_byte_costs_more_where_there_are_many(kind: str, pack: Callable[[bytes], bytes], of: bytes) -> None:
    """Many small members or frames, as many as fit: four times as many take about four times as long."""
    small, large = (
        cpu_s_per_mib(lambda data: unpacked(kind, data), filled(size, pack(of))) for size in (BYTES, GROWTH * BYTES)
    )
    assert large / small < GROWTH_MAX / GROWTH
