"""Small tokenizers with the templates and control tokens of well-known families, made on the spot."""

from typing import Any

CORPUS = [
    "Hello there, how are you today?",
    "user assistant system end of text",
    "write [a] short <b>mail</b>, 12 34",
] * 9

LLAMA = (
    "{{ bos_token }}{% for m in messages %}<|start_header_id|>{{ m.role }}<|end_header_id|>\n\n"
    "{{ m.content | trim }}<|eot_id|>{% endfor %}"
    "{% if add_generation_prompt %}<|start_header_id|>assistant<|end_header_id|>\n\n{% endif %}"
)
MISTRAL = (
    "{{ bos_token }}{% for m in messages %}"
    "{% if m.role == 'user' %}[INST] {{ m.content }}[/INST]"
    "{% elif m.tool_calls %}[TOOL_CALLS] {{ m.tool_calls | map(attribute='function') | list | tojson }}{{ eos_token }}"
    "{% elif m.role == 'assistant' %} {{ m.content }}{% if not loop.last %}{{ eos_token }}{% endif %}"
    "{% elif m.role == 'tool' %}[TOOL_RESULTS] {{ m.content }}[/TOOL_RESULTS]"
    "{% else %}{{ raise_exception('no such role') }}{% endif %}{% endfor %}"
)
# Its markers of turns and of thinking are not special tokens, as in DeepSeek's tokenizers.
THINKING = (
    "{{ bos_token }}{% for m in messages %}{% if m.role == 'assistant' %}<｜Assistant｜>"
    "{{ m.content.split('</think>')[-1] if not loop.last else m.content }}{{ eos_token if not loop.last }}"
    "{% else %}<｜User｜>{{ m.content }}{% endif %}{% endfor %}{% if add_generation_prompt %}<｜Assistant｜>{% endif %}"
)


def llama() -> Any:
    """Like Llama 3: byte-level BPE, control tokens outside of its vocabulary."""
    special = ["<|begin_of_text|>", "<|end_of_text|>", "<|start_header_id|>", "<|end_header_id|>", "<|eot_id|>"]
    return _byte_level(LLAMA, special, bos_token=special[0], eos_token=special[-1])


def thinking() -> Any:
    made = _byte_level(THINKING, ["<s>", "</s>"], bos_token="<s>", eos_token="</s>")
    made.add_tokens(["<｜User｜>", "<｜Assistant｜>", "<think>", "</think>", "ordinary"])
    return made


def mistral() -> Any:
    """Like Mistral 7B v0.3: SentencePiece's BPE, whose merges would make control tokens of their characters."""
    from tokenizers import AddedToken, Tokenizer, decoders, models, pre_tokenizers

    special = ["<unk>", "<s>", "</s>", "[INST]", "[/INST]", "[TOOL_CALLS]", "[TOOL_RESULTS]", "[/TOOL_RESULTS]"]
    pieces = special + [f"<0x{byte:02X}>" for byte in range(256)]
    pieces += ["▁", *map(chr, range(33, 127)), "s>", "IN", "[IN", "ST", "ST]", "▁He", "He", "ll"]
    merges = [("s", ">"), ("<", "s>"), ("I", "N"), ("[", "IN"), ("S", "T"), ("ST", "]"), ("[IN", "ST]"), ("H", "e")]
    merges += [("▁", "He"), ("l", "l")]
    vocabulary = {piece: number for number, piece in enumerate(pieces)}
    model = models.BPE(vocab=vocabulary, merges=merges, unk_token="<unk>", fuse_unk=True, byte_fallback=True)
    made = Tokenizer(model)
    made.pre_tokenizer = pre_tokenizers.Metaspace(prepend_scheme="first", split=False)
    made.decoder = decoders.Sequence([decoders.Replace("▁", " "), decoders.ByteFallback(), decoders.Fuse()])
    made.add_special_tokens([AddedToken(token, normalized=False) for token in special])
    return _wrapped(made, MISTRAL, unk_token="<unk>", bos_token="<s>", eos_token="</s>")


def _byte_level(template: str, special: list[str], **named: str) -> Any:
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers

    made = Tokenizer(models.BPE())
    made.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    made.decoder = decoders.ByteLevel()
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    made.train_from_iterator(
        CORPUS, trainers.BpeTrainer(vocab_size=400, initial_alphabet=alphabet, show_progress=False)
    )
    made.add_special_tokens(special)
    return _wrapped(made, template, **named)


def _wrapped(tokenizer: Any, template: str, **named: str) -> Any:
    from transformers import PreTrainedTokenizerFast

    made = PreTrainedTokenizerFast(tokenizer_object=tokenizer, clean_up_tokenization_spaces=False, **named)
    made.chat_template = template
    return made
