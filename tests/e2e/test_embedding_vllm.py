"""Embeddings on real vLLM: a tiny model of random weights, loaded to make vectors, and the same one refusing text."""

import base64
import struct
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from msgspec.structs import replace

from batchfile.errors import InvalidRequest
from batchfile.types import Completion, Message, Raw, Request, Sampling
from tests.helpers.engine import engine_factory
from tests.helpers.lines import Options

pytestmark = [pytest.mark.vllm, pytest.mark.filterwarnings("ignore")]

ROOT = Path(__file__).parents[2]
NUM_DIMENSIONS = 128


@pytest.fixture(scope="module")
def engine(model_dir: Path) -> Iterator[Any]:
    made = subprocess.run([sys.executable, "deploy/tiny_llama.py"], cwd=ROOT, capture_output=True, text=True)
    assert made.returncode == 0, made.stderr
    built = engine_factory("vllm", model=made.stdout.strip(), task="embed", max_model_len=256)()
    yield built
    built.close()


def request(*inputs: Any, **more: Any) -> Request:
    raw = Raw(kind="embedding", inputs=inputs, **more)
    return Request(custom_id="r", messages=(), raw=raw, sampling=Sampling(max_tokens=0))


def run(engine: Any, *requests: Request) -> list[Completion]:
    for key, one in enumerate(requests):
        engine.add(key, engine.prepare(one))
    done: dict[int, Any] = {}
    while len(done) < len(requests):
        done |= {finished.key: finished.outcome for finished in engine.step()}
    assert engine.step() == []
    return [done[key] for key in range(len(requests))]


def test_each_input_has_its_vector_in_order(engine: Any) -> None:
    texts = [f"The number {number} is {number * number}." for number in range(40)]
    together, again, *alone = run(engine, request(*texts), request(*texts[::-1]), *map(request, texts[:3]))
    assert (together.kind, together.choices, len(together.vectors)) == ("embedding", (), 40)
    assert all(len(vector) == NUM_DIMENSIONS for vector in together.vectors)
    assert sum(value * value for value in together.vectors[0]) == pytest.approx(1, abs=1e-3)
    assert together.usage.input_tokens > 40
    assert together.usage.output_tokens == 0
    for mine, other in zip(together.vectors, again.vectors[::-1], strict=True):
        assert mine == pytest.approx(other, abs=0.02)
    for mine, one in zip(together.vectors, alone, strict=False):
        assert mine == pytest.approx(one.vectors[0], abs=0.02)
    assert together.vectors[0] != pytest.approx(together.vectors[1], abs=0.02)


def test_token_ids_and_base64(engine: Any) -> None:
    plain, packed = run(engine, request((5, 6, 7)), request((5, 6, 7), is_base64=True))
    assert plain.usage.input_tokens == 3
    numbers = struct.unpack(f"<{NUM_DIMENSIONS}f", base64.b64decode(packed.vectors[0]))
    assert numbers == pytest.approx(plain.vectors[0], abs=0.02)


def test_scores_are_the_cosines_of_the_vectors(engine: Any) -> None:
    texts = ("red", "a red apple", "blue")
    one_with_all = Raw(kind="score", inputs=texts, num_queries=1)
    nearest = Raw(kind="rerank", inputs=("red", "blue", "red", "a red apple"), num_queries=1, top_n=2)
    raws = (replace(request(), raw=raw) for raw in (one_with_all, nearest))
    made = run(engine, request(*texts), *raws)
    vectors, score, ranked = ([list(map(float, vector)) for vector in one.vectors] for one in made)
    cosines = [sum(a * b for a, b in zip(vectors[0], other, strict=True)) for other in vectors[1:]]
    assert [value for (value,) in score] == pytest.approx(cosines, abs=0.02)
    assert ranked[0] == pytest.approx((1, 1), abs=0.02)
    assert len(ranked) == 2


def test_pooling_returns_what_the_model_makes(engine: Any) -> None:
    plain, pooled = run(engine, request("red"), replace(request(), raw=Raw(kind="pooling", inputs=("red",))))
    assert (pooled.kind, pooled.labels) == ("pooling", ())
    assert pooled.vectors[0] == pytest.approx(plain.vectors[0], abs=0.02)


def test_a_long_input_is_cut_where_the_request_says(engine: Any) -> None:
    cut = Options(sent={}, truncate_prompt_tokens=3)
    [made] = run(engine, replace(request("one two three four five six"), options=cut))
    assert made.usage.input_tokens == 3


def test_what_can_not_be_served_is_that_requests_error_alone(engine: Any) -> None:
    with pytest.raises(InvalidRequest, match=r"Input 1 has \d+ tokens, which exceeds .* max_model_len 256"):
        engine.prepare(request("short", "word " * 1000))
    chat = Request(custom_id="r", messages=(Message("user", "Hi"),), sampling=Sampling(max_tokens=4))
    prompt = Request(
        custom_id="r", messages=(), raw=Raw(kind="completion", inputs=("Hi",)), sampling=Sampling(max_tokens=4)
    )
    for one in (chat, prompt):
        with pytest.raises(InvalidRequest, match=r"is not served by the model .*, which serves /v1/embeddings, /v1/sc"):
            engine.prepare(one)
    for one in (request("a", dimensions=8), request("fine", (2**30,)), request("fine", (1,) * 300)):
        with pytest.raises(InvalidRequest):
            engine.add(1, engine.prepare(one))
    [fine] = run(engine, request("Hello"))
    assert len(fine.vectors) == 1


def test_an_aborted_request_of_many_inputs_is_not_returned(engine: Any) -> None:
    engine.add(1, engine.prepare(request(*["some text"] * 20)))
    engine.add(2, engine.prepare(request("other")))
    engine.abort([1])
    done: list[int] = []
    while len(done) < 1:
        done += [finished.key for finished in engine.step()]
    assert done == [2]
    assert engine.step() == []
