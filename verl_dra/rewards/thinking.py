"""Where a completion's thinking ends, for the judge of answers and for what diversity is measured of."""

from __future__ import annotations

ENDS = "</think>"


def parted(text: str) -> tuple[str | None, str]:
    """What is before the last `</think>` and what follows it; None and the whole text where there is none."""
    thinking, mark, rest = text.rpartition(ENDS)
    return (thinking if mark else None), rest
