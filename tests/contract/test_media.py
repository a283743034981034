"""Requests with media through a runner: an object is fetched once, a bad one fails its line, and digests come back."""

import json
from collections.abc import Callable
from hashlib import sha256
from pathlib import Path
from typing import Any

from batchfile import Ledger, Runner, RunnerOptions
from batchfile.engine.base import Engine
from batchfile.testing import EchoEngine, EchoFaults, FaultyEchoEngine, MemoryStore
from batchfile.types import Defaults, RoutingTable
from tests.contract.engine_http_kit import options as http_options
from tests.contract.engine_http_kit import server
from tests.helpers.endpoint import HttpEngine
from tests.helpers.fleet import media_rules
from tests.helpers.ledger import batches, input_key
from tests.helpers.lines import MediaRules, OwnBucket
from tests.helpers.plan import plan_input
from tests.helpers.settings import MediaAccess, Settings
from tests.helpers.store_s3 import S3Store
from tests.media_kit import media_server, png, wav

__all__ = ["server"]

LOCAL = RoutingTable(everything="local")
ANYWHERE = MediaRules(allow=None)


def line(number: int, *parts: Any) -> dict[str, Any]:
    turn = {"role": "user", "content": list(parts)}
    return {
        "custom_id": f"r{number}",
        "method": "POST",
        "url": "/v1/chat/completions",
        "body": {"messages": [turn], "max_tokens": 20},
    }


def image(url: str) -> dict[str, Any]:
    return {"type": "image_url", "image_url": {"url": url}}


def results(
    lines: list[Any], rules: MediaRules = ANYWHERE, engine: Callable[[], Engine] = EchoEngine
) -> list[dict[str, Any]]:
    ledger = Ledger(store=MemoryStore())
    ledger.store.put(input_key("b", "n"), "\n".join(map(json.dumps, lines)).encode())
    planned = plan_input(ledger, "b", input_key("b", "n"), routing=LOCAL)
    batches.create(ledger, batches.Draft(batch_id="b", routing=LOCAL, defaults=Defaults()), planned)
    options = RunnerOptions(runner_id="r", pool="local", only="b", is_janitor=False, media_rules=lambda _: rules)
    batch = Runner(ledger, engine, options).run()
    assert batch is not None
    assert batch.results is not None
    return [json.loads(row) for row in b"".join(ledger.store.stream(batch.results.key)).splitlines()]


def said(result: dict[str, Any]) -> str:
    return str(result["message"]["content"][0]["text"])


def test_one_image_of_a_thousand_requests_is_fetched_once_and_text_runs_next_to_it() -> None:
    with media_server(delay_s=0.05) as server:
        lines = [line(n, {"type": "text", "text": "see"}, image(f"{server.url}/a.png")) for n in range(1000)]
        found = results([*lines, line(1000, {"type": "text", "text": "only text"})])
        assert server.asked == {"/a.png": 1}
    assert {said(result) for result in found[:-1]} == {"see\n\n[image 4x3]"}
    assert found[0]["media"] == [{"type": "image", "sha256": sha256(png()).hexdigest()}]
    assert said(found[-1]) == "only text"
    assert "media" not in found[-1]


def test_each_bad_object_fails_its_own_line(tmp_path: Path) -> None:
    (tmp_path / "p").mkdir()
    for name in ("a.png", "p/a:b.png"):
        (tmp_path / name).write_bytes(png())
    faults = ["short", "inside", "bomb", "page", "long"]
    with media_server() as server:
        bad = [line(n, image(f"{server.url}/fault/{fault}")) for n, fault in enumerate(faults)]
        bad.append(line(10, image("../a.png")))
        bad.append(line(11, image("data:image/png;base64,iVBORw0KGgo=")))
        good = [line(n, image(f"{server.url}/a.png"), image("a.png"), image("p/a:b.png")) for n in range(20, 30)]
        found = results([*bad, *good], MediaRules(folder=tmp_path, allow=None))
    assert [result["status"] for result in found] == ["errored"] * len(bad) + ["succeeded"] * len(good)
    messages = [result["error"]["message"] for result in found[: len(bad)]]
    for message, reason in zip(
        messages,
        ["early", "private", "pixels", "not an image", "too large", "not below", "not an image"],
        strict=True,
    ):
        assert reason in message
    assert [result["error"]["type"] for result in found[:2]] == ["media_unavailable", "invalid_request_error"]


def test_a_document_by_path_is_text_and_audio_has_its_length(tmp_path: Path) -> None:
    (tmp_path / "a.txt").write_text("some words")
    (tmp_path / "a.wav").write_bytes(wav(seconds=0.5))
    document = {"type": "document", "title": "T", "source": {"type": "path", "path": "a.txt"}}
    native = {"custom_id": "n", "params": {"messages": [{"role": "user", "content": [document]}], "max_tokens": 20}}
    audio = line(1, {"type": "audio_url", "audio_url": {"url": "a.wav"}})
    rules = MediaRules(folder=tmp_path, allow=None)
    found = results([native], rules) + results([audio], rules)
    assert [said(result) for result in found] == ["T\n\nsome words", "[audio 0.5s]"]
    assert [result["media"][0]["type"] for result in found] == ["document", "audio"]


