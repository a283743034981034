"""The fleet: one supervisor per machine, one runner process per engine slot, over one store."""
