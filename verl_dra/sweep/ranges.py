"""Numbers of points in words: `0-3,7`."""

from __future__ import annotations

import re
from collections.abc import Iterable, Sequence
from itertools import pairwise

from verl_dra.sweep.folder import SweepError


def shown(numbers: Iterable[int]) -> str:
    """`0-3,7` for 0, 1, 2, 3 and 7, as sbatch's --array reads it: that has a limit on its length."""
    ordered = sorted(numbers)
    starts = [ordered[0], *(b for a, b in pairwise(ordered) if b != a + 1)]
    ends = [*(a for a, b in pairwise(ordered) if b != a + 1), ordered[-1]]
    return ",".join(str(a) if a == b else f"{a}-{b}" for a, b in zip(starts, ends, strict=True))


def read(words: Sequence[str], points: int) -> list[int]:
    """The numbers that `words` such as `3` and `5-7` name, ascending, each once.

    Raises:
        SweepError: a word is neither a number nor a range, or names none of the `points`.
    """
    named: set[int] = set()
    for word in words:
        if not (ends := re.fullmatch(r"(\d{1,9})(?:-(\d{1,9}))?", word)):
            raise SweepError(f"--points {word} is neither a number nor a range; for example --points 3 5-7")
        first, last = int(ends[1]), int(ends[2] or ends[1])
        if not first <= last < points:
            raise SweepError(f"--points {word} names no point; the sweep has 0 to {points - 1}")
        named.update(range(first, last + 1))
    return sorted(named)
