"""Plans the engine slots of the worker's pools on this machine, and supervises a runner in each."""

import os
from dataclasses import replace

import structlog

from batchfile import logs
from batchfile.errors import SettingsError
from batchfile.machine.choice import layout_for
from batchfile.machine.devices import Device
from batchfile.machine.layout import environments
from batchfile.machine.supervisor import SlotPlan, Supervisor
from batchfile.settings import Settings, load_settings

from . import child
from .options import ProgramOptions, kind_of, pool_of

log = structlog.get_logger()


def supervise(options: ProgramOptions) -> int:
    """Raises: SettingsError before any runner starts."""
    settings = load_settings()
    logs.set_level(settings.log_level)
    return Supervisor(slot_plans(settings, options), settings.service_grace_s).run()


def slot_plans(settings: Settings, options: ProgramOptions) -> list[SlotPlan]:
    """One for each replica of each pool. Raises: SettingsError."""
    engines: list[tuple[str, tuple[Device, ...]]] = []
    for name in options.pools:
        engines += [(name, devices) for devices in _replicas(settings, options, name)]
    owners: dict[str, str] = {}
    for name, devices in engines:
        for device in devices:
            if device.kind != "cpu" and owners.setdefault(device.index, name) != name:
                raise SettingsError(
                    f"--pool {name}: pool {owners[device.index]} has GPU {device.index} already; give each pool GPUs "
                    f"of its own, such as --pool {owners[device.index]}=0-3 --pool {name}=4-7"
                )
    environs = environments([devices for _, devices in engines], os.environ)
    return [
        SlotPlan(
            command=child.command(*options.arguments, "--slot", str(number), "--of", name),
            environ=child.variables() | environs[number],
            group=name,
        )
        for number, (name, _) in enumerate(engines)
    ]


def _replicas(settings: Settings, options: ProgramOptions, name: str) -> tuple[tuple[Device, ...], ...]:
    pool, gpus = pool_of(settings, name), options.pools[name]
    kind = kind_of(pool, replace(options, pool=name))
    if kind != "vllm":
        if gpus is not None:
            raise SettingsError(f"--pool {name}={gpus}: the {kind} engine uses no GPU; use --pool {name}")
        return ((),) * (options.num_slots or pool.replicas or 1)
    try:
        layout = layout_for(
            pool,
            pool.model,
            revision=pool.revision,
            max_model_len=pool.max_model_len,
            gpus=gpus,
            replicas=options.num_slots,
        )
    except SettingsError as error:
        raise SettingsError(f"--pool {name}: {error}") from error
    for note in layout.notes:
        log.info("machine.planned", pool=name, note=note)
    return layout.replicas
