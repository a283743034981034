"""`batchfile serve`: the HTTP service over a store."""

from batchfile.cli.program import Program

command = Program("serve", "Serve batches over HTTP from a store.", extra="api")
