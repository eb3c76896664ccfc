"""The points of a grid, by Hydra's own override syntax."""

from __future__ import annotations

import itertools
from collections.abc import Sequence

from hydra.core.override_parser.overrides_parser import OverridesParser
from hydra.errors import HydraException

from verl_dra.sweep.folder import SweepError


def expand(overrides: Sequence[str]) -> tuple[list[str], list[list[str]]]:
    """Tell what all points share from what is swept (`a=1,2`, `b=choice(x,y)`, `c=range(1,4)`, `dra/group=glob(*)`...).

    Args:
        overrides: as on the command line of `verl-dra train --multirun`.

    Returns:
        The overrides that all points share, as given, and each point's own, in the order of Hydra's --multirun: the
        last key changes fastest.

    Raises:
        SweepError: an override can't be read, or is an interval, which has no points.
    """
    parser = OverridesParser.create()
    shared: list[str] = []
    swept: list[list[str]] = []
    for line in overrides:
        try:
            override = parser.parse_override(line)
            if not override.is_sweep_override():
                shared.append(line)
            elif override.is_discrete_sweep():
                swept.append([f"{override.get_key_element()}={value}" for value in override.sweep_string_iterator()])
            else:
                raise SweepError(f"{line} has no points to choose; name them, for example by choice(...)")
        except HydraException as error:
            raise SweepError(f"{line}: {error}") from error
    points = [list(point) for point in itertools.product(*swept)]
    for line in itertools.chain(*points):
        if "\n" in line:
            raise SweepError(f"{line!r} has a line break, which a point's file can't hold")
    return shared, points
