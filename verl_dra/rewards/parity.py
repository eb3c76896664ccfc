"""Answers as other code judges them, for figures that are to be held beside its own: faults included."""

from __future__ import annotations

import re
from typing import Any

from latex2sympy2_extended import NormalizationConfig
from math_verify import ExprExtractionConfig, LatexExtractionConfig, parse, verify
from sympy import Basic, nsimplify

_MARKS = re.compile(r"\\boxed|(?<!\\)(?:\$|\\[(\[])")
r"""Where LaTeX begins in a text; not `\$`, nor `\\[`, which ends a line of a matrix."""
_BOXED_FIRST = LatexExtractionConfig(boxed_match_priority=0)
_OF_PAPER = LatexExtractionConfig(
    normalization_config=NormalizationConfig(
        nits=False, malformed_operators=False, basic_latex=True, equations=True, boxed="all", units=True
    ),
    boxed_match_priority=0,
    try_extract_without_anchor=False,
)
"""What the paper's code asks of an answer: LaTeX, a box first, nothing mended, nothing without an anchor."""


def paper(gold: str | None, text: str) -> dict[str, Any]:
    """As the reward of the paper's code."""
    return _check(gold, text, [_OF_PAPER], LatexExtractionConfig())


def lighteval(gold: str | None, text: str) -> dict[str, Any]:
    """As the evaluations of the paper: plain numbers count as answers, malformed LaTeX is mended."""
    return _check(gold, text, [_BOXED_FIRST, ExprExtractionConfig()], _BOXED_FIRST)


def _check(gold: str | None, text: str, taken: list[Any], of_gold: Any) -> dict[str, Any]:
    # math-verify's own timeouts are alarms that its code catches, between Python's instructions alone.
    untimed: dict[str, Any] = {"parsing_timeout": None, "extraction_mode": "first_match"}
    answer = parse(text, extraction_config=taken, **untimed)
    right, gold_parsed = False, True
    if gold is not None:
        # Of a gold answer without marks of LaTeX math-verify would read nothing, or a fraction in it alone.
        boxed = rf"\boxed{{{gold.strip()}}}"
        golds: list[Any] = []
        for written in (gold, boxed) if _MARKS.search(gold) else (boxed,):
            golds = golds or parse(written, extraction_config=[of_gold], **untimed)
        gold_parsed = bool(golds)
        right = gold_parsed and bool(verify(golds, answer, timeout_seconds=None))
    canonical = None
    if answer:
        first = answer[0]
        if isinstance(first, Basic) and first.is_number:
            first = nsimplify(first, rational=True)
        canonical = str(first)
    return {"right": right, "gold_parsed": gold_parsed, "answer": canonical}
