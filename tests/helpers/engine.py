"""Engines without vLLM."""

from batchfile.engine import fit
from batchfile.engine.echo import EchoPrepared
from batchfile.engine.fit import token_counter
from batchfile.engine.identity import EngineIdentity
from batchfile.engine.open import EngineMaker, engine_factory
from batchfile.engine.prompts import ChatPrompts, MistralPrompts, fold_system, prompts_of
from batchfile.engine.vllm.cpu import BIND, GIB, KV_CACHE, OVERHEAD_BYTES, RESERVED, Cpu, ModelFacts, choose, read_cpu
