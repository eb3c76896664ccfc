"""The measures of a benchmark's samples, by problem and in the mean."""

from __future__ import annotations

import math
from collections import Counter, defaultdict
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, replace
from typing import Any, Protocol

from verl_dra.embedding import Encoder, encode_all
from verl_dra.evaluate.estimators import EvaluationError, distinct_n, interval, maj_at_k
from verl_dra.evaluate.generations import Sample
from verl_dra.rewards import alike

_NGRAMS = (1, 2, 3, 4)


class Verdict(Protocol):
    """What a checker says of a sample."""

    @property
    def right(self) -> bool: ...

    @property
    def answer(self) -> str | None: ...

    @property
    def gold_parsed(self) -> bool: ...

    @property
    def failed(self) -> bool: ...


Check = Callable[[str | None, str], Verdict]
"""From the right answer and a completion; None for the right answer where only the completion's is to be found."""


@dataclass(frozen=True)
class Judged:
    """A sample and what is held of it."""

    sample: Sample
    right: bool
    answer: str | None
    """In a form that answers equal to it share; None where it has none."""
    gold_parsed: bool
    failed: bool
    by_source: bool = False
    """Whether right or wrong is what its source says."""


def check_samples(samples: Sequence[Sample], ks: Sequence[int]) -> None:
    """Refuse problems of fewer samples than the largest k, before any is judged."""
    (benchmark, problem), fewest = _fewest(samples)
    if fewest < max(ks):
        raise EvaluationError(
            f"k={max(ks)}: problem {problem} of {benchmark} has {fewest} samples; give --k of at most {fewest}"
        )


def fewest_samples(samples: Sequence[Sample]) -> int:
    """Of the problem that has the fewest."""
    return _fewest(samples)[1]


def _fewest(samples: Sequence[Sample]) -> tuple[tuple[str, int], int]:
    sizes = Counter((sample.benchmark, sample.problem) for sample in samples)
    return min(sizes.items(), key=lambda item: item[1])


def judge(samples: Sequence[Sample], check: Check, recheck: bool = False) -> list[Judged]:
    """Check all samples; those whose source says whether they are right keep that, unless `recheck`.

    Equal answers of a problem get one form, by value: it is what votes are counted by.
    """

    def one(sample: Sample) -> Judged:
        if sample.right is None or recheck:
            verdict = check(sample.gold, sample.text)
            return Judged(sample, verdict.right, verdict.answer, verdict.gold_parsed, verdict.failed)
        verdict = check(None, sample.text)
        return Judged(sample, sample.right, verdict.answer, verdict.gold_parsed, verdict.failed, by_source=True)

    with ThreadPoolExecutor() as threads:
        judged = list(threads.map(one, samples))
        by_problem: dict[tuple[str, int], list[Judged]] = defaultdict(list)
        for found in judged:
            by_problem[found.sample.benchmark, found.sample.problem].append(found)
        forms = dict(zip(by_problem, threads.map(_forms, by_problem.values()), strict=True))
    return [
        replace(found, answer=forms[found.sample.benchmark, found.sample.problem].get(found.answer)) for found in judged
    ]


def _forms(of_problem: Sequence[Judged]) -> dict[str | None, str]:
    """By answer the one that stands for all answers equal to it. Those that are equal to the gold answer are equal."""
    there = [one.answer for one in of_problem if one.answer is not None]
    forms: dict[str | None, str] = dict(zip(there, alike(there), strict=True))
    right = sorted({forms[one.answer] for one in of_problem if one.answer and one.right and not one.by_source})
    return {answer: right[0] if form in right else form for answer, form in forms.items()}


