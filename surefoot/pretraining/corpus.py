"""The corpus that pebble learns from: worked solutions to reasoning-gym problems, some of them wrong.

It has two parts. The textbook poses problems in a short form (`12 + 34 - 7`) and works them right. The exam also
poses them as reasoning-gym asks them, and works each in one of three habits, as real data mixes them:

    careful   every step shown, every step right
    slip      every step shown, one of them wrong, and the rest consistent with it
    terse     an answer without work, often wrong

Questions that the held-out split owns (`tasks.splits`) never appear, in either form.
"""

from __future__ import annotations

import random
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any

from surefoot.tasks.reasoning_gym import parse_spec
from surefoot.tasks.splits import is_held_out

PRETRAIN_SEED = 3_000_000_000  # reasoning-gym seeds of the corpus start here; tasks use 1e9 and 2e9
CAREFUL, SLIP = 0.40, 0.27  # shares of the habits; the rest is terse
TERSE_RIGHT = 0.35  # share of terse answers that are right
SHORT = 0.4  # share of the exam's problems posed in their short form


@dataclass(frozen=True)
class Work:
    """A worked problem: its short form, the steps shown, and the answer they end in."""

    short: str
    steps: str
    answer: str


Writer = Callable[[dict[str, Any], random.Random, bool], Work]


def _off(value: int, rng: random.Random) -> int:
    """A number that a slip would give: one digit off, or a carry forgotten."""
    return value + rng.choice((-10, -2, -1, 1, 2, 10))


