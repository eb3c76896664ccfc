"""How far the points of a sweep are: from their folders, and from Slurm's queue."""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path

from verl_dra.record.history import History, read_history
from verl_dra.sweep.folder import Submission, Sweep, differing_overrides

STATE_LOG = "state.log"
OVER = ("failed", "cancelled", "time", "lost")
"""States of points that ended without having finished."""
NOT_SUBMITTED, UNKNOWN = "not submitted", "unknown"
_SAID = ("running", "requeued", "completed", "failed", "cancelled", "time")


@dataclass
class Point:
    """One point's state and its newest metrics."""

    number: int
    overrides: list[str]
    state: str
    """`waiting`, `running`, `requeued`, `completed`; or one of `OVER`: `time` for out of time without a checkpoint,
    `lost` for a job that ended without a word; or `not submitted`; or `unknown` where neither the queue nor the point's
    files tell."""
    job: str = ""
    step: int | None = None
    metrics: dict[str, float] = field(default_factory=dict)
    """The last value of each metric of the run."""
    notes: list[str] = field(default_factory=list)
    """What could not be read, and what is odd."""


def status(folder: Path, sweep: Sweep, queued: Mapping[tuple[int, int], str]) -> list[Point]:
    """All points of the sweep in `folder`; `queued` is `slurm.queued()`."""
    return [
        _point(
            folder,
            sweep,
            number,
            [submission for submission in sweep.submissions if number in submission.points],
            queued,
        )
        for number in range(len(sweep.points))
    ]


def _point(
    folder: Path,
    sweep: Sweep,
    number: int,
    submissions: list[Submission],
    queued: Mapping[tuple[int, int], str],
) -> Point:
    run = folder / str(number)
    notes: list[str] = []
    history = _history(run, notes)
    point = Point(number, sweep.points[number], NOT_SUBMITTED, "", history.last_step, history.last, notes)
    if differing := differing_overrides(folder, sweep, number):
        notes.append(differing)
    if not submissions:
        return point
    said = _said(run / STATE_LOG, notes)
    job = submissions[-1].job
    if job is None:
        # What an earlier submission's job wrote says nothing of this one, but that it has nothing to do any more.
        told = said == "completed" or (said in OVER and len(submissions) == 1)
        point.state = said if said and told else UNKNOWN
        if not told:
            notes.append(f"whether it is submitted is not known; sbatch said {submissions[-1].said or 'nothing'}")
        return point
    point.job = f"{job}_{number}"
    in_queue = queued.get((job, number))
    if in_queue in ("PENDING", "REQUEUED", "REQUEUE_HOLD", "SPECIAL_EXIT"):
        point.state = "requeued" if said == "requeued" else "waiting"
    elif in_queue is not None:
        point.state = "running"
    elif said in ("running", "requeued", None):
        # Killed at once, or with its node: the job had no time to write how it ended.
        point.state = "lost"
    else:
        point.state = said
    return point


def _history(run: Path, notes: list[str]) -> History:
    try:
        history = read_history(run)
    except OSError as error:
        notes.append(f"metrics.jsonl can't be read ({error.strerror})")
        return History()
    if history.unreadable:
        lines = "line" if history.unreadable == 1 else "lines"
        notes.append(f"{history.unreadable} {lines} of metrics.jsonl can't be read")
    return history


def _said(log: Path, notes: list[str]) -> str | None:
    """The last state that the job wrote, though it died while it wrote; `UNKNOWN` where the log is not its own."""
    try:
        text = log.read_bytes().decode(errors="replace")
    except FileNotFoundError:
        return None
    except OSError as error:
        notes.append(f"{STATE_LOG} can't be read ({error.strerror})")
        return UNKNOWN
    lines = re.findall(r"[^\n]+\n?", text.replace("\0", ""))
    # Half a line stays where a job dies; the next one's line is then glued to it.
    states = [next((word for word in reversed(line.split()) if word in _SAID), None) for line in lines]
    if torn := states.count(None):
        notes.append(f"{torn} {'line' if torn == 1 else 'lines'} of {STATE_LOG} can't be read")
    if lines and states[-1] is None and (other := re.fullmatch(r"\S+ ([a-z_-]+)( .*)?\n", lines[-1])):
        notes.append(f"{STATE_LOG} ends with the state {other[1]!r}, which is none of {', '.join(_SAID)}")
        return UNKNOWN
    return next((state for state in reversed(states) if state), None)
