"""What a run did, in a few lines at its end."""

from __future__ import annotations

import statistics
from collections import defaultdict
from collections.abc import Mapping, Sequence
from numbers import Real
from typing import Any

MEANS_OF = 5
"""Steps of training, at the start and at the end: one alone is mostly noise."""
_OF_TRAINING = {"training reward": "critic/score/mean", "effective paths": "dra/effective_paths"}
_FETCHED = "dra/missing_rows"

_Points = Sequence[tuple[int, float]]


class Summary:
    """The values over a run of what is told at its end."""

    def __init__(self) -> None:
        self._steps = 0
        self._points: dict[str, list[tuple[int, float]]] = defaultdict(list)

    def add(self, step: int, metrics: Mapping[str, Any]) -> None:
        """Take the metrics of a step; what an estimator or a reward function calls one and is no number is left out."""
        for name, value in metrics.items():
            if not isinstance(value, Real):
                continue
            if name == "training/global_step":
                self._steps = int(float(value))
            elif name in (*_OF_TRAINING.values(), _FETCHED) or _is_accuracy(name):
                self._points[name].append((step, float(value)))

    def lines(self) -> list[str]:
        """Steps; rewards and diversity of the first steps against the last; validation before and after."""
        lines = [f"steps: {self._steps}"]
        for label, name in _OF_TRAINING.items():
            lines += _means(label, self._points.get(name, []))
        for name in sorted(filter(_is_accuracy, self._points)):
            points = self._points[name]
            shown = [f"{value:.3f} (step {step})" for step, value in (points[0], points[-1])[: len(points)]]
            lines.append(f"validation {name.removeprefix('val-core/')}: {' -> '.join(shown)}")
        if fetched := self._points.get(_FETCHED):
            lines.append(f"completions that had to be fetched: {sum(value for _, value in fetched):.0f}")
        return lines


def _is_accuracy(name: str) -> bool:
    return name.startswith("val-core/") and "/mean@" in name


def _means(label: str, points: _Points) -> list[str]:
    """The mean of the first steps and of the last, `MEANS_OF` or half of what there is."""
    if not points:
        return []
    of = min(MEANS_OF, max(len(points) // 2, 1))
    ends = [points[:of], points[-of:]] if len(points) > 1 else [points]
    shown = [f"{statistics.fmean(value for _, value in end):.3f} ({_steps(end)})" for end in ends]
    return [f"{label}: {' -> '.join(shown)}"]


def _steps(points: _Points) -> str:
    first, last = points[0][0], points[-1][0]
    return f"step {first}" if len(points) == 1 else f"mean of steps {first} to {last}"
