"""What holds where a setting has no value of its own: `limits` depend on what runs and on where its store is. Pure."""

from collections.abc import Mapping

from batchfile.ledger.base import LOCAL
from batchfile.settings import Settings
from batchfile.settings_tables import Times

# Where the protocol's times differ: is the store a directory, and is it a service's?
PLACES = {
    "run, directory": (True, False),
    "run, bucket": (False, False),
    "service, directory": (True, True),
    "service, bucket": (False, True),
}
# In words, of settings whose absence means something.
_UNSET = {
    "store": ".batchfile next to OUT; of a service: .batchfile in its folder",
    "host": "loopback without API keys, every interface with them",
    "run.model": "the demo model, where it is cached",
    "run.max_model_len": "as the model says",
    "run.max_num_seqs": "as the engine says",
    "run.temperature": "0.2 for `params` lines, 1.0 for OpenAI lines",
    "api.spool_dir": "the system's folder for temporary files",
    "api.public_url": "what callers sent their request to",
}

InForce = str | float | Mapping[str, float]


def in_force(settings: Settings, name: str) -> InForce | None:
    """What the unset setting `name` amounts to: one number, numbers by place, or words; None: nothing."""
    table, _, field = name.partition(".")
    if table == "limits" and field in Times.model_fields:
        return _time(settings, field)
    if name == "run.grace_s":
        return LOCAL.grace_s if settings.limits.grace_s is None else settings.limits.grace_s
    return _UNSET.get(name)


def as_words(found: InForce) -> str:
    """`30 (directory), 90 (bucket)`: each number once, with the places that it is for."""
    if isinstance(found, str):
        return found
    if not isinstance(found, Mapping):
        return f"{found:g}" if found < 1e6 else f"{found:.0f}"
    by_value: dict[float, list[str]] = {}
    for place, value in found.items():
        by_value.setdefault(value, []).append(place)
    return ", ".join(f"{as_words(value)} ({_common(places)})" for value, places in by_value.items())


def _time(settings: Settings, field: str) -> InForce:
    values = {
        place: float(getattr(settings.ledger_limits(is_local=is_local, is_service=is_service), field))
        for place, (is_local, is_service) in PLACES.items()
    }
    return values if len(set(values.values())) > 1 else next(iter(values.values()))


def _common(places: list[str]) -> str:
    """Two places that share a half are named by it; all but one are the others."""
    if len(places) == len(PLACES) - 1:
        return "otherwise"
    for half in ("directory", "bucket", "run", "service"):
        if set(places) == {place for place in PLACES if half in place.split(", ")}:
            return half
    return "; ".join(places)
