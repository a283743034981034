"""Checks whether a text is JSON that matches a schema. The only module that knows jsonschema-rs; it knows no request.

As a program it checks texts one after the other, each within a limit of processor time: check.py starts it.
The operating system kills it if a check takes too long (SIGPROF) or too much memory; it exits when its standard input
closes.
"""

import signal
from collections.abc import Iterator, Sequence
from functools import lru_cache
from typing import Any, Literal, NamedTuple

import msgspec

from batchfile.child_env import begin_child, limit_memory
from batchfile.schemas.child import read, write

SCHEMAS_KEPT = 64  # compiled schemas in one process
# For one `pattern` on one string, about 10 ms; a string that takes more does not match. The library's own limit is ten
# times that, and an answer may hold thousands of strings.
BACKTRACKS_MAX = 100_000
PLACE_CHARS_MAX = 200
PROBLEM_CHARS_MAX = 500
_REFERENCES = ("$ref", "$dynamicRef", "$recursiveRef")
NOT_JSON = "the answer is not JSON"

READY = b"READY"
MEMORY_MAX = 1024**3  # bytes of address space of the program, in addition to what it has when it starts

VerdictKind = Literal["fits", "mismatch", "unusable", "unknown"]


class Verdict(NamedTuple):
    """`why`: for a mismatch, what is wrong with the text; for an unusable schema, what is wrong with the schema.

    Unknown: the check was given up; `why` then completes a sentence that begins with what was checked.
    """

    kind: VerdictKind
    why: str = ""


def kind_of(schema: bytes, text: str) -> VerdictKind:
    """Without a message, which can take far longer, because it examines each alternative that does not match."""
    try:
        validator = _validator(schema)
    except (ValueError, RecursionError):
        return "unusable"
    try:
        return "fits" if validator.is_valid(msgspec.json.decode(text)) else "mismatch"
    except (ValueError, RecursionError):  # not JSON, or nested too deeply
        return "mismatch"


def judged(schema: bytes, text: str) -> Verdict:
    """Takes any amount of time: see `place_of` in runner/output_schema.py."""
    import jsonschema_rs

    kind = kind_of(schema, text)
    if kind == "unusable":
        return Verdict(kind, _schema_problem(schema))
    if kind == "fits":
        return Verdict(kind)
    try:
        value = msgspec.json.decode(text)
    except (ValueError, RecursionError):
        return Verdict(kind, NOT_JSON)
    try:
        _validator(schema).validate(value)
    except jsonschema_rs.ValidationError as error:
        return Verdict(kind, _what_does_not_fit(error))
    except (ValueError, RecursionError):
        pass
    return Verdict(kind, "the answer is nested too deeply")


def schema_problem(schema: dict[str, Any]) -> str | None:
    """Why answers cannot be checked against this schema, in one line; None if they can."""
    try:
        _compiled(schema)
    except ValueError as error:
        return _unknown_draft(schema) or _lost_reference(schema, error) or _first_line(error)
    return None


def _unknown_draft(schema: dict[str, Any]) -> str | None:
    """None if `$schema` is not the problem."""
    if not isinstance(schema, dict) or "$schema" not in schema:
        return None
    try:
        _compiled({name: value for name, value in schema.items() if name != "$schema"})
    except ValueError:
        return None
    return f"$schema {_cut(repr(schema['$schema']))} is unknown; remove it or name draft 4, 6, 7, 2019-09 or 2020-12"


def _schema_problem(schema: bytes) -> str:
    try:
        return _cut(schema_problem(msgspec.json.decode(schema)) or "", PROBLEM_CHARS_MAX)
    except (ValueError, RecursionError):
        return "it is nested too deeply"


def _what_does_not_fit(error: Any) -> str:
    from jsonschema_rs import ValidationErrorKind

    place, keyword = _place(error.instance_path), _cut("/".join(map(str, error.schema_path)))
    if isinstance(error.kind, ValidationErrorKind.BacktrackLimitExceeded):
        return f"{place} takes more than {BACKTRACKS_MAX:,} steps to compare with {keyword}"
    return f"{place} does not fit {keyword}"


def _place(path: Sequence[str | int]) -> str:
    parts = (f"[{part}]" if isinstance(part, int) else f".{part}" for part in path)
    return _cut("answer" + "".join(parts))


def _cut(text: str, chars_max: int = PLACE_CHARS_MAX) -> str:
    return text if len(text) <= chars_max else text[:chars_max] + "..."


def _lost_reference(schema: dict[str, Any], error: ValueError) -> str | None:
    """The first reference that leads nowhere in the schema. None if no reference is the problem."""
    from jsonschema_rs import ValidationError, ValidationErrorKind

    if not (isinstance(error, ValidationError) and isinstance(error.kind, ValidationErrorKind.Referencing)):
        return None
    for reference in dict.fromkeys(_references(schema)):
        try:
            _compiled(_with_only(reference, schema))
        except ValueError:
            return (
                f"it refers to {_cut(repr(reference))}, which it does not contain; copy the definition into its $defs"
            )
    return None


def _references(value: Any) -> Iterator[str]:
    if isinstance(value, dict):
        yield from (value[name] for name in _REFERENCES if isinstance(value.get(name), str))
    for part in value.values() if isinstance(value, dict) else value if isinstance(value, list) else ():
        yield from _references(part)


def _with_only(reference: str, value: Any) -> Any:
    """The schema without its other references."""
    if isinstance(value, dict):
        return {
            name: _with_only(reference, part)
            for name, part in value.items()
            if name not in _REFERENCES or not isinstance(part, str) or part == reference
        }
    return [_with_only(reference, part) for part in value] if isinstance(value, list) else value


def _first_line(error: ValueError) -> str:
    place = "/".join(map(str, getattr(error, "instance_path", ())))
    return (f"{_cut(place)}: " if place else "") + str(error).splitlines()[0]


@lru_cache(maxsize=SCHEMAS_KEPT)
def _validator(schema: bytes) -> Any:
    return _compiled(msgspec.json.decode(schema))


def _compiled(schema: dict[str, Any]) -> Any:
    """Raises: ValueError."""
    import jsonschema_rs  # takes 10 ms, and few need it

    bounded = jsonschema_rs.FancyRegexOptions(backtrack_limit=BACKTRACKS_MAX)
    return jsonschema_rs.validator_for(schema, retriever=_refuse, pattern_options=bounded)


def _refuse(uri: str) -> Any:
    raise ValueError(f"references to other documents are not followed: {uri}")


def serve(requests: int, answers: int) -> None:
    """Runs until `requests` closes. A request: the time limit in seconds, the schema, the text."""
    write(answers, READY)
    while True:
        try:
            time_s, schema, text = read(requests)
        except EOFError:
            return
        signal.setitimer(signal.ITIMER_PROF, float(time_s))
        verdict = judged(schema, text.decode("utf-8", "surrogatepass"))
        signal.setitimer(signal.ITIMER_PROF, 0)
        write(answers, verdict.kind.encode(), verdict.why.encode("utf-8", "replace"))


def main() -> None:
    answers = begin_child()
    signal.signal(signal.SIGPROF, signal.SIG_DFL)
    signal.pthread_sigmask(signal.SIG_UNBLOCK, {signal.SIGPROF})
    limit_memory(MEMORY_MAX)
    serve(0, answers)


if __name__ == "__main__":
    main()
