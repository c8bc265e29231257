"""Truth in float64: exact solutions that every sampled estimate can be held against."""
