"""How well cosines tell pairs of the same way from pairs of different ways, and what follows for DRA."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

QUANTILES = (0.05, 0.25, 0.5, 0.75, 0.95)
_DRAWS = 2000
_CELLS = 2**22  # of draws times pairs that are held at a time


def auc(cosine: NDArray[np.float64], same: NDArray[np.bool_]) -> float:
    """The chance that a pair of the same way has a higher cosine than one of different ways, ties counting half.

    It is the Mann-Whitney statistic (Hanley and McNeil 1982): 1 where cosines tell the ways apart, 0.5 where they say
    nothing.

    Args:
        cosine: [P].
        same: [P]; both kinds must be there.
    """
    return float(_weighted_auc(cosine, same, np.ones((1, len(cosine))))[0])


def auc_interval(
    cosine: NDArray[np.float64], same: NDArray[np.bool_], row: NDArray[np.int64], seed: int = 0
) -> tuple[float, float] | None:
    """The 95 % interval of `auc` by the Bayesian bootstrap (Rubin 1981) over rows.

    The pairs of a group share texts and are not independent; rows are what is drawn.

    Args:
        cosine: [P].
        same: [P].
        row: [P] the row that each pair comes from.
        seed: of the draws.

    Returns:
        The interval; None where the AUC is 0 or 1, of which a bootstrap can say nothing, or the rows of one kind are
        fewer than 2.
    """
    _, of_pair = np.unique(row, return_inverse=True)
    if auc(cosine, same) in (0, 1) or min(len(set(of_pair[same])), len(set(of_pair[~same]))) < 2:
        return None
    generator = np.random.default_rng(seed)
    found = []
    some = max(_CELLS // len(cosine), 1)
    for start in range(0, _DRAWS, some):
        weights = generator.standard_exponential((min(some, _DRAWS - start), of_pair.max() + 1))
        found.append(_weighted_auc(cosine, same, weights[:, of_pair]))
    low, high = np.quantile(np.concatenate(found), [0.025, 0.975])
    return float(low), float(high)


def cluster_cosine(cosine: NDArray[np.float64], same: NDArray[np.bool_]) -> tuple[float, float] | None:
    """The cosine above which two completions are best taken to be of one way, and the balanced accuracy of that.

    It is the cut of the highest Youden index (share of the same above it, minus share of the different above it), half
    way between the two cosines that it lies between; of equally good cuts the one of the widest gap. As it is chosen on
    these pairs, its accuracy on others is a little lower.

    Returns:
        The cut and (1 + Youden's index) / 2; None where no cut is better than none.
    """
    values, at = np.unique(cosine, return_inverse=True)
    above = np.stack([np.bincount(at[of], minlength=len(values)) for of in (same, ~same)]).astype(np.float64)
    # [2, values]: shares above each value.
    above = 1 - np.cumsum(above, axis=1) / above.sum(axis=1, keepdims=True)
    index = np.round((above[0] - above[1])[:-1], 12)
    if not len(index) or index.max() <= 0:
        return None
    best = np.flatnonzero(index == index.max())
    cut = best[np.argmax(np.diff(values)[best])]
    return float(values[cut] + values[cut + 1]) / 2, float(1 + index[cut]) / 2


def _weighted_auc(
    cosine: NDArray[np.float64], same: NDArray[np.bool_], weights: NDArray[np.float64]
) -> NDArray[np.float64]:
    """[draws] for weights [draws, P]."""
    order = np.argsort(cosine, kind="stable")
    _, starts = np.unique(cosine[order], return_index=True)
    of_same = np.add.reduceat(weights[:, order] * same[order], starts, axis=1)
    of_different = np.add.reduceat(weights[:, order] * ~same[order], starts, axis=1)
    below = np.cumsum(of_different, axis=1) - of_different / 2
    result: NDArray[np.float64] = (of_same * below).sum(1) / (of_same.sum(1) * of_different.sum(1))
    return result
