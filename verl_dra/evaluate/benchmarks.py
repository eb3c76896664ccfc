r"""The benchmarks of the paper: where they are published, and which columns hold the problem and the answer.

Repositories, splits, columns and the text around a problem are those of open-rs' lighteval tasks
(src/open_r1/evaluate.py of knoveleng/open-rs). Of a worked solution the boxed answer counts.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from verl_dra.evaluate.estimators import EvaluationError

PROMPT = (
    "Solve the following math problem efficiently and clearly.  The last line of your response should be of the "
    "following format: 'Therefore, the final answer is: $\\boxed{ANSWER}$. I hope it is correct' (without quotes) "
    "where ANSWER is just the final number or expression that solves the problem. Think step by step before "
    "answering.\n\n{problem}"
)
"""What a model is asked, with `{problem}` in its place."""


@dataclass(frozen=True)
class Benchmark:
    """A published set of problems."""

    repo: str
    split: str
    problem: str
    """Column of the problem."""
    answer: str
    """Column of the right answer or of a worked solution."""


BENCHMARKS = {
    "aime24": Benchmark("HuggingFaceH4/aime_2024", "train", "problem", "answer"),
    "math_500": Benchmark("HuggingFaceH4/MATH-500", "test", "problem", "solution"),
    "amc23": Benchmark("knoveleng/AMC-23", "train", "problem", "answer"),
    "minerva": Benchmark("knoveleng/Minerva-Math", "train", "problem", "solution"),
    "olympiadbench": Benchmark("knoveleng/OlympiadBench", "train", "question", "answer"),
}


@dataclass(frozen=True)
class Problem:
    """One problem of a benchmark."""

    number: int
    """Its place, from 0."""
    text: str
    answer: str


def load(name: str, path: Path | None = None) -> list[Problem]:
    """The problems of a benchmark, from the hub or from a local file in its published layout.

    Raises:
        EvaluationError: it can't be read, or rows have no problem or answer (names them, counted from 1).
    """
    benchmark = BENCHMARKS[name]
    where = str(path or benchmark.repo)
    rows = _local(path) if path else _hub(benchmark)
    if not rows:
        raise EvaluationError(f"{where} has no rows")
    if missing := [column for column in (benchmark.problem, benchmark.answer) if column not in rows[0]]:
        raise EvaluationError(f"{where}: {name} has the column {' and '.join(missing)}; there are {', '.join(rows[0])}")
    problems = [
        Problem(i, str(row[benchmark.problem] or "").strip(), _answer(row[benchmark.answer]))
        for i, row in enumerate(rows)
    ]
    if bad := [str(p.number + 1) for p in problems if not (p.text and p.answer)]:
        raise EvaluationError(f"{where}: {len(bad)} rows have no problem or no answer, such as {', '.join(bad[:10])}")
    return problems


def _answer(value: Any) -> str:
    """OlympiadBench has lists; several answers are written as one."""
    parts = [value] if isinstance(value, (str, int, float)) else list(value) if value is not None else []
    return ", ".join(str(part).strip() for part in parts)


def _local(path: Path) -> Sequence[dict[str, Any]]:
    import pandas as pd

    try:
        if path.suffix == ".parquet":
            frame = pd.read_parquet(path)
        elif path.suffix in (".jsonl", ".json"):
            # As text: 007 and 1e400 are answers.
            frame = pd.read_json(path, lines=path.suffix == ".jsonl", dtype=False, convert_dates=False)
        else:
            raise EvaluationError(f"{path}: only .parquet, .jsonl and .json files can be read")
    except (OSError, ValueError) as error:
        if isinstance(error, EvaluationError):
            raise
        raise EvaluationError(f"{path} can't be read: {error}") from error
    rows: Sequence[dict[str, Any]] = frame.to_dict("records")
    return rows


def _hub(benchmark: Benchmark) -> Sequence[dict[str, Any]]:
    import datasets  # type: ignore[import-untyped]

    try:
        return list(datasets.load_dataset(benchmark.repo, split=benchmark.split))
    except Exception as error:  # of several libraries, which share no base class
        raise EvaluationError(
            f"{benchmark.repo} can't be loaded ({type(error).__name__}: {error}); where the hub can be reached, fetch "
            f"it by `hf download {benchmark.repo} --repo-type dataset --local-dir DIR`, and give the file with --data"
        ) from error
