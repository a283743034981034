"""A model with Mistral's own files alone: params.json, consolidated weights, and a tokenizer of mistral_common."""

import json
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from batchfile.errors import InvalidRequest, SettingsError
from batchfile.types import Completion, Message, Raw, Request, Sampling, Tool, ToolCall, Tools
from tests.engines import prepare_now
from tests.helpers.engine import MistralPrompts, prompts_of, token_counter
from tests.helpers.fleet import factory_of
from tests.helpers.settings import PoolSettings
from tests.helpers.vllm import check_model, model_facts

pytestmark = [pytest.mark.vllm, pytest.mark.filterwarnings("ignore")]

TOKENIZERS = {
    "v1": ("tokenizer.model.v1", "tokenizer.model.v1"),
    "v3": ("mistral_instruct_tokenizer_240323.model.v3", "tokenizer.model.v3"),
    "v7": ("mistral_instruct_tokenizer_241114.model.v7", "tokenizer.model.v7"),
    "tekken": ("tekken_240911.json", "tekken.json"),
}
DIM, HEAD, HIDDEN, LAYERS, WORDS = 64, 32, 128, 2, 32768
TOOL = Tool("weather", "of a city", {"type": "object", "properties": {"city": {"type": "string"}}})
CONVERSATIONS = {
    "plain": (Message("user", "Hello"),),
    "system": (Message("system", "Be brief."), Message("user", "Hello")),
    "continued": (Message("user", "Count."), Message("assistant", "One, two")),
    "long": (Message("user", "Hi"), Message("assistant", "Ho"), Message("user", "é日本🙂\n\n x")),
    "tools": (
        Message("user", "Weather?"),
        Message("assistant", "", calls=(ToolCall("toolu_1", "weather", {"city": "Oslo"}),)),
        Message("tool", "rain", call_id="toolu_1"),
    ),
}


def put_tokenizer(folder: Path, version: str) -> Path:
    import mistral_common

    source, name = TOKENIZERS[version]
    folder.mkdir(exist_ok=True)
    (folder / name).symlink_to(Path(mistral_common.__file__).parent / "data" / source)
    return folder


