"""`surefoot cliff` of a run folder: what its samples say, and what they cannot say."""

from __future__ import annotations

import argparse
import json
import math
import tomllib
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.padding import Padding
from rich.text import Text

from surefoot.errors import InputError, nearest
from surefoot.files import write_aside
from surefoot.stability import policies, tables
from surefoot.stability.analysis import ITEMS, Analysis, Question, analyse
from surefoot.stability.bridge import Beside, bridge, summarise
from surefoot.stability.from_samples import Estimate
from surefoot.stability.samples import Samples, labelling, read_rollouts, samples_from_rollouts

CAVEAT = (
    "Samples never prove safety: they bound no distance to a cliff from below. Read 'no cliff seen', not 'no cliff'."
)
HEADER = ("", "estimate", "95 % interval", "n", "ESS", "kind", "what it says", "what it cannot say")


def show_run(args: argparse.Namespace) -> int:
    folder = Path(args.target)
    config = read_config(folder)
    question, about = ask(args, config)
    subject = samples = None
    if args.fresh is not None or args.exact:
        subject = policies.open_subject(folder, args.prompts, labelling(args.classes))
        history = policies.fresh(subject, 64 if args.fresh is None else args.fresh)
        samples, span = history.where(history.step == subject.step), f"sampled anew at step {subject.step}"
        when = f"as the checkpoint of step {subject.step} holds it"
    else:
        history = logged(args, folder, config)
        samples, span = last(history, args.window)
        when = "as it stood at each step"
    if args.primary and args.primary not in history.rewards:
        raise InputError(f"cliff: no reward {args.primary!r} in the run{nearest(args.primary, history.rewards)}")
    found = analyse(samples, question, history)
    prompts = len({e.prompt for e in found.prompts})
    lead = f"{found.responses} responses to {prompts} prompts in {found.groups} groups, {span}; {about}"
    if samples.log_ratio is not None:
        reference = config.get("method", {}).get("reference", {})
        own = subject is None or subject.moved is not None
        lead += f"; log ratios to {policies.against(reference if own else {}, when)}"
    beside = list(bridge(policies.enumerated(subject, args.floor), samples, question)) if args.exact and subject else []
    out = Path(args.out) if args.out else None if args.json else folder / "cliff"
    path = write(found, beside, folder, lead, out) if out else None
    if args.json:
        print(json.dumps(as_json(found, beside, lead), indent=1, allow_nan=False))
    else:
        console = Console()
        show(found, folder, lead, console)
        show_bridge(beside, console)
        print(f"report: {path}")
    return 0


def logged(args: argparse.Namespace, folder: Path, config: dict[str, Any]) -> Samples:
    """All responses that the run wrote down."""
    weights = tables.parse_weights(args.weights) or config.get("method", {}).get("reward", {}).get("weights", {})
    label = labelling(args.classes)
    return samples_from_rollouts(read_rollouts(folder), label, weights, penalised=bool(in_reward(config)))


def last(history: Samples, window: int) -> tuple[Samples, str]:
    """The responses of the last `window` steps, and a word on which they are."""
    if window < 1:
        raise InputError(f"cliff: --window {window}; expected at least 1 step")
    if history.step is None:
        return history, "all steps"
    end = int(history.step.max())
    first = max(end - window + 1, int(history.step.min()))
    return history.where(history.step >= first), f"steps {first} to {end}"


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
        within = in_reward(config)
        beta = within + sum(
            float(r.get("coef", 0.0)) for r in method.get("regularizers", ()) if r.get("reference") == "ref_logp"
        )
        about = (
            "beta 0: the method has no KL to the reference"
            if not beta
            else f"beta {beta:g}, the KL of whole responses in the reward"
            if within == beta
            else f"beta {beta:g} is the method's KL coefficient, taken as that on whole responses: advantages divided "
            "by a group's deviation, or lengths averaged, change the effective one (--beta)"
        )
    advantage = method.get("advantage", {"eps": 1e-6})
    return Question(
        beta=beta,
        ceiling=args.ceiling,
        tie_tol=args.tie_tol,
        eps=args.eps,
        primary=args.primary,
        group_eps=float(advantage["eps"]) if isinstance(advantage.get("eps"), (int, float)) else None,
        accepts_wrong=args.false_accept,
        rejects_right=args.false_reject,
        audit=_audit(args.audit),
    ), about


def in_reward(config: dict[str, Any]) -> float:
    """The coefficient of a KL penalty that the run's reward has in it."""
    reward = config.get("method", {}).get("reward", {})
    return float(reward.get("coef", 0.0)) if str(reward.get("part", "")).endswith(":KLInReward") else 0.0


