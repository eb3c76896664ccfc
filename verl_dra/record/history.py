"""The metrics of a run, as the files in its folder keep them."""

from __future__ import annotations

import json
import sys
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any


@dataclass
class History:
    """What a run's `metrics.jsonl`, and those of before it was resumed, say."""

    values: dict[str, dict[int, float]] = field(default_factory=dict)
    """Value by step, ascending, of each metric by name; those that are no finite number are left out."""
    last_step: int | None = None
    unreadable: int = 0
    """Lines that are no JSON, as one that is being written or was when the run was killed."""

    @property
    def last(self) -> dict[str, float]:
        """The newest value of each metric."""
        return {name: of_step[max(of_step)] for name, of_step in self.values.items()}


def read_history(run: Path) -> History:
    """The metrics in the folder `run`; a step that was trained again after a resumption counts as it was then."""
    history = History()
    # A run that was resumed has those from before in metrics.1.jsonl and so on.
    of_number = {path.suffixes[0][1:]: path for path in run.glob("metrics.*.jsonl")}
    earlier = [of_number[number] for number in sorted(filter(str.isdecimal, of_number), key=int)]
    for path in [*earlier, run / "metrics.jsonl"]:
        for line in path.read_text(errors="replace").splitlines() if path.exists() else ():
            try:
                read: dict[str, Any] = json.loads(line)
                step = int(read["step"])
                data = read["data"].items()
            except (ValueError, KeyError, TypeError, AttributeError, OverflowError, RecursionError):
                history.unreadable += 1
                continue
            history.last_step = step
            for name, value in data:
                # An int can be too large for a float.
                if isinstance(value, (int, float)) and -sys.float_info.max <= value <= sys.float_info.max:
                    history.values.setdefault(name, {})[step] = float(value)
    history.values = {name: dict(sorted(of_step.items())) for name, of_step in history.values.items()}
    return history
