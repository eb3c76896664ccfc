"""The task: additions that four differently worded ways of reasoning ("paths") all solve."""

from __future__ import annotations

import random
import re
from collections.abc import Callable
from dataclasses import dataclass

UNKNOWN = "none"
"""The strategy of a text that follows no known path, or mixes two."""

SLIPS = (-10, -1, 1, 10)
"""What a slip adds to the right result: a lost or doubled carry, or a neighbour."""


@dataclass(frozen=True)
class Question:
    a: int
    b: int

    @property
    def text(self) -> str:
        return f"What is {self.a} + {self.b}?"

    @property
    def total(self) -> int:
        return self.a + self.b


@dataclass(frozen=True)
class Strategy:
    """One path: how often pre-training shows it, how often it then slips, its wording and the words only it uses."""

    share: float
    slip_rate: float
    work: Callable[[int, int, int], str]
    markers: tuple[str, ...]


STRATEGIES: dict[str, Strategy] = {
    "column": Strategy(
        share=0.50,
        slip_rate=0.25,
        work=lambda a, b, r: (
            f"Write {b} below {a % 10}, the column adds to {a % 10 + b}, carry {(a % 10 + b) // 10}: {r}."
        ),
        markers=("column", "carry"),
    ),
    "coins": Strategy(
        share=0.25,
        slip_rate=0.30,
        work=lambda a, b, r: f"Pay {a // 10} dimes and {a % 10} pennies, add {b} pennies, the purse holds {r} cents.",
        markers=("dimes", "pennies", "purse", "cents"),
    ),
    "number_line": Strategy(
        share=0.15,
        slip_rate=0.30,
        work=lambda a, b, r: f"A frog sits at {a} on the number line, leaps {b} steps right and lands on {r}.",
        markers=("frog", "leaps", "lands"),
    ),
    "rounding": Strategy(
        share=0.10,
        slip_rate=0.30,
        work=lambda a, b, r: f"Round {b} up to 10 for {a + 10}, then take the extra {10 - b} back: {r}.",
        markers=("round", "extra", "back"),
    ),
}
"""Every strategy fits every question. Later ones are rarer and slip more often."""


def questions() -> list[Question]:
    """All 413 questions, in a fixed order."""
    return [Question(a, b) for a in range(11, 70) for b in range(3, 10)]


def split_questions(test_size: int, seed: int) -> tuple[list[Question], list[Question]]:
    """Shuffled train and test questions with none in common."""
    shuffled = questions()
    random.Random(seed).shuffle(shuffled)
    return shuffled[test_size:], shuffled[:test_size]


def render(question: Question, strategy: str, slip: int = 0) -> str:
    """The worked answer along one path; `slip` is added to the result."""
    return STRATEGIES[strategy].work(question.a, question.b, question.total + slip)


def sample_solution(question: Question, rng: random.Random) -> str:
    """One worked answer as pre-training shows them: a path by its share, wrong at the path's slip rate."""
    names = list(STRATEGIES)
    name = rng.choices(names, weights=[STRATEGIES[n].share for n in names])[0]
    slip = rng.choice(SLIPS) if rng.random() < STRATEGIES[name].slip_rate else 0
    return render(question, name, slip)


def strategy_of(text: str) -> str | None:
    """The path a text follows by its wording, right or wrong: the only one whose marker words all occur in it.

    None if no path has all its markers in the text, or if a marker of another path occurs as well.
    """
    words = set(re.findall(r"[a-z]+", text.lower()))
    seen = {name: [marker in words for marker in strategy.markers] for name, strategy in STRATEGIES.items()}
    started = [name for name, markers in seen.items() if any(markers)]
    return started[0] if len(started) == 1 and all(seen[started[0]]) else None


def answer_of(text: str) -> int | None:
    """The last number of the work, which is the answer; None unless the text ends on a full stop."""
    found = re.search(r"(?<!\d)(\d{1,4})[^\d.]*\.\s*\Z", text, re.ASCII)
    return int(found[1]) if found else None
