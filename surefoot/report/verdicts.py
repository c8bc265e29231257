"""What was claimed and what was found: docs/claims.md, made from the recorded results of `surefoot reproduce`."""

from __future__ import annotations

from collections import Counter
from typing import Any

from surefoot.claims import VERDICTS
from surefoot.papers import PaperRow, papers, result


def markdown() -> str:
    """The page: how many of each verdict, a table, and a section for each claim."""
    found = [(row, result(row.slug)) for row in papers() if row.verdict]
    counts = Counter(row.verdict for row, _ in found)
    told = ", ".join(f"{counts[v]} {v}" for v in VERDICTS if counts[v])
    lines = [
        "# Claims",
        "",
        "Made from the recorded results by `python -m surefoot.report.verdicts > docs/claims.md`.",
        "",
        "Each claim is an experiment that could refute what a paper says, with the observation that would do so",
        "fixed before it is run: `surefoot reproduce SLUG` runs it again. *Reproduced* and *refuted* are for this",
        "experiment; *not reproduced* is neither. Numbers are means over seeds; spreads are as each row says, mostly",
        "two standard errors to each side.",
        "",
        f"{len(found)} of {len(papers())} systems: {told}.",
        "",
        "| system | verdict | seeds | size | seconds | date |",
        "|---|---|---|---|---|---|",
    ]
    for row, r in found:
        cells = (
            f"[{row.slug}](#{row.slug})",
            row.verdict,
            len(r["seeds"]),
            r["size"],
            f"{r['seconds']:.0f}",
            r["date"],
        )
        lines.append("| " + " | ".join(map(str, cells)) + " |")
    for row, r in found:
        lines += ["", *_section(row, r)]
    return "\n".join(lines) + "\n"


def _section(row: PaperRow, r: dict[str, Any]) -> list[str]:
    """One claim: what is said, what would refute it, every number."""
    lines = [
        f"## {row.slug}",
        "",
        f"{row.title} ([arXiv {row.arxiv}](https://arxiv.org/abs/{row.arxiv})): **{row.verdict}**.",
        "",
        f"- Claim: {r['statement']}",
        f"- Refuted if {r['refuted_if']}",
        f"- Machine: {r['machine']}.",
    ]
    if r.get("notes"):
        lines.append(f"- {r['notes']}")
    lines += ["", "<details><summary>What was measured</summary>", "", "| what | value | beside |", "|---|---|---|"]
    for m in r["measured"]:
        beside = [f"{k} {_number(m[k])}" for k in ("expected", "card", "bound", "spread") if m.get(k) is not None]
        lines.append(f"| {str(m['name']).replace('|', chr(92) + '|')} | {_number(m['value'])} | {', '.join(beside)} |")
    return [*lines, "", "</details>"]


def _number(value: Any) -> str:
    if isinstance(value, (list, tuple)):
        return f"{_number(value[0])} to {_number(value[1])}" if len(value) == 2 else ", ".join(map(_number, value))
    return f"{value:.4g}" if isinstance(value, float) else str(value)


if __name__ == "__main__":
    print(markdown(), end="")
