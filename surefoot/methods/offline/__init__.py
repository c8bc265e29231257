"""Learning from data that are already there."""
