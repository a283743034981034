"""The dispatch of an HTTP pool against endpoints that restart, limit and refuse, in virtual time: default durations."""

import asyncio
import json
import random
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass, field

import pytest

from batchfile.engine.base import in_flight_for
from batchfile.engine.http.answer import ExpectedAnswer
from batchfile.engine.http.connection import NoAnswer
from batchfile.engine.http.dispatch import Dispatcher, HttpPrepared, Pace
from batchfile.engine.http.wire import Said
from batchfile.types import Completion, Failure, Outcome
from tests.unit.virtual_loop import run_virtually

pytestmark = pytest.mark.slow

GOOD = Said(200, {}, json.dumps({"choices": [{"message": {"content": "ok"}, "finish_reason": "stop"}]}).encode())
BAD = Said(502, {"Content-Type": "text/html"}, b"<html>Bad Gateway</html>")
LIMITED = Said(429, {}, b'{"error": {"message": "Rate limit reached"}}')
BROKEN = NoAnswer("broken", "Connection reset by peer")
REFUSED = NoAnswer("unreachable", "no connection: Connection refused")
PROBE = "Hi"

Answers = Callable[[str, float], Said | NoAnswer]
"""What a prompt gets at a time, in seconds since the start."""


@dataclass
class Endpoint:
    """`answers` decides when a request comes, `takes_s` later it is told. Counts the tries of each prompt."""

    answers: Answers
    takes_s: float = 1.0
    bad_takes_s: float = 0.01
    tries: Counter[str] = field(default_factory=Counter)
    at: dict[str, list[float]] = field(default_factory=dict)
    now: int = 0
    most: int = 0

    async def ask(self, method: str, path: str, body: bytes | None) -> Said | NoAnswer:
        assert (method, path) == ("POST", "/chat/completions")
        assert body is not None
        prompt = json.loads(body)["messages"][0]["content"]
        started = asyncio.get_running_loop().time()
        self.tries[prompt] += 1
        self.at.setdefault(prompt, []).append(started)
        self.now += 1
        self.most = max(self.most, self.now)
        try:
            answer = self.answers(prompt, started)
            await asyncio.sleep(self.takes_s if answer is GOOD else self.bad_takes_s)
        finally:
            self.now -= 1
        return answer


@dataclass
class Run:
    """By prompt: what became of it and when. `down_at`: the seconds at which the pool counted as down."""

    outcomes: dict[str, Outcome] = field(default_factory=dict)
    ended_at: dict[str, float] = field(default_factory=dict)
    down_at: list[int] = field(default_factory=list)

    def failed(self) -> set[str]:
        return {prompt for prompt, outcome in self.outcomes.items() if isinstance(outcome, Failure)}

    def failure(self, prompt: str) -> Failure:
        outcome = self.outcomes[prompt]
        assert isinstance(outcome, Failure)
        return outcome


def serve(endpoint: Endpoint, prompts: list[str], *, concurrency: int = 4, seed: int = 1) -> Run:
    """As a runner does it: so many in flight as the engine says, in order."""

    async def job() -> Run:
        pace = Pace(concurrency=concurrency)
        dispatcher = Dispatcher("http://e/v1", endpoint.ask, endpoint.ask, "m", pace, random.Random(seed))
        loop, found = asyncio.get_running_loop(), Run()
        left, in_flight = list(enumerate(prompts)), set[asyncio.Task[None]]()

        async def one(order: int, prompt: str) -> None:
            body = json.dumps({"messages": [{"role": "user", "content": prompt}]}).encode()
            prepared = HttpPrepared(body=body, body_without_limit=None, wanted=ExpectedAnswer())
            found.outcomes[prompt] = await dispatcher.outcome(order, prepared)
            found.ended_at[prompt] = loop.time()

        while left or in_flight:
            while left and len(in_flight) < in_flight_for(concurrency) + dispatcher.num_paused:
                in_flight.add(loop.create_task(one(*left.pop(0))))
            _, in_flight = await asyncio.wait(in_flight, timeout=0.5, return_when=asyncio.FIRST_COMPLETED)
            if dispatcher.down_since is not None and loop.time() - dispatcher.down_since > 2:
                found.down_at.append(int(loop.time()))
        dispatcher.close()
        return found

    return run_virtually(job())


def poisoned(answer: Said | NoAnswer = BAD) -> Answers:
    return lambda prompt, now: answer if "poison" in prompt else GOOD


def numbered(num: int, name: str = "g") -> list[str]:
    return [f"{name}{n}" for n in range(num)]


