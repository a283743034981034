"""The planner."""

from batchfile.plan import pending, planner, ranges, sorted_hashes
from batchfile.plan.hashing import NONE_EQUAL
from batchfile.plan.options import CreateOptions
from batchfile.plan.planner import plan_input, plan_upload
from batchfile.plan.policy import REFUSE, REJECT
from batchfile.plan.reuse import Reuse, source_of
from batchfile.plan.reuse_sources import reuse_for, why_not, with_reuse
from batchfile.plan.submit import rerun, submit
