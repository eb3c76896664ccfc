"""What both scenes are given."""

from __future__ import annotations

from dataclasses import dataclass
from math import inf

from verl_dra.simulate.options import OptionError

_SEEDS = 2**32


@dataclass(frozen=True)
class Scene:
    """Groups of completions, where a right one has reward 1 and a wrong one `wrong_reward`."""

    group_size: int = 8
    wrong_reward: float = 0.0
    seed: int = 42

    def __post_init__(self) -> None:
        if self.group_size < 2:
            raise OptionError(f"--group-size must be at least 2, not {self.group_size}")
        if not -inf < self.wrong_reward < 1:
            raise OptionError(f"--wrong-reward must be below 1, the reward of a right answer, not {self.wrong_reward}")
        if not 0 <= self.seed < _SEEDS:
            raise OptionError(f"--seed must be from 0 to {_SEEDS - 1}, not {self.seed}")
