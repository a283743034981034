"""Shared by the request formats: value types, text blocks, and turns in the form that engines take."""

from collections.abc import Callable, Iterable
from dataclasses import dataclass, field
from typing import Annotated, Any, Literal, NamedTuple, TypeVar

from pydantic import AfterValidator, BaseModel, BeforeValidator, ConfigDict, Field

from batchfile.lines.diagnostics import Diagnostic, Path, shown
from batchfile.request_media import Media
from batchfile.types import Defaults, Message, Request, Tools

JOINT = "\n\n"  # between merged texts: blocks, adjacent turns of one role, system turns

SYSTEM_ROLES = frozenset({"system", "developer"})
CHECKED = frozenset({"tools", "tool_choice"})  # keys of conversations whose own types cannot check them
TOKENS_MAX = 2**31 - 1
SEED_MIN, SEED_MAX = -(2**63), 2**63 - 1


class Strict(BaseModel):
    """No type conversion, no unknown keys, no infinite numbers."""

    model_config = ConfigDict(extra="forbid", strict=True, allow_inf_nan=False)


def _whole(value: Any) -> Any:
    return int(value) if type(value) is float and value.is_integer() else value


Whole = Annotated[int, BeforeValidator(_whole)]  # 100.0 is 100, because JSON has only one number type


class Effectless(NamedTuple):
    """A key that is accepted and has no effect, and the reason. docs/service.md and docs/requests.md list them."""

    reason: str = ""


NoEffect = Annotated[Any, Effectless()]


class OnlyEndpoints(NamedTuple):
    """A key that endpoints get as it is, and other engines reject unless it has one of the `harmless` values."""

    reason: str
    harmless: tuple[Any, ...] = ()


Name = Annotated[str, Field(min_length=1)]


class TextBlock(Strict):
    type: Literal["text"]
    text: str
    cache_control: NoEffect = None
    citations: NoEffect = None
    prompt_cache_breakpoint: NoEffect = None  # OpenAI's


class UnsupportedKey(NamedTuple):
    """An unsupported key of the format. `harmless`: the values that have no effect and are accepted."""

    harmless: tuple[Any, ...]
    message: str
    fix: str = ""


_Rule = TypeVar("_Rule", Effectless, OnlyEndpoints, UnsupportedKey)


def rules_of(model: type[BaseModel], kind: type[_Rule]) -> dict[str, _Rule]:
    """The rules of one kind in the annotations of a model's fields, by key."""
    return {key: rule for key, field in model.model_fields.items() for rule in field.metadata if isinstance(rule, kind)}


@dataclass(frozen=True, slots=True, kw_only=True)
class Format:
    """How the requests of an endpoint are read.

    `plain`: the model of bodies without the options that few requests set, which takes less time.
    `more_problems`: those that depend on several fields.
    """

    url: str
    plain: type[BaseModel]
    body: type[BaseModel]
    to_request: Callable[[str, Any, Defaults], Request]
    more_problems: Callable[[Any], list[Diagnostic]] = lambda _: []
    unsupported_keys: dict[str, UnsupportedKey] = field(init=False)

    def __post_init__(self) -> None:
        object.__setattr__(self, "unsupported_keys", rules_of(self.body, UnsupportedKey))

    def asks_for_unsupported(self, carried: BaseModel) -> bool:
        given = carried.model_fields_set & self.unsupported_keys.keys()
        return any(getattr(carried, key) not in self.unsupported_keys[key].harmless for key in given)


def without_effect(model: type[BaseModel]) -> set[str]:
    return set(rules_of(model, Effectless))


def never(message: str, *harmless: Any) -> AfterValidator:
    """For an unsupported nested key. `harmless`: the values without effect that are accepted, in addition to null."""

    def is_harmless(value: Any) -> Any:
        if value is not None and value not in harmless:
            raise ValueError(message)
        return value

    return AfterValidator(is_harmless)


def without_user(turns: Iterable[Any], root: str) -> list[Diagnostic]:
    """The problem of a conversation with system turns only."""
    if not all(turn.role in SYSTEM_ROLES for turn in turns):
        return []
    return [Diagnostic((root, "messages"), "has no user turn; add one", 'Add {"role": "user", "content": "..."}.')]


def text_of(content: str | list[TextBlock]) -> str:
    return content if isinstance(content, str) else JOINT.join([block.text for block in content])


def join_turns(turns: Iterable[Message]) -> tuple[Message, ...]:
    """Merges all system turns into one at the start, and adjacent turns of the same role and name except tool turns."""
    system: list[str] = []
    system_name: str | None = None
    joined: list[Message] = []
    for turn in turns:
        if turn.role == "system":
            if turn.content:
                system.append(turn.content)
                system_name = turn.name
        elif joined and joined[-1].role == turn.role != "tool" and joined[-1].name == turn.name:
            last = joined[-1]
            content = JOINT.join(filter(None, (last.content, turn.content)))
            parts = _parts_of(last) + _parts_of(turn) if last.parts or turn.parts else ()
            joined[-1] = Message(turn.role, content, last.calls + turn.calls, name=turn.name, parts=parts)
        else:
            joined.append(turn)
    return (Message("system", JOINT.join(system), name=system_name), *joined) if system else tuple(joined)


def _parts_of(turn: Message) -> tuple[str | Media, ...]:
    return turn.parts or ((turn.content,) if turn.content else ())


def choice_problems(tools: Tools | None, *, is_forced: bool, root: str) -> list[Diagnostic]:
    """`is_forced`: the request requires a tool call."""
    if tools is None:
        message = "requires a tool call, but there are no tools"
        return [Diagnostic((root, "tool_choice"), message, "Add tools or remove it.")] if is_forced else []
    names = [tool.name for tool in tools.offered]
    diagnostics = [
        Diagnostic((root, "tools", n), f"duplicate tool name {shown(name)}", "Give every tool a unique name.")
        for n, name in enumerate(names)
        if name in names[:n]
    ]
    if tools.choice == "named" and tools.name not in names:
        message = "does not name a tool" if tools.name is None else f"names {shown(tools.name)}, which is not in tools"
        diagnostics.append(Diagnostic((root, "tool_choice"), message, "Name one of the tools."))
    return diagnostics


def misplaced(place: Path, what: str, whose: str) -> Diagnostic:
    return Diagnostic(place, f"{what} belongs in {whose} turn", "Move it there.")


def unknown_call(place: Path, call_id: str) -> Diagnostic:
    return Diagnostic(
        place, f"{shown(call_id)} does not match an earlier tool call", "Include the turn with the tool call."
    )


def unanswered(place: Path) -> Diagnostic:
    return Diagnostic(place, "calls a tool, but the result of the tool does not follow", "Add the result.")