def test_a_request_that_kills_the_engine_is_found_among_those_with_images() -> None:
    with media_server() as server:
        lines = [line(n, {"type": "text", "text": f"see {n}"}, image(f"{server.url}/a.png")) for n in range(12)]
        lines[5] = line(5, {"type": "text", "text": "POISON"}, image(f"{server.url}/a.png"))
        found = results(lines, engine=lambda: FaultyEchoEngine(faults=EchoFaults(poison="POISON")))
    assert [result["status"] for result in found].count("errored") == 1
    assert found[5]["status"] == "errored"


def test_an_endpoint_gets_urls_as_sent_and_other_media_as_data(server: Any, tmp_path: Path) -> None:
    (tmp_path / "a.png").write_bytes(png())
    (tmp_path / "a.wav").write_bytes(wav())
    (tmp_path / "a.mp3").write_bytes(b"ID3")
    far = {"type": "image_url", "image_url": {"url": "https://images.example/a.png", "detail": "low"}}
    answer = {"message": {"role": "assistant", "content": "a cat"}, "finish_reason": "stop"}
    server.always = {"text": json.dumps({"choices": [answer]}), "content_type": "application/json"}
    parts = [{"type": "text", "text": "see"}, far, image("a.png"), {"type": "audio_url", "audio_url": "a.wav"}]
    parts.append({"type": "audio_url", "audio_url": "a.mp3"})
    [found] = results(
        [line(0, *parts)],
        MediaRules(folder=tmp_path, allow=None),
        lambda: HttpEngine(http_options(server.url)),
    )
    assert found["status"] == "succeeded"
    text, sent, near, audio, song = server.seen[0]["body"]["messages"][0]["content"]
    assert (text, sent) == (parts[0], far)
    assert near["image_url"]["url"].startswith("data:image/png;base64,iVBORw0KGgo")
    assert (audio["type"], audio["input_audio"]["format"]) == ("input_audio", "wav")
    assert song["input_audio"]["format"] == "mp3", "as OpenAI names it, not mpeg"
    assert [one["sha256"] for one in found["media"]] == [
        None,
        sha256(png()).hexdigest(),
        sha256(wav()).hexdigest(),
        sha256(b"ID3").hexdigest(),
    ]


def test_objects_in_a_bucket_are_read_where_the_settings_list_them(moto: S3Store, moto_url: str) -> None:
    bucket, query = moto.url.removeprefix("s3://").partition("/")[0].partition("?")[0], f"endpoint={moto_url}"
    root = S3Store(bucket, endpoint_url=moto_url)
    root.put("state/inbox/acme/a.png", png())
    root.put("state/batches/secret.png", png())
    rules = MediaRules(
        tenant="acme",
        allow=(f"s3://{bucket}/",),
        own_bucket=OwnBucket(name=bucket, inbox="state/inbox/acme/", query=query),
    )
    names = ["state/inbox/acme/a.png", "state/inbox/acme/none.png", "state/batches/secret.png"]
    found = results([line(n, image(f"s3://{bucket}/{name}")) for n, name in enumerate(names)], rules)
    root.close()
    assert [result["status"] for result in found] == ["succeeded", "errored", "errored"]
    assert said(found[0]) == "[image 4x3]"
    assert found[1]["error"]["message"] == f'"s3://{bucket}/{names[1]}": there is no such object'
    assert "does not read from that place" in found[2]["error"]["message"]


def test_a_service_reads_only_what_the_tenants_settings_list() -> None:
    class Of:
        tenant = "acme"

    access = MediaAccess(allow=("127.0.0.1:1",), allow_private=True, pixels_max=9)
    settings = Settings.model_construct(media={"acme": access})
    batch: Any = Of()
    rules = media_rules(settings, "s3://own/state?endpoint=http://s3.example", batch)
    assert (rules.allow, rules.allow_private, rules.limits.pixels) == (("127.0.0.1:1",), True, 9)
    assert rules.own_bucket is not None
    assert (rules.own_bucket.name, rules.own_bucket.inbox) == ("own", "state/inbox/acme/")
    assert rules.own_bucket.query == "endpoint=http://s3.example"
    Of.tenant = "other"
    other = media_rules(settings, "./store", batch)
    found = results([line(0, image("https://images.example/a.png")), line(1, image("a.png"))], other)
    assert ["media.other.allow" in found[0]["error"]["message"], "batchfile run" in found[1]["error"]["message"]] == [
        True,
        True,
    ]
