"""Theorems, and the analysis that they make possible."""
