"""Converts native result lines to OpenAI's output lines. The same batch always gives the same bytes."""

import re
from collections.abc import Iterable, Iterator
from itertools import accumulate

import msgspec

from batchfile.lines.formats.anthropic import message_of
from batchfile.lines.formats.openai_response_results import details_of, response_of
from batchfile.lines.framing import iter_lines
from batchfile.lines.result import (
    RESULT_BYTES_MAX,
    NativeBlock,
    NativeChoice,
    NativeError,
    NativeMessage,
    NativeResult,
    decode_result,
    escape_separators,
)
from batchfile.types import TokenLogprob

CHUNK_BYTES = 256 * 1024

_FINISH = {
    "end_turn": "stop",
    "stop_sequence": "stop",
    "max_tokens": "length",
    "tool_use": "tool_calls",
    "refusal": "stop",
    "content_filter": "content_filter",
}
# Status codes of errors that did not come from an endpoint; 500 for all others.
_STATUSES = {
    "invalid_request_error": 400,
    "authentication_error": 401,
    "billing_error": 402,
    "permission_error": 403,
    "not_found_error": 404,
    "rate_limit_error": 429,
    "overloaded_error": 503,
    "timeout_error": 504,
}
_CODES = {"canceled": "batch_cancelled", "expired": "batch_expired"}
_INVALID = "invalid_request_error"
_PLACE = re.compile(r"(?:body\.)?(model|(?<=body\.)[^\s:]+): ")  # the key of the body that a message is about

_encoder = msgspec.json.Encoder()
_numbers = msgspec.json.Decoder(tuple[float, float | None])  # null: what a model gave was not finite
_probabilities = msgspec.json.Decoder(list[float | None])
_token = msgspec.json.Decoder(TokenLogprob)


def openai_file(chunks: Iterable[bytes], *, batch_id: str, created: int, is_output: bool | None) -> Iterator[bytes]:
    """Converts native results, in chunks, to OpenAI's output file (successes) or error file (the rest), in chunks.

    `is_output`: None for both in one file, in order. Ids consist of the batch's id and the index of the request.
    `created`: the batch's time in whole seconds since the epoch, so that reading twice gives the same bytes.
    """
    rows: list[bytes] = []
    size = 0
    for number, line in enumerate(iter_lines(chunks, line_bytes_max=RESULT_BYTES_MAX)):
        result = decode_result(line.data or b"")
        if is_output is None or (result.status == "succeeded") == is_output:
            rows.append(_rendered(result, line.data or b"", batch_id, number, created))
            size += len(rows[-1])
        if size >= CHUNK_BYTES:
            yield b"\n".join([*rows, b""])
            rows, size = [], 0
    if rows:
        yield b"\n".join([*rows, b""])


def _rendered(result: NativeResult, data: bytes, batch_id: str, line: int, created: int) -> bytes:
    stem = f"{batch_id}_{line}"
    response: dict[str, object] | None = None
    error: dict[str, object] | None = None
    if result.status == "succeeded":
        body = _body(result, data, stem, created)
        response = {"status_code": 200, "request_id": f"req_{stem}", "body": body}
    elif result.status == "errored":
        status, body = _error(result)
        response = {"status_code": status, "request_id": f"req_{stem}", "body": body}
    else:
        code = _CODES.get(result.status, result.status)
        error = {"code": code, "message": result.error.message if result.error else ""}
    made = {"id": f"batch_req_{stem}", "custom_id": result.custom_id, "response": response, "error": error}
    return escape_separators(_encoder.encode(made))


def _body(result: NativeResult, data: bytes, stem: str, created: int) -> object:
    if result.kind == "message":
        return message_of(data, f"msg_{stem}")
    if result.kind == "response":
        return response_of(result, stem, created)
    return _completion(result, stem, created) if result.vectors is None else _pooled(result, stem, created)


def _pooled(result: NativeResult, stem: str, created: int) -> dict[str, object]:
    """The clients expect numbers for usage, so an unknown one is 0 and marked."""
    vectors, num_tokens = result.vectors or [], result.usage.input_tokens if result.usage else 0
    about = {
        "model": result.model or "",
        "usage": {"prompt_tokens": num_tokens, "total_tokens": num_tokens}
        | ({} if result.usage else {"is_unknown": True}),
    }
    if result.kind == "rerank":
        pairs = [_numbers.decode(vector) for vector in vectors]
        found = [{"index": int(index), "relevance_score": score} for index, score in pairs]
        return {"id": f"rerank-{stem}", "results": found, **about}
    data: list[dict[str, object]]
    if result.kind == "classification":
        data = [_classified(index, vector, label) for index, (vector, label) in enumerate(_labeled(result))]
    elif result.kind == "score":
        data = [
            {"object": "score", "index": index, "score": msgspec.Raw(bytes(vector)[1:-1])}
            for index, vector in enumerate(vectors)
        ]
    elif result.kind == "pooling":
        data = [{"index": index, "object": "pooling", "data": vector} for index, vector in enumerate(vectors)]
    else:
        data = [{"object": "embedding", "index": index, "embedding": vector} for index, vector in enumerate(vectors)]
        return {"object": "list", "data": data, **about}
    return {"id": f"{_PREFIXES[result.kind]}-{stem}", "object": "list", "created": created, "data": data, **about}


