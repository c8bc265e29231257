"""Reports of runs: one self-contained HTML page, and figures."""

from surefoot.report.page import report

__all__ = ["report"]
