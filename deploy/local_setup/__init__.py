"""The parts of deploy/local.py. They use the standard library only, since they run before anything is installed."""
