"""Runners on a Ray cluster: Ray places and restarts them. Nothing of a batch is in Ray: losing it loses nothing."""
