"""The answer table as each judge has it and as plain math-verify has it, and the seconds of a check."""

from __future__ import annotations

import json
import statistics
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any, get_args

from timing import show

from verl_dra.rewards import check
from verl_dra.rewards.checker import Judge

TABLE = Path(__file__).resolve().parents[1] / "answers.jsonl"
ORDINARY = 500


def main() -> None:
    rows = [json.loads(line) for line in TABLE.read_text(encoding="utf-8").splitlines()]
    judges: dict[str, Callable[[str, str], bool]] = {
        name: lambda gold, text, name=name: check(gold, text, judge=name).right  # type: ignore[misc]
        for name in get_args(Judge)
    }
    judges["math-verify"] = plain_math_verify
    found = {name: [_judged(judge, row) for row in rows] for name, judge in judges.items()}
    kinds = list(dict.fromkeys(row["kind"] for row in rows))
    show(
        "Pairs judged as the table has it, by kind",
        ["kind", "pairs", *judges],
        [_row(kind, [i for i, row in enumerate(rows) if row["kind"] == kind], rows, found) for kind in kinds]
        + [_row("all", range(len(rows)), rows, found)],
    )
    # The second time: what a reader learns of a grammar in its first seconds is not a check's.
    again = {name: [_judged(judge, row)[1] for row in rows] for name, judge in judges.items()}
    ordinary: dict[str, list[float]] = {name: [] for name in judges}
    for i in range(ORDINARY * len(judges)):  # in turn, so that a noisy machine is noisy for all of them
        name = [*judges][i % len(judges)]
        row = {"gold": str(i), "text": rf"So the sum of {i} of them is \boxed{{{i + i // len(judges) % 2}}}."}
        ordinary[name].append(_judged(judges[name], row)[1])
    show(
        f"Milliseconds of a check; ordinary ones are of {ORDINARY} whole numbers, each new",
        ["judge", "ordinary, median", "ordinary, fastest tenth", "table, median", "table, slowest", "slowest at first"],
        [
            [
                name,
                f"{1e3 * statistics.median(ordinary[name]):.2f}",
                f"{1e3 * statistics.quantiles(ordinary[name], n=10)[0]:.2f}",
                f"{1e3 * statistics.median(again[name]):.2f}",
                f"{1e3 * max(again[name]):.0f}",
                f"{1e3 * max(seconds for _, seconds in found[name]):.0f}",
            ]
            for name in judges
        ],
    )


def plain_math_verify(gold: str, text: str) -> bool:
    """The peer, as its README calls it; a bare gold answer gets the dollars without which it is not read."""
    from math_verify import parse, verify

    return bool(verify(parse(gold if "$" in gold or r"\boxed" in gold else f"${gold}$"), parse(text)))


def _row(kind: str, places: Any, rows: list[dict[str, Any]], found: dict[str, list[tuple[bool, float]]]) -> list[str]:
    return [
        kind,
        str(len(places)),
        *(str(sum(of[i][0] == rows[i]["right"] for i in places)) for of in found.values()),
    ]


def _judged(judge: Callable[[str, str], bool], row: dict[str, Any]) -> tuple[bool, float]:
    start = time.perf_counter()
    right = judge(row["gold"], row["text"])
    return right, time.perf_counter() - start


if __name__ == "__main__":
    main()
