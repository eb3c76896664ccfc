"""What a point is refused or warned for before anything waits in a queue."""

from __future__ import annotations

import re
import sys
import time
from collections.abc import Mapping, Sequence
from contextlib import redirect_stdout
from pathlib import Path

from verl_dra.sweep import ranges
from verl_dra.sweep.folder import SweepError
from verl_dra.sweep.job import added
from verl_dra.sweep.options import parse

# Where a run keeps what another one must not write over or go on from.
_FOLDERS = ("hydra.run.dir", "trainer.default_local_dir")
_SAY_EVERY_S = 10


def check_all(arguments: Sequence[str], points: Sequence[Sequence[str]], folder: Path, sbatch: Sequence[str]) -> None:
    """Compose every point with what its job will add, make the checks of `verl-dra train` and look at its files.

    What may be wrong goes to stderr, and how far it is: a point takes about two seconds.

    Raises:
        SweepError: says which point can't train, and why; or what is missing here to find that out.
    """
    try:
        with redirect_stdout(sys.stderr):  # veRL prints
            _check_all(arguments, points, folder, sbatch)
    except ImportError as error:
        raise SweepError(
            f"the points can't be checked here: {error}; pip install 'verl_dra[train]', or give --no-check where the "
            "jobs alone have what a training needs: each then checks its point when it starts"
        ) from error


def check_folders(
    arguments: Sequence[str], points: Sequence[Sequence[str]], folder: Path, sbatch: Sequence[str]
) -> None:
    """The one check that needs no veRL: as far as the overrides alone tell, no points share a folder.

    Raises:
        SweepError: names two that do.
    """
    first: dict[tuple[str, str], int] = {}
    for number, point in enumerate(points):
        given = [*arguments, *point]
        overrides = [*added(given, folder / str(number), sbatch), *given]
        values = {re.sub(r"^\+{1,2}", "", key): value for key, _, value in (o.partition("=") for o in overrides)}
        _refuse_shared(first, number, {key: values[key] for key in _FOLDERS if "${" not in values.get(key, "${")})


def _check_all(arguments: Sequence[str], points: Sequence[Sequence[str]], folder: Path, sbatch: Sequence[str]) -> None:
    from verl_dra.config import ConfigError
    from verl_dra.config.command_line import check_words

    for number, point in enumerate(points):
        try:
            check_words([*arguments, *point])
        except ConfigError as error:
            raise SweepError(f"point {number} ({' '.join(point)}): {error}") from error

    import verl  # noqa: F401  # before Hydra looks for its configuration, and says less

    from verl_dra.config.compose import check, composed
    from verl_dra.doctor.fast import file_checks

    in_full = [option.long for option in parse(sbatch)]
    first: dict[tuple[str, str], int] = {}
    warnings: dict[str, list[int]] = {}
    sys.stderr.write(f"verl-dra sweep: checking {len(points)} points\n")
    said = time.monotonic()
    for number, point in enumerate(points):
        if time.monotonic() - said > _SAY_EVERY_S:
            said = time.monotonic()
            sys.stderr.write(f"verl-dra sweep: {number} of {len(points)} points are checked\n")
        given = [*arguments, *point]
        try:
            config, run = composed([*given, *added(given, folder / str(number), in_full)])
            check(config)
        except ConfigError as error:
            raise SweepError(f"point {number} ({' '.join(point)}): {error}") from error
        # What is absent on this machine can be on the nodes.
        for line in file_checks(config, elsewhere=True):
            if line.state == "fail":
                raise SweepError(f"point {number} ({' '.join(point)}): {line.problem}")
            if line.state == "warn":
                warnings.setdefault(line.problem, []).append(number)
        places = {"hydra.run.dir": str(run), "trainer.default_local_dir": str(config.trainer.default_local_dir)}
        _refuse_shared(first, number, places)
    for warning, numbers in warnings.items():
        where = "all points" if len(numbers) == len(points) else f"points {ranges.shown(numbers)}"
        sys.stderr.write(f"verl-dra sweep: {where}: {warning}\n")


def _refuse_shared(first: dict[tuple[str, str], int], number: int, places: Mapping[str, str]) -> None:
    """Refuse the point where one before it, in `first`, has one of its folders."""
    for key, place in places.items():
        if (other := first.setdefault((key, place), number)) != number:
            raise SweepError(
                f"points {other} and {number} share {key}={place}, where each would go on from the other's "
                f"checkpoints or write over its files; leave {key} out, and each has a folder of its own"
            )
