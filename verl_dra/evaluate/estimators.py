"""What n samples of a problem say of one try, of k tries and of a vote, and how sure a mean over problems is."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Sequence

import numpy as np

_SUBSETS = 1000


class EvaluationError(ValueError):
    """Something that can't be evaluated; the message says what and what to do."""


def pass_at_k(n: int, right: int, k: int) -> float:
    """The chance that k of n samples hold a right one: 1 - C(n - right, k) / C(n, k), unbiased (arXiv 2107.03374).

    Raises:
        EvaluationError: `k` is not from 1 to `n`.
    """
    if not 1 <= k <= n:
        raise EvaluationError(f"pass@{k} needs {k} samples of each problem, and one has {n}")
    return 1 - math.comb(n - right, k) / math.comb(n, k)


def maj_at_k(answers: Sequence[str | None], right: Sequence[bool], k: int, seed: int = 0) -> float:
    """The chance that the commonest answer of k samples is right (self-consistency, arXiv 2203.11171).

    Samples without an answer have no vote; of answers equally common one is drawn; without any vote it is wrong. For k
    below the number of samples, the mean over 1,000 subsets, which `seed` decides.

    Args:
        answers: [n] final answers in a form by which equal ones are equal; None where there is none.
        right: [n] whether each is right.
        k: samples that vote.

    Raises:
        EvaluationError: `k` is not from 1 to n.
    """
    n = len(answers)
    if not 1 <= k <= n:
        raise EvaluationError(f"maj@{k} needs {k} samples of each problem, and one has {n}")
    if k == n:
        return _vote(answers, right)
    generator = np.random.default_rng(seed)
    draws = (generator.choice(n, size=k, replace=False) for _ in range(_SUBSETS))
    return sum(_vote([answers[i] for i in draw], [right[i] for i in draw]) for draw in draws) / _SUBSETS


def distinct_n(texts: Sequence[str], n: int) -> float:
    """The share of a problem's word n-grams that are different (arXiv 1510.03055); 0 where there is none."""
    words = [text.split() for text in texts]
    grams = [tuple(w[i : i + n]) for w in words for i in range(len(w) - n + 1)]
    return len(set(grams)) / len(grams) if grams else 0.0


def interval(values: Sequence[float], draws: int, seed: int = 0) -> tuple[float, float]:
    """The 95 % percentile interval of the mean of `values` [problems], from `draws` bootstrap samples of them."""
    array = np.asarray(values, dtype=np.float64)
    generator = np.random.default_rng(seed)
    # One draw is how often each value occurs in it.
    counts = generator.multinomial(len(array), np.full(len(array), 1 / len(array)), size=draws)
    low, high = np.percentile(counts @ array / len(array), [2.5, 97.5])
    return float(low), float(high)


def _vote(answers: Sequence[str | None], right: Sequence[bool]) -> float:
    votes = Counter(answer for answer in answers if answer is not None)
    if not votes:
        return 0.0
    most = max(votes.values())
    winners = [answer for answer, count in votes.items() if count == most]
    # Equal answers are rightly judged alike; where they are not, the winner is as right as its samples are.
    shares = [sum(ok for a, ok in zip(answers, right, strict=True) if a == winner) / most for winner in winners]
    return sum(shares) / len(winners)
