"""The vLLM engine. Using it needs vLLM."""

from batchfile.engine.vllm.adapters import Adapters
from batchfile.engine.vllm.arguments import known_arguments
from batchfile.engine.vllm.engine import ENVIRONMENT, VllmEngine
from batchfile.engine.vllm.guides import checked_params
from batchfile.engine.vllm.options import with_details
from batchfile.engine.vllm.parsers import Parsers
from batchfile.engine.vllm.pooling import Pooling, Texts
from batchfile.engine.vllm.preflight import check_model, model_facts
from batchfile.engine.vllm.processes import ProcessGuard
from batchfile.engine.vllm.steps import Stall, lacking
from batchfile.engine.vllm.tasks import Generating, OneDecode, VllmOptions
from batchfile.machine.defaults import throughput_arguments
from batchfile.machine.devices import visible_devices
