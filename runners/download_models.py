"""Downloads a pool's model and adapters to where vLLM looks for them (`HF_HOME`).

    python -m runners.download_models --pool NAME

Run one process at a time for each volume. Existing files are not downloaded again, and an interrupted download
resumes.
"""

import argparse
import sys
from collections.abc import Sequence
from pathlib import Path

import structlog

from batchfile import logs
from batchfile.engine.vllm.adapters import FILES, split_source
from batchfile.errors import SettingsError
from batchfile.settings import load_settings

from .options import pool_of

log = structlog.get_logger()

# The same weights in other formats, which vLLM does not load.
NOT_WANTED = ("original/*", "consolidated*", "*.pth", "*.pt", "*.bin", "*.gguf", "*.onnx", "*.h5", "*.msgpack")
OK, FAILED, REFUSED = 0, 1, 2


def main(arguments: list[str]) -> int:
    parser = argparse.ArgumentParser(prog=f"python -m {__package__}.download_models", description=__doc__)
    parser.add_argument("--pool", required=True, metavar="NAME")
    name = parser.parse_args(arguments).pool
    logs.configure(pool=name)
    try:
        pool = pool_of(load_settings(), name)
    except SettingsError as error:
        log.error("prefetch.refused", error=str(error))
        return REFUSED
    done = [_download(pool.model, pool.revision, ignore_patterns=NOT_WANTED)]
    done += [_download(*split_source(source), allow_patterns=FILES) for source in pool.lora.values()]
    return max(done)


def _download(model: str, revision: str | None, **patterns: Sequence[str]) -> int:
    if Path(model).expanduser().is_dir():
        log.info("model.found", model=model)
        return OK
    try:
        from huggingface_hub import snapshot_download

        place = snapshot_download(model, revision=revision, **{name: list(globs) for name, globs in patterns.items()})
    except Exception:  # the top of this process; the hub's client raises many kinds of errors
        log.exception("prefetch.failed", model=model, what_to_do="set HF_TOKEN and accept the model's license")
        return FAILED
    log.info("model.fetched", model=model, revision=revision, place=place)
    return OK


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
