"""A number that may change over the steps of a run: `dra.strength`."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import pairwise
from typing import Any

import numpy as np

MOST = 8.0
"""Beyond, weights of large groups of copies would vanish in float32."""


@dataclass(frozen=True)
class Schedule:
    """Straight lines between points; constant before the first and after the last."""

    steps: tuple[int, ...]
    values: tuple[float, ...]

    @classmethod
    def of(cls, setting: Any) -> Schedule:
        """Read a number, or points [[step, value], ...].

        Raises:
            ValueError: says what is wrong with it.
        """
        if _is_number(setting):
            points: Sequence[Any] = [[0, setting]]
        elif isinstance(setting, Sequence) and not isinstance(setting, str) and len(setting):
            points = setting
        else:
            raise ValueError(f"must be a number, or points as [[0,1],[100,0]], not {setting!r}")
        for point in points:
            if not isinstance(point, Sequence) or isinstance(point, str) or len(point) != 2:
                raise ValueError(f"must be a number, or points as [[0,1],[100,0]]; {point!r} is no [step, value]")
            step, value = point
            if not (_is_number(step) and step >= 0 and step == int(step)):
                raise ValueError(f"has a point at step {step!r}; a step is a whole number, 0 or more")
            if not (_is_number(value) and 0 <= value <= MOST):
                raise ValueError(f"must be from 0 to {MOST:g}, not {value!r}")
        steps = tuple(int(step) for step, _ in points)
        if any(later <= before for before, later in pairwise(steps)):
            raise ValueError(f"must have its points in ascending order of their steps, not {list(steps)}")
        return cls(steps, tuple(float(value) for _, value in points))

    def at(self, step: int) -> float:
        """The value at a training step."""
        return float(np.interp(step, self.steps, self.values))


def _is_number(value: Any) -> bool:
    return isinstance(value, (int, float)) and not isinstance(value, bool) and math.isfinite(value)
