"""`batchfile run`."""

from batchfile.local import http_input, media_files, outputs, past_runs, remote_inputs
from batchfile.local import run as local_run
from batchfile.local.api import run
from batchfile.local.inputs import bring_in, first_requests, inspect, lines_of
from batchfile.local.merge import merge
from batchfile.local.options import Dtype, RunArguments, RunOptions, changes
from batchfile.local.outputs import is_being_written, lock_folder, lock_output, lock_path
from batchfile.local.receipt import EngineFacts, InputFacts, Speed
from batchfile.local.remote_inputs import RemoteFile
from batchfile.local.run import Opened, open_batch
