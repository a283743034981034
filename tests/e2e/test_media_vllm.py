"""Images on real vLLM: a tiny vision model of random weights, whose chat template takes only lists of parts."""

import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from PIL import Image

from batchfile.errors import InvalidRequest
from batchfile.types import Completion, Message, Request, Sampling
from tests.helpers.engine import engine_factory
from tests.helpers.lines import Media

pytestmark = [pytest.mark.vllm, pytest.mark.filterwarnings("ignore")]

ROOT = Path(__file__).parents[2]
IMAGE_TOKENS = 4  # for each image, besides its two markers and one of the whole image


@pytest.fixture(scope="module")
def engine(model_dir: Path) -> Iterator[Any]:
    made = subprocess.run([sys.executable, "deploy/tiny_vision.py"], cwd=ROOT, capture_output=True, text=True)
    assert made.returncode == 0, made.stderr
    built = engine_factory("vllm", model=made.stdout.strip(), max_model_len=512, max_num_seqs=8)()
    yield built
    built.close()


def picture(color: tuple[int, int, int]) -> Media:
    return Media(kind="image", source="a.png", decoded=Image.new("RGB", (64, 64), color))


def request(*parts: str | Media, max_tokens: int = 4) -> Request:
    text = "\n\n".join(part for part in parts if isinstance(part, str))
    turn = Message("user", text, parts=parts if len(parts) > 1 else ())
    return Request(custom_id="r", messages=(turn,), sampling=Sampling(max_tokens=max_tokens, temperature=0.0))


def run(engine: Any, *requests: Request) -> list[Completion]:
    for key, one in enumerate(requests):
        engine.add(key, engine.prepare(one))
    done: dict[int, Any] = {}
    while len(done) < len(requests):
        done |= {finished.key: finished.outcome for finished in engine.step()}
    found = [done[key] for key in range(len(requests))]
    assert all(isinstance(one, Completion) for one in found), found
    return found


def test_the_model_reads_images_next_to_text_and_one_it_cannot_fit_fails_alone(engine: Any) -> None:
    assert engine.info.media.kinds == {"image"}
    red, blue = picture((255, 0, 0)), picture((0, 0, 255))
    text, one, two, other = run(
        engine,
        request("What is it?"),
        request("What is it?", red),
        request(red, "What is it?", blue),
        request("?", blue),
    )
    num_image = one.usage.input_tokens - text.usage.input_tokens
    assert num_image >= IMAGE_TOKENS
    assert two.usage.input_tokens == text.usage.input_tokens + 2 * num_image
    assert other.usage.output_tokens > 0
    again = run(engine, request("What is it?", red), request("What is it?"))
    assert [outcome.choices for outcome in again] == [one.choices, text.choices]
    with pytest.raises(InvalidRequest, match="max_model_len"):
        engine.prepare(request(*[red] * 90, "What is it?"))


def test_an_image_is_part_of_what_the_model_sees(engine: Any) -> None:
    """Greedy answers to one prompt differ for some pictures, and their prepared inputs for all."""
    colors = [(255, 0, 0), (0, 255, 0), (0, 0, 255), (9, 9, 9)]
    prepared = [engine.prepare(request("What is it?", picture(color))) for color in colors]
    hashes = {str(one.with_media["mm_hashes"]) for one in prepared}
    assert len(hashes) == len(colors)
    assert len({tuple(one.prompts[0]) for one in prepared}) == 1
    assert all(one.media_bytes == 64 * 64 * 3 for one in prepared)