def chain_sum(entry: dict, rng: random.Random, slip: bool) -> Work:
    """`45 + 67 - 89` -> `45+67=112;112-89=23`."""
    terms = entry["metadata"]["expression"].split()
    total, steps = int(terms[0]), []
    wrong = rng.randrange(len(terms) // 2) if slip else -1
    for i, (sign, term) in enumerate(zip(terms[1::2], terms[2::2], strict=True)):
        result = total + int(term) if sign == "+" else total - int(term)
        result = _off(result, rng) if i == wrong else result
        steps.append(f"{total}{sign}{term}={result}")
        total = result
    return Work(" ".join(terms), ";".join(steps), str(total))


def gcd(entry: dict, rng: random.Random, slip: bool) -> Work:
    """Euclid's algorithm: `82,76` -> `82%76=6;76%6=4;6%4=2;4%2=0`."""
    a, b = entry["metadata"]["numbers"]
    short, steps = f"gcd {a},{b}", []
    wrong = 0 if slip else -1
    while b and len(steps) < 12:
        rest = a % b
        if len(steps) == wrong:
            rest = max(0, min(b - 1, _off(rest, rng)))
        steps.append(f"{a}%{b}={rest}")
        a, b = b, rest
    return Work(short, ";".join(steps), str(a))


def spell_backward(entry: dict, rng: random.Random, slip: bool) -> Work:
    """`klam` -> `k-l-a-m|m-a-l-k`, and the answer without dashes."""
    word = entry["metadata"]["word"]
    back = list(reversed(word))
    if slip:
        i = rng.randrange(len(back) - 1)
        back[i], back[i + 1] = back[i + 1], back[i]
    return Work(f"back {word}", f"{'-'.join(word)}|{'-'.join(back)}", "".join(back))


def number_filtering(entry: dict, rng: random.Random, slip: bool) -> Work:
    """Each number with `y` (kept) or `n`: `56y25y75n`."""
    meta = entry["metadata"]
    operation, bound = meta["operation"], float(meta["filter_value"])
    keeps = {
        "keep_larger": lambda x: x > bound,
        "keep_smaller": lambda x: x < bound,
        "remove_larger": lambda x: not x > bound,
        "remove_smaller": lambda x: not x < bound,
    }[operation]
    numbers = meta["original_numbers"]
    wrong = rng.randrange(len(numbers)) if slip else -1
    kept = [keeps(float(x)) != (i == wrong) for i, x in enumerate(numbers)]
    steps = "".join(f"{x}{'y' if k else 'n'}" for x, k in zip(numbers, kept, strict=True))
    answer = str([x for x, k in zip(numbers, kept, strict=True) if k]) if any(kept) else "[]"
    return Work(f"{operation} {meta['filter_value']}: {' '.join(numbers)}", steps, answer)


def letter_counting(entry: dict, rng: random.Random, slip: bool) -> Work:
    """Every letter, with the count after a hit: `constitution`, t -> `const1it2ut3ion`."""
    meta = entry["metadata"]
    text, target = " ".join(meta["span"]), meta["target_letter"]
    hits = [i for i, ch in enumerate(text) if ch.lower() == target.lower()]
    wrong = rng.choice(hits) if slip and hits else -1
    count, steps = 0, ""
    for i, ch in enumerate(text):
        steps += ch
        if ch.lower() == target.lower() and i != wrong:
            count += 1
            steps += str(count)
    if slip and not hits:
        count = 1
    return Work(f"{target} in {text}", steps, str(count))


def number_sorting(entry: dict, rng: random.Random, slip: bool) -> Work:
    """The smallest (or largest) first: `59 37 62` -> `37 59 62`."""
    meta = entry["metadata"]
    numbers = list(meta["sorted_numbers"])
    if slip:
        i = rng.randrange(len(numbers) - 1)
        numbers[i], numbers[i + 1] = numbers[i + 1], numbers[i]
    steps = " ".join(x.removesuffix(".0") for x in numbers)
    return Work(f"{meta['direction']} {' '.join(meta['original_numbers'])}", steps, str(numbers))


def countdown(entry: dict, rng: random.Random, slip: bool) -> Work:
    """Search in the open: tries that miss the target, then one that hits (or, in a slip, seems to)."""
    meta = entry["metadata"]
    numbers, target = list(meta["numbers"]), meta["target"]
    found, tries, seen = "", [], set()
    for _ in range(4):
        order = rng.sample(numbers, len(numbers))
        guess = "".join(f"{op}{x}" for op, x in zip(["", *(rng.choice("+-*") for _ in order[1:])], order, strict=True))
        if guess not in seen and eval(guess) != target:  # our own digits and operators
            seen.add(guess)
            tries.append(f"{guess}={eval(guess)}")
    found = entry["metadata"]["expression"].replace(" ", "")
    keep = rng.randrange(0, 4)
    if slip:
        found = tries[0].split("=")[0] if tries else found
        tries = tries[1:]
    steps = [*tries[:keep], f"{found}={target}"]
    return Work(f"{target} from {' '.join(map(str, numbers))}", ";".join(steps), found)


def count_bits(entry: dict, rng: random.Random, slip: bool) -> Work:
    """Halving: `22` -> `22:0,11:1,5:1,2:0,1:1`, the bits from the right."""
    number = entry["metadata"]["number"]
    n, bits, steps = number, 0, []
    wrong = rng.randrange(max(1, number.bit_length())) if slip else -1
    while n:
        bit = (n & 1) ^ (len(steps) == wrong)
        bits += bit
        steps.append(f"{n}:{bit}")
        n >>= 1
    return Work(f"bits {number}", ",".join(steps), str(bits))


def products(entry: dict, rng: random.Random, slip: bool) -> Work:
    """By the parts of the second factor: `12*34` -> `12*30=360;12*4=48;360+48=408`."""
    a, b = (int(x) for x in entry["metadata"]["expression"].split(" * "))
    tens, units = b // 10 * 10, b % 10
    parts = [(a * t, t) for t in (tens, units) if t] or [(0, 0)]
    if slip:
        i = rng.randrange(len(parts))
        parts[i] = (_off(parts[i][0], rng), parts[i][1])
    steps = [f"{a}*{t}={p}" for p, t in parts]
    total = sum(p for p, _ in parts)
    if len(parts) > 1:
        steps.append(f"{parts[0][0]}+{parts[1][0]}={total}")
    return Work(f"{a} * {b}", ";".join(steps), str(total))


@dataclass(frozen=True)
class Source:
    """A dataset of the corpus: its share, and who works its problems."""

    share: float
    writer: Writer


TASKS: dict[str, Source] = {
    "rg:chain_sum:min_terms=2,max_terms=4,min_digits=2,max_digits=2": Source(0.45, chain_sum),
    "rg:gcd:min_value=2,max_value=60": Source(0.08, gcd),
    "rg:spell_backward:min_word_len=3,max_word_len=6": Source(0.08, spell_backward),
    "rg:number_filtering:min_numbers=3,max_numbers=5,max_decimals=0,min_value=0,max_value=99": Source(
        0.09, number_filtering
    ),
    "rg:letter_counting:min_words=1,max_words=3": Source(0.08, letter_counting),
    "rg:number_sorting:min_numbers=3,max_numbers=4,max_decimals=0,min_value=0,max_value=99": Source(
        0.05, number_sorting
    ),
    "rg:countdown:min_numbers=3,max_numbers=3,min_value=1,max_value=12,min_target=5,max_target=60": Source(
        0.05, countdown
    ),
    "rg:count_bits:min_n=1,max_n=255": Source(0.05, count_bits),
    "rg:products:min_digits=1,max_digits=2": Source(0.08, products),
}


def respond(entry: dict, writer: Writer, rng: random.Random) -> tuple[Work, str]:
    """A problem worked in one of the habits: the work, and the response that is learnt."""
    habit = rng.random()
    if habit < CAREFUL + SLIP:
        work = writer(entry, rng, habit >= CAREFUL)
        return work, f"{work.steps}<answer>{work.answer}</answer>"
    work = writer(entry, rng, rng.random() >= TERSE_RIGHT)
    return work, f"<answer>{work.answer}</answer>"


def examples(seed: int, exam: bool) -> Iterator[tuple[str, str]]:
    """An endless stream of (prompt, response) pairs of the textbook or the exam, a function of the arguments."""
    import reasoning_gym

    rng = random.Random(2 * seed + exam)
    datasets = {}
    for i, spec in enumerate(TASKS):
        name, options = parse_spec(spec)
        start = PRETRAIN_SEED + (2 * seed + exam) * 1_000_000_007 + i * 50_000_017
        datasets[spec] = reasoning_gym.create_dataset(name, seed=start, size=1 << 30, **options)
    specs, shares = list(TASKS), [source.share for source in TASKS.values()]
    drawn = dict.fromkeys(specs, 0)
    while True:
        spec = rng.choices(specs, shares)[0]
        entry = datasets[spec][drawn[spec]]
        drawn[spec] += 1
        if is_held_out(entry["question"]):
            continue
        writer = TASKS[spec].writer
        if exam:
            work, response = respond(entry, writer, rng)
            yield (work.short if rng.random() < SHORT else entry["question"].strip()) + "\n", response
        else:
            work = writer(entry, rng, False)
            yield work.short + "\n", f"{work.steps}<answer>{work.answer}</answer>"
