"""`batchfile keys`: API keys for the service. A key is printed once and stored nowhere; the service knows its hash."""

import hashlib
import secrets

import click

from batchfile.cli.remote import checked_tenant

PREFIX = "bf_"
KEY_BYTES = 32  # of chance


@click.group("keys")
def command() -> None:
    """Make API keys for the service."""


@command.command("new")
@click.argument("tenant", callback=checked_tenant)
@click.option(
    "--dialect",
    type=click.Choice(["stage", "anthropic"]),
    help="What answers to this key speak.  [default: what the request tells]",
)
def new(tenant: str, dialect: str | None) -> None:
    """Print a new key of TENANT, and the line by which the service knows it.

    The key is for the client. The line is for the service: several are joined with commas.
    """
    key = PREFIX + secrets.token_urlsafe(KEY_BYTES)
    known = ":".join([tenant, hashlib.sha256(key.encode()).hexdigest(), *([dialect] if dialect else [])])
    click.echo(f"LOCAL_BATCH_API_KEY={key}")
    click.echo(f"BATCHFILE_API_KEYS={known}")
    click.echo("The key is shown this once: keep it where the client finds it.", err=True)
