"""What DRA costs a training step, and what recording groups does: recipes/tiny_paths on the real stack, one seed."""

from __future__ import annotations

import json
import statistics
import subprocess
import sys
import tempfile
from collections.abc import Sequence
from pathlib import Path

from timing import show

DEMO = Path(__file__).resolve().parents[2] / "recipes" / "tiny_paths" / "demo.py"
STEPS = 23
RUNS = {
    "GRPO": ("dra.enabled=False",),
    "DRA-GRPO": ("dra.record.every_n_steps=0",),
    "DRA-GRPO, recorded": ("dra.record.every_n_steps=1",),
}
PARTS = ("step", "gen", "adv", "dra_wait", "dra_record")
WARM_UP = 3


def main() -> None:
    steps = {name: _train(overrides) for name, overrides in RUNS.items()}
    median = {
        name: {key: statistics.median(step.get(key, 0.0) for step in run) for key in PARTS}
        for name, run in steps.items()
    }
    dra, grpo = median["DRA-GRPO"], median["GRPO"]
    show(
        f"One step of recipes/tiny_paths on a CPU; medians of steps {WARM_UP + 1} to {STEPS}, seconds",
        ["", "step", "generation", "advantage", "dra_wait", "dra_record", "dra_wait/step", "dra_record/step"],
        [
            [
                name,
                *(f"{m[key]:.4f}" for key in PARTS),
                *(f"{m[key] / m['step']:.2%}" for key in ("dra_wait", "dra_record")),
            ]
            for name, m in median.items()
        ],
    )
    added = (dra["adv"] - grpo["adv"]) / grpo["step"]
    sys.stdout.write(
        f"DRA adds {added:.2%} of a GRPO step in the advantage's part, where it waits; "
        f"whole steps differ by {dra['step'] / grpo['step'] - 1:+.1%}\n"
    )


def _train(overrides: Sequence[str]) -> list[dict[str, float]]:
    """Seconds of each part of each step after the first few."""
    with tempfile.TemporaryDirectory() as folder:
        done = subprocess.run(
            [
                *(sys.executable, str(DEMO), f"hydra.run.dir={folder}", *overrides),
                *(f"trainer.total_training_steps={STEPS}", "trainer.val_before_train=False", "trainer.test_freq=-1"),
            ],
            stdout=subprocess.DEVNULL,
            check=False,
        )
        if done.returncode:
            sys.exit(f"the training failed with {done.returncode}")
        lines = [json.loads(line) for line in (Path(folder) / "metrics.jsonl").read_text().splitlines()]
    return [
        {key.removeprefix("timing_s/"): value for key, value in line["data"].items() if key.startswith("timing_s/")}
        for line in lines
        if line["step"] > WARM_UP
    ]
