r"""What an answer is, and when two answers are equal: by value, as math-verify finds it.

A text is judged in four steps: the answer in it is found and its notation made one (`notation`), it is read
(`read_answer`), and it is compared (`equal`). Rewards, evaluations and votes compare by this one function.
"""

from __future__ import annotations

import functools
import re
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from latex2sympy2_extended import NormalizationConfig
from latex2sympy2_extended.logic import And
from latex2sympy2_extended.sets import FiniteSet
from math_verify import LatexExtractionConfig, parse
from sympy import (
    Basic,
    Eq,
    Expr,
    Float,
    GreaterThan,
    I,
    Integer,
    MatrixBase,
    Rational,
    StrictGreaterThan,
    Union,
    nsimplify,
)
from sympy.core.relational import Relational

from verl_dra.rewards import notation, upstream

_READING = LatexExtractionConfig(
    boxed_match_priority=0,
    # Units are taken off by `notation`: math-verify would take the t of 2t for one.
    normalization_config=NormalizationConfig(
        basic_latex=True, units=False, malformed_operators=True, nits=False, boxed="last", equations=False
    ),
)
_CHOICE = re.compile(r"\(([A-J])\)[.:]?\s*(.*)|([A-J])(?:[).:]\s*(.*)|)", re.DOTALL)
_WORDS = re.compile(r"(?:\\text\{)?([A-Za-z][A-Za-z '-]+?)[\s.]*\}?")
_LONGEST = 600
"""Characters of an answer that is read; longer ones equal what is the same letter for letter."""
_NUMBER = re.compile(r"-?\d+(\.\d+)?")
_RATIONAL_PLACES = 5
"""Decimals of a number that can be written as a fraction: one of more may be a rounded one, which equals others."""

upstream.mend()


@dataclass(frozen=True)
class Answer:
    """An answer that was read."""

    latex: str
    choice: str | None
    """The letter of a choice, as of `(D) 36`."""
    words: str | None
    """In small letters, where it is words or may be."""
    text: bool
    """Whether it is words, and not a product of variables too."""
    percent: bool
    """Whether `value` is of percent."""
    value: Any
    """What sympy has for it; None where it could not be read."""

    @property
    def is_read(self) -> bool:
        return self.value is not None or self.text or self.choice is not None

    def canonical(self) -> str:
        """Equal for most answers that are equal: a fraction of a number, or else what stands there in LaTeX."""
        value = self.value
        if self.percent or self.choice or self.text or not getattr(value, "is_number", False):
            return self.latex
        if value.has(Float) and len(self.latex.partition(".")[2]) > _RATIONAL_PLACES:
            return self.latex
        if upstream.number(value) is None:  # too large to be written out
            return self.latex
        value = nsimplify(value, rational=True) if value.has(Float) else value.doit()
        return str(value) if isinstance(value, Rational) else self.latex


@functools.lru_cache(maxsize=4096)
def read_answer(written: str) -> Answer:
    """Read an answer from what is written of it, without the text around."""
    if len(written) > _LONGEST:
        return Answer(written, choice=None, words=None, text=False, percent=False, value=None)
    latex = notation.latex(written)
    choice, rest = None, latex
    if match := _CHOICE.fullmatch(latex):
        choice = match[1] or match[3]
        rest = match[2] or match[4] or ""
    words = _WORDS.fullmatch(rest)
    percent = rest.endswith(r"\%")
    value = _parse(rest.removesuffix(r"\%")) if rest else None
    return Answer(
        latex=rest if choice is None else rest or latex,
        choice=choice,
        words=words[1].lower() if words else None,
        text=bool(words) and (r"\text" in rest or " " in rest),
        percent=percent,
        value=value.rhs if percent and isinstance(value, Eq) else value,
    )


def equal(gold: Answer, answer: Answer) -> bool:
    """Whether `answer` is right where `gold` is the right answer: its letter where both have one, or else its value.

    Raises:
        Exception: whatever sympy makes of a strange one.
    """
    if gold.choice and answer.choice:
        return gold.choice == answer.choice
    if any(one.choice and one.latex == one.choice for one in (gold, answer)):
        return _plain(gold).lower() == _plain(answer).lower()
    if _plain(gold) == _plain(answer):
        return True
    if gold.words and answer.words and (gold.text or answer.text):
        return gold.words == answer.words
    if gold.value is None or answer.value is None:
        return False
    if gold.percent == answer.percent:
        return upstream.same_value(gold.value, answer.value)
    # The sign is often left out, and often written out.
    percentage, other = (gold.value, answer.value) if gold.percent else (answer.value, gold.value)
    values = (percentage, percentage / 100) if isinstance(percentage, Expr) else (percentage,)
    return any(upstream.same_value(value, other) for value in values)


def check(gold: str | None, text: str) -> dict[str, Any]:
    """The reply of a worker to a check that judges right."""
    written = notation.written_answer(text)
    answer = None if written is None else read_answer(written)
    right, gold_parsed = False, True
    if gold is not None:
        golden = read_answer(notation.written_gold(gold))
        gold_parsed = golden.is_read
        right = answer is not None and bool(golden.latex) and equal(golden, answer)
    canonical = None if answer is None or not answer.latex else answer.canonical()
    return {"right": right, "gold_parsed": gold_parsed, "answer": canonical}


def same(first: str, second: str) -> bool:
    """Whether two answers that `check` found are equal, whichever is the gold one."""
    one, other = read_answer(first), read_answer(second)
    return equal(one, other) or equal(other, one)


def _plain(answer: Answer) -> str:
    return re.sub(r"\\text|[{}\s]", "", answer.latex)


def _parse(latex: str) -> Any:
    if number := _NUMBER.fullmatch(latex):  # most answers are, and the grammar takes a millisecond
        return Float(latex) if number[1] else Integer(latex)
    found: Sequence[Any] = parse(
        rf"\boxed{{{latex}}}",
        extraction_config=[_READING],
        fallback_mode="no_fallback",
        extraction_mode="first_match",
        parsing_timeout=None,
    )
    if not found or not isinstance(found[0], (Basic, MatrixBase)):
        return None
    value = found[0]
    if isinstance(value, And) and all(isinstance(part, (GreaterThan, StrictGreaterThan)) for part in value.args):
        # math-verify compares the parts of two chains in their order.
        return And(*(part.reversed for part in reversed(value._unsorted_args)))
    if isinstance(value, Expr) and (units := [symbol for symbol in value.free_symbols if str(symbol) == "i"]):
        return value.subs(units[0], I)  # math-verify reads i as a variable
    members = value.args if isinstance(value, FiniteSet) else ()
    if re.search(r"\bor\b", latex) and members and all(isinstance(member, Relational) for member in members):
        return _union(value)
    return value


def _union(value: Any) -> Any:
    """Inequalities with `or` between them, as a set."""
    try:
        return Union(*(member.as_set() for member in value.args))
    except (NotImplementedError, AttributeError, TypeError, ValueError):
        return value
