"""The planner."""

from batchfile.plan import pending, planner, range_buckets, ranges
from batchfile.plan.options import CreateOptions
from batchfile.plan.planner import plan_input, plan_upload
from batchfile.plan.policy import REFUSE, REJECT
from batchfile.plan.reuse import NONE_EQUAL, Reuse, source_of
from batchfile.plan.reuse_sources import reuse_for, why_not, with_reuse
from batchfile.plan.submit import rerun, submit
