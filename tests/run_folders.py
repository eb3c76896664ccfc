"""Folders of runs as training leaves them, made up: metrics, recorded groups, validation dumps."""

from __future__ import annotations

import json
import random
import string
from collections.abc import Sequence
from itertools import accumulate
from pathlib import Path
from typing import Any

import numpy as np
from omegaconf import OmegaConf

PATHS = (
    "add the tens and then the ones",
    "count up on the number line",
    "round up and take the rest away",
    "use coins",
)
_made_up = random.Random(0)
VOCABULARY = ["".join(_made_up.choices(string.ascii_lowercase, k=_made_up.randint(2, 9))) for _ in range(5000)]
# Zipf's law, so that texts compress as those of a language do.
FREQUENCY = list(accumulate(1 / (rank + 1) for rank in range(len(VOCABULARY))))


def make_run(
    folder: Path,
    dra: bool = True,
    steps: int = 6,
    groups: int = 3,
    size: int = 8,
    words: int = 0,
    overrides: Sequence[str] = (),
) -> Path:
    """A run of `steps` steps; without DRA it collapses onto one path, and has no recorded groups."""
    rng = random.Random(0)
    (folder / ".hydra").mkdir(parents=True)
    config = OmegaConf.create(
        {
            "dra": {"enabled": dra, "smi": "graph_cut", "embedding": {"encoder": "ngram"}},
            "trainer": {"validation_data_dir": f"{folder}/validation"},
        }
    )
    config.merge_with_dotlist(list(overrides))
    OmegaConf.save(config, folder / ".hydra" / "config.yaml")
    OmegaConf.save(OmegaConf.create(list(overrides)), folder / ".hydra" / "overrides.yaml")
    (folder / "validation").mkdir()
    lines = []
    for step in range(steps + 1):
        data: dict[str, Any] = {
            "critic/score/mean": 0.5 + step / 20,
            "timing_s/step": 4.0,
            "actor/entropy": 1 / (step + 1),
        }
        if dra:
            data |= {"dra/effective_paths": 3.0, "dra/weight/mean": 0.3, "dra/weight/min": 0.1}
        if step % 3 == 0:
            data |= {"val-core/toy/acc/mean@8": 0.6 + step / 30, "val-core/toy/acc/best@8/mean": 0.9}
            dump = [row for at in range(5) for row in _dumped(rng, step, at, size, 4 if dra else max(1, 4 - step))]
            (folder / "validation" / f"{step}.jsonl").write_text("".join(json.dumps(row) + "\n" for row in dump))
        lines.append(json.dumps({"step": step, "data": data}))
    (folder / "metrics.jsonl").write_text("\n".join(lines) + "\n")
    if dra:
        (folder / "groups").mkdir()
        for step in range(1, steps + 1):
            rows = [recorded_group(rng, step, at, size, words) for at in range(groups)]
            (folder / "groups" / f"{step}.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    return folder


def recorded_group(rng: random.Random, step: int, at: int, size: int, words: int = 0) -> dict[str, Any]:
    """A line that `dra.record` writes; its numbers fit each other."""
    chosen = [rng.randrange(len(PATHS)) for _ in range(size)]
    similarity = np.array(
        [[1.0 if i == j else 0.95 if a == b else 0.3 for j, b in enumerate(chosen)] for i, a in enumerate(chosen)]
    )
    smi = similarity.sum(axis=1) - 1
    reward = np.array([float(rng.random() < 0.7) for _ in range(size)])
    adjusted = reward / (1 + smi)
    return {
        "step": step,
        "uid": f"uid-{step}-{at}",
        "prompt": f"user\nWhat is {at} + {step}?\nassistant\n",
        "ground_truth": str(at + step),
        "smi": "graph_cut",
        "weight": "inverse",
        "base_estimator": "grpo",
        "scored": True,
        "completions": [
            {
                "session": i,
                "text": f"<b>{PATHS[path]}</b> & so on " + _words(rng, words),
                "characters": 40,
                "reward": reward[i],
                "adjusted": adjusted[i],
                "smi": smi[i],
                "weight": 1 / (1 + smi[i]),
                "advantage": (adjusted - adjusted.mean())[i],
                "advantage_without": (reward - reward.mean())[i],
                "duplicate": False,
            }
            for i, path in enumerate(chosen)
        ],
        "similarity": similarity.tolist(),
        "effective_paths": 3.1,
    }


def _words(rng: random.Random, words: int) -> str:
    return " ".join(rng.choices(VOCABULARY, cum_weights=FREQUENCY, k=words))


def _dumped(rng: random.Random, step: int, at: int, size: int, paths: int) -> list[dict[str, Any]]:
    """Lines that veRL dumps of one prompt's samples."""
    return [
        {
            "input": f"user\nQuestion {at}\nassistant\n",
            "output": PATHS[rng.randrange(paths)],
            "gts": str(at),
            "score": float(rng.random() < 0.8),
            "step": step,
        }
        for _ in range(size)
    ]
