"""Times of alternatives to the same work, taken in turn so that a noisy machine is noisy for all of them."""

from __future__ import annotations

import statistics
import sys
import time
from collections.abc import Callable, Mapping, Sequence


def medians(work: Mapping[str, Callable[[], object]], seconds: float = 4.0, most: int = 300) -> dict[str, float]:
    """Median seconds of each, from at least 5 rounds over all of them after a first that does not count."""
    times: dict[str, list[float]] = {name: [] for name in work}
    for call in work.values():
        call()
    end = time.perf_counter() + seconds
    rounds = 0
    while rounds < 5 or (rounds < most and time.perf_counter() < end):
        for name, call in work.items():
            start = time.perf_counter()
            call()
            times[name].append(time.perf_counter() - start)
        rounds += 1
    return {name: statistics.median(values) for name, values in times.items()}


def show(title: str, header: Sequence[str], rows: Sequence[Sequence[str]]) -> None:
    """Print a Markdown table."""
    widths = [max(len(row[i]) for row in [header, *rows]) for i in range(len(header))]
    lines = [title, ""]
    for row in [header, ["-" * width for width in widths], *rows]:
        lines.append("| " + " | ".join(cell.rjust(width) for cell, width in zip(row, widths, strict=True)) + " |")
    sys.stdout.write("\n".join(lines) + "\n\n")
    sys.stdout.flush()
