"""A hash covers everything that can change the answer to a request, and nothing that only names it."""

import json
from typing import Any, get_args

import pytest
from hypothesis import given
from hypothesis import strategies as st

from batchfile.lines.formats import media
from batchfile.plan.request_hash import NAMES_MEDIA, RequestHasher
from batchfile.types import Defaults
from tests.helpers.lines import decode_envelope

CHAT = "/v1/chat/completions"


def native(custom_id: str = "a", metadata: object = None, **params: object) -> bytes:
    params = {"messages": [{"role": "user", "content": "hi"}], **params}
    return json.dumps({"custom_id": custom_id, "params": params, "metadata": metadata}).encode()


def openai(custom_id: str = "a", url: str = CHAT, **body: object) -> bytes:
    body = {"messages": [{"role": "user", "content": "hi"}], **body}
    return json.dumps({"custom_id": custom_id, "method": "POST", "url": url, "body": body}).encode()


def hashed(line: bytes, pool: str = "p", stage: str | None = None, **defaults: Any) -> bytes | None:
    return RequestHasher(Defaults(**defaults), stage).of(decode_envelope(line), pool)


def test_ids_and_metadata_are_not_covered() -> None:
    assert hashed(native("a", {"row": 1})) == hashed(native("b", {"row": 2}))
    assert hashed(openai("a", metadata={"row": "1"})) == hashed(openai("b", metadata={"row": "2"}))


def test_everything_else_is_covered() -> None:
    base = native()
    schema = {"properties": {"a": {}, "b": {}}}
    other_order = {"properties": {"b": {}, "a": {}}}
    different = [
        hashed(base),
        hashed(base, pool="q"),
        hashed(base, stage="email"),
        hashed(base, max_tokens=9),
        hashed(base, temperature=0.0),
        hashed(base, model="m"),
        hashed(base, output_schema=schema),
        hashed(base, output_schema=other_order),
        hashed(base, needs_max_tokens=True),
        hashed(base, needs_answer=True),
        hashed(native(temperature=0.0)),
        hashed(native(temperature=0)),
        hashed(native(seed=1)),
        hashed(native(system="s")),
        hashed(native(model="m")),
        hashed(native(messages=[{"role": "user", "content": "hi "}])),
        hashed(openai()),
        hashed(openai(metadata={"row": "1"})),
        hashed(openai(url="/v1/completions")),
        hashed(openai().replace(b"POST", b"GET")),
        hashed(openai(user="u")),
    ]
    assert len(set(different)) == len(different)


def test_defaults_hash_alike_before_and_after_they_were_stored() -> None:
    assert hashed(native(), temperature=1) == hashed(native(), temperature=1.0)


@pytest.mark.parametrize(
    "body",
    [
        b'{"temperature":0,"temperature":1,"metadata":{"a":"1"}}',
        b'{"temperature":0,"metadata":{"a":"\\ud83d"}}',
        b'{"temperature":0,"metadata":{"a":"1"},"metadata":{"a":"2"}}',
    ],
)
def test_a_body_that_will_be_rejected_is_never_equal_to_a_valid_one(body: bytes) -> None:
    valid = [b'{"temperature":0,"metadata":{"a":"1"}}', b'{"temperature":1,"metadata":{"a":"1"}}']
    lines = [
        b'{"custom_id":"a","url":"/v1/chat/completions","method":"POST","body":%b}' % one for one in [*valid, body]
    ]
    assert len({hashed(line) for line in lines}) == 3


MEMBERS = st.dictionaries(
    st.text(st.sampled_from('ab 1\\"\n'), max_size=3),
    st.one_of(st.integers(0, 2), st.text(st.sampled_from('ab 1"{},:\n'), max_size=4)),
    max_size=3,
)


@given(MEMBERS, MEMBERS)
def test_two_bodies_are_equal_only_if_all_but_their_metadata_is(one: dict[str, Any], other: dict[str, Any]) -> None:
    hashes = [hashed(openai(**body, metadata={"x": str(n)})) for n, body in enumerate((one, other))]
    assert (hashes[0] == hashes[1]) == (one == other)


