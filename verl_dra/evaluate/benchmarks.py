r"""The benchmarks: where they are published, and which columns hold the problem and the answer.

Repositories, splits, columns and the text around a problem of the paper's five are those of open-rs' lighteval tasks
(src/open_r1/evaluate.py of knoveleng/open-rs). AIME 2025, HMMT February 2025 and BRUMO 2025 are MathArena's (columns
problem_idx, problem, answer, problem_type); GPQA diamond is its authors', with its choices in an order that hangs on
their texts alone. Of a worked solution the last box is the answer.
"""

from __future__ import annotations

import hashlib
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from verl_dra.data.answers import last_boxed
from verl_dra.data.problem import BadRowError
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

CHOICE_PROMPT = (
    "Answer the following multiple choice question.  The last line of your response should be of the following format: "
    "'Therefore, the final answer is: $\\boxed{LETTER}$. I hope it is correct' (without quotes) where LETTER is one of "
    "A, B, C and D. Think step by step before answering.\n\n{problem}"
)
"""The same for a problem with choices."""


@dataclass(frozen=True)
class Benchmark:
    """A published set of problems."""

    repo: str
    split: str
    problem: str
    """Column of the problem."""
    answer: str
    """Column of the right answer or of a worked solution."""
    solved: bool = False
    """Whether it is a worked solution, of which the last box counts."""
    wrong: tuple[str, ...] = ()
    """Columns of wrong answers, where one is to be chosen."""
    config: str | None = None
    prompt: str = PROMPT


def of_columns(problem: str, answer: str | None, solution: str | None) -> Benchmark:
    """A file of the user's own, by its columns; the answer is in one of its own or in the last box of a solution."""
    return Benchmark("", "", problem, answer or solution or "", solved=answer is None)


BENCHMARKS = {
    "aime24": Benchmark("HuggingFaceH4/aime_2024", "train", "problem", "answer"),
    "math_500": Benchmark("HuggingFaceH4/MATH-500", "test", "problem", "solution", solved=True),
    "amc23": Benchmark("knoveleng/AMC-23", "train", "problem", "answer"),
    "minerva": Benchmark("knoveleng/Minerva-Math", "train", "problem", "solution", solved=True),
    "olympiadbench": Benchmark("knoveleng/OlympiadBench", "train", "question", "answer"),
    "aime25": Benchmark("MathArena/aime_2025", "train", "problem", "answer"),
    "hmmt_feb_2025": Benchmark("MathArena/hmmt_feb_2025", "train", "problem", "answer"),
    "brumo_2025": Benchmark("MathArena/brumo_2025", "train", "problem", "answer"),
    "gpqa_diamond": Benchmark(
        *("Idavidrein/gpqa", "train", "Question", "Correct Answer"),
        wrong=("Incorrect Answer 1", "Incorrect Answer 2", "Incorrect Answer 3"),
        config="gpqa_diamond",
        prompt=CHOICE_PROMPT,
    ),
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


def load(name: str, path: Path | None = None, benchmark: Benchmark | None = None) -> list[Problem]:
    """The problems of a benchmark, from the hub or from a local file in its published layout.

    Args:
        benchmark: what `name` means, where it is none of BENCHMARKS.

    Raises:
        EvaluationError: it can't be read, or rows have no problem or answer (names them, counted from 1).
    """
    benchmark = benchmark or BENCHMARKS[name]
    where = str(path or benchmark.repo)
    rows = _local(path) if path else _hub(benchmark)
    if not rows:
        raise EvaluationError(f"{where} has no rows")
    needed = (benchmark.problem, benchmark.answer, *benchmark.wrong)
    if missing := [column for column in needed if column not in rows[0]]:
        raise EvaluationError(f"{where}: {name} has the column {' and '.join(missing)}; there are {', '.join(rows[0])}")
    problems, bad = [], []
    for i, row in enumerate(rows):
        text, answer = _text(row.get(benchmark.problem)), _text(row.get(benchmark.answer))
        if benchmark.solved:
            answer = _boxed(answer)
        wrong = [_text(row.get(column)) for column in benchmark.wrong]
        if not (text and answer and all(wrong)):
            bad.append(str(i + 1))
        elif wrong:
            problems.append(_to_choose(i, text, answer, wrong, benchmark.prompt))
        else:
            problems.append(Problem(i, text, answer, benchmark.prompt))
    if bad:
        raise EvaluationError(f"{where}: {len(bad)} rows have no problem or no answer, such as {', '.join(bad[:10])}")
    return problems


def _boxed(solution: str) -> str:
    """Empty where it has no answer."""
    try:
        return last_boxed(solution)
    except BadRowError:
        return ""


def _to_choose(number: int, text: str, answer: str, wrong: list[str], prompt: str) -> Problem:
    """The problem with its choices below it, and the letter of the right one."""
    order = sorted([answer, *wrong], key=lambda choice: hashlib.sha256(f"{text}\n{choice}".encode()).digest())
    letters = "ABCDEFGHIJ"[: len(order)]
    choices = "\n".join(f"{letter}) {choice}" for letter, choice in zip(letters, order, strict=True))
    return Problem(number, f"{text}\n\n{choices}", letters[order.index(answer)], prompt)


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
        return list(datasets.load_dataset(benchmark.repo, benchmark.config, split=benchmark.split))
    except Exception as error:  # of several libraries, which share no base class
        raise EvaluationError(
            f"{benchmark.repo} can't be loaded ({type(error).__name__}: {error}); where the hub can be reached, fetch "
            f"it by `hf download {benchmark.repo} --repo-type dataset --local-dir DIR`, and give the file with --data"
        ) from error
