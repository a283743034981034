"""How many engines a machine holds, and which GPUs each gets. Loads no GPU library."""

import subprocess
from collections.abc import Mapping

from batchfile.errors import SettingsError

VISIBLE = "CUDA_VISIBLE_DEVICES"
_LIST_S_MAX = 30.0


def visible_gpus(environ: Mapping[str, str]) -> list[str]:
    """What may be named in CUDA_VISIBLE_DEVICES: what is there already, else every GPU of the machine."""
    given = environ.get(VISIBLE)
    if given is not None:
        return [name.strip() for name in given.split(",") if name.strip() not in {"", "-1"}]
    command = ["nvidia-smi", "--query-gpu=index", "--format=csv,noheader"]
    try:
        listed = subprocess.run(command, capture_output=True, text=True, timeout=_LIST_S_MAX, check=True).stdout
    except (OSError, subprocess.SubprocessError):
        return []  # no driver: a machine without GPUs
    return listed.split()


def plan_slots(gpus: list[str], gpus_per_engine: int, num_wanted: int | None) -> list[str | None]:
    """For each slot the value of CUDA_VISIBLE_DEVICES; None: leave it alone. Raises: SettingsError.

    Without GPUs a slot is only a process: one, or as many as are wanted.
    """
    if not gpus:
        return [None] * (num_wanted or 1)
    if len(gpus) < gpus_per_engine:
        raise SettingsError(
            f"the pool's tensor_parallel_size is {gpus_per_engine} and this machine shows {len(gpus)} GPUs: "
            "lower it, or run the pool where there are more"
        )
    num_sets = len(gpus) // gpus_per_engine
    if num_wanted is not None and num_wanted > num_sets:
        raise SettingsError(f"--slots {num_wanted}: the {len(gpus)} GPUs here hold {num_sets} engines of this pool")
    starts = range(0, (num_wanted or num_sets) * gpus_per_engine, gpus_per_engine)
    return [",".join(gpus[start : start + gpus_per_engine]) for start in starts]
