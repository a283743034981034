"""Batches somewhere else: behind a service, or in a store. The commands know only the seam (`base`)."""
