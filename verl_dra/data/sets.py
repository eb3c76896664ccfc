r"""The four sets, and any other by its columns: where they are published, in which layouts, how a row of each is read.

Layouts as seen in stored copies of the dataset cards and of code that reads them (the hub itself was not reached):

- open_rs: knoveleng/open-rs, card of March 2025 (commit b8c3f8d): `train`, 7,000 rows of the text columns problem,
  solution, answer, level (such as Easy).
- gsm8k: openai/gsm8k, configuration main (files main/train-*.parquet, main/test-*.parquet since commit 2c868b8): 7,473
  and 1,319 rows of question and answer, the answer ending with `#### ` and a number.
- math: DigitalLearningGmbH/MATH-lighteval and EleutherAI/hendrycks_math (one configuration a subject): 7,500 and 5,000
  rows of problem, level, type, solution, as in the original release of one JSON file a problem.
- dapo_math: BytedTsinghua-SIA/DAPO-Math-17k in veRL's own layout, 1.79 M rows of about 17.4 k prompts ("duplicated by
  ~100x by accident", discussion 2 of the set), or open-r1/DAPO-Math-17k-Processed, configuration all
  (create_dataset.py, commit 866c0f0): prompt as text, solution, and the former's columns.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Collection, Mapping
from dataclasses import dataclass, field
from typing import Any

from verl_dra.data.answers import after_hashes, last_boxed
from verl_dra.data.problem import BadRowError, Problem, read_text
from verl_dra.data.prompts import ANSWER_LINE, BOXED, HASHES, NONE, PAPER, Instruction
from verl_dra.files import shorten

SUBJECTS = (
    "algebra",
    "counting_and_probability",
    "geometry",
    "intermediate_algebra",
    "number_theory",
    "prealgebra",
    "precalculus",
)
OTHER = "other"
"""What a set is called whose columns the user names."""
_NO_PROBLEM, _NO_ANSWER = "empty problem", "empty answer"
_NO_FINAL = frozenset({"proof", "notfound", "not found"})
"""What NuminaMath and sets that are made of it have as the answer of a problem that has none."""


@dataclass(frozen=True)
class Layout:
    """Columns that a published file has, and what a row of them says."""

    columns: tuple[str, ...]
    read: Callable[[dict[str, Any]], Problem]
    """Raises BadRowError for a row that is no problem."""


@dataclass(frozen=True)
class DataSet:
    """A published set."""

    name: str
    repos: Mapping[str, tuple[str | None, ...]]
    """Hub ids, the default first, each with the configurations to read."""
    splits: tuple[str, ...]
    layouts: tuple[Layout, ...]
    """The first one whose columns are all there is the one of a file."""
    customary: Instruction
    left_out: frozenset[str] = field(default_factory=frozenset)
    """Folders of configurations that hold the same problems again."""

    def layout(self, columns: Collection[str]) -> Layout:
        """The layout of a file or row with these columns."""
        for layout in self.layouts:
            if set(layout.columns) <= set(columns):
                return layout
        wanted = " or ".join(", ".join(layout.columns) for layout in self.layouts)
        raise BadRowError("missing columns", f"{self.name} has {wanted}; there are {', '.join(columns) or 'none'}")

    def columns(self) -> set[str]:
        """All columns that some layout reads."""
        return {column for layout in self.layouts for column in layout.columns}

    def instruction(self, prompt: str) -> Instruction:
        """The instruction that `--system-prompt` names."""
        return {"customary": self.customary, "paper": PAPER, "none": NONE}[prompt]


def of_columns(
    problem: str, answer: str | None, solution: str | None, data_source: str, repo: str | None = None
) -> DataSet:
    """A set by its columns; the answer is in one of its own, or in the last box of a worked solution."""

    def read(row: dict[str, Any]) -> Problem:
        text = read_text(row, problem, _NO_PROBLEM)
        worked = read_text(row, solution) if solution else ""
        if answer:
            final = _final(row, answer)
        elif worked:
            final = last_boxed(worked)
        else:
            raise BadRowError("empty solution", f"{solution} is empty")
        if final.lower() in _NO_FINAL:
            raise BadRowError("no final answer", f"the answer is {shorten(final)}")
        return Problem(text=text, answer=final, data_source=data_source, solution=worked or None)

    return DataSet(
        name=OTHER,
        repos={repo: (None,)} if repo else {},
        splits=("train", "test"),
        layouts=(Layout(tuple(dict.fromkeys(filter(None, (problem, answer, solution)))), read),),
        customary=BOXED,
    )


def _final(row: dict[str, Any], column: str) -> str:
    """An answer as text, which may be published as a number or as a list of one."""
    value = row[column]
    if isinstance(value, list):
        if len(value) > 1:
            raise BadRowError("several answers", f"{column} is {shorten(value)}")
        value = value[0] if value else None
    if isinstance(value, float):
        if not math.isfinite(value):
            value = None
        elif value.is_integer():  # where a column of whole numbers has gaps
            value = int(value)
    if isinstance(value, (int, float)) and not isinstance(value, bool):
        value = str(value)
    return read_text({column: value}, column, _NO_ANSWER)


def _open_rs(row: dict[str, Any]) -> Problem:
    """The paper's rewards take the gold answer out of `solution`, veRL's graders want `answer`: both are handed on."""
    return Problem(
        text=read_text(row, "problem", _NO_PROBLEM),
        answer=read_text(row, "answer", _NO_ANSWER),
        data_source="knoveleng/open-rs",
        level=read_text(row, "level") or None,
        solution=read_text(row, "solution") or None,
    )


def _gsm8k(row: dict[str, Any]) -> Problem:
    text, solution = read_text(row, "question", _NO_PROBLEM), read_text(row, "answer", _NO_ANSWER)
    return Problem(text=text, answer=after_hashes(solution), data_source="openai/gsm8k", solution=solution)


def _math(row: dict[str, Any]) -> Problem:
    text, solution = read_text(row, "problem", _NO_PROBLEM), read_text(row, "solution", _NO_ANSWER)
    return Problem(
        text=text,
        answer=last_boxed(solution),
        data_source="DigitalLearningGmbH/MATH-lighteval",  # wherever it comes from: veRL knows the grader by this name
        level=read_text(row, "level") or None,
        subject=read_text(row, "type") or None,
        solution=solution,
    )


def _dapo(row: dict[str, Any]) -> Problem:
    prompt, reward, extra = row["prompt"], row["reward_model"], row["extra_info"]
    if not (isinstance(prompt, list) and all(isinstance(message, dict) for message in prompt)):
        raise BadRowError("wrong type", f"prompt is no list of messages: {shorten(prompt)}")
    if [message.get("role") for message in prompt] != ["user"] or "content" not in prompt[0]:
        raise BadRowError("unknown prompt", f"prompt is not one message of a user: {shorten(prompt)}")
    if not (isinstance(reward, dict) and "ground_truth" in reward):
        raise BadRowError("wrong type", f"reward_model has no ground_truth: {shorten(reward)}")
    if not (isinstance(extra, dict) and "index" in extra):
        raise BadRowError("wrong type", f"extra_info has no index: {shorten(extra)}")
    return Problem(
        text=_without_answer_line(read_text(prompt[0], "content", _NO_PROBLEM)),
        answer=read_text(reward, "ground_truth", _NO_ANSWER),
        data_source=read_text(row, "data_source", "empty data_source"),
        source_index=read_text(extra, "index") or None,
    )


def _dapo_flat(row: dict[str, Any]) -> Problem:
    return Problem(
        text=_without_answer_line(read_text(row, "prompt", _NO_PROBLEM)),
        answer=read_text(row, "solution", _NO_ANSWER),
        data_source=read_text(row, "data_source", "empty data_source"),
    )


def _without_answer_line(prompt: str) -> str:
    """The bare problem. A prompt with half of the instruction would be given it twice, so it is refused."""
    before, after = ANSWER_LINE.before.strip(), ANSWER_LINE.after.strip()
    begins, ends = prompt.startswith(before), prompt.endswith(after)
    if not begins and not ends:
        return prompt
    if begins != ends:
        raise BadRowError("unknown prompt", f"only the {'first' if begins else 'last'} half of DAPO's instruction")
    text = prompt[len(before) : -len(after)].strip()
    if not text:
        raise BadRowError(_NO_PROBLEM, "nothing is between the halves of DAPO's instruction")
    return text


DATA_SETS = {
    data.name: data
    for data in (
        DataSet(
            name="open_rs",
            repos={"knoveleng/open-rs": (None,)},
            splits=("train",),
            layouts=(Layout(("problem", "solution", "answer", "level"), _open_rs),),
            customary=PAPER,
        ),
        DataSet(
            name="gsm8k",
            repos={"openai/gsm8k": ("main",)},
            splits=("train", "test"),
            layouts=(Layout(("question", "answer"), _gsm8k),),
            customary=HASHES,
            left_out=frozenset({"socratic"}),
        ),
        DataSet(
            name="math",
            repos={"DigitalLearningGmbH/MATH-lighteval": (None,), "EleutherAI/hendrycks_math": SUBJECTS},
            splits=("train", "test"),
            layouts=(Layout(("problem", "level", "type", "solution"), _math),),
            customary=BOXED,
        ),
        DataSet(
            name="dapo_math",
            repos={"BytedTsinghua-SIA/DAPO-Math-17k": (None,), "open-r1/DAPO-Math-17k-Processed": ("all",)},
            splits=("train",),
            layouts=(
                Layout(("prompt", "solution", "data_source"), _dapo_flat),
                Layout(("data_source", "prompt", "reward_model", "extra_info"), _dapo),
            ),
            customary=ANSWER_LINE,
            left_out=frozenset({"en", "cn"}),
        ),
    )
}
