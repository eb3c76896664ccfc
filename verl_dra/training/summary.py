"""What a run did, in a few lines at its end."""

from __future__ import annotations

from collections.abc import Mapping
from numbers import Real
from typing import Any


class Summary:
    """First and last value of each metric of a run."""

    def __init__(self) -> None:
        self._first: dict[str, tuple[int, Any]] = {}
        self._last: dict[str, tuple[int, Any]] = {}

    def add(self, step: int, metrics: Mapping[str, Any]) -> None:
        """Take the metrics of a step; what an estimator or a reward function calls one and is no number is left out."""
        for name, value in metrics.items():
            if not isinstance(value, Real):
                continue
            self._first.setdefault(name, (step, value))
            self._last[name] = (step, value)

    def lines(self) -> list[str]:
        """Steps, rewards, validation accuracy and diversity, first against last."""
        accuracy = sorted(name for name in self._last if name.startswith("val-core/") and "/mean@" in name)
        shown = {
            "training reward": "critic/score/mean",
            **{f"validation {name.removeprefix('val-core/')}": name for name in accuracy},
            "effective paths": "dra/effective_paths",
            "completions that had to be fetched": "dra/missing_rows",
        }
        steps, _ = self._last.get("training/global_step", (0, 0.0))
        lines = [f"steps: {steps}"]
        for label, name in shown.items():
            if name in self._last:
                (from_step, before), (to_step, after) = self._first[name], self._last[name]
                end = "" if from_step == to_step else f" -> {after:.3f} (step {to_step})"
                lines.append(f"{label}: {before:.3f} (step {from_step}){end}")
        return lines
