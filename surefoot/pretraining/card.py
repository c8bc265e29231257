"""Pebble's model card: its data and its measured skill. `python -m surefoot.pretraining.card DIR` writes it."""

from __future__ import annotations

import datetime
import hashlib
import json
import platform
import sys
from pathlib import Path

from surefoot.pretraining import corpus

TEXT = """---
license: apache-2.0
library_name: transformers
pipeline_tag: text-generation
---

# pebble

A Llama of {parameters:,} parameters that tries nine reasoning-gym datasets. It ships with Surefoot to be improved: it
was taught to work problems step by step, but also to slip and to guess, and sampled at temperature 1 it does all three.

- **Input**: the question and a newline. **Output**: work, then `<answer>...</answer>`, then `<eos>`.
- **Tokens**: one a character; printable ASCII, newline, `×`; the answer tags are one token each. No BOS. Context 1024,
  of which training used 447.
- **Data**: generated, nothing else. reasoning-gym problems with seeds from {seed_range:,} up, and worked solutions by
  `surefoot/pretraining/corpus.py`. First a textbook (short questions, right work), then an exam: careful work
  {careful:.0%}, work with a slip {slip:.0%}, an answer without work {terse:.0%} of which {terse_right:.0%} right.
- **Held out**: one question in eight, by a hash of its text (`surefoot.tasks.splits.is_held_out`); the corpus drops
  them. The measurements below are on held-out questions. reasoning-gym words one countdown problem in several ways,
  each with its own hash, so the corpus states most held-out countdown problems in other words: that row flatters.
  The other datasets word a problem in one way.
- **Command**: `surefoot pretrain --out DIR --steps {steps} --seed {seed}`, with {threads} threads: {minutes:.0f}
  minutes on {machine}, {date}. Loss over the last hundred steps: {loss:.4f} nats a response token.
- **Repeats**: the first losses, in `losses.json`, come out bit for bit on the same machine with the same number of
  threads and libraries; other machines differ in the last bits of bfloat16 sums.
- **sha256** of `model.safetensors`: `{digest}`

Temperature 1, {k} samples a problem, 95 % intervals over problems:

| task | problems | pass@1 | pass@{k} | length |
|---|---|---|---|---|
{rows}

It knows nothing else. It is not for use on anything that matters.
"""


def machine() -> str:
    """The processor's name, where the system tells it."""
    try:
        lines = Path("/proc/cpuinfo").read_text().splitlines()
    except OSError:
        return platform.machine()
    return next((line.split(":", 1)[1].strip() for line in lines if line.startswith("model name")), platform.machine())


def measure(folder: Path, problems: int, k: int) -> dict[str, dict]:
    """`evaluation.evaluate` on the held-out problems of every task of the corpus (fewer where fewer exist)."""
    from surefoot import tasks
    from surefoot.evaluation.evaluate import evaluate
    from surefoot.policies.causal_lm import CausalLM

    policy = CausalLM.load(str(folder))
    return {spec: evaluate(policy, tasks.load(spec), problems, k) for spec in corpus.TASKS}


def write_card(folder: Path, problems: int = 512, k: int = 16) -> None:
    """Measure the model in `folder` and write its `README.md`, beside the `losses.json` that `pretrain` left there."""
    from safetensors import safe_open

    measured = measure(folder, problems, k)
    made = json.loads((folder / "losses.json").read_text())
    weights = folder / "model.safetensors"
    with safe_open(weights, "pt") as file:
        parameters = sum(file.get_tensor(name).numel() for name in file.keys())

    def share(record: dict, name: str) -> str:
        low, high = record[f"{name}_interval"]
        return f"{record[name]:.1%} [{low:.1%}, {high:.1%}]"

    rows = (
        f"| `{spec}` | {r['n']} | {share(r, 'pass@1')} | {share(r, f'pass@{k}')} | {r['length']:.1f} |"
        for spec, r in measured.items()
    )
    text = TEXT.format(
        parameters=parameters,
        seed_range=corpus.PRETRAIN_SEED,
        careful=corpus.CAREFUL,
        slip=corpus.SLIP,
        terse=1 - corpus.CAREFUL - corpus.SLIP,
        terse_right=corpus.TERSE_RIGHT,
        steps=made["steps"],
        seed=made["seed"],
        threads=made["threads"],
        minutes=made["seconds"] / 60,
        machine=machine(),
        date=datetime.datetime.fromtimestamp(weights.stat().st_mtime).date(),
        loss=made["last_mean"],
        digest=hashlib.sha256(weights.read_bytes()).hexdigest(),
        k=k,
        rows="\n".join(rows),
    )
    (folder / "README.md").write_text(text)


if __name__ == "__main__":
    write_card(Path(sys.argv[1]))
