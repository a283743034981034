"""Starts, stops and shows runners on a Ray cluster: `python -m runners.ray up|down|status`."""

import json
import sys
from dataclasses import asdict

import structlog

from batchfile import logs
from batchfile.errors import BatchfileError, SettingsError, install_hint
from batchfile.settings import load_settings

from .options import RayOptions, order_of, parse, use_config

log = structlog.get_logger()

OK, FAILED, REFUSED = 0, 1, 2


def main(arguments: list[str]) -> int:
    """0: success. 1: an error that another attempt may fix. 2: an invalid setting."""
    options = parse(arguments)
    logs.configure()
    try:
        return _run(options)
    except SettingsError as error:
        log.error("command.rejected", error=str(error))
        return REFUSED
    except BatchfileError as error:
        log.error("command.failed", error=str(error))
        return FAILED
    except ModuleNotFoundError as error:
        log.error("command.rejected", error=f"{error.name} is not installed: {install_hint('fleet,ray')}")
        return REFUSED


def _run(options: RayOptions) -> int:
    from . import verbs

    if options.verb == "up":
        use_config(options)
        settings = load_settings()
        logs.set_level(settings.log_level)
        order = order_of(options, settings)
        verbs.connect(options.address)
        log.info("pools.ordered", how=verbs.up(order), pools=sorted(options.pools))
        return OK
    verbs.connect(options.address)
    if options.verb == "down":
        log.info("runners.stopped", num=verbs.down())
        return OK
    found = verbs.status()
    text = json.dumps([asdict(report) for report in found]) if options.is_json else verbs.render(found)
    sys.stdout.write(text + "\n")
    return OK


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
