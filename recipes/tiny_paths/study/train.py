"""Training the arms, one run after the other, through the real stack on a CPU."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
import time
from collections.abc import Sequence
from pathlib import Path

from tiny_paths.demo import command, environment
from tiny_paths.prepare import prepare
from tiny_paths.study.arms import ARMS

DONE = "done.json"
VALIDATION = "validation"
SAMPLES = 16
EVERY = 25


def train(out: Path, arms: Sequence[str], seeds: Sequence[int], steps: int) -> int:
    """Train each arm with each seed in `out`/arm/seed, unless that is done; 1 if a run failed, and 0."""
    folder = prepare()
    failed = 0
    # By seeds first: a study that is cut off has all arms with fewer seeds, and not fewer arms.
    for seed in seeds:
        for arm in arms:
            run = out / arm / str(seed)
            wanted = {"arm": arm, "seed": seed, "steps": steps, "overrides": list(ARMS[arm]), "data": folder.name}
            if _is_done(run, wanted):
                sys.stdout.write(f"{run}: done\n")
                continue
            shutil.rmtree(run, ignore_errors=True)
            run.mkdir(parents=True)
            start = time.monotonic()
            status = _run(folder, run, arm, seed, steps)
            seconds = time.monotonic() - start
            sys.stdout.write(f"{run}: {'trained' if status == 0 else f'failed with {status}'}, {seconds:.0f} s\n")
            sys.stdout.flush()
            if status:
                failed = 1
                continue
            (run / DONE).write_text(json.dumps({**wanted, "seconds": seconds}, indent=2) + "\n")
    return failed


def _is_done(run: Path, wanted: dict[str, object]) -> bool:
    try:
        done = json.loads((run / DONE).read_text())
    except (OSError, ValueError):  # not there, or torn
        return False
    return all(done.get(key) == value for key, value in wanted.items())


def _run(folder: Path, run: Path, arm: str, seed: int, steps: int) -> int:
    overrides = [
        f"hydra.run.dir={run}",
        f"trainer.validation_data_dir={run / VALIDATION}",
        f"trainer.total_training_steps={steps}",
        f"trainer.test_freq={EVERY}",
        f"actor_rollout_ref.rollout.val_kwargs.n={SAMPLES}",
        f"data.seed={seed}",
        f"actor_rollout_ref.rollout.seed={seed}",
        f"actor_rollout_ref.actor.data_loader_seed={seed}",
        f"actor_rollout_ref.actor.fsdp_config.seed={seed}",
        *ARMS[arm],
    ]
    with (run / "shown.txt").open("wb") as shown:
        return subprocess.run(
            command(folder, overrides),
            env={**os.environ, **environment()},
            stdin=subprocess.DEVNULL,
            stdout=shown,
            stderr=subprocess.STDOUT,
            check=False,
        ).returncode