@pytest.fixture(scope="module")
def tokenizers(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    from vllm.tokenizers.mistral import MistralTokenizer

    folder = tmp_path_factory.mktemp("tokenizers")
    return {name: MistralTokenizer.from_pretrained(put_tokenizer(folder / name, name)) for name in TOKENIZERS}


def vllms_own(tokenizer: Any, messages: tuple[Message, ...], tools: Tools | None) -> list[int]:
    """As vLLM's server renders the same conversation in OpenAI's format."""
    from vllm.renderers.mistral import safe_apply_chat_template

    given: list[Any] = []
    for turn in messages:
        one: dict[str, Any] = {"role": turn.role, "content": turn.content}
        if turn.calls:
            called = {"name": turn.calls[0].name, "arguments": json.dumps(turn.calls[0].input)}
            one["tool_calls"] = [{"id": "call00000", "type": "function", "function": called}]
        if turn.call_id:
            one["tool_call_id"] = "call00000"
        given.append(one)
    is_open = messages[-1].role == "assistant"
    wired = [
        {
            "type": "function",
            "function": {"name": one.name, "description": one.description, "parameters": one.input_schema},
        }
        for one in (() if tools is None else tools.offered)
    ]
    rendered = safe_apply_chat_template(
        tokenizer, given, tools=wired or None, add_generation_prompt=not is_open, continue_final_message=is_open
    )
    return list(rendered)  # type: ignore[arg-type]


@pytest.mark.parametrize("version", TOKENIZERS)
@pytest.mark.parametrize("name", CONVERSATIONS)
def test_prompts_are_those_of_vllms_own_rendering(tokenizers: dict[str, Any], version: str, name: str) -> None:
    messages, tokenizer = CONVERSATIONS[name], tokenizers[version]
    prompts = prompts_of(tokenizer, "m")
    assert isinstance(prompts, MistralPrompts)
    assert prompts.shows_tools is (version != "v1")
    tools = Tools(offered=(TOOL,)) if name == "tools" else None
    if version == "v1" and tools is not None:
        with pytest.raises(InvalidRequest, match="Tools not implemented"):
            prompts.prompt(messages, tools)
        return
    assert prompts.prompt(messages, tools).token_ids == vllms_own(tokenizer, messages, tools)


@settings(max_examples=60, deadline=None)
@given(
    version=st.sampled_from([*TOKENIZERS]),
    pieces=st.lists(st.sampled_from(["</s>", "[INST]", "[/INST]", "[TOOL_CALLS]", "<s>", " "]) | st.text(max_size=4)),
)
def test_control_tokens_in_texts_are_text(tokenizers: dict[str, Any], version: str, pieces: list[str]) -> None:
    tokenizer = tokenizers[version]
    prompts = prompts_of(tokenizer, "m")
    found, without = (
        [number for number in prompts.prompt((Message("user", text),)).token_ids if number in tokenizer.all_special_ids]
        for text in ("x" + "".join(pieces), "x")
    )
    assert [number for number in found if number != tokenizer.tokenizer.unk_id] == without


def test_tokens_are_counted_without_a_model(tokenizers: dict[str, Any], tmp_path: Path) -> None:
    counter = token_counter(str(put_tokenizer(tmp_path / "v3", "v3")))
    messages = CONVERSATIONS["system"]
    found = counter.count(Request(custom_id="r", messages=messages, sampling=Sampling(max_tokens=1)))
    assert found == [len(vllms_own(tokenizers["v3"], messages, None))]


def test_turns_that_mistral_common_rejects_fail_alone(tokenizers: dict[str, Any]) -> None:
    with pytest.raises(InvalidRequest, match="mistral_common, rejected these turns"):
        prompts_of(tokenizers["v3"], "m").prompt((Message("tool", "x", call_id="1"),))
    with pytest.raises(SettingsError, match="has its own format of conversations: remove chat_template"):
        prompts_of(tokenizers["v3"], "m", chat_template="{{ messages }}")


@pytest.fixture
def model(tmp_path: Path) -> Path:
    """A tiny model with random weights in Mistral's layout."""
    import torch
    from safetensors.torch import save_file

    folder = put_tokenizer(tmp_path / "model", "v3")
    sizes = {"dim": DIM, "n_layers": LAYERS, "head_dim": HEAD, "hidden_dim": HIDDEN, "n_heads": 2, "n_kv_heads": 1}
    about = {"norm_eps": 1e-5, "vocab_size": WORDS, "rope_theta": 1e6, "max_seq_len": 512}
    (folder / "params.json").write_text(json.dumps(sizes | about))
    shapes: dict[str, tuple[int, ...]] = {"tok_embeddings": (WORDS, DIM), "output": (WORDS, DIM), "norm": (DIM,)}
    for layer in range(LAYERS):
        shapes |= {f"layers.{layer}.attention.w{one}": (HEAD, DIM) for one in "kv"}
        shapes |= {f"layers.{layer}.attention.w{one}": (DIM, DIM) for one in "qo"}
        shapes |= {f"layers.{layer}.feed_forward.w{one}": (HIDDEN, DIM) for one in "13"}
        shapes |= {f"layers.{layer}.feed_forward.w2": (DIM, HIDDEN)}
        shapes |= {f"layers.{layer}.{one}_norm": (DIM,) for one in ("attention", "ffn")}
    numbers = torch.Generator().manual_seed(0)
    weights = {f"{name}.weight": torch.randn(shape, generator=numbers) * 0.1 for name, shape in shapes.items()}
    save_file(
        {name: weight.to(torch.bfloat16) for name, weight in weights.items()}, folder / "consolidated.safetensors"
    )
    return folder


def test_a_model_with_mistrals_files_alone_is_served(model: Path) -> None:
    check_model(str(model))
    size = (model / "consolidated.safetensors").stat().st_size
    assert model_facts(str(model)).weight_bytes == size
    engine = factory_of(PoolSettings(model=str(model), max_model_len=256, engine_args={"max_num_seqs": 4}), "vllm")()
    sampling = Sampling(max_tokens=4, temperature=0.0, ignore_eos=True)
    chat = Request(custom_id="chat", messages=CONVERSATIONS["system"], sampling=sampling)
    asked = [
        chat,
        Request(custom_id="raw", messages=(), raw=Raw(kind="completion", inputs=("Hello",)), sampling=sampling),
        Request(custom_id="tools", messages=CONVERSATIONS["plain"], sampling=sampling, tools=Tools(offered=(TOOL,))),
    ]
    try:
        for key, one in enumerate(asked):
            engine.add(key, prepare_now(engine, one))
        done: dict[int, Any] = {}
        while len(done) < len(asked):
            done |= {finished.key: finished.outcome for finished in engine.step()}
    finally:
        engine.close()
    assert all(isinstance(outcome, Completion) and outcome.usage.output_tokens == 4 for outcome in done.values()), done


def test_a_folder_with_a_part_of_mistrals_files_is_refused(model: Path) -> None:
    (model / "tokenizer.model.v3").unlink()
    with pytest.raises(SettingsError, match=r"params\.json but no tekken\.json, the tokenizer"):
        check_model(str(model))
    (model / "consolidated.safetensors").unlink()
    with pytest.raises(SettingsError, match=r"no consolidated\*\.safetensors, the weights"):
        check_model(str(model))
