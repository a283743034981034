"""The runners of a fleet: one supervisor per machine, one runner process per engine slot, one shared store."""
