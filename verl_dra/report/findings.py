"""What happened, in one sentence: where diversity and accuracy began and where they ended."""

from __future__ import annotations

import math
import re
from collections.abc import Sequence
from dataclasses import dataclass
from statistics import mean
from typing import NamedTuple

from verl_dra.report.curves import ACCURACY, REWARD, TRAINING_PATHS
from verl_dra.report.runs import EFFECTIVE_PATHS, Run

_MOST = 5
"""Values at each end of a curve that a mean is taken of."""
_NAMED = 4
"""Of more settings, only the least and the most are named."""


class Findings(NamedTuple):
    """What is said on top of a report."""

    sentence: str
    basis: str
    """What its numbers are means of; empty where there are none."""


@dataclass(frozen=True)
class _Measure:
    name: str
    pattern: str
    shown: str
    """The format of its numbers."""
    of: str
    """What has one value of it."""
    least: int
    """Values that a mean needs at each end, those of all runs of a setting together: a step is noisier than a
    validation, which asks the same of the same prompts."""


# Of each row, the first that can be said.
_ASKED = (
    (
        _Measure("effective paths", rf"^{EFFECTIVE_PATHS}$", ".1f", "validation", 2),
        _Measure("effective paths in training", TRAINING_PATHS, ".1f", "step", 5),
    ),
    (
        _Measure("validation accuracy", ACCURACY, ".2f", "validation", 2),
        _Measure("training reward", REWARD, ".3g", "step", 5),
    ),
)


@dataclass(frozen=True)
class _Ends:
    """One measure of one setting: where it began and where it ended."""

    setting: str
    first: float
    last: float
    steps: tuple[int, int]
    values: int
    """Of each run, in the mean at each end; 0 where there are too few, and first and last are single values."""
    runs: int


def findings(runs: Sequence[Run]) -> Findings:
    """What the runs' curves say, a setting at a time; the runs of a setting are its seeds."""
    clauses: list[str] = []
    bases: dict[str, list[str]] = {}
    for measures in _ASKED:
        found = [(measure, ends) for measure in measures if (ends := _ends(measure, runs))]
        if not found:
            continue
        measure, ends = next(((m, e) for m, e in found if all(of.values for of in e)), found[0])
        clauses.append(_clause(measure, ends, runs))
        for of in ends:
            if of.values:
                bases.setdefault(_basis(measure, of), []).append(measure.name + _with(of.setting, runs))
    if not clauses:
        return Findings("Nothing was measured that tells how diversity and accuracy went.", "")
    sentence = "; ".join(clauses)
    if len(bases) == 1:
        (basis,) = bases
        said = f"Means of {basis}."
    else:
        said = " ".join(f"{_capital(', '.join(of))}: means of {basis}." for basis, of in bases.items())
    return Findings(f"{_capital(sentence)}.", said)


def _ends(measure: _Measure, runs: Sequence[Run]) -> list[_Ends]:
    found = []
    for setting in dict.fromkeys(run.family for run in runs):
        of_setting = (_curve(run, measure.pattern) for run in runs if run.family == setting)
        curves = [curve for curve in of_setting if curve]
        if not curves:
            continue
        shortest = min(len(curve) for curve in curves)
        wanted = max(math.ceil(measure.least / len(curves)), min(_MOST, shortest // 4))
        enough = 2 * wanted <= shortest
        taken = wanted if enough else 1
        firsts = [value for curve in curves for value in list(curve.values())[:taken]]
        lasts = [value for curve in curves for value in list(curve.values())[-taken:]]
        steps = (min(min(curve) for curve in curves), max(max(curve) for curve in curves))
        found.append(_Ends(setting, mean(firsts), mean(lasts), steps, taken if enough else 0, len(curves)))
    return found


def _curve(run: Run, pattern: str) -> dict[int, float]:
    """By step; of several validation sets, their mean where all have a value."""
    curves = [values for metric, values in run.history.values.items() if re.match(pattern, metric)]
    if not curves:
        return {}
    steps = sorted(set.intersection(*(set(curve) for curve in curves)))
    return {step: mean(curve[step] for curve in curves) for step in steps}


def _clause(measure: _Measure, ends: Sequence[_Ends], runs: Sequence[Run]) -> str:
    settings = list(dict.fromkeys(run.family for run in runs))
    known = [of for of in ends if of.values]
    few = [of for of in ends if not of.values]
    without = [setting for setting in settings if setting not in [of.setting for of in ends]]
    more = ""
    if len(known) > _NAMED:
        more = f" (of {len(known)} settings, the least and the most at the end)"
        known = sorted((min(known, key=lambda of: of.last), max(known[::-1], key=lambda of: of.last)), key=known.index)
    parts = []
    if known:
        changes = [
            f"from {of.first:{measure.shown}} to {of.last:{measure.shown}}{_with(of.setting, runs)}" for of in known
        ]
        parts.append(f"{measure.name} went {_listed(changes)}{more}")
    if few:
        said = [_single(measure, of) + _with(of.setting, runs) for of in few]
        of_name = "" if parts else f"{measure.name}: "
        parts.append(f"{of_name}too few steps to say ({_listed(said)})")
    if without:
        parts.append(f"not measured with {_listed(without)}")
    return ", ".join(parts)


def _single(measure: _Measure, of: _Ends) -> str:
    first, last = of.steps
    start = f"{of.first:{measure.shown}} at step {first}"
    return start if first == last else f"{start} and {of.last:{measure.shown}} at step {last}"


def _basis(measure: _Measure, of: _Ends) -> str:
    values = f"{of.values} {measure.of}s" if of.values > 1 else measure.of
    of_runs = f" of {of.runs} runs each" if of.runs > 1 else ""
    return f"the first and the last {values}{of_runs} (steps {of.steps[0]} to {of.steps[1]})"


def _with(setting: str, runs: Sequence[Run]) -> str:
    return f" with {setting}" if any(run.family != setting for run in runs) else ""


def _listed(parts: Sequence[str]) -> str:
    return " and ".join([", ".join(parts[:-1]), parts[-1]] if len(parts) > 1 else parts)


def _capital(text: str) -> str:
    return text[:1].upper() + text[1:]
