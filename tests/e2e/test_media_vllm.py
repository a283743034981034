"""Images on real vLLM: a tiny vision model of random weights, whose chat template takes only lists of parts."""

import io
import json
import subprocess
import sys
from base64 import b64encode
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from PIL import Image

import batchfile
from batchfile.errors import InvalidRequest
from batchfile.types import Completion, Message, Request, Sampling
from tests.helpers.engine import engine_factory
from tests.helpers.lines import Media
from tests.media_kit import media_server, png, wav

pytestmark = [pytest.mark.vllm, pytest.mark.filterwarnings("ignore")]

ROOT = Path(__file__).parents[2]
IMAGE_TOKENS = 4  # for each image, besides its two markers and one of the whole image


@pytest.fixture(scope="module")
def model(model_dir: Path) -> str:
    made = subprocess.run([sys.executable, "deploy/tiny_vision.py"], cwd=ROOT, capture_output=True, text=True)
    assert made.returncode == 0, made.stderr
    return made.stdout.strip()


@pytest.fixture(scope="module")
def engine(model: str) -> Iterator[Any]:
    exact = {"dtype": "float32"}  # in which an answer does not depend on the requests that are computed with it
    built = engine_factory("vllm", model=model, max_model_len=512, max_num_seqs=8, engine_args=exact)()
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


def chat(number: int, *parts: Any) -> dict[str, Any]:
    turn = {"role": "user", "content": [{"type": "text", "text": "What is it?"}, *parts]}
    body = {"messages": [turn], "max_tokens": 4, "temperature": 0}
    return {"custom_id": f"r{number}", "method": "POST", "url": "/v1/chat/completions", "body": body}


def image(url: str) -> dict[str, Any]:
    return {"type": "image_url", "image_url": {"url": url}}


class Kept:
    """The engine of this file, which a run leaves open: to start another one takes long."""

    def __init__(self, engine: Any) -> None:
        self._engine = engine

    def __getattr__(self, name: str) -> Any:
        return getattr(self._engine, name)

    def close(self) -> None:
        pass


def test_images_of_every_source_in_a_run_and_those_that_cannot_be_read_fail_alone(
    engine: Any, model: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr("batchfile.engine.vllm.engine.VllmEngine", lambda options: Kept(engine))
    (tmp_path / "photos").mkdir()
    picture = png(64, 48)
    odd = {"pixel": png(1, 1), "thin": png(1, 900), "cut": picture[:60], "page": b"<html>"}
    for name, data in {"a": picture, **odd}.items():
        (tmp_path / "photos" / f"{name}.png").write_bytes(data)
    animated = io.BytesIO()
    Image.new("P", (64, 48)).save(animated, "GIF", save_all=True, append_images=[Image.new("P", (64, 48), 9)])
    (tmp_path / "photos" / "a.gif").write_bytes(animated.getvalue())
    with media_server({"/a.png": picture}) as server:
        data = b64encode(picture).decode()
        audio = {"type": "input_audio", "input_audio": {"data": b64encode(wav()).decode(), "format": "wav"}}
        lines = [
            chat(0),
            *map(
                chat, range(1, 4), map(image, (f"data:image/png;base64,{data}", "photos/a.png", f"{server.url}/a.png"))
            ),
            chat(4, image("photos/a.gif"), image("photos/a.png")),
            *(chat(n, image(f"photos/{name}.png")) for n, name in enumerate([*odd, "none"], 5)),
            chat(10, audio),
        ]
        (tmp_path / "in.jsonl").write_text("\n".join(map(json.dumps, lines)))
        receipt = batchfile.run(tmp_path / "in.jsonl", tmp_path / "out.jsonl", model=model)
    assert receipt.counts.errored >= 4
    assert "Traceback" not in capfd.readouterr().err
    results = [json.loads(row)["response"] for row in (tmp_path / "out.jsonl").read_text().splitlines()]
    answers = {n: result["body"] for n, result in enumerate(results) if result["status_code"] == 200}
    assert answers.keys() >= {0, 1, 2, 3, 4}
    assert [answers[n]["choices"][0]["message"]["content"] for n in (2, 3)] == [
        answers[1]["choices"][0]["message"]["content"]
    ] * 2
    prompt_tokens = [answers[n]["usage"]["prompt_tokens"] for n in range(5)]
    assert len(set(prompt_tokens[1:4])) == 1
    assert prompt_tokens[4] - prompt_tokens[0] == 2 * (prompt_tokens[1] - prompt_tokens[0]) > 0
    said = {n: result["body"]["error"]["message"] for n, result in enumerate(results) if n not in answers}
    reasons = {7: "is a damaged image", 8: "is not an image", 9: "no such file", 10: "does not take audio"}
    assert {n: reason for n, reason in reasons.items() if reason not in said[n]} == {}
    for n in said.keys() & {5, 6}:  # the model's processor may not take one of them
        assert "The model cannot read" in said[n]
