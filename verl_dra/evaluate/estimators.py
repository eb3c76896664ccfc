"""What n samples of a problem say of one try, of k tries and of a vote, and how sure a mean over problems is."""

from __future__ import annotations

import functools
import math
from collections import Counter
from collections.abc import Iterator, Sequence
from fractions import Fraction

import numpy as np
from numpy.typing import NDArray


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


def maj_at_k(answers: Sequence[str | None], right: Sequence[bool], k: int) -> float:
    """The chance that the commonest answer of k of the samples is right (self-consistency, arXiv 2203.11171).

    Samples without an answer have no vote; of answers equally common one is drawn; without any vote it is wrong. The
    result is the exact mean over all C(n, k) subsets and all such draws.

    Args:
        answers: [n] final answers in a form by which equal ones are equal; None where there is none.
        right: [n] whether each is right. Equal answers are rightly judged alike; where they are not, a winner is as
            right as its samples are on average.
        k: samples that vote.

    Raises:
        EvaluationError: `k` is not from 1 to n.
    """
    n = len(answers)
    if not 1 <= k <= n:
        raise EvaluationError(f"maj@{k} needs {k} samples of each problem, and one has {n}")
    sizes = Counter(answer for answer in answers if answer is not None)
    votes_right = Counter(answer for answer, ok in zip(answers, right, strict=True) if ok)
    silent = n - sizes.total()
    # Whole numbers throughout: the shares of right votes over a common denominator.
    denominator = math.lcm(*sizes.values())
    candidates = [(size, votes_right[answer] * (denominator // size)) for answer, size in sizes.items()]
    total = Fraction(0)
    for most in range(1, k + 1):
        for votes, winners, share in _winning(candidates, most, k):
            total += Fraction(share * math.comb(silent, k - votes), winners)
    return float(total / (denominator * math.comb(n, k)))


def distinct_n(texts: Sequence[str], n: int) -> float:
    """The share of a problem's word n-grams that are different (arXiv 1510.03055); 0 where there is none."""
    words = [text.split() for text in texts]
    grams = [tuple(w[i : i + n]) for w in words for i in range(len(w) - n + 1)]
    return len(set(grams)) / len(grams) if grams else 0.0


def interval(values: Sequence[float], draws: int, seed: int = 0) -> tuple[float, float]:
    """The 95 % percentile interval of the mean of `values` [problems], from `draws` bootstrap samples of them."""
    array = np.asarray(values, dtype=np.float64)
    low, high = np.percentile(_resamples(len(array), draws, seed) @ array / len(array), [2.5, 97.5])
    return float(low), float(high)


def _winning(candidates: Sequence[tuple[int, int]], most: int, k: int) -> Iterator[tuple[int, int, int]]:
    """All ways to give at most k votes to candidates of (samples, right share) so that the winners have `most`.

    Yields (votes given, winners, sum over the ways of the winners' shares). A way of c votes for a candidate of m
    samples counts C(m, c) times.
    """
    # By (votes, winners): the number of ways, and their sum of shares.
    ways = {(0, 0): (1, 0)}
    for samples, share in candidates:
        longer: dict[tuple[int, int], tuple[int, int]] = {}
        for (votes, winners), (number, shares) in ways.items():
            for more in range(min(samples, most, k - votes) + 1):
                wins = more == most
                times = math.comb(samples, more)
                before = longer.get((votes + more, winners + wins), (0, 0))
                longer[votes + more, winners + wins] = (
                    before[0] + times * number,
                    before[1] + times * (shares + wins * share * number),
                )
        ways = longer
    return ((votes, winners, shares) for (votes, winners), (_, shares) in ways.items() if winners)


@functools.lru_cache(maxsize=1)
def _resamples(problems: int, draws: int, seed: int) -> NDArray[np.float64]:
    """[draws, problems]: how often each problem is in a bootstrap sample; the same ones for each measure."""
    generator = np.random.default_rng(seed)
    return generator.multinomial(problems, np.full(problems, 1 / problems), size=draws).astype(np.float64)
