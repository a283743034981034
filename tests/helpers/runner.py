"""The runner's parts."""

from batchfile.runner import output_schema, runner
from batchfile.runner.answers import check_next
from batchfile.runner.checkpointer import AWAY_S_MAX, Checkpointer
from batchfile.runner.claimer import NEW_AT_ONCE, QUEUE_LIST_S, RELIST_S, BatchView, Claimer
from batchfile.runner.loop import Loop
from batchfile.runner.output_schema import Demand
from batchfile.runner.prefetcher import WINDOW_SLOTS, Prefetcher
from batchfile.runner.queues import TenantRotation
from batchfile.runner.state import ActiveShard, Job, PendingRequest, SharedState, UncheckedAnswer
from batchfile.runner.stats import CHECKPOINT_BOUNDS_S, LAST, Histogram, RunnerStats
