"""The programs of `runners/`."""

from batchfile.machine.supervisor import STOP_MARGIN_S
from runners.heartbeat import Heartbeat, Identity
from runners.media import media_rules
from runners.metrics import RunnerCollector, serving
from runners.options import factory_of, parse
from runners.ray.options import order_of
from runners.ray.options import parse as options_parse
from runners.ray.plans import HolderReport, HolderState, Moves, Order, PoolPlan, holder_name, moves, read_holder_name
from runners.runpod.api import Runpod, RunpodError, at, call, key_of
from runners.runpod.handler import ServerlessJob, handle, read_job
from runners.runpod.jobs_and_pods import Jobs, Pods
from runners.runpod.scaler import COOLDOWN_S, FIGURES, LOOK_S, Scaler, main, scale_reader
from runners.runpod.scaler import parse as scaler_parse
from runners.scaling import SHARDS_PER_RUNNER, WAIT_S, WAIT_S_MAX, Bounds, wanted
