"""docs/exact.md is what was recorded."""

from surefoot.papers import papers
from surefoot.report.exact import DOCS, NUMBERS, markdown, rates


def test_the_page_is_up_to_date():
    assert (DOCS / "exact.md").read_text() == markdown(), "run: python -m surefoot.report.exact"
    assert (DOCS / "exact-rates.png").is_file() and (DOCS / "exact-times.png").is_file()


def test_it_holds_the_worked_numbers():
    """The card's three arms (arXiv 2507.20150, check 4), six verdicts, and 10^5 states in seconds."""
    page = markdown()
    for number in ("| 1.0000 |", "| 0.2449 |", "| 0.0500 |", "100,000 states"):
        assert number in page
    verdicts = {p.slug: p.verdict for p in papers()}
    assert all(f"[{slug}](claims.md#{slug}) | {verdicts[slug]} |" in page for slug in NUMBERS)
    assert len(rates()) >= 8