@pytest.mark.parametrize(
    "answer", [BAD, BROKEN, Said(503, {}, b"no"), Said(200, {"Content-Type": "text/html"}, b"<p>")]
)
def test_one_bad_request_among_good_ones_fails_after_three_tries(answer: Said | NoAnswer) -> None:
    endpoint = Endpoint(poisoned(answer))
    prompts = numbered(40)
    prompts.insert(5, "poison")
    done = serve(endpoint, prompts)
    assert done.failed() == {"poison"}
    assert "(3 attempts)" in done.failure("poison").message
    assert endpoint.tries["poison"] == 3
    assert all(endpoint.tries[prompt] == 1 for prompt in numbered(40))
    first, second, third = endpoint.at["poison"]
    assert third - second > second - first > 0.4
    assert done.down_at == []


def test_a_bad_request_that_is_alone_is_told_by_probes() -> None:
    endpoint = Endpoint(poisoned(), takes_s=0.1)
    done = serve(endpoint, ["poison"])
    assert done.failed() == {"poison"}
    assert endpoint.tries["poison"] <= 5
    assert endpoint.tries[PROBE] <= 25
    assert done.ended_at["poison"] < 30


def test_a_batch_behind_a_bad_request_is_not_held_up_even_with_one_slot() -> None:
    endpoint = Endpoint(poisoned())
    done = serve(endpoint, ["poison", *numbered(20)], concurrency=1)
    assert done.failed() == {"poison"}
    assert max(done.ended_at[prompt] for prompt in numbered(20)) <= 20 + 3  # their own 20 s, and the poison's tries


