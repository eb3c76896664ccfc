"""How far the points of a sweep are: from their folders, and from Slurm's queue."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path

from verl_dra.history import read_history
from verl_dra.sweep.folder import Sweep

STATE_LOG = "state.log"
OVER = ("failed", "cancelled", "time", "lost")
"""States of points that ended without having finished."""


@dataclass
class Point:
    """One point's state and its newest metrics."""

    number: int
    overrides: list[str]
    state: str
    """`waiting`, `running`, `requeued`, `completed`; or one of `OVER`: `time` for out of time without a checkpoint,
    `lost` for a job that ended without a word; or `not submitted`."""
    job: str = ""
    step: int | None = None
    metrics: dict[str, float] = field(default_factory=dict)
    """The last value of each metric of the run."""


def status(folder: Path, sweep: Sweep, queued: Mapping[tuple[int, int], str]) -> list[Point]:
    """All points of the sweep in `folder`; `queued` is `slurm.queued()`."""
    submitted = {point: submission.job for submission in sweep.submissions for point in submission.points}
    return [
        _point(folder / str(number), number, overrides, submitted.get(number), queued)
        for number, overrides in enumerate(sweep.points)
    ]


def _point(
    run: Path, number: int, overrides: list[str], array: int | None, queued: Mapping[tuple[int, int], str]
) -> Point:
    history = read_history(run)
    point = Point(number, overrides, "not submitted", step=history.last_step, metrics=history.last)
    if array is None:
        return point
    point.job = f"{array}_{number}"
    in_queue = queued.get((array, number))
    said = _said(run / STATE_LOG)
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


def _said(log: Path) -> str | None:
    """The last state that the job wrote."""
    try:
        lines = log.read_text().splitlines()
    except FileNotFoundError:
        return None
    return lines[-1].split()[1] if lines else None
