"""Runs the worker of a pool: `batchfile worker --pool NAME`, or `python -m runners` in a checkout.

With `--slot`, which only the supervisor passes, it is one runner.
"""

import sys

import structlog

from batchfile import logs
from batchfile.errors import BatchfileError, SettingsError, StoreError, StoreUnavailable, install_hint

from .options import PROG, ProgramOptions, parse

log = structlog.get_logger()

FAILED, REFUSED = 1, 2


def main(arguments: list[str], prog: str = PROG) -> int:
    """0: done or stopped. 1: an error that a restart may fix. 2: an invalid setting."""
    options = parse(arguments, prog)
    logs.configure(**options.log_keys)
    try:
        return _run(options)
    except (SettingsError, StoreError) as error:
        log.error("process.refused", error=str(error))
        return FAILED if isinstance(error, StoreUnavailable) else REFUSED
    except BatchfileError as error:
        log.error("process.failed", error=str(error))
        return FAILED
    except ModuleNotFoundError as error:
        log.error("process.refused", error=f"{error.name} is not installed: {install_hint('fleet')}")
        return REFUSED
    except Exception:
        log.exception("process.crashed")
        return FAILED


def _run(options: ProgramOptions) -> int:
    if options.slot is None:
        from .supervisor import supervise

        return supervise(options)
    from .worker import run_slot

    return run_slot(options, options.slot)


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
