"""Two models on the same problems: what the second gains, problem by problem, and which problems flipped."""

from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import Sequence
from typing import Any

from verl_dra.evaluate.estimators import EvaluationError, interval
from verl_dra.evaluate.generations import Sample
from verl_dra.evaluate.measure import ends

Problem = tuple[str, str]
"""Question and right answer: they say which problem it is, whatever number it has in a file."""


def paired(first: Sequence[Sample], second: Sequence[Sample]) -> dict[str, tuple[list[Sample], list[Sample]]]:
    """The samples of each benchmark that both have. Where each has one alone, its names may differ, as of two steps.

    Raises:
        EvaluationError: they have no benchmark in common.
    """
    both = _by_benchmark(first), _by_benchmark(second)
    if len(both[0]) == len(both[1]) == 1:
        ((name, one),), ((_, other),) = both[0].items(), both[1].items()
        return {name: (one, other)}
    names = [name for name in both[0] if name in both[1]]
    if not names:
        raise EvaluationError(f"one has samples of {', '.join(both[0])}, and the other of {', '.join(both[1])}")
    return {name: (both[0][name], both[1][name]) for name in names}


def in_common(first: Sequence[Sample], second: Sequence[Sample]) -> tuple[list[Sample], list[Sample]]:
    """The samples of the problems that both have.

    Raises:
        EvaluationError: there are none.
    """
    common = {_problem(sample) for sample in first} & {_problem(sample) for sample in second}
    if not common:
        raise EvaluationError("the two have no problem in common; a problem is known by its question and right answer")
    return [s for s in first if _problem(s) in common], [s for s in second if _problem(s) in common]


def compare(
    results: tuple[dict[str, Any], dict[str, Any]],
    samples: tuple[Sequence[Sample], Sequence[Sample]],
    draws: int,
    seed: int,
) -> dict[str, Any]:
    """What the second has more of than the first.

    Args:
        results: of `measure`, for the samples of the problems that both have.
        samples: those.
        draws: of the weights of problems, for the intervals.
        seed: of those.

    Returns:
        `difference` and `interval` (95 %, over problems) of each measure by name, over the problems of which both have
        it; `flipped`: the problems that one answers rightly more often than not, and the other does not.
    """
    places = [_places(result, of) for result, of in zip(results, samples, strict=True)]
    pairs = [(at, places[1][problem]) for problem, at in places[0].items() if problem in places[1]]
    columns = [result["problems"] for result in results]
    difference: dict[str, float | None] = {}
    bounds: dict[str, tuple[float, float] | None] = {}
    for name in results[0]["mean"]:
        both = [(columns[0][name][i], columns[1][name][j]) for i, j in pairs]
        gains = [b - a for a, b in both if a is not None and b is not None]
        range_ = ends(name)
        difference[name] = sum(gains) / len(gains) if gains else None
        bounds[name] = interval(gains, draws, seed, range_ and (-range_[1], range_[1])) if gains else None
    flipped = []
    for i, j in pairs:
        before, after = columns[0]["pass@1"][i], columns[1]["pass@1"][j]
        if (before > 0.5) is not (after > 0.5):
            flipped.append(
                {
                    "numbers": [columns[0]["number"][i], columns[1]["number"][j]],
                    "question": columns[0]["question"][i],
                    "pass@1": [before, after],
                }
            )
    return {"problems": len(pairs), "difference": difference, "interval": bounds, "flipped": flipped}


def _by_benchmark(samples: Sequence[Sample]) -> dict[str, list[Sample]]:
    found: dict[str, list[Sample]] = defaultdict(list)
    for sample in samples:
        found[sample.benchmark].append(sample)
    return dict(found)


def _problem(sample: Sample) -> Problem:
    return sample.question, sample.gold


def _places(result: dict[str, Any], samples: Sequence[Sample]) -> dict[tuple[Problem, int], int]:
    """The place of each problem in the columns of a result; one that a file has twice is told by the time."""
    of_number = {sample.problem: _problem(sample) for sample in samples}
    times: Counter[Problem] = Counter()
    places = {}
    for at, number in enumerate(result["problems"]["number"]):
        problem = of_number[number]
        places[problem, times[problem]] = at
        times[problem] += 1
    return places
