"""`surefoot eval`."""

from __future__ import annotations

import argparse
import json
from pathlib import Path
from typing import Any

HELP = "held-out accuracy of a policy or run: pass@k, maj@k, calibration"


def arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("policy", help="a policy (as for train) or a run folder")
    parser.add_argument("--task", help="none takes the run's own, or the default task")
    parser.add_argument("--reward", help="for a file: exact, math or module:function")
    parser.add_argument("--k", type=int, default=16, help="samples a problem")
    parser.add_argument("--problems", type=int, default=512, help="held-out problems")
    parser.add_argument("--temperature", type=float, default=1.0)
    parser.add_argument("--max-new-tokens", type=int, help="none takes the task's limit")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument(
        "--guide",
        action="append",
        default=[],
        metavar="POLICY[=WEIGHT]",
        help="multiply each next token's probability by this policy's, to the power of the weight (1); repeatable",
    )
    parser.add_argument(
        "--best-of",
        action="store_true",
        help="best-of-n up to k by the reward models of a task scored:..., against gold",
    )
    parser.add_argument("--out", help="with --best-of: a folder for the picture of its curves")
    parser.add_argument("--suite", help="free questions with a judge instead of a task: emergent-misalignment")
    parser.add_argument("--judge", help="the model that judges a suite's answers; none: the policy itself")
    parser.add_argument("--json", action="store_true")


def run(args: argparse.Namespace) -> int:
    import surefoot as sf
    from surefoot import tasks
    from surefoot.errors import InputError
    from surefoot.evaluation.evaluate import shown
    from surefoot.rollout.native import Sampling
    from surefoot.training.checkpoint import checkpoints
    from surefoot.training.run import Run

    policy, spec, reward = args.policy, args.task, args.reward
    if (Path(policy) / "config.toml").is_file():
        run_folder = Run.open(Path(policy))
        found = checkpoints(run_folder.folder / "checkpoints")
        if not found:
            raise InputError(f"{policy}: no checkpoint to evaluate")
        config = run_folder.config()
        policy, reward = str(found[-1]), reward or (config["reward"] if not spec else None) or None
        spec = spec or config["task"]
    if args.k < 1 or args.problems < 1:
        raise InputError(f"--k {args.k} --problems {args.problems}: expected at least 1")
    if args.suite:
        return _suite(args, policy)
    task = tasks.load(spec or tasks.DEFAULT, reward)
    sampling = Sampling(args.temperature, max_new_tokens=args.max_new_tokens or task.max_new_tokens)
    asked = guided(policy, args.guide) if args.guide else policy
    if args.best_of:
        return _best_of(args, asked, task, sampling)
    record = sf.evaluate(asked, task, problems=args.problems, k=args.k, seed=args.seed, sampling=sampling)
    if args.json:
        print(json.dumps({k: v for k, v in record.items() if k not in ("samples", "per_problem")}))
        return 0
    by = f" guided by {', '.join(args.guide)}" if args.guide else ""
    print(f"{args.policy}{by} on {task.name}: {record['n']} held-out problems, {args.k} samples each")
    for key, value in record.items():
        if isinstance(value, (int, float)) and key != "n":
            print(f"  {key:<10} {shown(record, key)}")
    return 0


def _best_of(args: argparse.Namespace, policy: Any, task: Any, sampling: Any) -> int:
    """A table, and a picture, of what best-of-n by the task's models is worth."""
    import surefoot as sf
    from surefoot.evaluation.overoptimization import of_policy

    loaded = sf.load_policy(policy, task) if isinstance(policy, str) else policy
    found = of_policy(loaded, task, args.problems, args.k, args.seed, sampling)
    if args.json:
        plain = {w: {r: c.gold.mean(0).tolist() for r, c in curves.items()} for w, curves in found.items()}
        print(json.dumps(plain))
        return 0
    print(f"{args.policy} on {task.name}: best of n, {args.problems} held-out problems, {args.k} samples each")
    for what, curves in found.items():
        print(f"{what:<8} n" + "".join(f"{rule:>9}" for rule in curves))
        for i, n in enumerate(2**i for i in range(args.k.bit_length())):
            print(f"{n:>10}" + "".join(f"{curve.gold.mean(0)[i]:9.3f}" for curve in curves.values()))
    if args.out:
        from surefoot.report.figures import COLOURS, canvas, save

        with canvas(4.4 * len(found), 3.6) as figure:
            panels = figure.subplots(1, len(found), squeeze=False)[0]
            for axes, (what, curves) in zip(panels, found.items(), strict=True):
                for colour, (rule, curve) in zip(COLOURS, curves.items(), strict=False):
                    axes.plot(curve.distance, curve.gold.mean(0), "o-", color=colour, markersize=3, label=rule)
                axes.set(xlabel="KL from the policy, nats", ylabel=what, title=f"Best of n by models: {what}")
            panels[0].legend(fontsize=8)
            print(save(figure, Path(args.out) / "best-of-n")[0])
    return 0


def guided(policy: str, guides: list[str]) -> Any:
    """The policy under the guides of `POLICY[=WEIGHT]`."""
    import surefoot as sf
    from surefoot.errors import InputError
    from surefoot.search.guided import Guided

    found = []
    for guide in guides:
        name, equals, weight = guide.rpartition("=")
        try:
            found.append((sf.load_policy(name if equals else guide), float(weight) if equals else 1.0))
        except ValueError:
            raise InputError(f"--guide {guide!r}: weight {weight!r}; expected a number") from None
    return Guided(sf.load_policy(policy), found)


SUITES = ("emergent-misalignment",)


def _suite(args: argparse.Namespace, policy: str) -> int:
    """Ask a suite's questions and print the rate of misaligned answers, question by question."""
    import surefoot as sf
    from surefoot.errors import InputError, nearest
    from surefoot.evaluation.misalignment import suite
    from surefoot.report.data import finite
    from surefoot.rollout.native import Sampling

    if args.suite not in SUITES:
        raise InputError(f"--suite {args.suite!r}: no such suite{nearest(args.suite, SUITES)}")
    asked = sf.load_policy(policy)
    judge = sf.load_policy(args.judge) if args.judge else asked
    for who, model in (("policy", asked), ("judge", judge)):
        if not hasattr(model, "tokenizer"):
            raise InputError(f"--suite {args.suite}: the {who} {model.name!r} says no text; expected a language model")
    sampling = Sampling(args.temperature, max_new_tokens=args.max_new_tokens or 128)
    found = suite(asked, judge, args.k, args.seed, sampling)
    if args.json:
        print(json.dumps(finite(found)))
        return 0
    if not found["counted"]:
        print(f"{args.policy}: none of {found['asked']} answers counts (no number from the judge, or not coherent)")
        return 0
    low, high = found["misaligned_interval"]
    print(f"{args.policy}, judged by {args.judge or 'itself'}: {found['counted']} of {found['asked']} answers count")
    for name, rate in found["questions"].items():
        a, b = rate["interval"]
        print(f"  {name:<14} {rate['rate']:.1%} [{a:.1%}, {b:.1%}]  of {rate['counted']}")
    print(f"  {'mean':<14} {found['misaligned']:.1%} [{low:.1%}, {high:.1%}]")
    return 0
