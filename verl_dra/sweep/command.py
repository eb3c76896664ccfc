"""The command `verl-dra sweep`."""

from __future__ import annotations

import argparse
import re
import shlex
import sys
from collections import Counter
from collections.abc import Iterable, Sequence
from datetime import datetime
from pathlib import Path

from verl_dra.sweep import ranges, slurm
from verl_dra.sweep.code import changed, code
from verl_dra.sweep.folder import (
    FILE,
    OVERRIDES,
    Sweep,
    SweepError,
    create,
    differing_overrides,
    load,
    refuse_sweep,
    write_overrides,
)
from verl_dra.sweep.options import parse, replaced
from verl_dra.sweep.status import NOT_SUBMITTED, OVER, UNKNOWN, Point, status
from verl_dra.terminal.tables import table

_OF_NEW = ("overrides", "config_dir", "config_name", "out", "max_running", "script", "no_check", "dry_run")
_COLUMNS = {
    "score": re.compile(r"critic/score/mean"),
    "validation": re.compile(r"val-core/.*/mean@\d+"),
    "effective paths": re.compile(r"dra/effective_paths"),
    "s/step": re.compile(r"timing_s/step"),
}


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Give `parser` the options of `verl-dra sweep`."""
    parser.add_argument(
        "overrides",
        nargs="*",
        metavar="OVERRIDE",
        help="of Hydra; a=1,2 and choice(), range(), glob() are swept, as with verl-dra train --multirun",
    )
    parser.add_argument("--config-dir", type=Path, help="as of verl-dra train")
    parser.add_argument("--config-name", help="as of verl-dra train")
    parser.add_argument("--out", type=Path, help="the sweep's folder, on a file system that all nodes see")
    parser.add_argument(
        "--sbatch",
        type=shlex.split,
        default=[],
        metavar="OPTIONS",
        help="of each point's job, for example --sbatch='--nodes=2 --gres=gpu:8 --time=1-0'; with --resubmit in the "
        "place of the same ones that the points had, the others stay",
    )
    parser.add_argument("--max-running", type=int, metavar="K", help="points that run at the same time, at most")
    parser.add_argument("--script", type=Path, metavar="FILE", help="in the place of launch/slurm/ray.sbatch")
    parser.add_argument(
        "--no-check",
        action="store_true",
        help="do not compose and check the points here, for a machine without veRL: each job does when it starts",
    )
    parser.add_argument("--dry-run", action="store_true", help="compose and show the points; submit nothing")
    what = parser.add_mutually_exclusive_group()
    what.add_argument("--status", type=Path, metavar="FOLDER", help="show how far a sweep's points are")
    what.add_argument("--resubmit", type=Path, metavar="FOLDER", help="submit the points that failed, and no others")
    parser.add_argument(
        "--points", nargs="+", default=[], metavar="N", help="with --resubmit: these of them, such as 3 5-7"
    )


def run(options: argparse.Namespace) -> int:
    """Submit, resubmit or show a sweep. 0: done; 1: it can't be, or it is not known whether it was submitted."""
    try:
        if options.status:
            return _show(options)
        return _resubmit(options) if options.resubmit else _start(options)
    except (SweepError, OSError) as error:
        sys.stderr.write(f"verl-dra sweep: {error}\n")
        return 1


def _show(options: argparse.Namespace) -> int:
    _refuse_given(options, "--status", (*_OF_NEW, "sbatch", "points"))
    folder = options.status.resolve()
    sweep = load(folder)
    _write_status(folder, status(folder, sweep, slurm.queued(folder, sweep)))
    return 0


def _resubmit(options: argparse.Namespace) -> int:
    _refuse_given(options, "--resubmit", _OF_NEW)
    folder = options.resubmit.resolve()
    sweep = load(folder)
    points = status(folder, sweep, slurm.queued(folder, sweep))
    numbers = _to_submit(points, options.points)
    if not Path(sweep.cwd).is_dir():  # Slurm would start the jobs in another one
        raise SweepError(f"the jobs' working folder {sweep.cwd} is not there; nothing was submitted")
    for number in numbers:
        if not (folder / str(number) / OVERRIDES).exists():
            write_overrides(folder, sweep, number)
        if differing := differing_overrides(folder, sweep, number):
            raise SweepError(f"point {number}: {differing}; delete the file to have it written again")
    last = {number: submission for submission in sweep.submissions for number in submission.points}
    for difference in {changed(last[number].code, code()) for number in numbers if number in last} - {None}:
        sys.stderr.write(f"verl-dra sweep: since these points were submitted: {difference}\n")
    # Points whose last submissions had other options stay apart: an array's tasks have the same ones.
    groups: dict[tuple[str, ...], list[int]] = {}
    for number in numbers:
        had = last[number].sbatch if number in last else None
        groups.setdefault(tuple(replaced(sweep.sbatch if had is None else had, options.sbatch)), []).append(number)
    known = [_submit(folder, sweep, group, sbatch) for sbatch, group in groups.items()]
    _write_status(folder, status(folder, sweep, slurm.queued(folder, sweep)))
    return 0 if all(known) else 1


