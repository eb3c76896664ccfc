"""Files of generated samples: this command's own, which grow and can be cut off, and those that veRL dumps."""

from __future__ import annotations

import json
import os
from collections.abc import Iterable, Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from verl_dra.evaluate.estimators import EvaluationError


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


class GenerationsFile:
    """JSON lines: the settings, then a sample each.

    A torn last line, of a run that was killed while it wrote, is cut off and counts as not written.
    """

    def __init__(self, path: Path) -> None:
        self._path = path
        self._settings: dict[str, Any] | None = None
        self.samples: list[Sample] = []
        if path.exists():
            self._load()

    def begin(self, settings: Mapping[str, Any]) -> None:
        """Go on with the file, or begin it.

        Raises:
            EvaluationError: it holds samples made with other settings.
        """
        if self._settings is None:
            self._path.parent.mkdir(parents=True, exist_ok=True)
            self._append([{"settings": dict(settings)}])
        elif different := [key for key, value in settings.items() if self._settings.get(key) != value]:
            raise EvaluationError(
                f"{self._path} was made with another {' and '.join(different)}; give another --generations, or those "
                "settings to go on with it"
            )

    def add(self, samples: Iterable[Sample]) -> None:
        """Write samples, to the disk before this returns."""
        samples = list(samples)
        self._append(asdict(sample) for sample in samples)
        self.samples += samples

    def _append(self, rows: Iterable[Mapping[str, Any]]) -> None:
        with self._path.open("a", encoding="utf-8") as file:
            file.writelines(json.dumps(row) + "\n" for row in rows)
            file.flush()
            os.fsync(file.fileno())

    def _load(self) -> None:
        rows, whole = _read_lines(self._path)
        if whole < self._path.stat().st_size:
            os.truncate(self._path, whole)
        for number, row in rows:
            try:
                if "settings" in row:
                    self._settings = row["settings"]
                else:
                    self.samples.append(Sample(**row))
            except TypeError as error:
                raise EvaluationError(f"{self._path} line {number} is no sample: {error}") from None


def read(path: Path) -> list[Sample]:
    """Samples of a finished file, this command's or one that veRL dumped (`trainer.validation_data_dir`).

    veRL's are told by their columns input, output and gts; those of one input and gts are samples of a problem.

    Raises:
        EvaluationError: it can't be read (names the line), or is empty.
    """
    if not path.exists():
        raise EvaluationError(f"there is no file {path}")
    rows, _ = _read_lines(path)
    if not rows:
        raise EvaluationError(f"{path} holds no samples")
    if not {"input", "output", "gts"} <= set(rows[0][1]):
        return GenerationsFile(path).samples
    problems: dict[tuple[str, str], int] = {}
    seen: dict[int, int] = {}
    samples = []
    for number, row in rows:
        try:
            question, gold, text = str(row["input"]), str(row["gts"]), row["output"]
        except KeyError as error:
            raise EvaluationError(f"{path} line {number} has no {error}") from None
        problem = problems.setdefault((question, gold), len(problems))
        seen[problem] = seen.get(problem, -1) + 1
        right = None if row.get("acc") is None else bool(row["acc"])
        samples.append(Sample(path.stem, problem, seen[problem], question, gold, text, right=right))
    return samples


def _read_lines(path: Path) -> tuple[list[tuple[int, dict[str, Any]]], int]:
    """Objects of a file by their line, and the bytes of the whole lines."""
    content = path.read_bytes()
    whole = content.rfind(b"\n") + 1
    rows = []
    for number, line in enumerate(content[:whole].splitlines(), 1):
        try:
            row = json.loads(line)
        except ValueError as error:
            raise EvaluationError(f"{path} line {number} is not JSON: {error}") from None
        if not isinstance(row, dict):
            raise EvaluationError(f"{path} line {number} is no JSON object")
        rows.append((number, row))
    return rows, whole
