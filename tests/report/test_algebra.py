"""docs/algebra.md is what the code says."""

from pathlib import Path

from surefoot.report.algebra import markdown


def test_the_page_is_up_to_date():
    page = Path(__file__).parent.parent.parent / "docs" / "algebra.md"
    assert page.read_text() == markdown(), "run: python -m surefoot.report.algebra > docs/algebra.md"
