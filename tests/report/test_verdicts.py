"""docs/claims.md is what was recorded."""

from pathlib import Path

from surefoot.papers import papers
from surefoot.report.verdicts import markdown


def test_the_page_is_up_to_date():
    page = Path(__file__).parent.parent.parent / "docs" / "claims.md"
    assert page.read_text() == markdown(), "run: python -m surefoot.report.verdicts > docs/claims.md"


def test_every_verdict_stands_in_the_table():
    rows = [line.split(" | ")[:2] for line in markdown().splitlines() if line.startswith("| [")]
    assert rows == [[f"| [{p.slug}](#{p.slug})", p.verdict] for p in papers() if p.verdict]
