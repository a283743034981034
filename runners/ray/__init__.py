"""Runners on a Ray cluster. Ray places and restarts them; no state is kept in Ray."""
