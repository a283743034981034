"""Checks and compiles vLLM's guides (JSON schemas, grammars, structural tags) before the engine does.

vLLM checks a guide in `add_request`, on the caller's thread, by compiling it; its engine process compiles it again with
the tokenizer. Here both happen first, in the child process of schemas/compile.py, with vLLM's own code. That
code is private in vLLM: if a version does not have it, guides are not checked ahead, and only vLLM checks them.
"""

import dataclasses
import importlib
import inspect
import pickle
import threading
from functools import cache
from typing import Any, NamedTuple

import msgspec
import structlog

from batchfile.engine.vllm.processes import ProcessGuard
from batchfile.errors import InvalidRequest
from batchfile.schemas.compile import CompileResult, SchemaCheck
from batchfile.schemas.compile_worker import Judge

log = structlog.get_logger()

_VALIDATE = "_validate_structured_outputs"  # of vLLM's SamplingParams
_BACKEND, _WAS_AUTO = "_backend", "_backend_was_auto"  # of its StructuredOutputsParams: set by the check
_BACKENDS = {
    "xgrammar": ("vllm.v1.structured_output.backend_xgrammar", "XgrammarBackend"),
    "guidance": ("vllm.v1.structured_output.backend_guidance", "GuidanceBackend"),
    "outlines": ("vllm.v1.structured_output.backend_outlines", "OutlinesBackend"),
    "lm-format-enforcer": ("vllm.v1.structured_output.backend_lm_format_enforcer", "LMFormatEnforcerBackend"),
}
QUOTED_MAX = 120  # characters of a schema in a message
_DO = {
    "time": "Make it simpler: smaller repeat counts such as {1,100} in patterns, fewer and shorter alternatives.",
    "memory": "Make it smaller: fewer `enum` values and properties, smaller repeat counts in patterns.",
}


class Answer(msgspec.Struct):
    """`refused`: why vLLM rejected the guide, or empty. `changed`: fields of the guide that the check has set."""

    refused: str = ""
    changed: dict[str, Any] = {}


class CheckedGuide(NamedTuple):
    """The guide after vLLM's check, and the class of the parameters to pass it with."""

    guide: Any
    kind: Any


class Guides:
    """The guides of one engine. `checked` is thread-safe. The child process starts only with the first guide."""

    def __init__(self, llm: Any, guard: ProcessGuard | None) -> None:
        self._config = llm.llm_engine.vllm_config
        self._guard = guard
        self._lock = threading.Lock()
        self._is_closed = False
        self._checks: list[SchemaCheck | None] = []  # one after the first guide; None if it is unavailable

    def checked(self, guide: Any, owner: str | None) -> CheckedGuide | None:
        """Compiles the guide, which may take a minute and counts for `owner`; without an owner, uses only known
        results.

        `guide`: may be None. Returns: None if the guide has to be compiled first, or if this was closed meanwhile.
        Raises: InvalidRequest if vLLM rejects it, or if compiling it reaches a limit.
        """
        from vllm import SamplingParams

        if guide is None or guide.json_object:
            return CheckedGuide(guide, SamplingParams)
        check = self._found_check()
        if check is None:
            return None if self._is_closed else CheckedGuide(guide, SamplingParams)
        try:
            data = msgspec.json.encode(_fields(guide))
        except RecursionError as error:
            raise InvalidRequest("The JSON schema is nested too deeply. Make it flatter.") from error
        verdict = check.known(data) if owner is None else check.check(data, owner)
        if verdict is None:
            return None if owner is None or self._is_closed else CheckedGuide(guide, SamplingParams)
        answer = _answer(guide, verdict)
        for name, value in answer.changed.items():
            setattr(guide, name, value)
        return CheckedGuide(guide, checked_params())

    def close(self) -> None:
        with self._lock:
            self._is_closed = True
            for check in self._checks:
                if check is not None:
                    check.close()
            self._checks = [None]

    def _found_check(self) -> SchemaCheck | None:
        with self._lock:
            if not self._checks:
                self._checks.append(self._made_check())
            return self._checks[0]

    def _made_check(self) -> SchemaCheck | None:
        try:
            return SchemaCheck(__name__, _payload(self._config), self._guard)
        except Exception as error:  # noqa: BLE001 a configuration that cannot be pickled, usually with a model's own code
            log.warning("schema.not_checked", reason=f"the engine's configuration cannot be pickled: {error}")
            return None


