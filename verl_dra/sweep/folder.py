"""A sweep's folder: sweep.json, and for each point a folder by its number with its overrides and its run."""

from __future__ import annotations

import json
import os
import shlex
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

FILE = "sweep.json"
OVERRIDES = "overrides.txt"


class SweepError(ValueError):
    """A sweep that can't be made, found or submitted."""


@dataclass
class Submission:
    """One `sbatch --array`; in sweep.json from before it is called."""

    job: int | None
    """The id that the array's tasks share; None where sbatch has not told it, so far or at all."""
    points: list[int]
    sbatch: list[str] | None = None
    """Options of sbatch for each point's job; None for the sweep's."""
    code: str = ""
    """The package's version and commit then; "" where it was not kept."""
    cluster: str = ""
    """The cluster that sbatch named with the id; "" for the one that it submits to by itself."""
    said: str = ""
    """What sbatch said instead of an id."""


@dataclass
class Sweep:
    """What was asked for, and what was submitted of it."""

    command: list[str]
    """The training command without the points' own overrides."""
    points: list[list[str]]
    sbatch: list[str]
    """Options of sbatch for each point's job."""
    max_running: int | None
    cwd: str
    """The working folder of the jobs."""
    script: str
    """`ray.sbatch`, or what was given in its place."""
    environment: dict[str, str]
    """Variables that make part of a job: DRA_* and VERL_PLATFORM."""
    submissions: list[Submission] = field(default_factory=list)

    def save(self, folder: Path) -> None:
        """Write sweep.json, whole or not at all."""
        temporary = folder / f"{FILE}.new"
        temporary.write_text(json.dumps(asdict(self), indent=2) + "\n")
        os.replace(temporary, folder / FILE)


def refuse_sweep(folder: Path) -> None:
    """Leave what was submitted alone.

    Raises:
        SweepError: there is a sweep in `folder`.
    """
    if (folder / FILE).exists():
        there = shlex.quote(str(folder))
        raise SweepError(f"{folder} holds a sweep; give another --out, or `verl-dra sweep --status {there}`")


def create(folder: Path, sweep: Sweep) -> None:
    """Make the folder with a folder for each point.

    Raises:
        SweepError: there is a sweep in it.
    """
    refuse_sweep(folder)
    for number in range(len(sweep.points)):
        (folder / str(number)).mkdir(parents=True, exist_ok=True)
        write_overrides(folder, sweep, number)
    sweep.save(folder)


def write_overrides(folder: Path, sweep: Sweep, number: int) -> None:
    """The point's own overrides, where its job reads them."""
    (folder / str(number) / OVERRIDES).write_text(_overrides(sweep, number))


def differing_overrides(folder: Path, sweep: Sweep, number: int) -> str | None:
    """What is wrong with the file that the point's job reads its overrides from; None where nothing is."""
    try:
        same = (folder / str(number) / OVERRIDES).read_bytes() == _overrides(sweep, number).encode()
    except OSError as error:
        return f"{OVERRIDES} can't be read ({error.strerror})"
    return None if same else f"{OVERRIDES} is not what {FILE} says of the point"


def load(folder: Path) -> Sweep:
    """The sweep that `create` made.

    Raises:
        SweepError: there is none.
    """
    try:
        read = json.loads((folder / FILE).read_text())
        sweep = Sweep(**{**read, "submissions": [Submission(**submission) for submission in read["submissions"]]})
        _check(sweep)
    except (OSError, ValueError, KeyError, TypeError, RecursionError) as error:
        raise SweepError(f"{folder / FILE} can't be read as a sweep: {error}") from error
    return sweep


def _overrides(sweep: Sweep, number: int) -> str:
    return "".join(f"{override}\n" for override in sweep.points[number])


def _check(sweep: Sweep) -> None:
    """That all is of the type that it should be of.

    Raises:
        ValueError: something is not.
    """
    options = [submission.sbatch for submission in sweep.submissions if submission.sbatch is not None]
    for words in (sweep.command, sweep.sbatch, sweep.points, *options):
        _expect(words, list)
    texts = [sweep.cwd, sweep.script, *sweep.command, *sweep.sbatch, *(word for words in options for word in words)]
    for point in sweep.points:
        _expect(point, list)
        texts += point
    _expect(sweep.environment, dict)
    texts += [*sweep.environment, *sweep.environment.values()]
    for submission in sweep.submissions:
        _expect(submission.points, list)
        texts += [submission.code, submission.cluster, submission.said]
        for number in (*submission.points, *([] if submission.job is None else [submission.job])):
            _expect(number, int)
    if sweep.max_running is not None:
        _expect(sweep.max_running, int)
    for text in texts:
        _expect(text, str)
        if "\0" in text:
            raise ValueError(f"{text!r} holds a NUL")
        text.encode()


def _expect(value: Any, kind: type) -> None:
    if not isinstance(value, kind) or isinstance(value, bool):
        raise ValueError(f"{value!r} stands where a {kind.__name__} should")
