"""Anthropic's Message as the `body` of a line in OpenAI's format (/v1/messages): the native format's `params`."""

from msgspec.structs import replace

from batchfile.lines.formats import native
from batchfile.lines.formats.native import UNSUPPORTED_KEYS, is_plain, more_problems
from batchfile.types import Defaults, Request

URL = "/v1/messages"
PlainBody, Body = native.PlainParams, native.Params

__all__ = ["UNSUPPORTED_KEYS", "URL", "Body", "PlainBody", "is_plain", "more_problems", "to_request"]


def to_request(custom_id: str, body: native.PlainParams, defaults: Defaults) -> Request:
    return replace(native.to_request(custom_id, body, defaults), form="message")
