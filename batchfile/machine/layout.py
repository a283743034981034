"""Divides the devices of a machine among replicas of a model: how many there are, and which devices each gets. Pure."""

import re
from collections.abc import Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, replace

from batchfile.engine.vllm.cpu import BIND, GIB, core_shares
from batchfile.errors import SettingsError
from batchfile.machine.devices import AS_LISTED, CUDA, CUDA_ORDER, HIP, Device, listing, named
from batchfile.machine.model_memory import ModelMemory

OVERHEAD_BYTES = 1.5e9  # of a GPU, without weights and KV cache: activations, graphs and vLLM itself
# The KV cache is useful if it holds the longest request, and this many of this length.
USEFUL_REQUESTS, USEFUL_TOKENS = 16, 1024
LEN_STEP = 1024  # an advised max_model_len is a multiple of it
_RANGE = re.compile(r"(\d+)-(\d+)")


@dataclass(frozen=True, slots=True, kw_only=True)
class Wanted:
    """`gpus`: "all", a number of GPUs, or a list of them, such as "0,2", "4-7" or "3,".

    `tensor_parallel_size` None: the smallest that fits. `replicas` None: as many as fit; 1 on a CPU.
    `max_model_len` None: the context length of the model.
    """

    gpus: str = "all"
    tensor_parallel_size: int | None = None
    pipeline_parallel_size: int = 1
    replicas: int | None = None
    gpu_memory_utilization: float = 0.9
    max_model_len: int | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class Layout:
    """`replicas`: the devices of each; `is_chosen`: their number is a setting. `is_all`: there is one, and it has all
    visible devices. `notes`: for people.
    """

    replicas: tuple[tuple[Device, ...], ...]
    tensor_parallel_size: int = 1
    is_all: bool = True
    is_chosen: bool = True
    notes: tuple[str, ...] = ()

    def enough_for(self, num_requests: int) -> "Layout":
        """Without replicas that would load a model for a few requests, unless their number was chosen."""
        num = max(1, -(-num_requests // USEFUL_REQUESTS))
        if self.is_chosen or num >= len(self.replicas):
            return self
        note = f"{num} of them {'is' if num == 1 else 'are'} enough for {num_requests} requests; --replicas starts more"
        return replace(self, replicas=self.replicas[:num], notes=(*self.notes, note))


def plan_replicas(devices: Sequence[Device], wanted: Wanted, model: str, memory: ModelMemory | None) -> Layout:
    """`devices`: those that are visible. `memory` None: unknown. Raises: SettingsError with what there is instead."""
    if devices[0].kind == "cpu":
        return _on_cpu(devices[0], wanted)
    usable, notes = _usable(devices, wanted)
    try:
        size, why = _tensor_parallel_size(usable, wanted, model, memory)
    except SettingsError as error:
        raise SettingsError("; ".join([str(error), *notes])) from None
    each = size * wanted.pipeline_parallel_size
    num_max = len(usable) // each
    if (wanted.replicas or 1) > num_max:
        what = "a replica needs" if wanted.replicas in {None, 1} else f"{wanted.replicas} replicas need"
        raise SettingsError(
            f"{what} {_gpus((wanted.replicas or 1) * each)} (tensor_parallel_size {size}, pipeline_parallel_size "
            f"{wanted.pipeline_parallel_size}), and {len(usable)} can be used: {listing(usable)}"
            + "".join(f"; {note}" for note in notes)
        )
    num = wanted.replicas or num_max
    replicas = tuple(tuple(usable[start : start + each]) for start in range(0, num * each, each))
    if unused := usable[num * each :]:
        notes.append(f"not used: GPU {listing(unused)}")
    if num > 1 or each > 1:
        replica = f"{num} replica{'' if num == 1 else 's'} of {_gpus(each)} ({_names(usable)})"
        notes.insert(0, f"{replica}{why}")
    return Layout(
        replicas=replicas,
        tensor_parallel_size=size,
        is_all=num == 1 and each == len(devices),
        is_chosen=wanted.replicas is not None,
        notes=tuple(notes),
    )


def environments(replicas: Sequence[Sequence[Device]], environ: Mapping[str, str]) -> list[dict[str, str]]:
    """The variables that give each replica its devices. Those on the CPU share its cores, unless `environ` says how."""
    num_on_cpu = sum(1 for devices in replicas if devices and devices[0].kind == "cpu")
    cores = next((devices[0].index for devices in replicas if devices and devices[0].kind == "cpu"), "")
    shares = iter(core_shares([int(core) for core in cores.split(",") if core], num_on_cpu))
    found: list[dict[str, str]] = []
    for devices in replicas:
        if not devices:
            found.append({})
        elif devices[0].kind == "cpu":
            share = next(shares)
            found.append({} if share is None or BIND in environ else {BIND: share})
        else:
            indexes = ",".join(device.index for device in devices)
            more = {HIP: indexes} if devices[0].kind == "rocm" else {CUDA_ORDER: environ.get(CUDA_ORDER, AS_LISTED)}
            found.append({CUDA: indexes, **more})
    return found


def _on_cpu(device: Device, wanted: Wanted) -> Layout:
    if wanted.gpus != "all":
        raise SettingsError(
            f"gpus: {wanted.gpus} cannot be used: nvidia-smi and rocm-smi list no GPU that is visible here, or this "
            "vLLM is built for CPUs"
        )
    num, num_cores = wanted.replicas or 1, len(device.index.split(","))
    if num > num_cores:
        raise SettingsError(
            f"{num} replicas need {num} cores, and this process may use {num_cores}; use fewer replicas"
        )
    notes = (f"{num} replicas share {num_cores} cores",) if num > 1 else ()
    return Layout(
        replicas=((device,),) * num,
        tensor_parallel_size=wanted.tensor_parallel_size or 1,
        is_all=num == 1,
        notes=notes,
    )


def _usable(devices: Sequence[Device], wanted: Wanted) -> tuple[list[Device], list[str]]:
    """The chosen GPUs, and notes on those that another process fills."""
    is_number = wanted.gpus.isdecimal()
    is_list = not is_number and wanted.gpus != "all"
    chosen = _listed(devices, wanted.gpus) if is_list else list(devices)
    filled = [one for one in chosen if one.free_bytes < wanted.gpu_memory_utilization * one.memory_bytes]
    notes = [
        f"GPU {one.index} ({one.name}) is left out: another process uses it, and {one.free_bytes / GIB:.1f} of its "
        f"{one.memory_bytes / GIB:.1f} GiB are free"
        for one in filled
    ]
    usable = [one for one in chosen if one not in filled]
    share = f"gpu_memory_utilization is {wanted.gpu_memory_utilization:g}"
    if filled and (is_list or not usable):
        raise SettingsError(f"{'; '.join(notes)}; {share}: end that process, use other GPUs, or lower it")
    if not is_number:
        return usable, notes
    num = int(wanted.gpus)
    if not 1 <= num <= len(usable):
        left_out = "".join(f"; {note}" for note in notes)
        alone = f"; {num}, is GPU {num} alone" if named(usable, wanted.gpus) else ""
        raise SettingsError(f"gpus: {num} must be from 1 to {len(usable)}, the number of usable GPUs{alone}{left_out}")
    return usable[:num], notes


def _listed(devices: Sequence[Device], text: str) -> list[Device]:
    found: list[Device] = []
    for part in filter(None, (part.strip() for part in text.split(","))):
        bounds = _RANGE.fullmatch(part)
        names = [part] if bounds is None else [str(n) for n in range(int(bounds[1]), int(bounds[2]) + 1)]
        for name in names or [part]:
            device = named(devices, name)
            if device is None or device in found:
                what = "is not a visible GPU of this machine" if device is None else "is listed twice"
                raise SettingsError(f"gpus: {text}: {name} {what}; use all, a number, or some of {listing(devices)}")
            found.append(device)
    if not found:
        raise SettingsError(f"gpus: {text!r} names no GPU; use all, a number, or some of {listing(devices)}")
    return found


def _tensor_parallel_size(
    usable: Sequence[Device], wanted: Wanted, model: str, memory: ModelMemory | None
) -> tuple[int, str]:
    """Also says why, for the line about the replicas."""
    given, pipeline, num = wanted.tensor_parallel_size, wanted.pipeline_parallel_size, len(usable)
    if memory is not None and given is not None and not divides(given, memory):
        sizes = ", ".join(str(n) for n in range(1, memory.attention_heads + 1) if n <= 64 and divides(n, memory))
        raise SettingsError(
            f"tensor_parallel_size: {given} does not divide the {memory.attention_heads} attention heads and "
            f"{memory.kv_heads} key-value heads of {model}; use one of {sizes}"
        )
    smallest = min(one.memory_bytes for one in usable)
    if memory is None or not smallest:
        what = f"the size of {model}" if memory is None else "the memory of the GPUs"
        is_told = given is None and num > 1
        return given or 1, f"; {what} is unknown: set tensor_parallel_size if it needs more" if is_told else ""
    room = wanted.gpu_memory_utilization * smallest - OVERHEAD_BYTES
    sizes_tried = [n for n in range(1, num // pipeline + 1) if divides(n, memory)] or [1] if given is None else [given]
    longest = wanted.max_model_len or memory.context_length
    for size in sizes_tried:
        kv_room = room - memory.weight_bytes / (size * pipeline)
        if kv_room > 0 and (given is not None or _kv_bytes(memory, longest, size) / pipeline <= kv_room):
            total = kv_room * size * pipeline / GIB
            least = "at least " if any(one.memory_bytes > smallest for one in usable) else ""
            each = f"{memory.weight_bytes / GIB:.1f} GiB of weights, which leaves {least}{total:.1f} GiB for KV cache"
            return size, f", tensor_parallel_size {size}: {each}"
    raise SettingsError(_fits_nowhere(usable, wanted, model, memory, sizes_tried[-1], room))


def divides(size: int, memory: ModelMemory) -> bool:
    """Can vLLM divide the model into so many parts? Fewer key-value heads than GPUs are copied, more are divided."""
    heads, kv_heads = max(1, memory.attention_heads), max(1, memory.kv_heads)
    return heads % size == 0 and (kv_heads % size == 0 or size % kv_heads == 0)


def _kv_bytes(memory: ModelMemory, longest: int, size: int) -> float:
    """The useful KV cache on each of `size` GPUs."""
    return max(memory.kv_bytes_on_each(longest, size), USEFUL_REQUESTS * memory.kv_bytes_on_each(USEFUL_TOKENS, size))


def _gpus(num: int) -> str:
    return f"{num} GPU{'' if num == 1 else 's'}"


def _names(devices: Sequence[Device]) -> str:
    return ", ".join(dict.fromkeys(device.name for device in devices))


def _fits_nowhere(
    usable: Sequence[Device], wanted: Wanted, model: str, memory: ModelMemory, size: int, room: float
) -> str:
    """What the model needs, what there is, and what would fit."""
    longest, num = wanted.max_model_len or memory.context_length, size * wanted.pipeline_parallel_size

    def fits(weights: float, length: int) -> bool:
        return weights / num + _kv_bytes(memory, length, size) / wanted.pipeline_parallel_size <= room

    kv_gib = _kv_bytes(memory, longest, size) * min(size, max(1, memory.kv_heads)) / GIB
    lengths = [n for n in range(LEN_STEP, longest, LEN_STEP) if fits(memory.weight_bytes, n)]
    ways = [f"lower max_model_len to {lengths[-1]}"] if lengths else []
    computed = memory.parameters or memory.weight_bytes // 2
    for bits, how in ((8, "quantization fp8, or a checkpoint of 8 bits"), (4, "a checkpoint of 4 bits (AWQ, GPTQ)")):
        # What a further quantization leaves out is small: the embeddings.
        if computed * bits / 8 < memory.weight_bytes * 0.75 and fits(computed * bits / 8, longest):
            ways.append(f"use {how}")
            break
    smallest = min(one.memory_bytes for one in usable)
    larger = [one for one in usable if one.memory_bytes > smallest]
    with suppress(SettingsError):
        if larger:
            _tensor_parallel_size(larger, wanted, model, memory)
            ways.insert(
                0, f"use only the larger ones, gpus {','.join(one.index for one in larger)}{',' * (len(larger) == 1)}"
            )
    which = f"the smallest of the {len(usable)} GPUs" if larger else "each GPU" if len(usable) > 1 else "the GPU"
    ways.append("use more or larger GPUs, or a smaller model")
    return (
        f"{model} does not fit: it needs {memory.weight_bytes / GIB:.1f} GiB for weights and {kv_gib:.1f} GiB for a KV "
        f"cache that holds a request of {longest:,} tokens; {which} ({_names(usable)}) has {max(0.0, room) / GIB:.1f} "
        f"GiB for both, at gpu_memory_utilization {wanted.gpu_memory_utilization:g}: "
        f"{'; '.join(ways)}"
    )
