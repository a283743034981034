"""Parts of a turn other than text, in all formats: text that they contain, and references to media."""

import json
from base64 import b64encode
from typing import Any

import pytest

from batchfile.errors import InvalidRequest
from batchfile.request_media import Media
from batchfile.types import Defaults, Message, Request
from tests.helpers.lines import parse_request

TEXT = {"type": "text", "text": "What is it?"}
PNG = "data:image/png;base64,iVBORw0KGgo="


def openai(*parts: Any, role: str = "user") -> Request:
    turns = [{"role": role, "content": list(parts)}] + ([] if role == "user" else [{"role": "user", "content": "x"}])
    body = {"model": "m", "messages": turns}
    line = {"custom_id": "a", "method": "POST", "url": "/v1/chat/completions", "body": body}
    return parse_request(json.dumps(line).encode(), Defaults())


def native(*parts: Any, role: str = "user") -> Request:
    turns = [{"role": "user", "content": "x"}, {"role": role, "content": list(parts)}]
    line = {"custom_id": "a", "params": {"messages": turns if role != "user" else turns[1:], "max_tokens": 5}}
    return parse_request(json.dumps(line).encode(), Defaults())


def image(source: str, **more: Any) -> Media:
    return Media(kind="image", source=source, **more)


@pytest.mark.parametrize(
    ("part", "media"),
    [
        ({"type": "image_url", "image_url": {"url": PNG}}, image(PNG, mime="image/png")),
        (
            {"type": "image_url", "image_url": {"url": "https://x/a.png", "detail": "low"}},
            image("https://x/a.png", detail="low"),
        ),
        ({"type": "image_url", "image_url": "s3://b/a.png"}, image("s3://b/a.png")),
        ({"type": "input_image", "image_url": "photos/a.png"}, image("photos/a.png")),
        (
            {"type": "input_audio", "input_audio": {"data": "AAAA", "format": "wav"}},
            Media(kind="audio", source="data:audio/wav;base64,AAAA", mime="audio/wav"),
        ),
        ({"type": "audio_url", "audio_url": {"url": "a.wav"}}, Media(kind="audio", source="a.wav")),
        ({"type": "input_file", "file_url": "https://x/a.txt"}, Media(kind="document", source="https://x/a.txt")),
    ],
)
def test_openai_parts_refer_to_media_in_their_order(part: Any, media: Media) -> None:
    [turn] = openai(TEXT, part, {"type": "input_text", "text": "Tell me."}).messages
    assert turn == Message("user", "What is it?\n\nTell me.", parts=("What is it?", media, "Tell me."))


@pytest.mark.parametrize(
    ("source", "media"),
    [
        ({"type": "base64", "media_type": "image/png", "data": "iVBORw0KGgo="}, image(PNG, mime="image/png")),
        ({"type": "url", "url": "https://x/a.png"}, image("https://x/a.png")),
        ({"type": "path", "path": "photos/a.png"}, image("photos/a.png")),
    ],
)
def test_native_images_refer_to_media(source: Any, media: Media) -> None:
    [turn] = native({"type": "image", "source": source, "cache_control": {"type": "ephemeral"}}, TEXT).messages
    assert turn == Message("user", "What is it?", parts=(media, "What is it?"))


@pytest.mark.parametrize(
    ("source", "text"),
    [
        ({"type": "text", "media_type": "text/plain", "data": "plain words"}, "plain words"),
        ({"type": "content", "content": "plain words"}, "plain words"),
        ({"type": "content", "content": [{"type": "text", "text": "plain words"}]}, "plain words"),
        ({"type": "base64", "media_type": "text/plain", "data": b64encode(b"plain words").decode()}, "plain words"),
    ],
)
def test_documents_of_text_are_text(source: Any, text: str) -> None:
    document = {"type": "document", "source": source, "title": "T", "citations": {"enabled": True}}
    assert native(document, TEXT).messages == (Message("user", f"T\n\n{text}\n\nWhat is it?"),)


def test_a_file_of_text_and_input_text_are_text_in_any_turn() -> None:
    data = b64encode(b"hello").decode()
    assert (
        openai({"type": "file", "file": {"file_data": data, "filename": "a.txt"}}).messages[0].content
        == "a.txt\n\nhello"
    )
    assert openai({"type": "input_text", "text": "be kind"}, role="system").messages[0].content == "be kind"


def test_adjacent_turns_keep_their_media_in_order() -> None:
    turns = [
        {"role": "user", "content": "one"},
        {"role": "user", "content": [{"type": "image_url", "image_url": "a.png"}]},
        {"role": "user", "content": "two"},
    ]
    line = {"custom_id": "a", "method": "POST", "url": "/v1/chat/completions", "body": {"messages": turns}}
    [turn] = parse_request(json.dumps(line).encode(), Defaults()).messages
    assert (turn.content, turn.parts) == ("one\n\ntwo", ("one", image("a.png"), "two"))


@pytest.mark.parametrize(
    ("part", "message"),
    [
        (
            {"type": "image_url", "image_url": {"url": "file:///etc/passwd"}},
            '"file:///etc/passwd" cannot be read; use a data:',
        ),
        ({"type": "image_url", "image_url": {"url": "data:image/png,abc"}}, "must be a data URL in base64"),
        ({"type": "image_url", "image_url": {"detail": "low"}}, r"image_url.url: is missing"),
        ({"type": "video_url", "video_url": {"url": "x"}}, 'blocks of type "video_url" are not supported'),
        ({"type": "input_file", "file_id": "file-1"}, "files are not referred to by ID"),
        ({"type": "file", "file": {"file_data": "data:application/pdf;base64,AAAA"}}, "application/pdf cannot be read"),
        ({"type": "file", "file": {"file_data": "/w=="}}, "is not text in UTF-8"),
    ],
)
def test_a_part_that_cannot_be_served_is_rejected_by_name(part: Any, message: str) -> None:
    with pytest.raises(InvalidRequest, match=message):
        openai(part)


@pytest.mark.parametrize(
    ("block", "message"),
    [
        (
            {"type": "document", "source": {"type": "base64", "media_type": "application/pdf", "data": "AA"}},
            "application/pdf cannot be read",
        ),
        ({"type": "image", "source": {"type": "file", "file_id": "x"}}, "files are not referred to by ID"),
        ({"type": "image", "source": {"type": "path", "path": "https://x/a.png"}}, "is not a path relative"),
        ({"type": "tool_use", "id": "t", "name": "n", "input": {}, "x": 1}, "x"),
    ],
)
def test_a_block_that_cannot_be_served_is_rejected_by_name(block: Any, message: str) -> None:
    with pytest.raises(InvalidRequest, match=message):
        native(block)


@pytest.mark.parametrize(
    "url",
    [PNG.replace("data", "DATA").replace("base64", "Base64"), f"{PNG[:26]}\r\n{PNG[26:]}\n", PNG.replace(";", "; ")],
)
def test_a_data_url_may_have_line_breaks_and_capitals(url: str) -> None:
    [turn] = openai({"type": "image_url", "image_url": url}).messages
    [part] = turn.parts
    assert isinstance(part, Media)
    assert (part.source.replace("Base64", "base64"), part.mime) == (PNG, "image/png")


def test_media_belong_in_a_user_turn() -> None:
    part = {"type": "image_url", "image_url": "a.png"}
    with pytest.raises(InvalidRequest, match=r"content\[0\]: image_url belongs in a user turn"):
        openai(part, role="assistant")
    with pytest.raises(InvalidRequest, match="image belongs in a user turn"):
        native({"type": "image", "source": {"type": "url", "url": "https://x/a"}}, role="assistant")
