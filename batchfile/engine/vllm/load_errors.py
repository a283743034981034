"""Why a model cannot be loaded: a setting is wrong, or its hub or volume is unavailable for now. Imports no vllm.

vLLM, transformers and pydantic wrap what happened in errors of their own, several deep; the cause is found by its type.
Only what says for certain that waiting is no use is a wrong setting.
"""

import errno
import sys
from collections.abc import Iterator
from pathlib import Path

from batchfile.errors import BatchfileError, EngineDead, SettingsError

_ERRNOS = {
    errno.EIO,
    errno.ESTALE,
    errno.ETIMEDOUT,
    errno.ENOTCONN,
    errno.ENETDOWN,
    errno.ENETUNREACH,
    errno.EHOSTDOWN,
    errno.EHOSTUNREACH,
    errno.ECONNREFUSED,
    errno.ECONNRESET,
    errno.ENODEV,
    errno.ENXIO,
    errno.EAGAIN,
}
_STATUSES = {408, 425, 429}  # and from 500 on: the hub cannot now
# Of modules that are loaded where these are raised; the first name is the module's.
_TRANSPORT = (
    ("httpx", "TransportError"),
    ("requests", "ConnectionError"),
    ("requests", "Timeout"),
    ("urllib3.exceptions", "HTTPError"),
    ("huggingface_hub.errors", "LocalEntryNotFoundError"),  # nothing is cached, and the hub did not answer
)


def not_loaded(error: BaseException, model: str) -> BaseException:
    """What to raise for `error`, which ended the loading of `model`: SettingsError, EngineDead, or itself."""
    if not isinstance(error, Exception) or isinstance(error, BatchfileError):
        return error
    if why := why_unavailable(error, model):
        return EngineDead(f"the model {model!r} is unavailable now ({why}): {error}")
    if isinstance(error, ValueError | OSError | TypeError | ImportError):
        return SettingsError(f"vLLM cannot load the model {model!r}: {error}")
    return EngineDead(f"vLLM did not start with the model {model!r}: {error}")


def why_unavailable(error: Exception, place: str) -> str | None:
    """Why another try may succeed; None where it cannot, or nobody knows. `place`: a hub id, a folder or a file."""
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
    """A path whose nearest folder is empty: a volume that is mounted there later, perhaps."""
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
    """The error and all that led to it: `raise ... from`, what was being handled, and what pydantic took in."""
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
