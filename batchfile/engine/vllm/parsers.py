"""Uses vLLM's parsers to find tool calls and thinking in an answer.

Each model family has its own parser. The tool parser of common families is detected by their chat template.
"""

import logging
import re
from dataclasses import dataclass
from typing import Any

import msgspec
from msgspec.structs import replace

from batchfile.engine.prompts import ChatPrompts, MistralPrompts, template_arguments
from batchfile.engine.tool_wire import NO_THINKING, NO_TOOLS, call_stem, made_calls, wire_choice, wire_tools
from batchfile.errors import InvalidRequest, SettingsError
from batchfile.types import Choice, Request, StopReason, Tools

# Marks of tool calls in chat templates, and the parsers for them. The first match counts.
TOOL_PARSERS = (
    ("<function=", "qwen3_coder"),
    ("<tool_call>", "hermes"),
    ("[TOOL_CALLS]", "mistral"),
    ("<|python_tag|>", "llama3_json"),
)

_REJECTED = "vLLM rejected the {what}: {why}"

# The variables of chat templates that options set.
_VARIABLES = {
    "reasoning_effort": ("reasoning_effort", "enable_thinking"),
    "verbosity": ("verbosity",),
    "documents": ("documents",),
}
# Those that turn thinking off, unlike a key such as message.thinking.
_THINKING_VARIABLE = re.compile(r"(?<![.\w])(?:enable_)?thinking\b")


@dataclass(frozen=True, slots=True, kw_only=True)
class Reading:
    """How to read the answer to one request. `asked` is the request in the form that vLLM's parser needs."""

    asked: Any
    template_arguments: dict[str, Any]
    stem: str
    tools: Tools | None
    keeps_thinking: bool = True


