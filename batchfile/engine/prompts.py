"""Converts requests to token ids: conversations with the model's chat template, raw prompts as they are.

Works with a Hugging Face tokenizer from the caller. Thread-safe.
"""

import re
import threading
import zlib
from collections import OrderedDict
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any

from batchfile.engine.control_tokens import ControlTokens
from batchfile.engine.tool_wire import wire_parts, wire_tools, wire_turn
from batchfile.errors import InvalidRequest, SettingsError
from batchfile.types import Input, Message, Request, Tool, Tools

# Tokenized prefixes that are cached. A stage usually has one, so this is enough for many batches.
PREFIXES_MAX = 64
# Shorter prefixes are cheaper to tokenize than to look up.
PREFIX_CHARS_MIN = 200
# Requests without a system turn share a cached prefix if they begin with the same tokens; one block of vLLM on a GPU.
PREFIX_TOKENS = 16

_PROBE = "a system turn, to be found again"
_JOINTS = ("Dear Ms O'Neil,\n\n  write", "\n user", "user\nHello", " x", "x ", "é日本🙂", "1234 5678")


@dataclass(frozen=True, slots=True)
class Prompt:
    """`prefix` is equal for prompts that likely begin with the same tokens."""

    token_ids: list[int]
    prefix: int


class ChatPrompts:
    """Renders and tokenizes conversations. Needs exclusive use of its tokenizer.

    Control tokens in texts are encoded as ordinary text, unless `parses_control_tokens`.
    Raises: SettingsError if the model has no chat template.
    """

    def __init__(self, tokenizer: Any, model: str, *, parses_control_tokens: bool = False) -> None:
        self._tokenizer = tokenizer
        if not getattr(tokenizer, "chat_template", None):
            raise SettingsError(
                f"The model {model} has no chat template, so it cannot answer conversations. "
                "Use its instruct variant, or set chat_template to a file with a template."
            )
        # Passed with each call: vLLM's tokenizer is a pool of several, so setting a template on it has no effect on
        # them.
        named = tokenizer.chat_template
        self._template = named if isinstance(named, str) else None  # None: the tokenizer chooses one of several
        self._lock = threading.Lock()
        self._backend = _whole_backend(tokenizer)
        self._control_tokens = None if parses_control_tokens else ControlTokens(tokenizer, self._backend)
        self._takes_parts = not self._shows_text(takes_parts=False) and self._shows_text(takes_parts=True)
        self._takes_system = self._has_system_role()
        self._separator = self._exact_separator()
        self._prefixes: OrderedDict[str, list[int]] = OrderedDict()

    @property
    def template(self) -> str:
        return str(self._tokenizer.chat_template)

    @cached_property
    def shows_tools(self) -> bool:
        """Whether the template shows tools to the model. Most templates without tools ignore them silently."""
        try:
            probe = Tools(offered=(Tool(_PROBE, None, {"type": "object", "properties": {}}),))
            turns = self._wire([Message("user", "Hello")])
            return _PROBE in self._render(turns, {"tools": wire_tools(probe)}, is_continued=False)
        except Exception:  # noqa: BLE001 - see prompt()
            return False

    def prompt(
        self,
        messages: Sequence[Message],
        tools: Tools | None = None,
        arguments: dict[str, Any] | None = None,
        *,
        adds_special_tokens: bool = False,
        above: Sequence[str] = (),
    ) -> Prompt:
        """The token ids to generate from. `arguments`: further arguments of the template. `adds_special_tokens`: those
        that the tokenizer adds to text, in addition to the template's. `above`: what to write above the text of each
        turn, as the template would: control tokens in it keep their meaning.

        Raises: InvalidRequest if the template rejects the turns.
        """
        turns = self._wire(messages if self._takes_system else fold_system(messages))
        more = arguments or {}
        if tools is not None:
            more = {**more, "tools": wire_tools(tools)}
        is_continued = messages[-1].role == "assistant"

        def render(turns: list[dict[str, Any]], arguments: dict[str, Any]) -> str:
            if above:  # aligned by the end, because a folded system turn is missing at the start
                turns = [_with_above(turn, text) for turn, text in zip(turns, above[-len(turns) :], strict=True)]
            return self._render(turns, arguments, is_continued)

        has_data = False
        try:
            if self._control_tokens is None:
                text = render(turns, more)
            else:
                text, has_data = self._control_tokens.rendered(turns, more, render)
        except InvalidRequest:
            raise
        except Exception as error:  # a template is a program in the model's files and may raise anything
            reason = str(error) if self._control_tokens is None else self._control_tokens.restored(str(error))
            raise InvalidRequest(f"The model's chat template rejected these turns: {reason}") from error
        system = messages[0].content if messages[0].role == "system" else None
        if self._control_tokens is not None and has_data:
            token_ids = self._control_tokens.encode(text, adds_special_tokens=adds_special_tokens)
        elif adds_special_tokens:
            token_ids = self._encode(text, adds_special_tokens=True)
        else:
            token_ids = self._tokenize(text, system if self._takes_system else None)
        if system is not None:
            return Prompt(token_ids, _prefix(system))
        return Prompt(token_ids, prefix_of_ids(token_ids))

    def _wire(self, turns: Sequence[Message]) -> list[dict[str, Any]]:
        return _wired(turns, takes_parts=self._takes_parts)

    def _render(self, turns: list[dict[str, Any]], arguments: dict[str, Any], is_continued: bool) -> str:
        ending = {"add_generation_prompt": not is_continued, "continue_final_message": is_continued}
        rendered: str = self._tokenizer.apply_chat_template(
            turns,
            **(ending | arguments),
            chat_template=self._template,
            tokenize=False,
        )
        return rendered

    def _tokenize(self, text: str, system: str | None) -> list[int]:
        """The ids of `text`. Caches the ids of its prefix if they do not depend on the rest."""
        cut = self._end_of_system(text, system)
        if cut is None:
            return self._encode(text)
        head = text[:cut]
        with self._lock:
            known = self._prefixes.get(head)
            if known is not None:
                self._prefixes.move_to_end(head)
        if known is None:
            known = self._encode(head)
            with self._lock:
                self._prefixes[head] = known
                if len(self._prefixes) > PREFIXES_MAX:
                    self._prefixes.popitem(last=False)
        return known + self._encode(text[cut:])

    def _end_of_system(self, text: str, system: str | None) -> int | None:
        """Where the special token after the system turn ends; None if that was not found."""
        if self._separator is None or system is None or len(system) < PREFIX_CHARS_MIN:
            return None
        at = text.find(system.strip())
        found = self._separator.search(text, at + len(system.strip())) if at >= 0 else None
        return None if found is None else found.end()

    def _encode(self, text: str, *, adds_special_tokens: bool = False) -> list[int]:
        if self._backend is not None:
            ids: list[int] = self._backend.encode(text, add_special_tokens=adds_special_tokens).ids
            return ids
        with self._lock:
            return list(self._tokenizer.encode(text, add_special_tokens=adds_special_tokens))

    def _shows_text(self, *, takes_parts: bool) -> bool:
        """Whether the template shows a text, or one in a list of parts, which some models with media require."""
        try:
            turns = _wired([Message("user", _PROBE)], takes_parts=takes_parts)
            return _PROBE in self._render(turns, {}, is_continued=False)
        except Exception:  # noqa: BLE001 - see prompt()
            return False

    def _has_system_role(self) -> bool:
        """Whether the template supports a system turn. Some raise, some ignore it silently."""
        try:
            turns = self._wire([Message("system", _PROBE), Message("user", "Hello")])
            return _PROBE in self._render(turns, {}, is_continued=False)
        except Exception:  # noqa: BLE001 - see prompt()
            return False

    def _exact_separator(self) -> "re.Pattern[str] | None":
        """Matches special tokens at which text may be split and tokenized in two parts, with the same ids.

        This works if a tokenizer handles the pieces between special tokens independently. It is tested here, because
        some (SentencePiece) handle the first piece differently.
        """
        if self._backend is None:
            return None
        tokens = [
            token.content
            for token in self._tokenizer.added_tokens_decoder.values()
            if token.special and not (token.lstrip or token.rstrip or token.single_word or token.normalized)
        ]
        if not tokens:
            return None
        for token in tokens[:8]:
            for before in _JOINTS:
                for after in _JOINTS:
                    if self._encode(before + token + after) != self._encode(before + token) + self._encode(after):
                        return None
        return re.compile("|".join(re.escape(token) for token in sorted(tokens, key=len, reverse=True)))


