"""Runs the HTTP service over a store: `batchfile serve`, or `python -m api` in a checkout."""

import argparse
import ipaddress
import logging
import os
import socket
import sys
from functools import partial

import structlog
import uvicorn

from batchfile import logs, tracing
from batchfile.errors import BatchfileError, SettingsError
from batchfile.open_ledger import open_service_ledger
from batchfile.settings import CONFIG_VARIABLE, Settings, load_settings

from .app import create_app
from .http.auth import AuthMiddleware
from .http.connections import Connections, ServerConnection, raise_file_limit
from .ops.store_health import opened

LOOPBACK = "127.0.0.1"
EVERYWHERE = "0.0.0.0"
KEEP_ALIVE_S = 75  # longer than load balancers keep an idle connection, so that they never reuse a closed one
CONNECTIONS_MAX = 2_000  # beyond this, the longest idle connection is closed
HEADER_BYTES_MAX = 64 * 1024
SHUTDOWN_S = 20
EXAMPLES = """\
examples:
  {prog}                                     # store in ./.batchfile, for this machine only
  {prog} --store s3://bucket/prefix --host 0.0.0.0 --port 8000
  {prog} --config batchfile.toml

Set everything else in batchfile.toml or with BATCHFILE_* variables."""


def main(arguments: list[str] | None = None, prog: str = f"python -m {__package__}") -> int:
    args = _parser(prog).parse_args(arguments)
    if args.config:
        os.environ[CONFIG_VARIABLE] = args.config
    logs.configure()
    logging.basicConfig(level=logging.WARNING, handlers=[_AsLines()], force=True)
    try:
        settings = load_settings()
        logs.set_level(settings.log_level)
        tracing.start("batchfile-api")
        host = _host(args.host, settings)
        port = settings.port if args.port is None else args.port
        listener = _listener(host, port)
        ledger = opened(lambda: open_service_ledger(args.store, settings), listener)
    except BatchfileError as error:
        sys.stderr.write(f"batchfile api: {error}\n")
        return 2 if isinstance(error, SettingsError) else 1
    structlog.get_logger().info("api.started", host=host, port=listener.getsockname()[1], store=ledger.store.url)
    raise_file_limit(CONNECTIONS_MAX)
    auth_middleware = create_app(ledger, settings)
    limits = Connections(connections_max=CONNECTIONS_MAX, idle_bytes_max=HEADER_BYTES_MAX, wait_s=KEEP_ALIVE_S)
    config = uvicorn.Config(
        auth_middleware,
        http=partial(ServerConnection, all_of_them=limits),  # type: ignore[arg-type]  # it is only called
        ws="none",
        log_config=None,
        access_log=False,
        proxy_headers=False,  # the settings decide whether a proxy's headers are trusted
        server_header=False,
        timeout_keep_alive=KEEP_ALIVE_S,
        timeout_graceful_shutdown=SHUTDOWN_S,
    )
    _Server(config, auth_middleware).run(sockets=[listener])
    return 0


class _Server(uvicorn.Server):
    """Tells the auth middleware when shutdown begins, because uvicorn then waits for responses in progress."""

    def __init__(self, config: uvicorn.Config, auth_middleware: AuthMiddleware) -> None:
        super().__init__(config)
        self._auth_middleware = auth_middleware

    async def shutdown(self, sockets: list[socket.socket] | None = None) -> None:
        self._auth_middleware.stopping.set()
        await super().shutdown(sockets)


def _listener(host: str, port: int) -> socket.socket:
    """Raises: BatchfileError if the port is not available."""
    try:
        return socket.create_server((host, port), family=socket.AF_INET6 if ":" in host else socket.AF_INET)
    except OSError as error:
        raise BatchfileError(f"cannot listen on {host} port {port}: {error.strerror}; use another port") from error


def _host(given: str | None, settings: Settings) -> str:
    """Loopback without keys. Raises: SettingsError if others could reach a service without keys unintentionally."""
    is_guarded = bool(settings.api_keys) or settings.allow_anonymous
    host = given or settings.host or (EVERYWHERE if is_guarded else LOOPBACK)
    if not is_guarded and not _is_loopback(host):
        raise SettingsError(
            f"host {host} would open a service without API keys to other machines. Create a key with "
            "`batchfile keys new TENANT` and set BATCHFILE_API_KEYS, or set BATCHFILE_ALLOW_ANONYMOUS=1"
        )
    return host


def _is_loopback(host: str) -> bool:
    if host == "localhost":
        return True
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return False


class _AsLines(logging.Handler):
    """Logs the warnings of libraries in the same format as everything else."""

    def emit(self, record: logging.LogRecord) -> None:
        say = structlog.get_logger().error if record.levelno >= logging.ERROR else structlog.get_logger().warning
        say("library.warned", library=record.name, message=record.getMessage(), exc_info=record.exc_info)


def _port(text: str) -> int:
    if not text.isdecimal() or len(text) > 5 or int(text) > 65535:
        raise argparse.ArgumentTypeError(f"{text!r} is not a port; use 1 to 65535, or 0 for any free port")
    return int(text)


def _parser(prog: str) -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog=prog,
        description="Serve batches over HTTP from a store.",
        epilog=EXAMPLES.format(prog=prog),
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("--host", help="the address to listen on (BATCHFILE_HOST; loopback without API keys)")
    parser.add_argument("--port", type=_port, help="the port, 0 for any free port (BATCHFILE_PORT or PORT; 8000)")
    parser.add_argument("--store", help="a directory or s3://bucket/prefix (BATCHFILE_STORE; .batchfile here)")
    parser.add_argument("--config", help="the settings file (BATCHFILE_CONFIG; batchfile.toml here)")
    return parser


if __name__ == "__main__":
    sys.exit(main())
