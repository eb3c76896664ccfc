"""DAPO's filter of groups, which may take those that DRA is for."""

from __future__ import annotations

from collections.abc import Iterator

from omegaconf import DictConfig

from verl_dra.doctor.check import Check, ok, skip, warn
from verl_dra.doctor.run_config import select

_NAME = "group filter"
_KEY = "algorithm.filter_groups"
# By veRL's own name of the reward, and by those that reward functions give to being right.
_EQUAL_WHERE_RIGHT = ("reward", "acc")


def group_filter(config: DictConfig) -> Iterator[Check]:
    """That groups which are all right reach DRA: GRPO learns nothing from them, and DRA does."""
    if not select(config, "dra.enabled"):
        yield skip(_NAME, "dra.enabled=False")
    elif not select(config, f"{_KEY}.enable"):
        yield ok(_NAME, "all groups are trained on")
    elif (metric := select(config, f"{_KEY}.metric")) in _EQUAL_WHERE_RIGHT:
        yield warn(
            _NAME,
            f"{_KEY}.metric={metric} drops groups whose completions all have the same one, so also those that are all "
            "right, before DRA sees them (counted as dra/filtered_groups)",
            f"set {_KEY}.metric to one of your reward function's that differs among right completions and not among "
            f"wrong ones, such as their length or 0, or {_KEY}.enable=False",
        )
    else:
        yield ok(_NAME, f"groups are dropped whose {metric} is the same throughout")
