"""A comparison as text, Markdown, JSON and a picture."""

from __future__ import annotations

import json
import math

from surefoot.comparison.results import Comparison, Pair
from surefoot.files import write_aside
from surefoot.report.data import curves, finite, read_lines
from surefoot.report.figures import methods_figure


def write(comparison: Comparison) -> None:
    """Write `comparison.json`, `comparison.md` and `comparison.png` to its folder."""
    folder = comparison.folder
    write_aside(folder / "comparison.json", json.dumps(finite(comparison.to_dict()), indent=1).encode())
    write_aside(folder / "comparison.md", markdown(comparison).encode())
    courses = {
        name: [curves(read_lines(path / "metrics.jsonl")) for path in paths] for name, paths in comparison.runs.items()
    }
    rows = comparison.to_dict()["methods"]
    methods_figure(rows, courses, comparison.rows[0].before, folder / "comparison.png")


def markdown(comparison: Comparison) -> str:
    """The tables, and in words what they mean."""
    c = comparison
    table = [["method", "pass@1", "95 % interval", "each seed", f"pass@{c.k}", "before", "tokens", "seconds"]]
    for row in c.rows:
        table.append(
            [
                row.name,
                share(row.mean),
                f"{share(row.low)} to {share(row.high)}",
                ", ".join(share(s) for s in row.per_seed),
                share(row.best),
                share(row.before),
                f"{row.tokens:,.0f}",
                f"{row.seconds:.0f}",
            ]
        )
    parts = [f"# {len(c.rows)} methods on {c.task}", about(c), in_markdown(table)]
    if c.pairs:
        pairs = [["difference", "points", "95 % interval", "p", "p, Holm", "real"]]
        pairs += [
            [
                f"{p.a} − {p.b}",
                points(p.mean),
                f"{points(p.low)} to {points(p.high)}",
                f"{p.p:.3g}",
                f"{p.adjusted:.3g}",
                "yes" if p.real else "no",
            ]
            for p in c.pairs
        ]
        parts += ["## Which differences are real", in_markdown(pairs), verdict(c.pairs)]
    parts.append("![Accuracy by step, and at the end](comparison.png)")
    return "\n\n".join(parts) + "\n"


def about(c: Comparison) -> str:
    """What was measured, in one paragraph."""
    seeds = ", ".join(map(str, c.seeds))
    return (
        f"Policy {c.policy}; seeds {seeds}; pass@1 on the same {c.problems} held-out problems, {c.k} samples each. "
        f"Intervals and p-values take seeds and problems as samples of more (random effects)"
        + ("; with one seed they say nothing about other seeds." if len(c.seeds) == 1 else ".")
    )


def verdict(pairs: tuple[Pair, ...]) -> str:
    """The real differences in words; that nothing was found is not that there is nothing."""
    real = [f"{p.a} is better than {p.b} by {100 * p.mean:.1f} points" for p in pairs if p.real]
    rest = len(pairs) - len(real)
    said = [f"Real (p < 0.05 after Holm): {'; '.join(real)}." if real else "Nothing is real at p < 0.05 after Holm."]
    if rest:
        said.append(f"{rest} of {len(pairs)} could be luck: more seeds or more problems could tell.")
    return " ".join(said)


def text(comparison: Comparison) -> str:
    """The same as aligned text for a terminal."""
    c = comparison
    width = max(len(row.name) for row in c.rows)
    lines = [about(c), "", f"{'':<{width}}  pass@1  [95 % interval]  pass@{c.k:<3}  each seed"]
    for row in c.rows:
        interval = f"[{100 * row.low:.1f}, {100 * row.high:.1f}]"
        lines.append(
            f"{row.name:<{width}}  {share(row.mean):>6}  {interval:<15}  {share(row.best):>7}   "
            + " ".join(share(s) for s in row.per_seed)
        )
    lines.append(f"{'before':<{width}}  {share(c.rows[0].before):>6}")
    if c.pairs:
        lines.append("")
        for p in c.pairs:
            lines.append(
                f"{p.a} - {p.b}: {points(p.mean)} points [{points(p.low)}, {points(p.high)}], p {p.p:.3g}, "
                f"Holm {p.adjusted:.3g}: {'real' if p.real else 'could be luck'}"
            )
        lines += ["", verdict(c.pairs)]
    return "\n".join([*lines, "", f"written  {c.folder / 'comparison.md'}, .json, .png"])


def share(value: float) -> str:
    return "-" if math.isnan(value) else f"{100 * value:.1f}%"


def points(value: float) -> str:
    return f"{100 * value:+.1f}" if math.isfinite(value) else "?"


def in_markdown(rows: list[list[str]]) -> str:
    head, *body = rows
    rule = ["---"] + ["---:"] * (len(head) - 1)
    return "\n".join("| " + " | ".join(row) + " |" for row in (head, rule, *body))
