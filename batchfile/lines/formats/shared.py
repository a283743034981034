"""What the request formats share: kinds of values, text blocks, and turns brought into the form that engines get."""

from collections.abc import Iterable
from typing import Annotated, Any, Literal, NamedTuple

from pydantic import AfterValidator, BaseModel, BeforeValidator, ConfigDict, Field

from batchfile.lines.diagnostics import Diagnostic, Path, shown
from batchfile.types import Message, Tools

JOINT = "\n\n"  # between what is merged: blocks, neighbours of one role, system texts

SYSTEM_ROLES = frozenset({"system", "developer"})
TOKENS_MAX = 2**31 - 1
SEED_MIN, SEED_MAX = -(2**63), 2**63 - 1


class Strict(BaseModel):
    """Nothing is converted, no key is unknown, no number is infinite."""

    model_config = ConfigDict(extra="forbid", strict=True, allow_inf_nan=False)


def _whole(value: Any) -> Any:
    return int(value) if type(value) is float and value.is_integer() else value


Whole = Annotated[int, BeforeValidator(_whole)]  # 100.0 is 100, as JSON has one kind of number


# A key that is accepted and changes no answer. docs/service.md names each.
_NO_EFFECT = "no effect"
NoEffect = Annotated[Any, _NO_EFFECT]


def without_effect(model: type[BaseModel]) -> set[str]:
    return {key for key, field in model.model_fields.items() if _NO_EFFECT in field.metadata}


Name = Annotated[str, Field(min_length=1)]


class TextBlock(Strict):
    type: Literal["text"]
    text: str
    cache_control: NoEffect = None
    citations: NoEffect = None
    prompt_cache_breakpoint: NoEffect = None  # OpenAI's


class Unserved(NamedTuple):
    """A key of the format that is not served. `harmless`: the values that ask for nothing."""

    harmless: tuple[Any, ...]
    message: str
    fix: str = ""


def unserved_of(model: type[BaseModel]) -> dict[str, Unserved]:
    return {
        key: rule for key, field in model.model_fields.items() for rule in field.metadata if isinstance(rule, Unserved)
    }


def never(message: str, *harmless: Any) -> AfterValidator:
    """Of a key inside of another that is not served. `harmless`: the values, besides null, that ask for nothing."""

    def is_harmless(value: Any) -> Any:
        if value is not None and value not in harmless:
            raise ValueError(message)
        return value

    return AfterValidator(is_harmless)


def without_user(turns: Iterable[Any], root: str) -> list[Diagnostic]:
    """The problem of a conversation in which nobody but the system speaks."""
    if not all(turn.role in SYSTEM_ROLES for turn in turns):
        return []
    return [Diagnostic((root, "messages"), "holds no user turn; add one", 'Add {"role": "user", "content": "..."}.')]


def text_of(content: str | list[TextBlock]) -> str:
    return content if isinstance(content, str) else JOINT.join([block.text for block in content])


def join_turns(turns: Iterable[Message]) -> tuple[Message, ...]:
    """System turns, wherever they stood, joined into one that leads; neighbours of one role and name, save tools',
    joined.
    """
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
            joined[-1] = Message(turn.role, content, last.calls + turn.calls, name=turn.name)
        else:
            joined.append(turn)
    return (Message("system", JOINT.join(system), name=system_name), *joined) if system else tuple(joined)


def choice_problems(tools: Tools | None, *, is_forced: bool, root: str) -> list[Diagnostic]:
    """`is_forced`: the request says that a tool must be called."""
    if tools is None:
        message = "asks for the call of a tool, but tools offers none"
        return [Diagnostic((root, "tool_choice"), message, "Add tools or remove it.")] if is_forced else []
    names = [tool.name for tool in tools.offered]
    diagnostics = [
        Diagnostic((root, "tools", n), f"a second tool of the name {shown(name)}", "Give each a name of its own.")
        for n, name in enumerate(names)
        if name in names[:n]
    ]
    if tools.choice == "named" and tools.name not in names:
        message = "names no tool" if tools.name is None else f"names {shown(tools.name)}, which tools does not offer"
        diagnostics.append(Diagnostic((root, "tool_choice"), message, "Name one that is offered."))
    return diagnostics


def misplaced(place: Path, what: str, whose: str) -> Diagnostic:
    return Diagnostic(place, f"{what} belongs in a turn of {whose}", "Move it there.")


def unknown_call(place: Path, call_id: str) -> Diagnostic:
    return Diagnostic(place, f"{shown(call_id)} is the id of no call before it", "Send the turn with the call, too.")


def unanswered(place: Path) -> Diagnostic:
    return Diagnostic(place, "calls a tool, and its answer does not follow", "Add what the tool answered.")