@pytest.mark.parametrize(
    ("line", "defaults", "is_sampled"),
    [
        (native(), {}, True),
        (openai(), {}, True),
        (native(), {"temperature": 0.0}, False),
        (native(temperature=0), {"temperature": 1.0}, False),
        (native(temperature=0.5, seed=1), {}, False),
        (openai(temperature=0), {}, False),
        (openai(temperature=0.0001), {"temperature": 0.0}, True),
        (openai(seed=None, temperature=None), {"temperature": 0.0}, False),
        (native(temperature="0"), {"temperature": 0.0}, True),
        (native().replace(b'"messages"', b'"temperatur\\u0065": 1, "messages"'), {"temperature": 0.0}, True),
        (openai(url="/v1/embeddings"), {}, False),
        (openai(url="https://host/v1/embeddings/"), {}, False),
        *((openai(url=url), {}, False) for url in ("/v1/score", "/rerank", "/v1/classify", "/v1/pooling")),
        (b'{"custom_id": "a", "body": {"input": "hi"}}', {"url": "/v1/score"}, False),
        *((openai(url=url), {}, True) for url in ("/v1/completions", "/v1/responses", "/v1/unknown")),
    ],
)
def test_what_is_sampled(line: bytes, defaults: dict[str, float], is_sampled: bool) -> None:
    assert RequestHasher(Defaults(**defaults), None).is_sampled(decode_envelope(line)) is is_sampled  # type: ignore[arg-type]


IMAGE = "data:image/png;base64,iVBORw0KGgo="


@pytest.mark.parametrize(
    "url", ["https://host/a.png", "s3://bucket/a.png", "a.png", "DATA:image/png;base64,AAAA", IMAGE]
)
@pytest.mark.parametrize("name", ["image", r"im\u0061ge"])
def test_a_request_that_names_bytes_outside_of_it_has_no_hash(url: str, name: str) -> None:
    source = {"type": "url", "url": url} if ":" in url else {"type": "path", "path": url}
    found: list[tuple[Any, dict[str, Any]]] = [
        (native, {"type": "image", "source": source}),
        (openai, {"type": "image_url", "image_url": {"url": url}}),
    ]
    for make, part in found:
        line = make(messages=[{"role": "user", "content": [part]}]).replace(b'"image', f'"{name}'.encode())
        assert (hashed(line) is None) is (url[:5].lower() != "data:")


def test_a_path_is_covered_by_the_bytes_that_are_there() -> None:
    turn = {"role": "user", "content": [{"type": "image", "source": {"type": "path", "path": "a.png"}}]}
    line = decode_envelope(native(messages=[turn]))

    def of(digest: bytes | None) -> bytes | None:
        return RequestHasher(Defaults(), None, lambda source: digest if source == "a.png" else None).of(line, "p")

    assert of(b"1" * 32) == of(b"1" * 32) != of(b"2" * 32)
    assert of(None) is None


def test_requests_with_media_by_url_are_counted() -> None:
    hasher = RequestHasher(Defaults(), None, lambda source: b"1" * 32)
    for url in ("https://host/a.png", "S3://bucket/a.png", "a.png", IMAGE):
        parts = [{"type": "image_url", "image_url": {"url": one}} for one in ("b.png", url)]
        hasher.of(decode_envelope(openai(messages=[{"role": "user", "content": parts}])), "p")
    assert hasher.num_by_url == 2


def test_an_adapter_that_the_metadata_names_is_covered() -> None:
    read = decode_envelope(native(metadata={"model_hint": "x"}))
    hasher = RequestHasher(Defaults(), None)
    assert len({hasher.of(read, "p"), hasher.of(read, "p", "x"), hasher.of(read, "p", "y")}) == 3


def test_a_text_about_images_has_a_hash() -> None:
    content = [{"type": "text", "text": 'An image, {"type": "image"} and a file.'}]
    assert hashed(native(messages=[{"role": "user", "content": content}])) is not None


def test_every_type_of_part_that_may_name_bytes_elsewhere_is_found() -> None:
    parts = [one for one in vars(media).values() if isinstance(one, type) and "read" in vars(one)]
    types = {name for one in parts if "type" in one.__annotations__ for name in get_args(one.__annotations__["type"])}
    assert {"image", "document", "image_url", "input_audio", "input_file"} <= types
    for name in types - {"input_text", "refusal"}:
        assert NAMES_MEDIA.search(b'"type" :\n"%b"' % name.encode()), name
