"""Guides of vLLM (JSON schemas, grammars, structural tags), checked and compiled ahead.

vLLM checks a guide inside `add_request`, on its caller's thread, by compiling it; its engine process compiles it again
with the tokenizer. Here both are done first, in the process of engine/schemas/compile.py, by vLLM's own code. What is
used of vLLM here is private: where a version lacks it, guides are not checked ahead, and vLLM checks them as it always
did.
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

from batchfile.engine.schemas.compile import SchemaCheck, Verdict
from batchfile.engine.schemas.compile_worker import Judge
from batchfile.engine.vllm.processes import ProcessGuard
from batchfile.errors import InvalidRequest

log = structlog.get_logger()

_VALIDATE = "_validate_structured_outputs"  # of vLLM's SamplingParams
_BACKEND, _WAS_AUTO = "_backend", "_backend_was_auto"  # of its StructuredOutputsParams: what the check found out
_BACKENDS = {
    "xgrammar": ("vllm.v1.structured_output.backend_xgrammar", "XgrammarBackend"),
    "guidance": ("vllm.v1.structured_output.backend_guidance", "GuidanceBackend"),
    "outlines": ("vllm.v1.structured_output.backend_outlines", "OutlinesBackend"),
    "lm-format-enforcer": ("vllm.v1.structured_output.backend_lm_format_enforcer", "LMFormatEnforcerBackend"),
}
QUOTED_MAX = 120  # characters of a schema in a message
_DO = {
    "time": "Make it simpler: smaller repeat counts such as {1,100} in `pattern`, fewer and shorter alternatives.",
    "memory": "Make it smaller: fewer `enum` values and properties, smaller repeat counts in `pattern`.",
}


class Answer(msgspec.Struct):
    """`refused`: why; empty where vLLM takes it. `changed`: fields of the guide that the check has set."""

    refused: str = ""
    changed: dict[str, Any] = {}


class Checked(NamedTuple):
    """The guide as vLLM's own check leaves it, and the class of the parameters that carry it."""

    guide: Any
    kind: Any


class Guides:
    """Of one engine. Any thread may call `checked`. Without a guide nothing is started, nor even tried."""

    def __init__(self, llm: Any, guard: ProcessGuard | None) -> None:
        self._config = llm.llm_engine.vllm_config
        self._guard = guard
        self._lock = threading.Lock()
        self._is_closed = False
        self._checks: list[SchemaCheck | None] = []  # one, once there was a guide; None: it cannot be had

    def checked(self, guide: Any, owner: str | None) -> Checked | None:
        """Compiled, which may take a minute, in the time of `owner`; where that is None, as it is known.

        `guide` None: there is none. None: it has to be compiled first; also where this was closed meanwhile.
        Raises: InvalidRequest where vLLM refuses it, or where compiling it meets a bound.
        """
        from vllm import SamplingParams

        if guide is None or guide.json_object:
            return Checked(guide, SamplingParams)
        check = self._found_check()
        if check is None:
            return None if self._is_closed else Checked(guide, SamplingParams)
        try:
            data = msgspec.json.encode(_fields(guide))
        except RecursionError as error:
            raise InvalidRequest("The JSON schema is nested too deeply. Make it flatter.") from error
        verdict = check.known(data) if owner is None else check.check(data, owner)
        if verdict is None:
            return None if owner is None or self._is_closed else Checked(guide, SamplingParams)
        answer = _answer(guide, verdict)
        for name, value in answer.changed.items():
            setattr(guide, name, value)
        return Checked(guide, checked_params())

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
        except Exception as error:  # noqa: BLE001 a configuration that cannot be sent: a model's own code, mostly
            log.warning("schema.not_checked", reason=f"the engine's configuration cannot be sent: {error}")
            return None


@cache
def checked_params() -> Any:
    """vLLM's SamplingParams for a guide that was checked: vLLM does not check it again. The same on the wire."""
    from vllm import SamplingParams

    if not callable(getattr(SamplingParams, _VALIDATE, None)):
        log.warning("schema.checked_twice", reason=f"this version of vLLM has no SamplingParams.{_VALIDATE}")
        return SamplingParams
    return type(SamplingParams)("CheckedParams", (SamplingParams,), {_VALIDATE: _is_checked, "__module__": __name__})


def _is_checked(self: Any, *args: Any, **named: Any) -> None:
    """In place of vLLM's check of the guide."""


def _answer(guide: Any, verdict: Verdict) -> Answer:
    """Raises: InvalidRequest."""
    if verdict.bound is not None:
        quoted = _quoted(guide)
        cost = "takes more than" if verdict.bound == "time" else "ends its compiler, which may use"
        raise InvalidRequest(f"Compiling the {quoted} {cost} {verdict.limit}. {_DO[verdict.bound]}")
    assert verdict.answer is not None
    answer = msgspec.json.decode(verdict.answer, type=Answer)
    if answer.refused:
        raise InvalidRequest(answer.refused)
    return answer


def _quoted(guide: Any) -> str:
    if guide.json is None:
        return "grammar that the request's tools need"
    text = guide.json if isinstance(guide.json, str) else msgspec.json.encode(guide.json).decode("utf-8", "replace")
    return f"JSON schema {text if len(text) <= QUOTED_MAX else text[:QUOTED_MAX] + '...'}"


def _fields(guide: Any) -> dict[str, Any]:
    """What the guide was made with. No copy: a schema may be large."""
    return {field.name: getattr(guide, field.name) for field in dataclasses.fields(guide) if field.init}


def _payload(config: Any) -> bytes:
    import cloudpickle  # type: ignore[import-untyped]  # vllm needs it too; it sends what a model's own code defines

    return bytes(cloudpickle.dumps(config))


def load(payload: bytes) -> Judge:
    """In the process of engine/schemas/compile.py: what judges a guide as this engine's vLLM would."""
    config = pickle.loads(payload)  # from the process that started this one
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
        grammar.fill_bitmask(backend.allocate_token_bitmask(1), 0)  # which tokens may come first: no small work either

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
        except Exception as error:  # noqa: BLE001 compilers raise what they like; the engine would fail the request
            return msgspec.json.encode(Answer(refused=f"The guide cannot be compiled: {error}"))
        changed = {name: getattr(guide, name) for name in (_BACKEND, _WAS_AUTO)}
        changed |= {name: value for name in given if (value := getattr(guide, name)) != given[name]}
        return msgspec.json.encode(Answer(changed=changed))

    # Once before the first fork: what a compiler keeps is then there in each of them, and a version of vLLM that wants
    # to be asked otherwise refuses no schema.
    answer = msgspec.json.decode(judge(b'{"json":{"type":"object","properties":{"a":{"type":"string"}}}}'), type=Answer)
    if answer.refused:
        raise ValueError(f"vLLM refuses the simplest schema: {answer.refused}")
    return judge
