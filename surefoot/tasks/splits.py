"""Which questions are held out: decided by the question's text alone, so that no split can overlap another."""

from __future__ import annotations

import hashlib

SHARE = 8  # one question in so many is held out


def is_held_out(question: str) -> bool:
    """Whether a question belongs to the held-out side: a hash of its text (white space folded), 1 in 8.

    Training, and the corpus that pebble was made from, drop every question for which this is true.
    """
    text = " ".join(question.split())
    return int.from_bytes(hashlib.blake2b(text.encode(), digest_size=8).digest(), "big") % SHARE == 0
