"""Tiny encoders with random weights: BERT with a head for classes, as a classifier and as a cross-encoder.

.venv/bin/python -m tests.tiny_encoders FOLDER    # writes FOLDER/classifier and FOLDER/cross-encoder
"""

import sys
from pathlib import Path
from typing import Any

WORDS = tuple("red green blue one two three is a good bad what color apple the sky of and it ?".split())  # noqa: SIM905
SPECIAL = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]"]
LABELS = ("angry", "calm", "glad")
MAX_LEN = 64


def tokenizer() -> Any:
    """Words, with BERT's special tokens and its two types of tokens for a pair."""
    from tokenizers import Tokenizer, models, pre_tokenizers, processors
    from transformers import PreTrainedTokenizerFast

    made = Tokenizer(models.WordLevel({word: n for n, word in enumerate([*SPECIAL, *WORDS])}, unk_token="[UNK]"))
    made.pre_tokenizer = pre_tokenizers.Whitespace()
    made.post_processor = processors.TemplateProcessing(
        single="[CLS] $A [SEP]",
        pair="[CLS] $A [SEP] $B:1 [SEP]:1",
        special_tokens=[("[CLS]", 2), ("[SEP]", 3)],
    )
    return PreTrainedTokenizerFast(
        tokenizer_object=made,
        model_input_names=["input_ids", "token_type_ids", "attention_mask"],
        model_max_length=MAX_LEN,
        **dict(zip(("pad_token", "unk_token", "cls_token", "sep_token", "mask_token"), SPECIAL, strict=True)),
    )


def make(folder: Path, labels: tuple[str, ...]) -> Path:
    import torch
    from transformers import BertConfig, BertForSequenceClassification

    torch.manual_seed(2)
    words = tokenizer()
    config = BertConfig(
        vocab_size=len(words),
        hidden_size=64,
        num_hidden_layers=2,
        num_attention_heads=2,
        intermediate_size=128,
        max_position_embeddings=MAX_LEN,
        initializer_range=0.3,  # so that answers differ
        pad_token_id=0,
        id2label=dict(enumerate(labels)),
        label2id={label: n for n, label in enumerate(labels)},
    )
    BertForSequenceClassification(config).save_pretrained(folder)
    words.save_pretrained(folder)
    return folder


if __name__ == "__main__":
    made = Path(sys.argv[1])
    make(made / "classifier", LABELS)
    make(made / "cross-encoder", ("relevant",))