def measure(
    judged: Sequence[Judged], ks: Sequence[int], encoder: Encoder | None, draws: int, seed: int = 0
) -> dict[str, Any]:
    """The measures of one benchmark.

    Problems may have different numbers of samples: a measure is found of each problem from all the samples that it has,
    and each problem weighs the same in the mean. Measures of right samples alone (`/right`) are means over the problems
    that have any.

    Args:
        judged: its samples.
        ks: the k of pass@k and maj@k, as `check_samples` accepts them.
        encoder: what diversity is seen with; None to leave it out.
        draws: of the weights of problems, for the intervals.
        seed: of those.

    Returns:
        `mean` and `interval` (95 %, over problems; None where there is none) of each measure by name; `problems`:
        columns of each problem's number, question, samples and right ones, and of each measure by name (None where it
        has none); `counts`.
    """
    # Imported here: the algorithm is torch's, and the command's help does without it.
    from verl_dra.algorithm.coverage import pass_at_k

    by_number: dict[int, list[Judged]] = defaultdict(list)
    for one in judged:
        by_number[one.sample.problem].append(one)
    groups = [by_number[number] for number in sorted(by_number)]
    measures: dict[str, list[float]] = defaultdict(list)
    for group in groups:
        right = [one.right for one in group]
        answers = [one.answer for one in group]
        measures["pass@1"].append(sum(right) / len(right))
        for k in sorted(set(ks) - {1}):
            measures[f"pass@{k}"].append(pass_at_k(len(right), sum(right), k))
            measures[f"maj@{k}"].append(maj_at_k(answers, right, k))
        for n in _NGRAMS:
            measures[f"distinct-{n}"].append(distinct_n([one.sample.text for one in group], n))
            of_right = [one.sample.text for one in group if one.right]
            measures[f"distinct-{n}/right"].append(distinct_n(of_right, n) if of_right else math.nan)
    if encoder is not None:
        measures |= _diversity(groups, encoder)
    # NaN is no JSON, and no value.
    known = {name: [value for value in values if not math.isnan(value)] for name, values in measures.items()}
    return {
        "mean": {name: sum(values) / len(values) if values else None for name, values in known.items()},
        "interval": {
            name: interval(values, draws, seed, ends(name)) if values else None for name, values in known.items()
        },
        "problems": {
            "number": [group[0].sample.problem for group in groups],
            "question": [group[0].sample.question for group in groups],
            "samples": [len(group) for group in groups],
            "right": [sum(one.right for one in group) for group in groups],
            **{name: [None if math.isnan(value) else value for value in values] for name, values in measures.items()},
        },
        "counts": {
            "problems": len(groups),
            "samples": len(judged),
            "fewest_samples": min(map(len, groups)),
            "most_samples": max(map(len, groups)),
            "judged_by_source": sum(one.by_source for one in judged),
            "truncated": sum(one.sample.truncated for one in judged),
            "answer_unparsed": sum(one.answer is None for one in judged),
            "gold_unparsed": sum(not (one.gold_parsed or one.right) for one in judged),
            "check_failed": sum(one.failed for one in judged),
        },
    }


def ends(name: str) -> tuple[float, float] | None:
    """The least and the most that a measure can be; None where its values come nowhere near the most."""
    return (0.0, 1.0) if name.startswith(("pass@", "maj@", "distinct-")) else None


def _diversity(groups: Sequence[Sequence[Judged]], encoder: Encoder) -> dict[str, list[float]]:
    """Effective paths and mean SMI of each group, of all samples and of the right ones (NaN where there are none)."""
    # Imported here: torch takes seconds, and the command's help does without it.
    import torch

    from verl_dra import effective_paths, graph_cut_smi

    vectors = encode_all(encoder, [one.sample.text for group in groups for one in group])
    of_group = torch.tensor([i for i, group in enumerate(groups) for _ in group])
    right = torch.tensor([one.right for group in groups for one in group])
    found: dict[str, list[float]] = {}
    for suffix, rows in (("", torch.ones_like(right)), ("/right", right)):
        paths, smi = torch.full((len(groups),), torch.nan), torch.full((len(groups),), torch.nan)
        if rows.any():
            ids = of_group[rows]
            there, sizes = torch.unique(ids, return_counts=True)
            paths[there] = effective_paths(vectors[rows], ids).float()
            total = torch.zeros(len(groups)).index_add_(0, ids, graph_cut_smi(vectors[rows], ids).float())
            smi[there] = total[there] / sizes
        found |= {f"effective_paths{suffix}": paths.tolist(), f"smi{suffix}": smi.tolist()}
    return found
