"""Creates a tiny Llama model with random weights and the tokenizer of the demo model, once.

    .venv/bin/python deploy/tiny_llama.py    # prints its path

It runs in vLLM like a large model, with meaningless output: a second model to try two pools on one machine.
"""

import shutil
import sys
import tempfile
from pathlib import Path

from local_setup.model import model_dir
from local_setup.places import SetupError, models_dir
from local_setup.process import run
from local_setup.progress import SetupProgress, say

NAME = "tiny-random-llama"

MAKE = """
import sys
import torch
from transformers import AutoTokenizer, LlamaConfig, LlamaForCausalLM
source, target = sys.argv[1:]
tokenizer = AutoTokenizer.from_pretrained(source)
torch.manual_seed(0)
config = LlamaConfig(
    vocab_size=len(tokenizer),
    hidden_size=128,
    intermediate_size=256,
    num_hidden_layers=2,
    num_attention_heads=4,
    num_key_value_heads=2,
    max_position_embeddings=8192,
    bos_token_id=tokenizer.bos_token_id,
    eos_token_id=tokenizer.eos_token_id,
    tie_word_embeddings=True,
)
LlamaForCausalLM(config).to(torch.bfloat16).save_pretrained(target)
tokenizer.save_pretrained(target)
"""


def made(name: str = NAME, recipe: str = MAKE) -> Path:
    """The folder of a model. Raises: SetupError, also if the demo model is missing."""
    target = models_dir() / name
    if target.is_dir():
        return target
    if not model_dir().is_dir():
        raise SetupError(f"No model in {model_dir()}, whose tokenizer is needed; run `just setup` once.")
    progress = SetupProgress()
    with tempfile.TemporaryDirectory(prefix=".make-", dir=models_dir()) as scratch:
        folder = Path(scratch, name)
        command = [sys.executable, "-c", recipe, str(model_dir()), str(folder)]
        hint = f"The model {name} could not be created. Run the same command again."
        progress.step(f"model {name}", lambda: run(command, progress, disk=models_dir(), hint=hint))
        if not target.is_dir():  # another process may have been faster
            shutil.move(folder, target)
    return target


def main(name: str = NAME, recipe: str = MAKE) -> int:
    """Print the path of the model."""
    try:
        sys.stdout.write(f"{made(name, recipe)}\n")
    except SetupError as error:
        say(str(error))
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main())
