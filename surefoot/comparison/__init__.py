"""Compare methods: the same task, the same seeds, the same held-out problems, and which differences are real."""

from surefoot.comparison.compare import compare
from surefoot.comparison.results import Comparison

__all__ = ["Comparison", "compare"]
