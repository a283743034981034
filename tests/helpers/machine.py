"""What models and GPUs have."""

from batchfile.machine.devices import Device
from batchfile.machine.model_memory import ModelMemory, memory_of
