"""The command `verl-dra sweep`."""

from __future__ import annotations

import argparse
import re
import shlex
import sys
from collections import Counter
from collections.abc import Sequence
from contextlib import redirect_stdout
from datetime import datetime
from pathlib import Path

from verl_dra.sweep import slurm
from verl_dra.sweep.folder import FILE, Sweep, SweepError, create, load
from verl_dra.sweep.status import OVER, Point, status
from verl_dra.tables import table

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
        help="of each point's job, for example --sbatch='--nodes=2 --gres=gpu:8 --time=1-0'",
    )
    parser.add_argument("--max-running", type=int, metavar="K", help="points that run at the same time, at most")
    parser.add_argument("--script", type=Path, metavar="FILE", help="in the place of launch/slurm/ray.sbatch")
    parser.add_argument("--dry-run", action="store_true", help="compose and show the points; submit nothing")
    what = parser.add_mutually_exclusive_group()
    what.add_argument("--status", type=Path, metavar="FOLDER", help="show how far a sweep's points are")
    what.add_argument("--resubmit", type=Path, metavar="FOLDER", help="submit the points that failed, and no others")


def run(options: argparse.Namespace) -> int:
    """Submit, resubmit or show a sweep. 0: done; 1: it can't be."""
    try:
        if options.status or options.resubmit:
            return _resume(options)
        return _start(options)
    except SweepError as error:
        sys.stderr.write(f"verl-dra sweep: {error}\n")
        return 1


def _resume(options: argparse.Namespace) -> int:
    of_new = ("overrides", "config_dir", "config_name", "out", "sbatch", "max_running", "script", "dry_run")
    if changed := [name for name in of_new if getattr(options, name)]:
        raise SweepError(f"--status and --resubmit take a sweep as it was submitted; leave out {', '.join(changed)}")
    folder = (options.status or options.resubmit).resolve()
    sweep = load(folder)
    points = status(folder, sweep, slurm.queued())
    if options.resubmit:
        if not (failed := [point.number for point in points if point.state in (*OVER, "not submitted")]):
            raise SweepError("no point failed; nothing was submitted")
        _submit(folder, sweep, failed)
        points = status(folder, sweep, slurm.queued())
    sys.stdout.write(_table(folder, points))
    states = Counter(point.state for point in points)
    sys.stdout.write(f"\n{', '.join(f'{count} {state}' for state, count in states.items())}; in {folder}\n")
    return 0


def _start(options: argparse.Namespace) -> int:
    if not options.overrides:
        raise SweepError("nothing to sweep; name overrides such as dra.smi=graph_cut,log_det")
    if options.max_running is not None and options.max_running < 1:
        raise SweepError(f"--max-running must be at least 1, not {options.max_running}")
    if set_by_sweep := [o for o in options.sbatch if re.match(r"(--array|-a|--output|-o)\b", o)]:
        raise SweepError(f"--sbatch {set_by_sweep[0]}: array and output are the sweep's own")
    # Hydra and veRL are needed to make a sweep, not to look after one.
    from verl_dra.sweep.points import expand

    shared, points = expand(options.overrides)
    arguments = [
        *(["--config-dir", str(options.config_dir.resolve())] if options.config_dir else []),
        *(["--config-name", options.config_name] if options.config_name else []),
        *shared,
    ]
    folder = (options.out or Path("outputs", "sweeps", f"{datetime.now():%Y-%m-%d_%H-%M-%S}")).resolve()
    _check_all(arguments, points, folder, options.sbatch)
    sweep = Sweep(
        command=["verl-dra", "train", *arguments],
        points=points,
        sbatch=options.sbatch,
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
        _submit(folder, sweep, everything)
    except SweepError:
        (folder / FILE).unlink()  # so that the same command can be given again
        raise
    sys.stdout.write(f"in {folder}; see how far they are by: verl-dra sweep --status {folder}\n")
    return 0


def _check_all(arguments: Sequence[str], points: Sequence[Sequence[str]], folder: Path, sbatch: Sequence[str]) -> None:
    """Find what can't train before anything waits in a queue."""
    from verl_dra.config import ConfigError
    from verl_dra.main import check, composed
    from verl_dra.sweep.job import added

    first: dict[tuple[str, str], int] = {}
    for number, point in enumerate(points):
        given = [*arguments, *point]
        try:
            with redirect_stdout(sys.stderr):  # veRL prints
                config, run = composed([*given, *added(given, folder / str(number), sbatch)])
                check(config)
        except ConfigError as error:
            raise SweepError(f"point {number} ({' '.join(point)}): {error}") from error
        places = {"hydra.run.dir": str(run), "trainer.default_local_dir": str(config.trainer.default_local_dir)}
        for key, place in places.items():
            if (other := first.setdefault((key, place), number)) != number:
                raise SweepError(
                    f"points {other} and {number} share {key}={place}, where each would go on from the other's "
                    f"checkpoints or write over its files; leave {key} out, and each has a folder of its own"
                )


def _submit(folder: Path, sweep: Sweep, points: Sequence[int]) -> None:
    submission = slurm.submit(folder, sweep, points)
    sys.stdout.write(f"submitted {len(points)} points as job {submission.job}\n")


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
