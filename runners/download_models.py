"""Downloads a pool's model and adapters to where vLLM looks for them (`HF_HOME`).

    python -m runners.download_models --pool NAME

Run one process at a time for each volume. Existing files are not downloaded again, and an interrupted download
resumes.
"""

import argparse
import sys
from collections.abc import Collection, Sequence
from fnmatch import fnmatch
from pathlib import Path

import structlog

from batchfile import logs
from batchfile.engine.vllm.adapters import FILES, split_source
from batchfile.engine.vllm.preflight import TRANSFORMERS_FILES
from batchfile.errors import SettingsError
from batchfile.settings import load_settings

from .options import pool_of

log = structlog.get_logger()

# The same weights in other formats, which vLLM does not load.
NOT_WANTED = ("original/*", "*.pth", "*.pt", "*.bin", "*.gguf", "*.onnx", "*.h5", "*.msgpack")
OF_MISTRAL, OF_TRANSFORMERS = "consolidated*", "model*.safetensors*"
OK, FAILED, REFUSED = 0, 1, 2


def main(arguments: list[str]) -> int:
    parser = argparse.ArgumentParser(prog=f"python -m {__package__}.download_models", description=__doc__)
    parser.add_argument("--pool", required=True, metavar="NAME")
    name = parser.parse_args(arguments).pool
    logs.configure(pool=name)
    try:
        settings = load_settings()
        logs.set_level(settings.log_level)
        pool = pool_of(settings, name)
    except SettingsError as error:
        log.error("prefetch.refused", error=str(error))
        return REFUSED
    done = [_download(pool.model, pool.revision)]
    done += [_download(*split_source(source), only=FILES) for source in pool.lora.values()]
    return max(done)


def not_wanted(files: Collection[str]) -> list[str]:
    """The patterns of what vLLM does not load of a repository with these files, which may have its weights twice."""
    has_both = set(TRANSFORMERS_FILES) <= set(files)
    is_mistral = any(fnmatch(name, f"{OF_MISTRAL}.safetensors") for name in files) and not has_both
    return [*NOT_WANTED, OF_TRANSFORMERS if is_mistral else OF_MISTRAL]


def _download(model: str, revision: str | None, only: Sequence[str] = ()) -> int:
    """`only`: patterns of files; without them, all that vLLM loads."""
    if Path(model).expanduser().is_dir():
        log.info("model.found", model=model)
        return OK
    try:
        from huggingface_hub import list_repo_files, snapshot_download

        ignored = None if only else not_wanted(list_repo_files(model, revision=revision))
        place = snapshot_download(model, revision=revision, allow_patterns=list(only) or None, ignore_patterns=ignored)
    except Exception:  # the top of this process; the hub's client raises many kinds of errors
        log.exception("prefetch.failed", model=model, what_to_do="set HF_TOKEN and accept the model's license")
        return FAILED
    log.info("model.fetched", model=model, revision=revision, place=place)
    return OK


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
