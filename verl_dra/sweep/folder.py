"""A sweep's folder: sweep.json, and for each point a folder by its number with its overrides and its run."""

from __future__ import annotations

import json
import os
from dataclasses import asdict, dataclass, field
from pathlib import Path

FILE = "sweep.json"
OVERRIDES = "overrides.txt"


class SweepError(ValueError):
    """A sweep that can't be made, found or submitted."""


@dataclass
class Submission:
    """One `sbatch --array`."""

    job: int
    """The id that the array's tasks share."""
    points: list[int]


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


def create(folder: Path, sweep: Sweep) -> None:
    """Make the folder with a folder for each point.

    Raises:
        SweepError: there is a sweep in it.
    """
    if (folder / FILE).exists():
        raise SweepError(f"{folder} holds a sweep; give another --out, or `verl-dra sweep --status {folder}`")
    for number, point in enumerate(sweep.points):
        (folder / str(number)).mkdir(parents=True, exist_ok=True)
        (folder / str(number) / OVERRIDES).write_text("".join(f"{override}\n" for override in point))
    sweep.save(folder)


def load(folder: Path) -> Sweep:
    """The sweep that `create` made.

    Raises:
        SweepError: there is none.
    """
    try:
        read = json.loads((folder / FILE).read_text())
        return Sweep(**{**read, "submissions": [Submission(**submission) for submission in read["submissions"]]})
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise SweepError(f"{folder / FILE} can't be read as a sweep: {error}") from error
