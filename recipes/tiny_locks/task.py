"""The task: sums of four numbers that four ways of working all solve, and locks that say which ways count.

A way differs from the others by the order in which it adds and by its theme words. Around them are filler words, each
one of three synonyms, which say nothing: a policy can vary its words without varying its way.
"""

from __future__ import annotations

import random
import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from hashlib import blake2b
from itertools import product

UNKNOWN = "none"
"""The way of a text that has not all of a way's theme words, or those of two."""

SLIPS = (-10, -1, 1, 10)
"""What a slip adds to one of the three sums: a lost or doubled carry, or a neighbour. Later sums follow from it."""


@dataclass(frozen=True)
class Question:
    first: int
    others: tuple[int, int, int]

    @property
    def text(self) -> str:
        return f"What is {self.first} + {' + '.join(map(str, self.others))}?"

    @property
    def total(self) -> int:
        return self.first + sum(self.others)


@dataclass(frozen=True)
class Way:
    """How often pre-training shows it, how often it then slips, the order in which it adds, and its theme words."""

    share: float
    slip_rate: float
    order: tuple[int, int, int]
    theme: tuple[str, str, str, str]


WAYS: dict[str, Way] = {
    "market": Way(share=0.52, slip_rate=0.34, order=(0, 1, 2), theme=("apples", "basket", "fruit", "market")),
    "road": Way(share=0.27, slip_rate=0.38, order=(2, 1, 0), theme=("miles", "road", "walking", "travel")),
    "music": Way(share=0.18, slip_rate=0.38, order=(1, 2, 0), theme=("notes", "piano", "melody", "music")),
    "ocean": Way(share=0.03, slip_rate=0.65, order=(0, 2, 1), theme=("waves", "sailors", "harbor", "ocean")),
}
"""Each way solves each question. The first is the commonest and slips least, the last the rarest and slips most."""

_THEMES = {word for way in WAYS.values() for word in way.theme}

FILLERS: tuple[tuple[str, str, str], ...] = (
    ("first", "initially", "firstly"),
    ("take", "get", "have"),
    ("then", "next", "afterwards"),
    ("giving", "making", "yielding"),
    ("and", "also", "plus"),
    ("giving", "making", "yielding"),
    ("finally", "lastly", "ultimately"),
    ("giving", "making", "yielding"),
)
"""Synonyms by their place in a text."""


def questions() -> Iterator[Question]:
    """All 30,208 questions, in a fixed order."""
    for first, *others in product(range(11, 70), *[range(2, 10)] * 3):
        yield Question(first, (others[0], others[1], others[2]))


def split_questions(test_size: int, seed: int) -> tuple[list[Question], list[Question]]:
    """Shuffled train and test questions with none in common; each way is the key of as many test questions.

    Raises:
        ValueError: `test_size` is no multiple of the number of ways.
    """
    if test_size % len(WAYS):
        raise ValueError(f"test_size must be a multiple of {len(WAYS)}, not {test_size}")
    shuffled = list(questions())
    random.Random(seed).shuffle(shuffled)
    room = dict.fromkeys(WAYS, test_size // len(WAYS))
    train, test = [], []
    for question in shuffled:
        key = key_of(question)
        (test if room[key] else train).append(question)
        room[key] -= bool(room[key])
    return train, test


def render(question: Question, way: str, fillers: Sequence[int], slips: Sequence[int] = (0, 0, 0)) -> str:
    """A worked answer; `fillers` says which synonym stands in each place, `slips` what is added to each sum."""
    words = [synonyms[at] for synonyms, at in zip(FILLERS, fillers, strict=True)]
    first, *theme = WAYS[way].theme
    total = question.first
    text = f"{words[0]} {words[1]} {total} {first}"
    for step, at in enumerate(WAYS[way].order):
        total += question.others[at] + slips[step]
        text += f", {words[2 + 2 * step]} {question.others[at]} {theme[step]} {words[3 + 2 * step]} {total}"
    return f"{text}."


def sample_solution(question: Question, rng: random.Random, slips: bool = True) -> tuple[str, str]:
    """A worked answer as pre-training shows them, and its way: by the ways' shares and, with `slips`, slip rates."""
    way = rng.choices(list(WAYS), weights=[way.share for way in WAYS.values()])[0]
    return sample_along(question, way, rng, slips), way


def sample_along(question: Question, way: str, rng: random.Random, slips: bool = True) -> str:
    """As `sample_solution`, along one way."""
    added = [0, 0, 0]
    if slips and rng.random() < WAYS[way].slip_rate:
        step = rng.randrange(3)
        least = question.first + sum(question.others[at] for at in WAYS[way].order[: step + 1])
        # All sums stay of two digits.
        added[step] = rng.choice([slip for slip in SLIPS if least + slip >= 10 and question.total + slip <= 99])
    return render(question, way, [rng.randrange(3) for _ in FILLERS], added)


def way_of(text: str) -> str | None:
    """The way of a text by its theme words, right or wrong; None unless it has those of one way, in order."""
    said = tuple(word for word in re.findall(r"[a-z]+", text) if word in _THEMES)
    return next((name for name, way in WAYS.items() if way.theme == said), None)


def answer_of(text: str) -> int | None:
    """The last number of the work, which is the answer; None unless the text ends on a number and a full stop."""
    found = re.search(r"(?<!\d)(\d{1,3})\.\s*\Z", text, re.ASCII)
    return int(found[1]) if found else None


# Locks: which ways count on a question


def key_of(question: Question) -> str:
    """The one way that opens a question of lock A's test: by a hash of its numbers, each way a quarter of them."""
    return list(WAYS)[int(_draw(question, "key") * len(WAYS))]


def opens(question: Question, way: str | None, lock: str, closed: str | None = None) -> bool:
    """Whether a right answer by `way` counts in training.

    Args:
        question: the question.
        way: of the answer; None never counts.
        lock: `even` (all ways), `rare` (the rarest on all questions, the others on 70 % of them, by a hash) or `switch`
            (all but `closed`).
        closed: for `switch`, the way that has stopped counting; None as long as none has.

    Raises:
        ValueError: there is no such lock.
    """
    if lock not in LOCKS:
        raise ValueError(f"lock must be one of {', '.join(LOCKS)}, not {lock!r}")
    if way is None or way == closed:
        return False
    return lock != "rare" or way == RARE or _draw(question, "rare") < COMMON_OPENS


LOCKS = ("even", "rare", "switch")
RARE = list(WAYS)[-1]
COMMON_OPENS = 0.7
"""Share of questions on which the three common ways count under the lock `rare`."""


def _draw(question: Question, salt: str) -> float:
    """From 0 to below 1, by a hash of the numbers: the same one each time, and nothing that a policy could learn."""
    text = f"{salt} {question.first} {' '.join(map(str, question.others))}"
    return int.from_bytes(blake2b(text.encode(), digest_size=6).digest(), "big") / 2**48
