"""The measures of a benchmark's samples, by problem and in the mean."""

from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from typing import Any, Protocol

import torch

from verl_dra import effective_paths, graph_cut_smi
from verl_dra.embedding import Encoder
from verl_dra.evaluate.estimators import EvaluationError, distinct_n, interval, maj_at_k, pass_at_k
from verl_dra.evaluate.generations import Sample

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


Check = Callable[[str, str], Verdict]
"""From the right answer and a completion."""


@dataclass(frozen=True)
class Judged:
    """A sample and what is held of it."""

    sample: Sample
    right: bool
    answer: str | None
    gold_parsed: bool
    failed: bool


def judge(samples: Sequence[Sample], check: Check, recheck: bool = False) -> list[Judged]:
    """Check all samples; those whose source says whether they are right keep that, unless `recheck`."""

    def one(sample: Sample) -> Judged:
        verdict = check(sample.gold, sample.text)
        right = verdict.right if recheck or sample.right is None else sample.right
        return Judged(sample, right, verdict.answer, verdict.gold_parsed, verdict.failed)

    with ThreadPoolExecutor() as threads:
        return list(threads.map(one, samples))


def measure(
    judged: Sequence[Judged], ks: Sequence[int], encoder: Encoder | None, draws: int, seed: int = 0
) -> dict[str, Any]:
    """The measures of one benchmark.

    Args:
        judged: its samples.
        ks: the k of pass@k and maj@k.
        encoder: what diversity is seen with; None to leave it out.
        draws: bootstrap samples of the intervals.

    Returns:
        `mean`, `interval` (95 %, over problems) and `problems` (of each measure by name: mean, [low, high], a value
        each problem), and `counts`. pass@1 is the mean over a problem's samples, however many it has.

    Raises:
        EvaluationError: a problem has fewer samples than a k.
    """
    groups: dict[int, list[Judged]] = defaultdict(list)
    for one in judged:
        groups[one.sample.problem].append(one)
    numbers = sorted(groups)
    by_problem: dict[str, list[float]] = {"pass@1": []}
    for number in numbers:
        group = groups[number]
        right, answers = [one.right for one in group], [one.answer for one in group]
        values = {"pass@1": sum(right) / len(right)}
        for k in ks:
            if k > len(group):
                raise EvaluationError(
                    f"k={k}: problem {number} of {group[0].sample.benchmark} has {len(group)} samples"
                )
            if k > 1:
                values[f"pass@{k}"] = pass_at_k(len(right), sum(right), k)
                values[f"maj@{k}"] = maj_at_k(answers, right, k, seed)
        values |= {f"distinct-{n}": distinct_n([one.sample.text for one in group], n) for n in _NGRAMS}
        for name, value in values.items():
            by_problem.setdefault(name, []).append(value)
    if encoder is not None:
        by_problem |= _diversity([groups[number] for number in numbers], encoder)
    counts = Counter({"problems": len(numbers), "samples": len(judged)})
    for one in judged:
        counts["truncated"] += one.sample.truncated
        counts["answer_unparsed"] += one.answer is None
        counts["gold_unparsed"] += not one.gold_parsed
        counts["check_failed"] += one.failed
    known = {name: [v for v in values if v == v] for name, values in by_problem.items()}
    return {
        "mean": {name: sum(values) / len(values) if values else None for name, values in known.items()},
        "interval": {name: interval(values, draws, seed) if values else None for name, values in known.items()},
        "problems": {
            name: [None if v != v else v for v in values]
            for name, values in by_problem.items()  # NaN is no JSON
        },
        "counts": dict(counts),
    }


def _diversity(groups: Sequence[Sequence[Judged]], encoder: Encoder) -> dict[str, list[float]]:
    """Effective paths and mean SMI of each group, of all samples and of the right ones (NaN where there are none)."""
    texts = [_readable(one.sample.text) for group in groups for one in group]
    row = {text: i for i, text in enumerate(dict.fromkeys(texts))}
    vectors = encoder.encode(list(row)).vectors[[row[text] for text in texts]]
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


def _readable(text: str) -> str:
    return text.encode(errors="replace").decode()
