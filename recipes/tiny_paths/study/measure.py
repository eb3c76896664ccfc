"""What a run's validation samples and metrics say of its policy."""

from __future__ import annotations

import json
import statistics
from pathlib import Path
from typing import Any

from tiny_paths.samples import samples_of, validation
from tiny_paths.study.train import DONE, VALIDATION
from verl_dra.report.groups import Embed

_FIRST_STEPS = 5  # vLLM and torch warm up


def measure(run: Path, embed: Embed) -> dict[str, Any]:
    """What `done.json` says of a run, its measures by validation step, and the time of its training steps."""
    points = {
        int(path.stem): validation(samples_of(path), embed)
        for path in sorted((run / VALIDATION).glob("*.jsonl"), key=lambda path: int(path.stem))
    }
    return {**json.loads((run / DONE).read_text()), "validation": points, **_times(run / "metrics.jsonl")}


def _times(metrics: Path) -> dict[str, float]:
    steps = [
        line["data"] for line in map(json.loads, metrics.read_text().splitlines()) if "timing_s/step" in line["data"]
    ]
    steps = steps[_FIRST_STEPS:] or steps
    step = statistics.median(data["timing_s/step"] for data in steps)
    wait = statistics.median(data.get("timing_s/dra_wait", 0.0) for data in steps)
    return {"step_seconds": step, "dra_wait_share": wait / step}