def _to_submit(points: Sequence[Point], words: Sequence[str]) -> list[int]:
    """The points to submit again: all that failed, or those that `words` name."""
    again = (*OVER, NOT_SUBMITTED)
    if words:
        named = ranges.read(words, len(points))
        for number in named:
            if (state := points[number].state) not in (*again, UNKNOWN):
                raise SweepError(f"point {number} is {state}; nothing was submitted")
        return named
    if unknown := [point.number for point in points if point.state == UNKNOWN]:
        sys.stderr.write(
            f"verl-dra sweep: left out, as they may be running: points {ranges.shown(unknown)}. Where squeue and their "
            f"folders show that they are not: --points {ranges.shown(unknown).replace(',', ' ')}\n"
        )
    if not (failed := [point.number for point in points if point.state in again]):
        raise SweepError("no point failed; nothing was submitted")
    return failed


def _refuse_given(options: argparse.Namespace, with_what: str, names: Iterable[str]) -> None:
    if given := [name.replace("_", "-") for name in names if getattr(options, name)]:
        raise SweepError(f"{with_what} takes a sweep as it was submitted; leave out {', '.join(given)}")


def _start(options: argparse.Namespace) -> int:
    _refuse_given(options, "a new sweep", ("points",))
    if not options.overrides:
        raise SweepError("nothing to sweep; name overrides such as dra.smi=graph_cut,log_det")
    if options.max_running is not None and options.max_running < 1:
        raise SweepError(f"--max-running must be at least 1, not {options.max_running}")
    sbatch = [option.word for option in parse(options.sbatch)]
    folder = (options.out or Path("outputs", "sweeps", f"{datetime.now():%Y-%m-%d_%H-%M-%S}")).resolve()
    if not options.dry_run:
        refuse_sweep(folder)
    # Hydra and veRL are needed to make a sweep, not to look after one.
    try:
        from verl_dra.sweep.checks import check_all, check_folders
        from verl_dra.sweep.points import expand
    except ImportError as error:
        raise SweepError(f"a grid is read by Hydra, which is not here: {error}; pip install hydra-core") from error

    shared, points = expand(options.overrides, options.config_dir)
    arguments = [
        *(["--config-dir", str(options.config_dir.resolve())] if options.config_dir else []),
        *(["--config-name", options.config_name] if options.config_name else []),
        *shared,
    ]
    (check_folders if options.no_check else check_all)(arguments, points, folder, sbatch)
    sweep = Sweep(
        command=["verl-dra", "train", *arguments],
        points=points,
        sbatch=sbatch,
        max_running=options.max_running,
        cwd=str(Path.cwd()),
        script=str((options.script or slurm.script()).resolve()),
        environment=slurm.environment(),
    )
    everything = range(len(points))
    rows = [[_name(n, point), str(folder / str(n))] for n, point in enumerate(points)]
    sys.stdout.write(table(["point", "folder"], rows, left=2) + "\n")
    if options.dry_run:
        sys.stdout.write(f"not submitted: {shlex.join(slurm.sbatch(folder, sweep, everything))}\n")
        return 0
    create(folder, sweep)
    try:
        known = _submit(folder, sweep, everything)
    except SweepError:
        if not sweep.submissions:
            (folder / FILE).unlink()  # so that the same command can be given again
        raise
    there = shlex.quote(str(folder))
    sys.stdout.write(f"in {folder}; see how far they are by: verl-dra sweep --status {there}\n")
    return 0 if known else 1


def _submit(folder: Path, sweep: Sweep, points: Sequence[int], sbatch: Sequence[str] | None = None) -> bool:
    """Whether the points are surely submitted."""
    submission = slurm.submit(folder, sweep, points, sbatch)
    if submission.job is None:
        sys.stderr.write(
            f"verl-dra sweep: sbatch told no job's id, so whether points {ranges.shown(points)} are submitted is not "
            f"known; look by squeue --me. It said: {submission.said}\n"
        )
        return False
    with_options = f" with {shlex.join(sbatch)}" if sbatch and sbatch != tuple(sweep.sbatch) else ""
    sys.stdout.write(f"submitted {len(points)} points as job {submission.job}{with_options}\n")
    return True


def _write_status(folder: Path, points: Sequence[Point]) -> None:
    sys.stdout.write(_table(folder, points))
    states = Counter(point.state for point in points)
    sys.stdout.write(f"\n{', '.join(f'{count} {state}' for state, count in states.items())}; in {folder}\n")
    for point in points:
        for note in point.notes:
            sys.stdout.write(f"point {point.number}: {note}\n")


def _table(folder: Path, points: Sequence[Point]) -> str:
    rows = [
        [
            _name(point.number, point.overrides),
            point.state,
            point.job,
            "" if point.step is None else str(point.step),
            *(_last(point, pattern) for pattern in _COLUMNS.values()),
            str(folder / str(point.number)),
        ]
        for point in points
    ]
    return table(["point", "state", "job", "step", *_COLUMNS, "folder"], rows)


def _name(number: int, overrides: Sequence[str]) -> str:
    return f"{number}  {' '.join(overrides)}"


def _last(point: Point, pattern: re.Pattern[str]) -> str:
    values = [value for name, value in point.metrics.items() if pattern.fullmatch(name)]
    return f"{values[0]:.4g}" if values else ""
