"""Files of generated samples: this command's own, which grow and can be cut off, and those that veRL dumps."""

from __future__ import annotations

import json
import os
from collections.abc import Iterable, Mapping
from dataclasses import MISSING, asdict, dataclass, fields
from pathlib import Path
from typing import Any

from verl_dra.evaluate.estimators import EvaluationError
from verl_dra.files import Unreadable, UnreadableFileError, lines
from verl_dra.rewards import gold_text

_VERL_COLUMNS = {"input", "output"}
_JUDGED_SCORES = ({0, 1}, {-1, 1})
"""Scores that say whether an answer is right and nothing else."""


@dataclass(frozen=True)
class Sample:
    """One completion of a problem."""

    benchmark: str
    problem: int
    sample: int
    question: str
    gold: str
    text: str
    truncated: bool = False
    """Whether it ended at the limit of tokens."""
    right: bool | None = None
    """What its source says; None where that is to be found out."""


_KINDS: dict[str, tuple[type, ...]] = {
    "benchmark": (str,),
    "problem": (int,),
    "sample": (int,),
    "question": (str,),
    "gold": (str,),
    "text": (str,),
    "truncated": (bool,),
    "right": (bool, type(None)),
}


class GenerationsFile:
    """JSON lines: the settings, then a sample each.

    A torn last line, of a run that was killed while it wrote, counts as not written. Only `begin` changes the file.

    Raises:
        EvaluationError: a line is no sample (names it), or two are the same sample.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        self.settings: dict[str, Any] | None = None
        self.samples: list[Sample] = []
        self.torn = 0
        """Bytes of the torn last line."""
        if path.exists():
            self._load()

    def begin(self, settings: Mapping[str, Any]) -> None:
        """Go on with the file, or begin it.

        Raises:
            EvaluationError: it holds samples made with other settings.
        """
        if self.settings is None:
            if self.samples:
                raise EvaluationError(
                    f"{self.path} does not say with which settings its samples were made; give another --generations"
                )
            self.path.parent.mkdir(parents=True, exist_ok=True)
            self._end_last_line()
            self._append([{"settings": dict(settings)}])
            self.settings = dict(settings)
            return
        if different := [key for key, value in settings.items() if self.settings.get(key) != value]:
            raise EvaluationError(
                f"{self.path} was made with another {' and '.join(different)}; give another --generations, or those "
                "settings to go on with it"
            )
        self._end_last_line()

    def add(self, samples: Iterable[Sample]) -> None:
        """Write samples, to the disk before this returns."""
        samples = list(samples)
        self._append(asdict(sample) for sample in samples)
        self.samples += samples

    def _append(self, rows: Iterable[Mapping[str, Any]]) -> None:
        with self.path.open("a", encoding="utf-8") as file:
            file.writelines(json.dumps(row) + "\n" for row in rows)
            file.flush()
            os.fsync(file.fileno())

    def _end_last_line(self) -> None:
        """Cut a torn line off; end one that is whole but for its newline."""
        if not self.path.exists():
            return
        with self.path.open("r+b") as file:
            size = file.seek(0, os.SEEK_END) - self.torn
            file.truncate(size)
            if size:
                file.seek(size - 1)
                if file.read(1) != b"\n":
                    file.write(b"\n")
        self.torn = 0

    def _load(self) -> None:
        rows, self.torn = _read_lines(self.path)
        lines: dict[tuple[str, int, int], int] = {}
        texts: dict[tuple[str, int], tuple[str, str]] = {}
        for number, row in rows:
            where = f"{self.path} line {number}"
            if "settings" in row:
                if not isinstance(row["settings"], dict) or self.settings is not None or self.samples:
                    raise EvaluationError(f"{where}: settings are one JSON object, in the first line")
                self.settings = row["settings"]
                continue
            sample = _sample(row, where)
            place = (sample.benchmark, sample.problem, sample.sample)
            if place in lines:
                raise EvaluationError(f"{where} is the same sample as line {lines[place]}; remove one of them")
            lines[place] = number
            if texts.setdefault(place[:2], (sample.question, sample.gold)) != (sample.question, sample.gold):
                raise EvaluationError(
                    f"{where}: problem {sample.problem} of {sample.benchmark} has another question or gold answer "
                    "in an earlier line; samples of one problem share both"
                )
            self.samples.append(sample)


@dataclass(frozen=True)
class Generations:
    """What a file of samples holds."""

    samples: list[Sample]
    settings: dict[str, Any] | None
    """What they were made with; None where the file doesn't say, as veRL's don't."""
    torn: bool
    """Whether the last line is torn, and left out."""