@cache
def checked_params() -> Any:
    """vLLM's SamplingParams for a checked guide, which vLLM does not check again. Serialized like SamplingParams."""
    from vllm import SamplingParams

    if not callable(getattr(SamplingParams, _VALIDATE, None)):
        log.warning("schema.checked_twice", reason=f"this version of vLLM has no SamplingParams.{_VALIDATE}")
        return SamplingParams
    return type(SamplingParams)("CheckedParams", (SamplingParams,), {_VALIDATE: _is_checked, "__module__": __name__})


def _is_checked(self: Any, *args: Any, **named: Any) -> None:
    """Replaces vLLM's check of the guide."""


def _answer(guide: Any, verdict: CompileResult) -> Answer:
    """Raises: InvalidRequest."""
    if verdict.bound is not None:
        quoted = _quoted(guide)
        cost = "takes more than" if verdict.bound == "time" else "crashes its compiler, whose memory limit is"
        raise InvalidRequest(f"Compiling the {quoted} {cost} {verdict.limit}. {_DO[verdict.bound]}")
    assert verdict.answer is not None
    answer = msgspec.json.decode(verdict.answer, type=Answer)
    if answer.refused:
        raise InvalidRequest(answer.refused)
    return answer


def _quoted(guide: Any) -> str:
    kinds = {"json": "JSON schema", "regex": "regular expression", "choice": "list of choices", "grammar": "grammar"}
    for name, words in kinds.items():
        given = getattr(guide, name)
        if given is not None:
            text = given if isinstance(given, str) else msgspec.json.encode(given).decode("utf-8", "replace")
            return f"{words} {text if len(text) <= QUOTED_MAX else text[:QUOTED_MAX] + '...'}"
    return "structural tag, which may be the one that the request's tools need"


def _fields(guide: Any) -> dict[str, Any]:
    """The arguments of the guide, not copied, because a schema may be large."""
    return {field.name: getattr(guide, field.name) for field in dataclasses.fields(guide) if field.init}


def _payload(config: Any) -> bytes:
    import cloudpickle  # type: ignore[import-untyped]  # a dependency of vllm; it can send classes from a model's own code

    return bytes(cloudpickle.dumps(config))


def load(payload: bytes) -> Judge:
    """Runs in the child of schemas/compile.py: a function that checks a guide as this engine's vLLM does."""
    config = pickle.loads(payload)  # from the parent process
    from vllm import SamplingParams
    from vllm.sampling_params import StructuredOutputsParams
    from vllm.tokenizers import cached_tokenizer_from_config

    from batchfile.engine.vllm.tasks import refusals

    tokenizer = cached_tokenizer_from_config(model_config=config.model_config)
    known = {
        "model_config": config.model_config,
        "structured_outputs_config": config.structured_outputs_config,
        "tokenizer": tokenizer,
    }
    validate = getattr(SamplingParams, _VALIDATE)
    arguments = {name: known[name] for name in inspect.signature(validate).parameters if name in known}
    backends: dict[str, Any] = {}

    def compile_with(name: str, guide: Any) -> None:
        from vllm.v1.structured_output.request import get_structured_output_key

        if name not in backends:
            module, kind = _BACKENDS[name]
            make = getattr(importlib.import_module(module), kind)
            backends[name] = make(config, tokenizer=tokenizer, vocab_size=config.model_config.get_vocab_size())
        backend = backends[name]
        grammar = backend.compile_grammar(*get_structured_output_key(guide))
        # The first allowed tokens, which can be expensive too.
        grammar.fill_bitmask(backend.allocate_token_bitmask(1), 0)

    def judge(data: bytes) -> bytes:
        given = msgspec.json.decode(data)
        guide = StructuredOutputsParams(**given)
        params = SamplingParams(structured_outputs=guide)
        try:
            validate(params, **arguments)
        except refusals() as error:
            return msgspec.json.encode(Answer(refused=str(error)))
        try:
            compile_with(getattr(guide, _BACKEND), guide)
        except Exception as error:  # noqa: BLE001 compilers may raise anything; the engine would fail the request
            return msgspec.json.encode(Answer(refused=f"The JSON schema or grammar cannot be compiled: {error}"))
        changed = {name: getattr(guide, name) for name in (_BACKEND, _WAS_AUTO)}
        changed |= {name: value for name in given if (value := getattr(guide, name)) != given[name]}
        return msgspec.json.encode(Answer(changed=changed))

    # Once before the first fork: all forks then share what a compiler caches, and a version of vLLM with another
    # interface is noticed here, before it rejects any schema.
    answer = msgspec.json.decode(judge(b'{"json":{"type":"object","properties":{"a":{"type":"string"}}}}'), type=Answer)
    if answer.refused:
        raise ValueError(f"vLLM rejects the simplest schema: {answer.refused}")
    return judge