class MistralPrompts:
    """Like ChatPrompts, for models with Mistral's own tokenizer: mistral_common renders and tokenizes in one step.

    `tokenizer`: vLLM's MistralTokenizer or MistralCommonBackend of transformers. The result is that of vLLM's API.
    Control tokens in texts are always ordinary text.
    """

    template = "[TOOL_CALLS]"  # what Mistral's models write before tool calls

    def __init__(self, tokenizer: Any) -> None:
        self._tokenizer = tokenizer
        self._lock = threading.Lock()

    @staticmethod
    def fits(tokenizer: Any) -> bool:
        return type(tokenizer).__name__ in ("MistralTokenizer", "MistralCommonBackend")

    @cached_property
    def shows_tools(self) -> bool:
        """The first version of the tokenizer ignores them silently."""
        turns, tool = [Message("user", "Hello")], Tool("probe", None, {"type": "object", "properties": {}})
        try:
            return self.prompt(turns, Tools(offered=(tool,))).token_ids != self.prompt(turns).token_ids
        except InvalidRequest:
            return False

    def prompt(
        self,
        messages: Sequence[Message],
        tools: Tools | None = None,
        arguments: dict[str, Any] | None = None,
        *,
        adds_special_tokens: bool = False,
        above: Sequence[str] = (),
    ) -> Prompt:
        """`adds_special_tokens` has no effect, as in vLLM's API: the format includes them. `above`: never given, as
        these models take no media here. Raises: InvalidRequest if mistral_common rejects the turns.
        """
        given = {"continue_final_message": messages[-1].role == "assistant"} | (arguments or {})
        try:
            with self._lock:
                token_ids = list(
                    self._tokenizer.apply_chat_template(
                        _wired(messages),
                        tools=None if tools is None else wire_tools(tools),
                        tokenize=True,
                        return_dict=False,
                        **given,
                    )
                )
        except Exception as error:  # of many kinds, assertions included
            raise InvalidRequest(f"The model's tokenizer, mistral_common, rejected these turns: {error}") from error
        is_system_first = messages[0].role == "system"
        return Prompt(token_ids, _prefix(messages[0].content) if is_system_first else prefix_of_ids(token_ids))


