"""Training the arms, one run after the other, through the real stack on a CPU."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

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
    # By seeds first: a study that is cut off has all arms with fewer seeds, and not fewer arms.
    wanted = [
        {"arm": arm, "seed": seed, "steps": steps, "overrides": list(ARMS[arm]), "data": folder.name}
        for seed in seeds
        for arm in arms
    ]
    done = [_is_done(_folder(out, run), run) for run in wanted]
    failed = 0
    for run, is_done in zip(wanted, done, strict=True):
        path = _folder(out, run)
        if is_done:
            sys.stdout.write(f"{path}: done\n")
            continue
        shutil.rmtree(path, ignore_errors=True)
        path.mkdir(parents=True)
        start = time.monotonic()
        status = _run(folder, path, run["arm"], run["seed"], steps)
        seconds = time.monotonic() - start
        sys.stdout.write(f"{path}: {'trained' if status == 0 else f'failed with {status}'}, {seconds:.0f} s\n")
        sys.stdout.flush()
        if status:
            failed = 1
            continue
        (path / DONE).write_text(json.dumps({**run, "seconds": seconds}, indent=2) + "\n")
    return failed


def _folder(out: Path, run: Mapping[str, Any]) -> Path:
    return out / str(run["arm"]) / str(run["seed"])


def _is_done(path: Path, wanted: Mapping[str, Any]) -> bool:
    """Whether the run is there whole; another one that is finished there is not written over."""
    try:
        done = json.loads((path / DONE).read_text())
    except (OSError, ValueError):  # not there, or torn
        return False
    if other := [f"{key}={done.get(key)}" for key, value in wanted.items() if done.get(key) != value]:
        sys.exit(f"{path} holds a finished run of {', '.join(other)}; give another --out, or delete it")
    return True


def seeds_of(seed: int) -> list[str]:
    """Overrides that give every part of a training that seed."""
    return [
        f"data.seed={seed}",
        f"actor_rollout_ref.rollout.seed={seed}",
        f"actor_rollout_ref.actor.data_loader_seed={seed}",
        f"actor_rollout_ref.actor.fsdp_config.seed={seed}",
    ]


def _run(folder: Path, run: Path, arm: str, seed: int, steps: int) -> int:
    overrides = [
        f"hydra.run.dir={run}",
        f"trainer.validation_data_dir={run / VALIDATION}",
        f"trainer.total_training_steps={steps}",
        f"trainer.test_freq={EVERY}",
        f"actor_rollout_ref.rollout.val_kwargs.n={SAMPLES}",
        *seeds_of(seed),
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
