"""Turns of a conversation brought into the one form that engines get."""

from collections.abc import Iterable

from batchfile.errors import InvalidRequest
from batchfile.words import Message


def join_turns(turns: Iterable[Message]) -> tuple[Message, ...]:
    """System turns joined into one that leads, neighbours of one role joined; text is joined by a blank line.

    Raises: InvalidRequest where nothing but system text is left.
    """
    system: list[str] = []
    joined: list[Message] = []
    for turn in turns:
        if turn.role == "system":
            system.append(turn.content)
        elif joined and joined[-1].role == turn.role:
            joined[-1] = Message(turn.role, f"{joined[-1].content}\n\n{turn.content}")
        else:
            joined.append(turn)
    if not joined:
        raise InvalidRequest("params.messages: holds no user turn; add one")
    return (Message("system", "\n\n".join(system)), *joined) if system else tuple(joined)
