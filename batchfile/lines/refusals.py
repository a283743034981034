"""Refusals, and answers that a content filter stopped: what to say of them where there is no other place."""

from batchfile.types import Failure

REFUSALS = frozenset({"refusal", "content_filter"})  # stop reasons
TEXT_CHARS_MAX = 2_000  # of the answer, in a message

_WHAT = {
    "refusal": "The model refused to answer",
    "content_filter": "The endpoint's content filter stopped the answer",
}


def refusal_failure(stop_reason: str, text: str) -> Failure:
    """`text`: what the model said. The type of the failure is the stop reason."""
    what, told = _WHAT[stop_reason], text.strip()[:TEXT_CHARS_MAX]
    return Failure(type=stop_reason, message=f"{what}: {told}" if told else f"{what}.")


def explanation(stop_reason: str) -> str:
    """Next to the text."""
    return f"{_WHAT[stop_reason]}."
