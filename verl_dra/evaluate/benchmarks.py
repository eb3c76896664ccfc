r"""The benchmarks of the paper: where they are published, and which columns hold the problem and the answer.

Repositories, splits, columns and the text around a problem are those of open-rs' lighteval tasks
(src/open_r1/evaluate.py of knoveleng/open-rs). Of a worked solution the boxed answer counts.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

from verl_dra.evaluate.estimators import EvaluationError
from verl_dra.files import Unreadable, UnreadableFileError
from verl_dra.files import rows as rows_of

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
    prompt: str = PROMPT
    """What a model is asked, with `{problem}` in it, where nothing else is said."""


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
        Problem(i, _text(row.get(benchmark.problem)), _text(row.get(benchmark.answer))) for i, row in enumerate(rows)
    ]
    if bad := [str(p.number + 1) for p in problems if not (p.text and p.answer)]:
        raise EvaluationError(f"{where}: {len(bad)} rows have no problem or no answer, such as {', '.join(bad[:10])}")
    return problems


def _text(value: Any) -> str:
    """Empty where there is none. OlympiadBench has lists; several answers are written as one."""
    if isinstance(value, list):
        return ", ".join(_text(part) for part in value)
    return "" if value is None or value != value else str(value).strip()  # NaN: none, in a column of numbers


def _local(path: Path) -> list[dict[str, Any]]:
    found = []
    try:
        for number, row in rows_of(path):
            if isinstance(row, Unreadable):
                raise EvaluationError(f"{path}: row {number} can't be read: {row}")
            found.append(row)
    except (UnreadableFileError, OSError) as error:
        raise EvaluationError(f"{path} can't be read: {error}") from error
    return found


def _hub(benchmark: Benchmark) -> list[dict[str, Any]]:
    import datasets  # type: ignore[import-untyped]

    try:
        return list(datasets.load_dataset(benchmark.repo, split=benchmark.split))
    except Exception as error:  # of several libraries, which share no base class
        raise EvaluationError(
            f"{benchmark.repo} can't be loaded ({type(error).__name__}: {error}); where the hub can be reached, fetch "
            f"it by `hf download {benchmark.repo} --repo-type dataset --local-dir DIR`, and give the file with --data"
        ) from error
