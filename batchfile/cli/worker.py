"""`batchfile worker`: the runners of one pool."""

from batchfile.cli.program import Program

command = Program("worker", "Work for one pool of a store.", extra="fleet")
