"""The live line of a run: step, reward, held-out accuracy, entropy, KL, tokens (actions ...) a second, time left."""

from __future__ import annotations

import sys
from typing import Any

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn, TimeRemainingColumn

from surefoot.evaluation.evaluate import shown

_FIELDS = (
    ("reward", "reward"),
    ("heldout", "held-out"),
    ("entropy", "entropy"),
    ("kl", "KL"),
)


class Live:
    """A progress bar on a terminal; elsewhere, one line at each held-out evaluation."""

    def __init__(self, total: int, done: int = 0, enabled: bool = True, unit: str = "tokens"):
        self.fields = (*_FIELDS, ("tokens_per_s", f"{'tok' if unit == 'tokens' else unit}/s"))
        self.console = Console(stderr=True)
        self.enabled, self.bar = enabled, None
        self.shown: dict[str, Any] = {}
        self.total = total
        if enabled and sys.stderr.isatty():
            self.bar = Progress(
                TextColumn("[bold]{task.description}"),
                BarColumn(bar_width=18),
                MofNCompleteColumn(),
                TextColumn("{task.fields[line]}"),
                TimeElapsedColumn(),
                TextColumn("left"),
                TimeRemainingColumn(),
                console=self.console,
            )
            self.row = self.bar.add_task("train", total=total, completed=done, line="")

    def __enter__(self) -> Live:
        if self.bar:
            self.bar.start()
        return self

    def __exit__(self, *_: object) -> None:
        if self.bar:
            self.bar.stop()

    def step(self, step: int, metrics: dict[str, Any], seconds: dict[str, float]) -> None:
        """Show a finished step."""
        numbers = {
            "reward": metrics.get("reward"),
            "entropy": metrics.get("entropy"),
            "kl": metrics.get("kl"),
            "tokens_per_s": seconds.get("tokens_per_s"),
        }
        fresh = next(iter(metrics.get("heldout", {}).items()), None)
        self.shown |= {k: v for k, v in numbers.items() if v is not None}
        if fresh:
            self.shown["heldout"] = shown(dict([fresh]), fresh[0])
        texts = {k: v if isinstance(v, str) else _format(k, v) for k, v in self.shown.items()}
        line = "  ".join(f"{label} {texts[key]}" for key, label in self.fields if key in texts)
        if self.bar:
            self.bar.update(self.row, completed=step, line=line)
        elif self.enabled and (fresh is not None or step == self.total):
            self.console.print(f"step {step}/{self.total}  {line}", highlight=False, soft_wrap=True)

    def say(self, text: str) -> None:
        """A line above the bar."""
        if self.enabled:
            self.console.print(text, highlight=False, soft_wrap=True)


def _format(key: str, value: float) -> str:
    if key == "tokens_per_s":
        return f"{value:,.0f}"
    return f"{value:.3f}"
