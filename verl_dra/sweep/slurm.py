"""What a sweep asks of Slurm: arrays submitted, and the states of their tasks."""

from __future__ import annotations

import os
import subprocess
import sysconfig
from collections.abc import Mapping, Sequence
from itertools import pairwise
from pathlib import Path

from verl_dra.sweep.folder import Submission, Sweep, SweepError

_SCRIPT = Path("launch", "slurm", "ray.sbatch")


def script() -> Path:
    """launch/slurm/ray.sbatch: of the checkout that this package is used from, or as the wheel installed it.

    Raises:
        SweepError: it is in neither place.
    """
    places = [Path(__file__).parents[2] / _SCRIPT, Path(sysconfig.get_path("data")) / "share" / "verl_dra" / _SCRIPT]
    for place in places:
        if place.is_file():
            return place
    raise SweepError(f"ray.sbatch is neither {places[0]} nor {places[1]}; give it by --script")


def environment() -> dict[str, str]:
    """Variables of this process that make part of a job."""
    return {name: value for name, value in os.environ.items() if name.startswith("DRA_") or name == "VERL_PLATFORM"}


def sbatch(folder: Path, sweep: Sweep, points: Sequence[int]) -> list[str]:
    """The command that submits `points` of the sweep in `folder` as one array."""
    limit = f"%{sweep.max_running}" if sweep.max_running else ""
    return [
        "sbatch",
        "--parsable",
        f"--array={_ranges(points)}{limit}",
        f"--output={folder}/%a/slurm.out",
        f"--chdir={sweep.cwd}",
        *sweep.sbatch,
        sweep.script,
        *("--sweep", str(folder)),
        *sweep.command,
    ]


def submit(folder: Path, sweep: Sweep, points: Sequence[int]) -> Submission:
    """Submit `points`; the sweep's sweep.json tells of it.

    Raises:
        SweepError: sbatch refused, or is not there.
    """
    others = {name: value for name, value in os.environ.items() if name not in environment()}
    shown = _output(sbatch(folder, sweep, points), {**others, **sweep.environment})
    submission = Submission(job=int(shown.strip().split(";")[0]), points=list(points))
    sweep.submissions.append(submission)
    sweep.save(folder)
    return submission


def queued() -> dict[tuple[int, int], str]:
    """State (PENDING, RUNNING, ...) of each array task in the queue, by the array's job id and the task's number.

    Raises:
        SweepError: squeue failed, or is not there.
    """
    states = {}
    for line in _output(["squeue", "--me", "--array", "--noheader", "--format=%F %K %T"]).splitlines():
        job, task, state = line.split()
        if task != "N/A":
            states[int(job), int(task)] = state
    return states


def _output(command: Sequence[str], variables: Mapping[str, str] | None = None) -> str:
    try:
        done = subprocess.run(
            command,
            env=variables,
            stdin=subprocess.DEVNULL,
            capture_output=True,
            text=True,
            check=False,
        )
    except OSError as error:
        raise SweepError(
            f"{command[0]} can't be run ({error}); a sweep needs a machine with Slurm's commands"
        ) from error
    if done.returncode:
        raise SweepError(f"{command[0]} refused: {(done.stderr or done.stdout).strip()}")
    return done.stdout


def _ranges(points: Sequence[int]) -> str:
    """`0-3,7` for 0, 1, 2, 3 and 7: sbatch's --array has a limit on its length."""
    numbers = sorted(points)
    starts = [numbers[0], *(b for a, b in pairwise(numbers) if b != a + 1)]
    ends = [*(a for a, b in pairwise(numbers) if b != a + 1), numbers[-1]]
    return ",".join(str(a) if a == b else f"{a}-{b}" for a, b in zip(starts, ends, strict=True))
