"""Write pairs.jsonl and groups.jsonl: tiny worked solutions of known strategy, for `verl-dra calibrate`.

Of the 200 pairs 100 have the same strategy, with other numbers and in other words. 50 have different strategies, and
other numbers and words as well. 50 are the hard case: the same problem in the same words, and only the strategy
differs. The 24 groups are as training has them: 8 solutions of one problem, by three strategies in four wordings.
"""

from __future__ import annotations

import json
import random
from collections.abc import Callable, Iterator
from itertools import pairwise, product
from pathlib import Path
from typing import Any

_FOLDER = Path(__file__).parent
_SEED = 0

Steps = list[str]
Way = Callable[[int, int], Steps]


def tens_and_ones(a: int, b: int) -> Steps:
    tens, ones = a // 10 * 10 + b // 10 * 10, a % 10 + b % 10
    return [
        f"{a // 10 * 10} + {b // 10 * 10} = {tens}",
        f"{a % 10} + {b % 10} = {ones}",
        f"{tens} + {ones} = {a + b}",
    ]


def round_and_take_back(a: int, b: int) -> Steps:
    over = -b % 10
    return [f"{b} + {over} = {b + over}", f"{a} + {b + over} = {a + b + over}", f"{a + b + over} - {over} = {a + b}"]


def count_up(a: int, b: int) -> Steps:
    stops = [a, *range(a + 10, a + b, 10), a + b]
    return [f"{low} + {high - low} = {high}" for low, high in pairwise(stops)]


def distribute(a: int, b: int) -> Steps:
    tens = a // 10 * 10
    return [f"{tens} * {b} = {tens * b}", f"{a % 10} * {b} = {a % 10 * b}", f"{tens * b} + {a % 10 * b} = {a * b}"]


def halve_and_double(a: int, b: int) -> Steps:
    return [f"{b} / 2 = {b // 2}", f"{a} * 2 = {2 * a}", f"{2 * a} * {b // 2} = {a * b}"]


def add_again_and_again(a: int, b: int) -> Steps:
    return [f"{a * i} + {a} = {a * (i + 1)}" for i in range(1, b)]


def terms_one_by_one(first: int, count: int) -> Steps:
    sums = [sum(range(first, first + i + 1)) for i in range(count)]
    return [f"{sums[i]} + {first + i + 1} = {sums[i + 1]}" for i in range(count - 1)]


def outer_pairs(first: int, count: int) -> Steps:
    last, pair = first + count - 1, 2 * first + count - 1
    return [f"{first} + {last} = {pair}", f"{count} / 2 = {count // 2}", f"{pair} * {count // 2} = {pair * count // 2}"]


def middle_times_count(first: int, count: int) -> Steps:
    ends = 2 * first + count - 1
    return [
        f"{first} + {first + count - 1} = {ends}",
        f"{ends} / 2 = {ends / 2}",
        f"{ends / 2} * {count} = {ends * count // 2}",
    ]


TASKS: dict[str, tuple[str, Callable[[random.Random], tuple[int, int]], dict[str, Way]]] = {
    "sum": (
        "{0} + {1}",
        lambda rng: (rng.randrange(21, 70), 10 * rng.randrange(2, 5) + rng.randrange(5, 9)),
        {"tens and ones": tens_and_ones, "round and take back": round_and_take_back, "count up": count_up},
    ),
    "product": (
        "{0} times {1}",
        lambda rng: (10 * rng.randrange(1, 7) + rng.randrange(2, 9), rng.choice((4, 6))),
        {
            "distribute": distribute,
            "halve and double": halve_and_double,
            "add again and again": add_again_and_again,
        },
    ),
    "series": (
        "the sum of the {1} whole numbers from {0} on",
        lambda rng: (rng.randrange(3, 40), rng.choice((4, 6))),
        {
            "terms one by one": terms_one_by_one,
            "outer pairs": outer_pairs,
            "middle times count": middle_times_count,
        },
    ),
}
"""Of each task how it is said, its two numbers, and its strategies."""

WORDS = (
    ("We are asked for {task}.", ("First, {}.", "Then {}.", "Next, {}."), "So the answer is {answer}."),
    ("Let me work out {task}.", ("I know that {}.", "Also {}.", "From there {}."), "That gives {answer} in all."),
    ("Problem: {task}.", ("Observe {}.", "Compute {}.", "Consequently {}."), "Result: {answer}"),
    ("How much is {task}?", ("Well, {}.", "Okay, and {}.", "Hmm, {}, good."), "Done, it must be {answer}!"),
)
"""Ways to word a solution, whatever its strategy: beginning, what stands around the steps in turn, end."""


def solution(task: str, way: str, numbers: tuple[int, int], words: int) -> str:
    """A worked solution of a task by a strategy, in the words of that number."""
    name, _, ways = TASKS[task]
    begin, around, end = WORDS[words]
    steps = ways[way](*numbers)
    lines = [around[i % len(around)].format(step) for i, step in enumerate(steps)]
    return "\n".join(
        [begin.format(task=name.format(*numbers)), *lines, end.format(answer=steps[-1].rpartition("= ")[2])]
    )


def pairs() -> Iterator[dict[str, Any]]:
    """The rows of pairs.jsonl."""
    rng = random.Random(_SEED)
    ways = [(task, way) for task, (_, _, of_task) in TASKS.items() for way in of_task]
    for i in range(100):
        task, way = ways[i % len(ways)]
        yield _pair(rng, task, (way, way), "other numbers, other words")
    for kind in ("other numbers, other words", "same problem, same words"):
        for i in range(50):
            task, way = ways[i % len(ways)]
            other = rng.choice([name for name in TASKS[task][2] if name != way])
            yield _pair(rng, task, (way, other), kind)


def _pair(rng: random.Random, task: str, ways: tuple[str, str], kind: str) -> dict[str, Any]:
    draw = TASKS[task][1]
    words = rng.sample(range(len(WORDS)), 2)
    numbers = [draw(rng), draw(rng)]
    while numbers[0] == numbers[1]:
        numbers[1] = draw(rng)
    if kind.startswith("same"):
        words[1], numbers[1] = words[0], numbers[0]
    a, b = (solution(task, *of) for of in zip(ways, numbers, words, strict=True))
    return {"a": a, "b": b, "same": ways[0] == ways[1], "kind": kind, "task": task, "ways": list(ways)}


def groups() -> Iterator[dict[str, Any]]:
    """The rows of groups.jsonl."""
    rng = random.Random(_SEED)
    for i in range(24):
        task = list(TASKS)[i % len(TASKS)]
        numbers = TASKS[task][1](rng)
        chosen = rng.sample(list(product(TASKS[task][2], range(len(WORDS)))), 8)
        yield {
            "texts": [solution(task, way, numbers, words) for way, words in chosen],
            "ways": [way for way, _ in chosen],
            "task": task,
        }


def main(folder: Path) -> None:
    """Write both files into `folder`."""
    for name, made in (("pairs", pairs()), ("groups", groups())):
        (folder / f"{name}.jsonl").write_text("".join(json.dumps(row) + "\n" for row in made), encoding="utf-8")


if __name__ == "__main__":
    main(_FOLDER)
