"""How near a run is to a cliff: estimators from its samples, and the harness that retrains to find out."""
