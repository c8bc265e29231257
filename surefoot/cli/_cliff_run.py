"""`surefoot cliff` of a run folder: what its samples say, and what they cannot say."""

from __future__ import annotations

import argparse
import json
import tomllib
from dataclasses import asdict
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.padding import Padding
from rich.text import Text

from surefoot.errors import InputError
from surefoot.stability import tables
from surefoot.stability.analysis import ITEMS, Analysis, Question, analyse
from surefoot.stability.from_samples import Estimate
from surefoot.stability.samples import read_rollouts, samples_from_rollouts

CAVEAT = (
    "Samples never prove safety: they bound no distance to a cliff from below. Read 'no cliff seen', not 'no cliff'."
)
HEADER = ("", "estimate", "95 % interval", "n", "ESS", "kind", "what it says", "what it cannot say")


def show_run(args: argparse.Namespace) -> int:
    folder = Path(args.target)
    config = read_config(folder)
    question, about = ask(args, config)
    table = read_rollouts(folder)
    weights = tables.parse_weights(args.weights) or config.get("method", {}).get("reward", {}).get("weights", {})
    history = samples_from_rollouts(table, weights=weights)
    if args.primary and args.primary not in history.rewards:
        from surefoot.errors import nearest

        raise InputError(f"cliff: no reward {args.primary!r} in the run{nearest(args.primary, history.rewards)}")
    if args.window < 1:
        raise InputError(f"cliff: --window {args.window}; expected at least 1 step")
    samples, span = history, "all steps"
    if history.step is not None:
        last = int(history.step.max())
        samples, span = (
            history.where(history.step > last - args.window),
            f"steps {max(last - args.window + 1, int(history.step.min()))} to {last}",
        )
    found = analyse(samples, question, history)
    prompts = len({e.prompt for e in found.prompts})
    lead = f"{found.responses} responses to {prompts} prompts in {found.groups} groups, {span}; {about}"
    out = Path(args.out) if args.out else None if args.json else folder / "cliff"
    path = write(found, folder, lead, out) if out else None
    if args.json:
        print(json.dumps(as_json(found, lead), indent=1, allow_nan=False))
    else:
        show(found, folder, lead, Console())
        print(f"report: {path}")
    return 0


def read_config(folder: Path) -> dict[str, Any]:
    """The run's config.toml; empty where there is none.

    Raises:
        InputError: not TOML.
    """
    path = folder / "config.toml"
    try:
        return tomllib.loads(path.read_text(encoding="utf-8")) if path.is_file() else {}
    except (tomllib.TOMLDecodeError, UnicodeDecodeError) as e:
        raise InputError(f"{path}: {e}; expected TOML") from None


def ask(args: argparse.Namespace, config: dict[str, Any]) -> tuple[Question, str]:
    """What is known besides the samples, from the command and the run's method; and a sentence about beta."""
    method = config.get("method", {})
    if args.beta and len(args.beta) > 1:
        raise InputError("cliff: --beta has several numbers; expected one for a run")
    if args.beta:
        beta, about = args.beta[0], f"beta {args.beta[0]:g} as given"
    else:
        beta = sum(
            float(r.get("coef", 0.0)) for r in method.get("regularizers", ()) if r.get("reference") == "ref_logp"
        )
        about = (
            (
                f"beta {beta:g} is the method's KL coefficient, taken as that on whole responses: advantages divided "
                "by a group's deviation, or lengths averaged, make the effective one another (--beta)"
            )
            if beta
            else "beta 0: the method has no KL to the reference"
        )
    eps = method.get("advantage", {}).get("eps", 1e-6)
    return Question(
        beta=beta,
        ceiling=args.ceiling,
        tie_tol=args.tie_tol,
        eps=args.eps,
        primary=args.primary,
        group_eps=float(eps) if isinstance(eps, (int, float)) else 1e-6,
        accepts_wrong=args.false_accept,
        rejects_right=args.false_reject,
        audit=_audit(args.audit),
    ), about


def _audit(text: str | None) -> tuple[int, int] | None:
    if text is None:
        return None
    wrong, _, n = text.partition("/")
    if not (wrong.isdigit() and n.isdigit() and 0 <= int(wrong) <= int(n) and int(n) > 0):
        raise InputError(f"cliff: --audit {text!r}; expected WRONG/N, as 2/60")
    return int(wrong), int(n)


def cells(e: Estimate) -> list[str]:
    """An estimate as text."""
    interval = "" if e.interval is None else f"{e.interval[0]:.4g} to {e.interval[1]:.4g}"
    return [
        e.name,
        "not known" if e.value is None else f"{e.value:.4g}",
        interval,
        str(e.n),
        "" if e.ess is None else f"{e.ess:.1f}",
        "" if e.value is None else e.kind,
        e.says,
        e.cannot_say,
    ]


def show(found: Analysis, folder: Path, lead: str, console: Console) -> None:
    """The run's estimates, by item."""
    console.print(f"[bold]{folder}[/]  {lead}\n", highlight=False)
    for item in range(1, len(ITEMS)):
        own = [e for e in found.run if e.item == item]
        if not own:
            continue
        console.print(f"[bold]{item}. {ITEMS[item]}[/]", highlight=False)
        for e in own:
            name, value, interval, n, ess, kind, says, cannot = cells(e)
            known = "  ".join(filter(None, (interval and f"({interval})", kind, f"n {n}", ess and f"ESS {ess}")))
            console.print(f"  {name:<30} {value:>9}   {known}", highlight=False, markup=False)
            said = f"{says if kind else ''}{'. Open: ' if kind and cannot else ''}{cannot}"
            console.print(Padding(Text(said, style="dim"), (0, 0, 0, 6)))
    console.print(f"\n{CAVEAT}", highlight=False)


def as_json(found: Analysis, lead: str) -> dict[str, Any]:
    """The analysis as plain data."""
    return {
        "about": lead,
        "caveat": CAVEAT,
        "run": [_plain(e) for e in found.run],
        "prompts": [_plain(e) for e in found.prompts],
    }


def _plain(e: Estimate) -> dict[str, Any]:
    out = asdict(e)
    return {k: (None if isinstance(v, float) and v != v else v) for k, v in out.items()}


def write(found: Analysis, folder: Path, lead: str, out: Path) -> Path:
    """The report folder: report.html and analysis.json."""
    from surefoot.report import cliff as drawn

    out.mkdir(parents=True, exist_ok=True)
    (out / "analysis.json").write_text(json.dumps(as_json(found, lead), indent=1, allow_nan=False), encoding="utf-8")
    sections = [
        (f"{item}. {ITEMS[item]}", drawn.table(HEADER, [cells(e) for e in found.run if e.item == item]))
        for item in range(1, len(ITEMS))
    ]
    rows = [[str(e.prompt), f"{e.item}", *cells(e)[:6]] for e in found.prompts]
    sections.append(("Per prompt", drawn.table(("prompt", "item", *HEADER[:6]), rows)))
    return drawn.page(out / "report.html", f"{folder.resolve().name}: from samples", f"{lead}. {CAVEAT}", sections)
