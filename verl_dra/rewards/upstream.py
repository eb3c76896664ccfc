"""What is worked around of math-verify 0.9.0 with latex2sympy2_extended 1.11.0, in one place.

tests/test_answers.py has a test of each fault that fails when a later version mends it.
"""

from __future__ import annotations

import math
from typing import Any

from latex2sympy2_extended.antlr_parser import PSParser
from math_verify import verify
from sympy import Basic, Float, Rational

_LEAST_DIGITS = 4
"""After the first of a small number."""
_AS_MATH_VERIFY = 6
_CERTAIN = 1e-9
"""By how much of their size two values must differ to be different without a closer look."""


def mend() -> None:
    """Let percent numbers be read: the converter asks every one for a token that its grammar does not have."""
    if not hasattr(PSParser.AtomContext, "FUNC_GAMMA"):
        PSParser.AtomContext.FUNC_GAMMA = lambda _: None


def same_value(gold: Any, answer: Any) -> bool:
    """math-verify's `verify` of two parsed answers, and of two numbers what it gets wrong.

    It rounds numbers with decimals to six places, so that 6.7e-11 is 2e-11; here a number has at least five
    significant digits.
    """
    if not (isinstance(gold, Basic) and isinstance(answer, Basic)):
        return bool(verify(gold, answer, timeout_seconds=None, allow_set_relation_comp=True))
    if (of_gold := number(gold)) is not None and (of_answer := number(answer)) is not None:
        return _same_number(gold, answer, of_gold, of_answer)
    return not _differ_somewhere(gold, answer) and bool(
        verify(gold, answer, timeout_seconds=None, allow_set_relation_comp=True)
    )


def _same_number(gold: Basic, answer: Basic, of_gold: float, of_answer: float) -> bool:
    if gold.has(Float) or answer.has(Float):
        # A value that is 0 has no first digit.
        size = math.floor(math.log10(abs(of_gold))) if of_gold else 0
        places = max(_AS_MATH_VERIFY, _LEAST_DIGITS - size)
        if size < 0 or places > _AS_MATH_VERIFY:
            return round(of_gold, places) == round(of_answer, places)
        return abs(of_gold - of_answer) <= max(10.0**-places, 1e-12 * abs(of_gold)) / 2 or round(
            of_gold, places
        ) == round(of_answer, places)
    if abs(of_gold - of_answer) > _CERTAIN * max(abs(of_gold), abs(of_answer)):
        return False
    if isinstance(gold, Rational) and isinstance(answer, Rational):
        return bool(gold == answer)
    return bool(verify(gold, answer, timeout_seconds=None))


def number(expression: Basic) -> float | None:
    """The value of a real number that a float can hold; None of all else."""
    if isinstance(expression, Rational) or getattr(expression, "is_number", False):
        try:
            value = float(expression)
        except (TypeError, ValueError, OverflowError, AttributeError):
            return None
        return value if math.isfinite(value) else None
    return None


def _differ_somewhere(gold: Basic, answer: Basic) -> bool:
    """Whether two expressions of the same variables have different values at a point, so that no proof is tried."""
    variables = sorted(gold.free_symbols, key=str)
    if not variables or gold.free_symbols != answer.free_symbols:
        return False
    if not (getattr(gold, "is_Relational", False) is getattr(answer, "is_Relational", False) is False):
        return False
    try:
        point = {variable: Rational(2 * i + 7, 5) for i, variable in enumerate(variables)}
        values = [complex(side.subs(point).evalf()) for side in (gold, answer)]
    except (TypeError, ValueError, OverflowError, AttributeError):
        return False
    return abs(values[0] - values[1]) > 1e-5 * max(abs(values[0]), abs(values[1]), 1)