@pytest.mark.parametrize("kind", [BAD, BROKEN, REFUSED])
@pytest.mark.parametrize("concurrency", [1, 4, 32])
def test_an_endpoint_with_half_of_its_replicas_restarting_fails_no_request(
    kind: Said | NoAnswer, concurrency: int
) -> None:
    for seed in range(32 // concurrency // 4 + 1):
        rng = random.Random(seed)
        endpoint = Endpoint(lambda _, now, rng=rng: kind if 30 <= now < 90 and rng.random() < 0.5 else GOOD)
        done = serve(endpoint, numbered(100 * concurrency), concurrency=concurrency, seed=seed)
        assert done.failed() == set()
        assert max(done.ended_at.values()) < 100 + 2 * 60  # 100 s of work, and 60 s at no less than half of the rate


@pytest.mark.parametrize("share", [0.1, 0.3, 0.9])
def test_an_endpoint_that_stays_ill_fails_no_request(share: float) -> None:
    rng = random.Random(7)
    endpoint = Endpoint(lambda *_: BAD if rng.random() < share else GOOD, takes_s=4)
    done = serve(endpoint, numbered(400), concurrency=8)
    assert len(done.failed()) <= (0 if share < 0.5 else 1)


@pytest.mark.parametrize("kind", [BAD, BROKEN, REFUSED, LIMITED, Said(401, {}, b"{}")])
def test_an_outage_of_an_hour_fails_no_request_and_is_not_hammered(kind: Said | NoAnswer) -> None:
    endpoint = Endpoint(lambda _, now: kind if 20 <= now < 3_620 else GOOD)
    done = serve(endpoint, numbered(1_000), concurrency=16)
    assert done.failed() == set()
    during = sum(20 <= at < 3_620 for times in endpoint.at.values() for at in times)
    assert during < 16 + 300  # one in each 30 s at most, once it is known to be down
    assert {30, 1_800, 3_600} <= set(done.down_at)
    assert max(done.ended_at.values()) < 3_620 + 31 + 1_000 / 16 + 60  # it is noticed, and the rest runs at once


@pytest.mark.parametrize("says_when", [True, False])
def test_an_endpoint_limited_to_60_requests_a_minute_fails_none(says_when: bool) -> None:
    passed: Counter[int] = Counter()

    def answers(prompt: str, now: float) -> Said:
        passed[int(now // 60)] += 1
        if passed[int(now // 60)] <= 60:
            return GOOD
        return Said(429, {"Retry-After": str(60 - int(now) % 60)}, b"") if says_when else LIMITED

    endpoint = Endpoint(answers)
    done = serve(endpoint, numbered(300), concurrency=32)
    assert done.failed() == set()
    assert max(done.ended_at.values()) < 5 * 60 + 60
    assert sum(endpoint.tries.values()) < 2 * 300


def test_an_endpoint_that_takes_one_request_a_second_is_not_kept_at_its_limit_by_retries() -> None:
    last = [-1.0]

    def answers(prompt: str, now: float) -> Said:
        if now - last[0] < 1:
            return LIMITED
        last[0] = now
        return GOOD

    endpoint = Endpoint(answers, takes_s=0.5)
    done = serve(endpoint, numbered(600), concurrency=32)
    assert done.failed() == set()
    assert max(done.ended_at.values()) < 2 * 600
    assert sum(endpoint.tries.values()) < 10 * 600


def test_an_endpoint_that_is_too_busy_for_many_at_once_fails_none_and_gets_fewer() -> None:
    at_once: list[int] = []

    def answers(prompt: str, now: float) -> Said:
        at_once.append(endpoint.now)
        return GOOD if endpoint.now <= 4 else LIMITED

    endpoint = Endpoint(answers)
    done = serve(endpoint, numbered(500), concurrency=32)
    assert done.failed() == set()
    late = at_once[len(at_once) // 2 :]
    assert sum(late) / len(late) < 8
    assert max(done.ended_at.values()) < 500 / 4 * 2


def test_an_endpoint_that_sheds_load_with_503_fails_none() -> None:
    endpoint = Endpoint(lambda *_: GOOD if endpoint.now <= 4 else BAD)
    done = serve(endpoint, numbered(500), concurrency=32)
    assert done.failed() == set()


@pytest.mark.parametrize("poisons", [["poison"], ["poison 1", "poison 2"]])
def test_a_request_that_alone_meets_429_fails_after_ten_minutes(poisons: list[str]) -> None:
    endpoint = Endpoint(poisoned(LIMITED))
    prompts = numbered(3_000)
    prompts[5:5] = poisons
    done = serve(endpoint, prompts)
    assert done.failed() == set(poisons)
    for poison in poisons:
        assert 600 <= done.ended_at[poison] < 700
        assert done.failure(poison).type == "rate_limit_error"
        assert "Rate limit reached" in done.failure(poison).message
    assert max(done.ended_at[prompt] for prompt in numbered(3_000)) < 3_000 / 4 * 1.1
    assert done.down_at == []


def test_a_request_that_alone_is_left_and_meets_429_fails_after_ten_minutes() -> None:
    endpoint = Endpoint(poisoned(LIMITED))
    done = serve(endpoint, ["poison"])
    assert done.failed() == {"poison"}
    assert 600 <= done.ended_at["poison"] < 700


@pytest.mark.parametrize("answer", [BAD, LIMITED])
def test_a_hundred_bad_requests_do_not_hold_up_the_batch_behind_them(answer: Said) -> None:
    endpoint = Endpoint(poisoned(answer))
    done = serve(endpoint, [*numbered(100, "poison"), *numbered(100)])
    assert done.failed() == set(numbered(100, "poison"))
    # 25 s of work; each eight bad ones in a row cost a probe, and 429 lowers the concurrency.
    assert max(done.ended_at[prompt] for prompt in numbered(100)) < (60 if answer is BAD else 180)
    assert max(done.ended_at.values()) < (300 if answer is BAD else 900)
    assert done.down_at == []


def test_a_tenth_of_bad_requests_fails_and_no_other() -> None:
    endpoint = Endpoint(poisoned())
    prompts = [f"poison {n}" if n % 10 == 0 else f"g{n}" for n in range(1_000)]
    done = serve(endpoint, prompts, concurrency=16)
    assert done.failed() == {prompt for prompt in prompts if "poison" in prompt}
    assert max(done.ended_at.values()) < 1_000 / 16 + 60


def test_a_file_of_bad_requests_alone_ends() -> None:
    endpoint = Endpoint(poisoned(), takes_s=0.1)
    done = serve(endpoint, numbered(200, "poison"))
    assert done.failed() == set(numbered(200, "poison"))
    assert max(done.ended_at.values()) < 1_800


def test_a_good_request_behind_bad_ones_is_served_while_the_endpoint_comes_and_goes() -> None:
    rng = random.Random(3)

    def answers(prompt: str, now: float) -> Said:
        return BAD if "poison" in prompt or (int(now) // 30 % 2 and rng.random() < 0.8) else GOOD

    prompts = [f"poison {n}" if n % 20 == 0 else f"g{n}" for n in range(600)]
    done = serve(Endpoint(answers), prompts, concurrency=8)
    assert done.failed() == {prompt for prompt in prompts if "poison" in prompt}


def test_a_bad_request_waits_where_the_probes_meet_429_and_asks_no_end_of_them() -> None:
    endpoint = Endpoint(
        lambda prompt, now: GOOD if now > 600 and prompt == PROBE else LIMITED if prompt == PROBE else BAD
    )
    done = serve(endpoint, ["poison"])
    assert done.failed() == {"poison"}
    assert done.ended_at["poison"] > 600
    assert endpoint.tries[PROBE] < 300


def test_a_slow_answer_of_the_probes_is_waited_for() -> None:
    """A loaded endpoint is as slow with one token as with many."""
    endpoint = Endpoint(poisoned(), takes_s=120)
    done = serve(endpoint, ["poison", *numbered(8)])
    assert done.failed() == {"poison"}
    assert isinstance(done.outcomes["g0"], Completion)