def read(path: Path, recheck: bool = False) -> Generations:
    """Samples of a finished file, this command's or one that veRL dumped (`trainer.validation_data_dir`).

    veRL's are told by their columns input and output; those of one input and gts are samples of a problem. Whether one
    is right its `acc` says. Without that its `score` does, if all scores of the file are 0 and 1, or -1 and 1: one
    that is shaped, by length or by format, says nothing of it.

    Args:
        path: the file, which stays as it is.
        recheck: whether to leave out what the file says of right and wrong.

    Raises:
        EvaluationError: it can't be read (names the line), holds no samples, or one has nothing to be judged by.
    """
    if not path.is_file():
        raise EvaluationError(f"there is no file {path}")
    rows, torn = _read_lines(path)
    if rows and set(rows[0][1]) >= _VERL_COLUMNS:
        settings, samples = None, _from_verl(path, rows, recheck)
    else:
        file = GenerationsFile(path)
        settings, samples = file.settings, file.samples
    if not samples:
        raise EvaluationError(f"{path} holds no samples")
    unjudged = sum(not sample.gold and (recheck or sample.right is None) for sample in samples)
    if unjudged:
        raise EvaluationError(
            f"{path}: {unjudged} of {len(samples)} samples have no right answer to check against; it belongs into "
            f"{'gts' if settings is None else 'gold'}"
        )
    return Generations(samples, settings, bool(torn))


def _from_verl(path: Path, rows: list[tuple[int, dict[str, Any]]], recheck: bool) -> list[Sample]:
    scores = [row.get("score") for _, row in rows]
    plain = all(isinstance(score, (int, float)) for score in scores)
    judge = "score" if plain and any(set(scores) <= of for of in _JUDGED_SCORES) else None
    if any(row.get("acc") is not None for _, row in rows):
        judge = "acc"
    problems: dict[tuple[str, str], int] = {}
    seen: dict[int, int] = {}
    samples = []
    for number, row in rows:
        where = f"{path} line {number}"
        if missing := [column for column in sorted(_VERL_COLUMNS) if column not in row]:
            raise EvaluationError(f"{where} has no {' and no '.join(missing)}")
        for column in ("input", "output"):
            if not isinstance(row[column], str):
                raise EvaluationError(f"{where}: {column} must be a text, not {type(row[column]).__name__}")
        gold = gold_text(row.get("gts")) or ""
        problem = problems.setdefault((row["input"], gold), len(problems))
        seen[problem] = seen.get(problem, -1) + 1
        right = None
        if judge is not None and not recheck and (said := row.get(judge)) is not None:
            if said not in (0, 1) and judge == "acc":
                raise EvaluationError(
                    f"{where}: acc is {said!r}, neither 0 nor 1; --recheck checks the answers instead"
                )
            right = said == 1
        samples.append(Sample(path.stem, problem, seen[problem], row["input"], gold, row["output"], right=right))
    return samples


def _sample(row: Mapping[str, Any], where: str) -> Sample:
    needed = [field.name for field in fields(Sample) if field.default is MISSING]
    lacks, more = [name for name in needed if name not in row], [name for name in row if name not in _KINDS]
    if lacks or more:
        found = [
            *([f"lacks {', '.join(lacks)}"] if lacks else []),
            *([f"has {', '.join(more)} beside"] if more else []),
        ]
        raise EvaluationError(
            f"{where} is no sample: it {' and '.join(found)}; veRL's dumps have input, output and gts, and other files "
            f"{', '.join(needed)}"
        )
    sample = Sample(**row)
    for name, kinds in _KINDS.items():
        # Not isinstance: True is no number here.
        if type(getattr(sample, name)) not in kinds:
            raise EvaluationError(f"{where} is no sample: {name} is {getattr(sample, name)!r}, not {kinds[0].__name__}")
    return sample


def _read_lines(path: Path) -> tuple[list[tuple[int, dict[str, Any]]], int]:
    """Objects of a file by their line, and the bytes of its last line if that is torn."""
    rows: list[tuple[int, dict[str, Any]]] = []
    try:
        for number, row in lines(path):
            if not isinstance(row, Unreadable):
                rows.append((number, row))
            elif row.torn:
                return rows, row.torn
            else:
                raise EvaluationError(f"{path} line {number} can't be read: {row}")
    except UnreadableFileError as error:
        raise EvaluationError(f"{path} can't be read: {error}") from None
    return rows, 0
