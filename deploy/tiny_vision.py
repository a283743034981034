"""Creates a tiny vision model with random weights and the tokenizer of the demo model, once.

    .venv/bin/python deploy/tiny_vision.py    # prints its path

It runs in vLLM like a large one (architecture Idefics3) and reads images, with meaningless output. Like that of many
such models, its chat template takes only lists of parts.
"""

import sys

from tiny_llama import main

NAME = "tiny-random-vision"

MAKE = r"""
import sys
import torch
from transformers import (
    AutoTokenizer,
    Idefics3Config,
    Idefics3ForConditionalGeneration,
    LlamaConfig,
)
from transformers.models.idefics3.processing_idefics3 import Idefics3Processor
try:
    from transformers.models.idefics3.image_processing_pil_idefics3 import Idefics3ImageProcessorPil as ImageProcessor
except ImportError:
    from transformers.models.idefics3.image_processing_idefics3 import Idefics3ImageProcessor as ImageProcessor

TEMPLATE = (
    "{% for message in messages %}<|im_start|>{{ message['role'] }}\n"
    "{% for part in message['content'] %}"
    "{% if part['type'] == 'text' %}{{ part['text'] }}{% elif part['type'] == 'image' %}<image>{% endif %}"
    "{% endfor %}<|im_end|>\n{% endfor %}"
    "{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
)
source, target = sys.argv[1:]
tokenizer = AutoTokenizer.from_pretrained(source)
rows = [f"<row_{row}_col_{column}>" for row in range(1, 7) for column in range(1, 7)]
tokens = ["<fake_token_around_image>", "<image>", "<global-img>", "<end_of_utterance>", *rows]
tokenizer.add_special_tokens({"additional_special_tokens": tokens})
tokenizer.chat_template = TEMPLATE
torch.manual_seed(0)
config = Idefics3Config(
    text_config=LlamaConfig(
        vocab_size=len(tokenizer),
        hidden_size=128,
        intermediate_size=256,
        num_hidden_layers=2,
        num_attention_heads=4,
        num_key_value_heads=2,
        max_position_embeddings=8192,
        bos_token_id=tokenizer.bos_token_id,
        eos_token_id=tokenizer.eos_token_id,
        pad_token_id=tokenizer.pad_token_id,
        tie_word_embeddings=True,
    ).to_dict(),
    vision_config={
        "hidden_size": 64,
        "intermediate_size": 128,
        "num_hidden_layers": 2,
        "num_attention_heads": 4,
        "image_size": 64,
        "patch_size": 16,
    },
    image_token_id=tokenizer.convert_tokens_to_ids("<image>"),
    scale_factor=2,
    pad_token_id=tokenizer.pad_token_id,
    tie_word_embeddings=True,
)
images = ImageProcessor(do_image_splitting=False, size={"longest_edge": 64}, max_image_size={"longest_edge": 64})
Idefics3ForConditionalGeneration(config).to(torch.bfloat16).save_pretrained(target)
Idefics3Processor(images, tokenizer, image_seq_len=4, chat_template=TEMPLATE).save_pretrained(target)
"""

if __name__ == "__main__":
    sys.exit(main(NAME, MAKE))
