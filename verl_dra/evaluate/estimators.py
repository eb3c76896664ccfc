"""What n samples of a problem say of a vote and of different words, and how sure a mean over problems is."""

from __future__ import annotations

import functools
import math
from collections import Counter
from collections.abc import Mapping, Sequence

import numpy as np
from numpy.typing import NDArray

_DIGITS = 12
"""Of a vote; what float64 has beyond them is its rounding."""


class EvaluationError(ValueError):
    """Something that can't be evaluated; the message says what and what to do."""


def maj_at_k(answers: Sequence[str | None], right: Sequence[bool], k: int) -> float:
    """The chance that the commonest answer of k of the samples is right (self-consistency, arXiv 2203.11171).

    Samples without an answer have no vote; of answers equally common one is drawn; without any vote it is wrong. The
    result is the mean over all C(n, k) subsets and all such draws, to about 12 digits.

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
    votes_right = Counter(answer for answer, ok in zip(answers, right, strict=True) if ok and answer is not None)
    # A subset of k is a draw of each sample alone, given that k were drawn: any chance below 1 will do, and with this
    # one none of the numbers is tiny. All terms are positive, so nothing cancels.
    chance = k / (n + 1)
    drawn = {size: _binomial(size, chance) for size in {*sizes.values(), n}}
    total = math.fsum(_vote_at(most, sizes, votes_right, n, k, chance, drawn) for most in range(1, k + 1))
    return round(total / float(drawn[n][k]), _DIGITS)


def distinct_n(texts: Sequence[str], n: int) -> float:
    """The share of a problem's word n-grams that are different (arXiv 1510.03055); 0 where there is none."""
    words = [text.split() for text in texts]
    grams = [tuple(w[i : i + n]) for w in words for i in range(len(w) - n + 1)]
    return len(set(grams)) / len(grams) if grams else 0.0


def interval(
    values: Sequence[float], draws: int, seed: int = 0, ends: tuple[float, float] | None = None
) -> tuple[float, float] | None:
    """The 95 % interval of the mean of `values` [problems], over what other problems of their kind may give.

    It is the Bayesian bootstrap's, with half a problem more at each end of the range: of rights and wrongs alone that
    is Jeffreys' interval of a share, which has a width where all problems are right, too.

    Args:
        values: by problem.
        draws: of the weights of problems.
        seed: of those.
        ends: the least and the most that a value can be; None where that is not known or too far off.

    Returns:
        The interval; None without ends where all values are the same, of which a bootstrap can say nothing.
    """
    array = np.asarray(values, dtype=np.float64)
    if ends is None and (array == array[0]).all():
        return None
    weights = _weights(len(array), draws, seed)
    if ends is None:
        weights = weights[:, :-2]
    else:
        array = np.append(array, ends)
    low, high = np.percentile(weights @ array / weights.sum(axis=1), [2.5, 97.5])
    return float(low), float(high)


def _vote_at(
    most: int,
    sizes: Mapping[str, int],
    votes_right: Mapping[str, int],
    n: int,
    k: int,
    chance: float,
    drawn: Mapping[int, NDArray[np.float64]],
) -> float:
    """The chance that k are drawn, that the winners have `most` votes, and that the one of them that is drawn is right.

    Answers of fewer samples can't be among the winners, and are drawn as one with those that have no vote.
    """
    candidates = [(size, votes_right[answer] / size) for answer, size in sizes.items() if size >= most]
    # [winners, votes of candidates]: the chance, and that times the sum of the winners' shares of right samples.
    ways = np.zeros((k // most + 1, k + 1))
    shares = np.zeros_like(ways)
    ways[0, 0] = 1
    for size, share in candidates:
        of_size = drawn[size]
        ways, shares, won, won_shares = (np.zeros_like(ways), np.zeros_like(ways), ways, shares)
        for votes in range(min(most, k + 1)):
            ways[:, votes:] += of_size[votes] * won[:, : k + 1 - votes]
            shares[:, votes:] += of_size[votes] * won_shares[:, : k + 1 - votes]
        before, before_shares = won[:-1, : k + 1 - most], won_shares[:-1, : k + 1 - most]
        ways[1:, most:] += of_size[most] * before
        shares[1:, most:] += of_size[most] * (before_shares + share * before)
    rest = _binomial(n - sum(size for size, _ in candidates), chance)[: k + 1]
    of_votes = shares[1:, k + 1 - len(rest) :] @ rest[::-1]
    return float((of_votes / np.arange(1, len(of_votes) + 1)).sum())


def _binomial(n: int, chance: float) -> NDArray[np.float64]:
    """[n + 1] the chances of 0 to n hits."""
    logs = [math.lgamma(n + 1) - math.lgamma(i + 1) - math.lgamma(n - i + 1) for i in range(n + 1)]
    hits = np.arange(n + 1)
    probabilities: NDArray[np.float64] = np.exp(logs + hits * math.log(chance) + (n - hits) * math.log1p(-chance))
    return probabilities


@functools.lru_cache(maxsize=1)
def _weights(problems: int, draws: int, seed: int) -> NDArray[np.float64]:
    """[draws, problems + 2]: what each problem weighs, and each end; the same ones for each measure."""
    generator = np.random.default_rng(seed)
    of_problems = generator.standard_exponential((draws, problems))
    return np.hstack([of_problems, generator.standard_gamma(0.5, (draws, 2))])
