"""Speed, measured: against TRL, against what the arithmetic allows, and as the work grows."""
