"""A native result as OpenAI's Response. What depends on the request, such as its tools, has the API's defaults."""

import msgspec

from batchfile.lines.result import NativeResult

_CUT = {"max_tokens": "max_output_tokens", "content_filter": "content_filter"}  # by stop reason: why it is incomplete

_encoder = msgspec.json.Encoder()


def response_of(result: NativeResult, stem: str, created: int) -> dict[str, object]:
    cut = _CUT.get(result.stop_reason or "")
    return {
        "id": f"resp_{stem}",
        "object": "response",
        "created_at": created,
        "status": "completed" if cut is None else "incomplete",
        "error": None,
        "incomplete_details": None if cut is None else {"reason": cut},
        "instructions": None,
        "metadata": {},
        "model": result.model or "",
        "output": _output(result, stem, "completed" if cut is None else "incomplete"),
        "parallel_tool_calls": True,
        "temperature": None,
        "tool_choice": "auto",
        "tools": [],
        "top_p": None,
        "usage": _usage(result),
    } | (details_of(result) | ({} if result.token_ids is None else {"token_ids": result.token_ids}))


def details_of(result: NativeResult) -> dict[str, object]:
    """Not OpenAI's: what a request may ask for, and the digests of its media, as in native results."""
    details = {
        "prompt_logprobs": result.prompt_logprobs,
        "prompt_token_ids": result.prompt_token_ids,
        "media": result.media,
    }
    return {name: value for name, value in details.items() if value is not None}


def _output(result: NativeResult, stem: str, status: str) -> list[dict[str, object]]:
    """Thinking, then the text, then the calls."""
    blocks = [] if result.message is None else result.message.content
    items: list[dict[str, object]] = []
    for number, block in enumerate(blocks):
        if block.type == "thinking":
            thought = {"type": "reasoning_text", "text": block.thinking}
            items.append({"type": "reasoning", "id": f"rs_{stem}_{number}", "summary": [], "content": [thought]})
        elif block.type == "tool_use":
            arguments = _encoder.encode(block.input or {}).decode()
            call: dict[str, object] = {
                "call_id": block.id,
                "name": block.name,
                "arguments": arguments,
                "status": "completed",
            }
            items.append(call | {"type": "function_call", "id": f"fc_{stem}_{number}"})
        else:
            text: dict[str, object] = {"type": "output_text", "text": block.text, "annotations": []}
            if result.logprobs is not None:
                text["logprobs"] = result.logprobs
            if result.stop_reason == "refusal":
                text = {"type": "refusal", "refusal": block.text}
            about: dict[str, object] = {"role": "assistant", "status": status, "content": [text]}
            items.append(about | {"type": "message", "id": f"msg_{stem}_{number}"})
    return items


def _usage(result: NativeResult) -> dict[str, object] | None:
    usage = result.usage
    if usage is None:
        return None
    return {
        "input_tokens": usage.input_tokens,
        "input_tokens_details": {"cached_tokens": usage.cached_tokens, "cache_write_tokens": 0},
        "output_tokens": usage.output_tokens,
        "output_tokens_details": {"reasoning_tokens": 0},
        "total_tokens": usage.input_tokens + usage.output_tokens,
    }
