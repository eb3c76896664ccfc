"""Lock A through the real stack, three arms and two seeds, whose training is held beside the loop's."""

from __future__ import annotations

import json
import os
import shutil
import statistics
import subprocess
import sys
import time
from collections import Counter
from collections.abc import Mapping, Sequence
from operator import itemgetter
from pathlib import Path
from typing import Any

from tiny_paths.demo import environment

from tiny_locks.measure import entropy
from tiny_locks.prepare import prepare
from tiny_locks.study.arms import ARMS, BEST_ENTROPY, label
from tiny_locks.study.train import BLOCK, DONE, block_of, finished, start_of
from tiny_locks.task import UNKNOWN, WAYS, way_of

RECIPE = Path(__file__).resolve().parents[1]
SEEDS = (0, 1)
ROLLOUTS = "rollouts"
LAST = 4
"""Blocks of steps whose mean is set beside the loop's."""
OVERRIDES: dict[str, tuple[str, ...]] = {
    "grpo": ("dra.enabled=False",),
    BEST_ENTROPY: ("dra.enabled=False", f"actor_rollout_ref.actor.entropy_coeff={ARMS[BEST_ENTROPY].entropy_coeff}"),
    "dra": (),
}
"""By arm, over tiny_locks.yaml."""


def folder(out: Path) -> Path:
    """Of the stack's trainings, below that of the study's runs."""
    return out / "stack"


def train(out: Path, arms: Sequence[str], seeds: Sequence[int], steps: int) -> int:
    """Train each arm with each seed in `out`/arm/seed on this machine's CPU, unless that is done; 1 if one failed.

    One that was cut off begins again.
    """
    prepared = prepare()
    failed = 0
    for seed in seeds:
        for arm in arms:
            path = out / arm / str(seed)
            said = {
                "arm": arm,
                "seed": seed,
                "steps": steps,
                "overrides": [*OVERRIDES[arm]],
                "start": start_of(prepared),
            }
            if finished(path, said):
                continue
            shutil.rmtree(path, ignore_errors=True)
            path.mkdir(parents=True)
            started = time.monotonic()
            with (path / "shown.txt").open("wb") as shown:
                status = subprocess.run(
                    command(prepared, path, arm, seed, steps),
                    env={**os.environ, **environment()},
                    stdin=subprocess.DEVNULL,
                    stdout=shown,
                    stderr=subprocess.STDOUT,
                    check=False,
                ).returncode
            seconds = time.monotonic() - started
            sys.stdout.write(f"{path}: {'trained' if status == 0 else f'failed with {status}'}, {seconds:.0f} s\n")
            sys.stdout.flush()
            failed |= int(status != 0)
            if status == 0:
                (path / DONE).write_text(json.dumps({**said, "seconds": round(seconds)}, indent=1) + "\n")
    return failed


def command(prepared: Path, path: Path, arm: str, seed: int, steps: int) -> list[str]:
    """The training of an arm over the folder that prepare.py made, with its run in `path`."""
    return [
        *(sys.executable, "-m", "verl_dra.main", "--config-dir", str(RECIPE), "--config-name", "tiny_locks"),
        "+platform=cpu",
        f"data_dir={prepared}",
        f"recipe_dir={RECIPE}",
        f"hydra.run.dir={path}",
        f"trainer.total_training_steps={steps}",
        f"trainer.rollout_data_dir={path / ROLLOUTS}",
        "trainer.val_before_train=False",
        "trainer.test_freq=-1",
        f"data.seed={seed}",
        f"actor_rollout_ref.rollout.seed={seed}",
        f"actor_rollout_ref.actor.data_loader_seed={seed}",
        f"actor_rollout_ref.actor.fsdp_config.seed={seed}",
        *OVERRIDES[arm],
    ]


def measured(path: Path) -> dict[str, Any]:
    """What the run in `path` is, and its training in blocks of steps, as the loop's runs have them."""
    dumps = sorted((path / ROLLOUTS).glob("*.jsonl"), key=lambda dump: int(dump.stem))
    blocks = []
    for at in range(BLOCK, len(dumps) + 1, BLOCK):
        rows = []
        for dump in dumps[at - BLOCK : at]:
            samples = [json.loads(line) for line in dump.read_text().splitlines()]
            ways = Counter(way_of(sample["output"].strip()) or UNKNOWN for sample in samples)
            rows.append({"reward": statistics.mean(sample["score"] for sample in samples), "ways": ways})
        blocks.append(block_of(int(dumps[at - 1].stem), rows))
    return {**json.loads((path / DONE).read_text()), "training": blocks}


def ways_of(block: Mapping[str, float]) -> float:
    """Entropy over the ways of a block's completions, in nats."""
    return entropy([block[f"share/{way}"] for way in WAYS])


def table(stack: Sequence[Mapping[str, Any]], loop: Mapping[str, Sequence[Mapping[str, Any]]]) -> str:
    """Markdown: each run of the stack beside the span of the loop's runs of that arm, means of the last blocks."""
    lines = [
        "| arm | seed | steps | reward | the loop's | entropy over ways | the loop's |",
        "|---" * 7 + "|",
    ]
    for run in stack:
        last = {block["step"] for block in run["training"][-LAST:]}
        cells = []
        for measure in (itemgetter("reward"), ways_of):
            ours, *theirs = (
                statistics.mean(measure(block) for block in one["training"] if block["step"] in last)
                for one in (run, *loop.get(run["arm"], ()))
            )
            cells += [f"{ours:.3f}", f"{min(theirs):.3f} to {max(theirs):.3f}" if theirs else ""]
        lines.append(f"| {label(run['arm'])} | {run['seed']} | {run['steps']} | {' | '.join(cells)} |")
    return "\n".join(lines) if stack else "(no run of the real stack so far)"