class Parsers:
    """`tool_parser`, `reasoning_parser`: vLLM's names. Raises: SettingsError for one that cannot be used here."""

    def __init__(
        self,
        *,
        tokenizer: Any,
        model_config: Any,
        prompts: ChatPrompts | MistralPrompts,
        tool_parser: str | None,
        reasoning_parser: str | None,
    ) -> None:
        from vllm.parser import ParserManager

        # They log a stack trace for each answer that is not a tool call.
        logging.getLogger("vllm.tool_parsers").setLevel(logging.CRITICAL)
        self._tokenizer = tokenizer
        template = prompts.template
        self._turns_thinking_off = _THINKING_VARIABLE.search(template) is not None
        self._without_effect = [
            key for key, variables in _VARIABLES.items() if not any(name in template for name in variables)
        ]
        self._model_config = model_config
        self.thinks = reasoning_parser is not None
        self._why_no_tools: str | None = None
        if not prompts.shows_tools:
            self._why_no_tools = "the model's chat template has no tools"
        name = tool_parser or next((name for mark, name in TOOL_PARSERS if mark in template), None)
        if name is None and self._why_no_tools is None:
            self._why_no_tools = "the tool parser for its model is unknown; its operator can set tool_parser"
        try:
            self._class: Any = ParserManager.get_parser(
                tool_parser_name=name if tool_parser or self._why_no_tools is None else None,
                reasoning_parser_name=reasoning_parser,
                enable_auto_tools=True,
            )
            if self._class is not None:
                self._parser(None, {})  # not every version of vLLM checks the tokenizer before
        except Exception as error:  # parsers of vLLM or a plug-in may raise anything
            if tool_parser is None and reasoning_parser is None:
                self._class, self._why_no_tools = None, f"vLLM's parser {name} does not work with its model"
                return
            raise SettingsError(
                f"tool_parser {tool_parser!r} with reasoning_parser {reasoning_parser!r} cannot be used: {error}"
            ) from error

    def template_arguments(self, request: Request) -> dict[str, Any]:
        """Further arguments of the chat template. Raises: InvalidRequest if something is not supported."""
        if request.tools is not None and self._why_no_tools is not None:
            raise InvalidRequest(NO_TOOLS.format(why=self._why_no_tools))
        if request.tools is not None and request.has_guide:
            raise InvalidRequest("Tools and a format for the answer cannot be combined; remove one of them.")
        if request.is_thinking and not self.thinks:
            raise InvalidRequest(NO_THINKING.format(why="its operator has not set reasoning_parser"))
        if request.is_thinking is False and self.thinks and not self._turns_thinking_off:
            raise InvalidRequest(
                "thinking: the chat template of this pool's model cannot turn it off; remove it, or name another model."
            )
        for key in self._without_effect:
            if request.options is not None and getattr(request.options, key) is not None:
                raise InvalidRequest(f"{key}: the chat template of this pool's model does not use it; remove it.")
        return template_arguments(request)

    def reading(self, request: Request) -> Reading | None:
        """None if the text is the answer. Raises: InvalidRequest if something is not supported."""
        template_arguments = self.template_arguments(request)
        if request.tools is None and not self.thinks:
            return None
        try:
            asked = self._parser(request.tools, template_arguments).adjust_request(_asked(request.tools))
        except InvalidRequest:
            raise
        except Exception as error:  # parsers of vLLM or a plug-in may raise anything
            what = "request" if request.tools is None else "tools"
            raise InvalidRequest(_REJECTED.format(what=what, why=error)) from error
        stem = "" if request.tools is None else call_stem(request)
        return Reading(
            asked=asked,
            template_arguments=template_arguments,
            stem=stem,
            tools=request.tools,
            keeps_thinking=request.keeps_thinking is not False,
        )

    def read(self, reading: Reading, choice: Choice, token_ids: list[int], index: int) -> Choice:
        """Separates tool calls and thinking from the text of an answer. What cannot be parsed stays text."""
        parser = self._parser(reading.tools, reading.template_arguments)
        try:
            thinking, text, found = parser.parse(
                choice.text, reading.asked, enable_auto_tools=True, model_output_token_ids=token_ids
            )
            calls = [(call.name, msgspec.json.decode(call.arguments or "{}")) for call in found or ()]
            made = made_calls(reading.stem, index, calls)
        except Exception:  # noqa: BLE001 parsers of vLLM or a plug-in may raise anything
            return choice
        if reading.template_arguments.get("enable_thinking") is False and not text and not made:
            thinking, text = None, choice.text  # it did not think, so the parser found no end of thinking
        if reading.tools is not None and not reading.tools.is_parallel:
            made = made[:1]
        reason: StopReason = "tool_use" if made and choice.stop_reason != "max_tokens" else choice.stop_reason
        kept = thinking if reading.keeps_thinking else None
        return replace(choice, text=text or "", stop_reason=reason, calls=made, thinking=kept)

    def _parser(self, tools: Tools | None, template_arguments: dict[str, Any]) -> Any:
        """A new parser, because parsers keep state."""
        return self._class(
            self._tokenizer,
            None if tools is None else _asked(tools).tools,
            chat_template_kwargs=template_arguments,
            model_config=self._model_config,
        )


def _asked(tools: Tools | None) -> Any:
    from vllm.entrypoints.openai.chat_completion.protocol import ChatCompletionRequest

    about: dict[str, Any] = {}
    if tools is not None:
        about = {
            "tools": wire_tools(tools),
            "tool_choice": wire_choice(tools),
            "parallel_tool_calls": tools.is_parallel,
        }
        for tool, offered in zip(about["tools"], tools.offered, strict=True):
            # Decoding is guided by the schemas of strict tools, where vLLM has a grammar for the model's calls.
            is_strict = tools.choice != "auto" if offered.is_strict is None else offered.is_strict
            tool["function"] |= {"strict": True} if is_strict else {}
    try:
        return ChatCompletionRequest(messages=[{"role": "user", "content": ""}], **about)
    except ValueError as error:
        raise InvalidRequest(_REJECTED.format(what="tools", why=error)) from error