def prompts_of(
    tokenizer: Any, model: str, *, chat_template: str | None = None, parses_control_tokens: bool = False
) -> ChatPrompts | MistralPrompts:
    """Needs exclusive use of the tokenizer. `chat_template`: used instead of the model's own.

    Raises: SettingsError if the model has no chat template, or cannot use this one.
    """
    if MistralPrompts.fits(tokenizer):
        if chat_template is not None:
            raise SettingsError(
                f"The model {model} uses the tokenizer of mistral_common, which has its own format of conversations: "
                "remove chat_template, or set engine_args = {tokenizer_mode = 'hf'} if the model has a tokenizer.json."
            )
        return MistralPrompts(tokenizer)
    if chat_template is not None:
        tokenizer.chat_template = chat_template
    return ChatPrompts(tokenizer, model, parses_control_tokens=parses_control_tokens)


def _whole_backend(tokenizer: Any) -> Any:
    """The fast tokenizer inside, without truncation and padding; None if it is a slow one."""
    backend = getattr(tokenizer, "backend_tokenizer", None)
    if backend is not None:
        backend.no_truncation()
        backend.no_padding()
    return backend


def _wired(turns: Sequence[Message], *, takes_parts: bool = False) -> list[dict[str, Any]]:
    """Replaces tool call ids by nine letters and digits, which Mistral's templates require and others ignore."""
    wired = [wire_turn(turn) for turn in turns]
    if takes_parts:
        wired = [wire | {"content": wire_parts(turn)} for wire, turn in zip(wired, turns, strict=True)]
    names: dict[str, str] = {}
    for turn in wired:
        for call in turn.get("tool_calls", ()):
            call["id"] = names.setdefault(call["id"], f"call{len(names):05d}")
        if "tool_call_id" in turn:
            turn["tool_call_id"] = names.get(turn["tool_call_id"], turn["tool_call_id"])
    return wired


