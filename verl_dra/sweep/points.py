"""The points of a grid, by Hydra's own override syntax."""

from __future__ import annotations

import itertools
from collections.abc import Sequence
from pathlib import Path

from hydra._internal.config_loader_impl import ConfigLoaderImpl
from hydra._internal.utils import create_config_search_path
from hydra.core.config_loader import ConfigLoader
from hydra.core.config_search_path import SearchPathQuery
from hydra.core.override_parser.overrides_parser import OverridesParser
from hydra.errors import HydraException

from verl_dra.sweep.folder import SweepError


def expand(overrides: Sequence[str], config_dir: Path | None = None) -> tuple[list[str], list[list[str]]]:
    """Tell what all points share from what is swept (`a=1,2`, `b=choice(x,y)`, `c=range(1,4)`, `group=glob(*)`...).

    Args:
        overrides: as on the command line of `verl-dra train --multirun`.
        config_dir: as of `verl-dra train`; its config groups are what `glob()` chooses from, beside this package's.

    Returns:
        The overrides that all points share, as given, and each point's own, in the order of Hydra's --multirun: the
        last key changes fastest.

    Raises:
        SweepError: an override can't be read, or has no points: an interval, an empty range, a glob that fits nothing.
    """
    shared: list[str] = []
    swept: list[list[str]] = []
    parser = OverridesParser.create(_groups(config_dir))
    for line in overrides:
        try:
            (override,) = parser.parse_overrides([line])
            if not override.is_sweep_override():
                shared.append(line)
                continue
            if not override.is_discrete_sweep():
                raise SweepError(f"{line} has no points to choose; name them, for example by choice(...)")
            key = override.get_key_element()
            swept.append([f"{key}={value}" for value in override.sweep_string_iterator()])
        except HydraException as error:
            raise SweepError(f"{line}: {error}") from error
        if not swept[-1]:
            raise SweepError(f"{line} has no points: there is nothing that it stands for")
    points = [list(point) for point in itertools.product(*swept)]
    for line in itertools.chain(*points):
        if "\n" in line:
            raise SweepError(f"{line!r} has a line break, which a point's file can't hold")
    return shared, points


def _groups(config_dir: Path | None) -> ConfigLoader:
    """The config groups that `verl-dra train --multirun` chooses from, found as Hydra's command line finds them."""
    places = create_config_search_path("pkg://verl_dra.config")
    if config_dir is not None:
        place = f"file://{config_dir.resolve()}"
        places.prepend("command-line", place, anchor=SearchPathQuery(provider="schema"))
    return ConfigLoaderImpl(places)