_PREFIXES = {"classification": "classify", "score": "score", "pooling": "pooling"}  # as in vLLM's API


def _labeled(result: NativeResult) -> Iterator[tuple[msgspec.Raw, str | None]]:
    vectors = result.vectors or []
    return zip(vectors, result.labels or [None] * len(vectors), strict=True)


def _classified(index: int, vector: msgspec.Raw, label: str | None) -> dict[str, object]:
    return {"index": index, "label": label, "probs": vector, "num_classes": len(_probabilities.decode(vector))}


def _completion(result: NativeResult, stem: str, created: int) -> dict[str, object]:
    is_chat = result.kind == "chat"
    choices = result.choices
    if choices is None:
        message = result.message or NativeMessage(content=[])
        reason = result.stop_reason or "end_turn"
        choices = [
            NativeChoice(message=message, stop_reason=reason, logprobs=result.logprobs, token_ids=result.token_ids)
        ]
    return {
        "id": f"{'chatcmpl' if is_chat else 'cmpl'}-{stem}",
        "object": "chat.completion" if is_chat else "text_completion",
        "created": created,
        "model": result.model or "",
        "choices": [_choice(index, choice, is_chat=is_chat) for index, choice in enumerate(choices)],
        "usage": _usage(result),
    } | details_of(result)


def _choice(index: int, choice: NativeChoice, *, is_chat: bool) -> dict[str, object]:
    text = "".join([block.text for block in choice.message.content])
    return {
        "index": index,
        **({"message": _message(choice, text)} if is_chat else {"text": text}),
        "logprobs": None if choice.logprobs is None else _logprobs(choice.logprobs, is_chat=is_chat),
        "finish_reason": _FINISH.get(choice.stop_reason, "stop"),
    } | ({} if choice.token_ids is None else {"token_ids": choice.token_ids})


def _logprobs(given: list[msgspec.Raw], *, is_chat: bool) -> dict[str, object]:
    if is_chat:
        return {"content": given, "refusal": None}
    tokens = [_token.decode(one) for one in given]
    offsets = accumulate((len(token.token) for token in tokens[:-1]), initial=0)
    return {
        "tokens": [token.token for token in tokens],
        "token_logprobs": [token.logprob for token in tokens],
        "top_logprobs": [
            None if token.logprob is None else {top.token: top.logprob for top in token.top_logprobs}
            for token in tokens
        ],
        "text_offset": [offset for offset, _ in zip(offsets, tokens, strict=False)],
    }


def _message(choice: NativeChoice, text: str) -> dict[str, object]:
    """`reasoning`: the name that vLLM gives to thinking, which OpenAI's API does not return."""
    calls = [_call(block) for block in choice.message.content if block.type == "tool_use"]
    message: dict[str, object] = {"role": "assistant", "content": text, "refusal": None}
    if calls:
        message |= {"content": text or None, "tool_calls": calls}
    thinking = "".join([block.thinking for block in choice.message.content])
    if thinking:
        message["reasoning"] = thinking
    return message | {"content": None, "refusal": text} if choice.stop_reason == "refusal" else message


def _call(block: NativeBlock) -> dict[str, object]:
    arguments = _encoder.encode(block.input or {}).decode()
    return {"id": block.id, "type": "function", "function": {"name": block.name, "arguments": arguments}}


def _usage(result: NativeResult) -> dict[str, object] | None:
    usage = result.usage
    if usage is None:
        return None
    return {
        "prompt_tokens": usage.input_tokens,
        "completion_tokens": usage.output_tokens,
        "total_tokens": usage.input_tokens + usage.output_tokens,
        "prompt_tokens_details": {"cached_tokens": usage.cached_tokens},
    }


def _error(result: NativeResult) -> tuple[int, dict[str, object]]:
    error = result.error or NativeError(type="api_error", message="")
    kind, message = error.type, error.message
    status = error.http_status or _STATUSES.get(kind, 500)
    if status >= 500:
        return status, {"error": {"message": message, "type": "server_error", "param": None, "code": kind}}
    place = _PLACE.match(message) if kind == _INVALID else None
    return status, {"error": {"message": message, "type": kind, "param": place[1] if place else None, "code": None}}
