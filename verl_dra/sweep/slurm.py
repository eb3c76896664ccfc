"""What a sweep asks of Slurm: arrays submitted, and the states of their tasks."""

from __future__ import annotations

import os
import re
import subprocess
import sys
import sysconfig
from collections.abc import Mapping, Sequence
from contextlib import suppress
from pathlib import Path

from verl_dra.sweep import ranges
from verl_dra.sweep.code import code
from verl_dra.sweep.folder import FILE, Submission, Sweep, SweepError, load

_SCRIPT = Path("launch", "slurm", "ray.sbatch")
# At the start of each line that squeue is asked for: what a site's own squeue says beside them is none.
_MARK = "verl_dra"


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


def sbatch(folder: Path, sweep: Sweep, points: Sequence[int], options: Sequence[str] | None = None) -> list[str]:
    """The command that submits `points` of the sweep in `folder` as one array.

    Args:
        folder: the sweep's.
        sweep: what was asked for.
        points: their numbers.
        options: of sbatch, in the place of the sweep's.
    """
    limit = f"%{sweep.max_running}" if sweep.max_running else ""
    # sbatch puts numbers and names in for % and a letter.
    literal = str(folder).replace("%", "%%")
    return [
        "sbatch",
        "--parsable",
        f"--array={ranges.shown(points)}{limit}",
        f"--output={literal}/%a/slurm.out",
        f"--chdir={sweep.cwd}",
        *(sweep.sbatch if options is None else options),
        sweep.script,
        *("--sweep", str(folder)),
        *sweep.command,
    ]


def submit(folder: Path, sweep: Sweep, points: Sequence[int], options: Sequence[str] | None = None) -> Submission:
    """Submit `points`; the sweep's sweep.json tells of it, from before sbatch is called.

    Args:
        folder: the sweep's.
        sweep: as its sweep.json is.
        points: their numbers.
        options: of sbatch, in the place of the sweep's.

    Returns:
        The submission, without an id where sbatch told none and the queue doesn't tell it either.

    Raises:
        SweepError: nothing was submitted: sbatch refused or is not there, or another process has submitted meanwhile.
            Or the id can't be written to sweep.json: it is in the message.
    """
    if len(load(folder).submissions) != len(sweep.submissions):
        raise SweepError(f"{folder / FILE} has changed meanwhile, as by another verl-dra sweep; nothing was submitted")
    submission = Submission(None, list(points), None if options is None else list(options), code())
    sweep.submissions.append(submission)
    sweep.save(folder)
    others = {name: value for name, value in os.environ.items() if name not in (*environment(), "SBATCH_WAIT")}
    try:
        done = _run(sbatch(folder, sweep, points, options), {**others, **sweep.environment})
    except SweepError:
        _forget(folder, sweep)
        raise
    told = [line for line in map(str.strip, done.stdout.splitlines()) if re.fullmatch(r"\d{1,18}(;[^\s\0]+)?", line)]
    said = " ".join(f"{done.stdout} {done.stderr}".replace("\0", " ").split())  # no sweep.json holds a NUL
    if len(told) == 1:
        job, _, submission.cluster = told[0].partition(";")
        submission.job = int(job)
    elif done.returncode > 0 and not told and "timed out" not in said:
        _forget(folder, sweep)
        raise SweepError(f"sbatch refused: {(done.stderr or done.stdout).strip()}")
    else:
        # After a time-out of the controller's answer, too, the job can be there.
        submission.said = said or "nothing"
        with suppress(SweepError):
            queued(folder, sweep)
    try:
        sweep.save(folder)
    except OSError as error:
        shown = ranges.shown(points)
        raise SweepError(
            f"points {shown} are submitted as job {submission.job}, but that can't be written: {error}"
        ) from error
    if submission.job is not None:
        sys.stderr.write(done.stderr)
    return submission


def queued(folder: Path, sweep: Sweep) -> dict[tuple[int, int], str]:
    """State (PENDING, RUNNING, ...) of each array task in the queue, by the array's job id and the task's number.

    A submission of `sweep` whose id is not known gets it where the queue holds its array.

    Raises:
        SweepError: squeue failed, is not there, or gave what can't be read.
    """
    states: dict[tuple[int, int], str] = {}
    # Arrays of this sweep, by what their jobs run.
    of_sweep: dict[int, set[int]] = {}
    for cluster in sorted({"", *(submission.cluster for submission in sweep.submissions)}):
        command = ["squeue", "--me", "--array", "--noheader", f"--format={_MARK} %F %K %T %o"]
        done = _run([*command, *([f"--clusters={cluster}"] if cluster else [])])
        if done.returncode:
            raise SweepError(f"squeue refused: {(done.stderr or done.stdout).strip()}")
        for line in done.stdout.splitlines():
            if not line.startswith(f"{_MARK} "):
                continue
            if not (task := re.match(rf"{_MARK} (\d{{1,18}}) (\d{{1,18}}|N/A) ([A-Z_]+)(?: |$)", line)):
                raise SweepError(f"squeue says what can't be read: {line!r}")
            if task[2] == "N/A":
                continue
            states[int(task[1]), int(task[2])] = task[3]
            if f" --sweep {folder} " in line:
                of_sweep.setdefault(int(task[1]), set()).add(int(task[2]))
    for submission in reversed(sweep.submissions):
        if submission.job is None:
            known = {other.job for other in sweep.submissions}
            jobs = [job for job, tasks in of_sweep.items() if job not in known and tasks <= set(submission.points)]
            submission.job = max(jobs, default=None)
    return states


def _forget(folder: Path, sweep: Sweep) -> None:
    """Take back the last submission, of which nothing came."""
    sweep.submissions.pop()
    sweep.save(folder)


def _run(command: Sequence[str], variables: Mapping[str, str] | None = None) -> subprocess.CompletedProcess[str]:
    try:
        return subprocess.run(
            command,
            env=variables,
            stdin=subprocess.DEVNULL,
            capture_output=True,
            encoding="utf-8",
            errors="replace",
            check=False,
        )
    except OSError as error:
        raise SweepError(
            f"{command[0]} can't be run ({error}); a sweep needs a machine with Slurm's commands"
        ) from error
