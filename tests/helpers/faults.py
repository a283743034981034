"""Names of the test doubles that are not public."""

from batchfile.testing.crash_points import VARIABLE, kind_of
from batchfile.testing.faulty_echo import Fault
from batchfile.testing.faulty_store import NONSENSE, IllAnswer, Phase
