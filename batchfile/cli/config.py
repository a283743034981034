"""The commands `config show` (every setting, its origin and its effective default) and `keys new` (a new API key)."""

import hashlib
import json
import re
import secrets
from collections.abc import Iterable, Mapping

import click

from batchfile.cli.help import epilog
from batchfile.cli.remote import checked_tenant
from batchfile.ledger.base import LOCAL
from batchfile.settings import Setting, Settings, explain_settings, load_settings
from batchfile.settings_tables import KEY_NAME, KEY_NAME_RULE, Times

WIDTH_MAX = 48  # of the column of values; longer values extend into the next
OF_POOLS = ("pools", "stages")
KEY_PREFIX = "bf_"
KEY_BYTES = 32  # random

# Where the protocol's times differ: whether the store is a directory, and whether a service uses it.
PLACES = {
    "run, directory": (True, False),
    "run, bucket": (False, False),
    "service, directory": (True, True),
    "service, bucket": (False, True),
}
# The effective defaults of settings without a value.
_UNSET = {
    "store": ".batchfile next to OUT; of a service: .batchfile in the current folder",
    "host": "loopback without API keys, every interface with them",
    "run.model": "the demo model, where it is cached",
    "run.max_model_len": "the model's own limit",
    "run.max_num_seqs": "32 with an endpoint, otherwise vLLM's default",
    "run.temperature": "0.2 for `params` lines, 1.0 for OpenAI lines",
    "api.spool_dir": "the system's folder for temporary files",
    "api.public_url": "the address of each request",
}
# The same, of every pool.
_UNSET_OF_POOLS = {
    "max_num_seqs": "32 with an endpoint, otherwise vLLM's default",
    "tool_parser": "recognized from the chat template",
    "chat_template": "the model's own",
}

InForce = str | float | Mapping[str, float]


@click.group("config", epilog=epilog("batchfile config show", "batchfile config show --json"))
def config() -> None:
    """Show the settings and where each was set."""


@config.command(
    "show",
    epilog=epilog(
        "batchfile config show",
        "batchfile config show --all",
        "BATCHFILE_CONFIG=service.toml batchfile config show --json",
    ),
)
@click.option("--all", "is_all", is_flag=True, help="Include the built-in pools and stages.")
@click.option("--json", "is_json", is_flag=True, help="Print everything as one JSON object.")
def show(is_all: bool, is_json: bool) -> None:
    """Print each setting with its origin: default, the settings file, or an environment variable.

    A value in parentheses is the effective default of an unset setting. Times are in seconds.
    """
    settings = load_settings()
    found = explain_settings(settings)
    if is_json:
        click.echo(json.dumps({item.name: _as_json(settings, item) for item in found}, indent=2))
        return
    hidden = [] if is_all or has_own_pools(found) else [item for item in found if _is_of_pools(item)]
    rows = [(item.name, _shown(settings, item), item.origin) for item in found if item not in hidden]
    names, values = (max(min(WIDTH_MAX, len(row[column])) for row in rows) for column in (0, 1))
    for name, value, origin in rows:
        click.echo(f"{name:<{names}}  {value:<{values}}  {origin}")
    if hidden:
        click.echo("Not shown: the built-in pools and stages, which only a service uses; --all shows them.", err=True)


def has_own_pools(found: Iterable[Setting]) -> bool:
    """Is any pool or stage set? `batchfile run` does not use them."""
    return any(_is_of_pools(item) and item.origin != "default" for item in found)


def _is_of_pools(item: Setting) -> bool:
    return item.name.partition(".")[0] in OF_POOLS


def _as_json(settings: Settings, item: Setting) -> dict[str, object]:
    shown: dict[str, object] = {"value": item.value, "origin": item.origin}
    holds = in_force(settings, item.name) if item.value is None else None
    return shown if holds is None else shown | {"in_force": holds}


def _shown(settings: Settings, item: Setting) -> str:
    if item.value is not None:
        return json.dumps(item.value, ensure_ascii=False)
    holds = in_force(settings, item.name)
    return "-" if holds is None else f"({as_words(holds)})"


def in_force(settings: Settings, name: str) -> InForce | None:
    """The effective default of the unset setting `name`: a number, numbers by place, or words; None: no default."""
    table, _, field = name.partition(".")
    if table == "limits" and field in Times.model_fields:
        return _time(settings, field)
    if name == "run.grace_s":
        return LOCAL.grace_s if settings.limits.grace_s is None else settings.limits.grace_s
    if table == "pools":
        return _UNSET_OF_POOLS.get(field.rpartition(".")[2])
    return _UNSET.get(name)


def as_words(found: InForce) -> str:
    """`30 (directory), 90 (bucket)`: each number once, with the places that it applies to."""
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
    """The name of several places: the half that two of them share, or "otherwise" for all but one."""
    if len(places) == len(PLACES) - 1:
        return "otherwise"
    for half in ("directory", "bucket", "run", "service"):
        if set(places) == {place for place in PLACES if half in place.split(", ")}:
            return half
    return "; ".join(places)


@click.group("keys", epilog=epilog("batchfile keys new acme", "batchfile keys new --help"))
def keys() -> None:
    """Create API keys for the service."""


def _checked_name(context: click.Context, option: click.Parameter, name: str | None) -> str | None:
    if name is not None and not re.fullmatch(KEY_NAME, name):
        raise click.BadParameter(f"{name!r:.80} is not a valid name; use {KEY_NAME_RULE}", context, option)
    return name


@keys.command(
    "new",
    epilog=epilog(
        "batchfile keys new acme --name crm",
        "batchfile keys new default                          # the tenant of a service without keys",
    ),
)
@click.argument("tenant", callback=checked_tenant)
@click.option(
    "--dialect",
    type=click.Choice(["stage", "anthropic"]),
    help="The API format of responses to this key.  [default: by the request]",
)
@click.option("--name", metavar="NAME", callback=_checked_name, help="What the service's log calls the key.")
def new(tenant: str, dialect: str | None, name: str | None) -> None:
    """Print a new API key for TENANT, and the setting with which the service accepts it.

    The first line is for the client, the second for the service: join the values of several keys with commas.
    """
    key = KEY_PREFIX + secrets.token_urlsafe(KEY_BYTES)
    known = ":".join([tenant, hashlib.sha256(key.encode()).hexdigest(), dialect or "", name or ""]).rstrip(":")
    click.echo(f"LOCAL_BATCH_API_KEY={key}")
    click.echo(f"BATCHFILE_API_KEYS={known}")
    click.echo("The key is shown only once and stored nowhere: save it for the client.", err=True)
