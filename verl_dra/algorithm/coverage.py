"""What n samples of a problem say of k tries."""

from __future__ import annotations

import math


def pass_at_k(n: int, right: int, k: int) -> float:
    """The chance that k of n samples hold a right one: 1 - C(n - right, k) / C(n, k), unbiased (arXiv 2107.03374).

    Raises:
        ValueError: `k` is not from 1 to `n`.
    """
    if not 1 <= k <= n:
        raise ValueError(f"pass@{k} needs {k} samples of each problem, and one has {n}")
    return 1 - math.comb(n - right, k) / math.comb(n, k)