def _audit(text: str | None) -> tuple[int, int] | None:
    if text is None:
        return None
    wrong, _, n = text.partition("/")
    if not (wrong.isdigit() and n.isdigit() and 0 <= int(wrong) <= int(n) and int(n) > 0):
        raise InputError(f"cliff: --audit {text!r}; expected WRONG/N, as 2/60")
    return int(wrong), int(n)


def number(x: float) -> str:
    """Four digits; rounding noise is 0."""
    return f"{0.0 if abs(x) < 1e-12 else x:.4g}"


def cells(e: Estimate) -> list[str]:
    """An estimate as text."""
    interval = "" if e.interval is None else f"{number(e.interval[0])} to {number(e.interval[1])}"
    return [
        e.name,
        "not known" if e.value is None else number(e.value),
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
            console.print(f"  {name:<30} {value:>9}   {known}", highlight=False, markup=False, soft_wrap=True)
            said = f"{says if kind else ''}{'. Open: ' if kind and cannot else ''}{cannot}"
            console.print(Padding(Text(said, style="dim"), (0, 0, 0, 6)))
    console.print(f"\n{CAVEAT}", highlight=False)


def show_bridge(beside: Sequence[Beside], console: Console) -> None:
    """The estimators' means over prompts beside the exact ones."""
    if not beside:
        return
    console.print(f"\n[bold]Beside the truth[/]  {enumerated_lead(beside)}", highlight=False)
    for row in bridge_rows(beside):
        line = f"  {row[0]:<2} {row[1]:<30} {row[2]:>9} {row[3]:>9} {row[4]:>9}   {row[5]}"
        console.print(line, highlight=False, soft_wrap=True)


def enumerated_lead(beside: Sequence[Beside]) -> str:
    sizes = [b.answers for b in beside]
    return (
        f"{min(sizes)} to {max(sizes)} answers a prompt were enumerated; those that were not have at most "
        f"{max(b.missing for b in beside):.2g} of the probability"
    )


BRIDGE = ("", "", "sampled", "exact", "error", "true intervals, bounds")


def bridge_rows(beside: Sequence[Beside]) -> list[list[str]]:
    """Rows of text under `BRIDGE`."""
    return [
        list(BRIDGE),
        *(
            [
                str(s.item),
                s.name,
                number(s.sampled),
                number(s.exact),
                number(s.error),
                f"{s.holds} of {s.asked}" if s.asked else "",
            ]
            for s in summarise(beside)
        ),
    ]


def as_json(found: Analysis, beside: Sequence[Beside], lead: str) -> dict[str, Any]:
    """The analysis as plain data."""
    out = {
        "about": lead,
        "caveat": CAVEAT,
        "run": [_plain(e) for e in found.run],
        "prompts": [_plain(e) for e in found.prompts],
    }
    if beside:
        out["bridge"] = {
            "about": enumerated_lead(beside),
            "run": [asdict(s) for s in summarise(beside)],
            "prompts": [_plain(b.sampled) | {"exact": b.exact, "missing": b.missing, "holds": b.holds} for b in beside],
        }
    return out


def _plain(e: Estimate) -> dict[str, Any]:
    out = asdict(e)
    return {k: (None if isinstance(v, float) and not math.isfinite(v) else v) for k, v in out.items()}


def write(found: Analysis, beside: Sequence[Beside], folder: Path, lead: str, out: Path) -> Path:
    """The report folder: report.html, analysis.json and the picture of the prompts."""
    from surefoot.report import cliff as drawn

    write_aside(out / "analysis.json", json.dumps(as_json(found, beside, lead), indent=1, allow_nan=False).encode())
    sections = [
        (f"{item}. {ITEMS[item]}", drawn.table(HEADER, [cells(e) for e in found.run if e.item == item]))
        for item in range(1, len(ITEMS))
    ]
    exact = {(b.sampled.prompt, b.sampled.name): b.exact for b in beside if b.exact is not None}
    if beside:
        head, *rows = bridge_rows(beside)
        body = drawn.paragraph(enumerated_lead(beside) + ".") + drawn.table(head, rows)
        sections.insert(0, ("Beside the truth", body))
    rows = [[str(e.prompt), f"{e.item}", *cells(e)[:6]] for e in found.prompts]
    drawing = drawn.draw_estimates(found.prompts, exact, out / "estimates")
    body = drawn.paragraph(
        "A row is a prompt. Hollow: the estimate, with its 95 % interval where there is one."
        + (" Filled: the exact value." if exact else "")
    )
    sections.append(("Per prompt", body + drawn.figure(drawing) + drawn.table(("prompt", "item", *HEADER[:6]), rows)))
    return drawn.page(out / "report.html", f"{folder.resolve().name}: from samples", f"{lead}. {CAVEAT}", sections)