def _with_above(turn: dict[str, Any], text: str) -> dict[str, Any]:
    content = turn["content"]
    if not text:
        return turn
    if isinstance(content, str):
        return turn | {"content": "\n".join([text, content])}
    return turn | {"content": [{"type": "text", "text": f"{text}\n"}, *content]}


def fold_system(messages: Sequence[Message]) -> tuple[Message, ...]:
    """Removes the system turn and puts its text at the start of the first user turn."""
    if messages[0].role != "system":
        return tuple(messages)
    system, rest = messages[0].content, messages[1:]
    if rest and rest[0].role == "user":
        parts = (system, *rest[0].parts) if rest[0].parts else ()
        return (Message("user", f"{system}\n\n{rest[0].content}", parts=parts), *rest[1:])
    return (Message("user", system), *rest)


def _prefix(text: str) -> int:
    """The same in every process, unlike `hash`."""
    return zlib.crc32(text.encode("utf-8", "surrogatepass"))


def prefix_of(request: Request) -> int:
    """Equal for requests with the same first turn or input."""
    return _prefix(request.messages[0].content if request.raw is None else repr(request.raw.inputs[0]))


def template_arguments(request: Request) -> dict[str, Any]:
    """The arguments of the chat template that a request sets, as vLLM's API passes them."""
    arguments: dict[str, Any] = {}
    if request.is_thinking is not None:  # templates use one of two names, and ignore the other
        arguments = {"enable_thinking": request.is_thinking, "thinking": request.is_thinking}
    options = request.options
    if options is None:
        return arguments
    if options.reasoning_effort is not None:
        arguments = {"enable_thinking": options.reasoning_effort != "none"} | arguments
    given = {
        "reasoning_effort": options.reasoning_effort,
        "verbosity": options.verbosity,
        "documents": options.documents,
    }
    arguments |= {name: value for name, value in given.items() if value is not None}
    opens, is_continued = options.add_generation_prompt, request.is_continuation
    if opens is not None or options.continue_final_message is not None:
        arguments |= {
            "add_generation_prompt": not is_continued if opens is None else opens,
            "continue_final_message": is_continued,
        }
    return arguments | (options.chat_template_kwargs or {})


class RawPrompts:
    """Tokenizes raw prompts. Needs exclusive use of its tokenizer."""

    def __init__(self, tokenizer: Any) -> None:
        self._tokenizer = tokenizer
        self._lock = threading.Lock()
        self._backend = _whole_backend(tokenizer)

    def token_ids(self, given: Input, *, adds_special_tokens: bool = True) -> list[int]:
        """Includes the tokenizer's special tokens, such as a first token; given token ids are unchanged."""
        if not isinstance(given, str):
            return list(given)
        if self._backend is not None:
            ids: list[int] = self._backend.encode(given, add_special_tokens=adds_special_tokens).ids
            return ids
        with self._lock:
            return list(self._tokenizer.encode(given, add_special_tokens=adds_special_tokens))

    def text(self, given: Input) -> str:
        if isinstance(given, str):
            return given
        with self._lock:
            return str(self._tokenizer.decode(list(given)))


def prefix_of_ids(token_ids: list[int]) -> int:
    """Equal for prompts that begin with the same tokens."""
    return _prefix(repr(token_ids[:PREFIX_TOKENS]))
