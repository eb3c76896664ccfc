"""One run after the other in some processes; each goes on where it was cut off, and what is done is not done twice."""

from __future__ import annotations

import fcntl
import hashlib
import json
import multiprocessing
import os
import statistics
import sys
import time
import traceback
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from concurrent.futures import ProcessPoolExecutor
from contextlib import contextmanager
from dataclasses import asdict
from functools import cache, partial
from pathlib import Path
from typing import Any

import torch

from tiny_locks.loop import Settings, Trainer, uses_similarity
from tiny_locks.measure import measure
from tiny_locks.prepare import Settings as Prepared
from tiny_locks.prepare import prepare
from tiny_locks.study.arms import Run, arm_of
from tiny_locks.task import WAYS, split_questions

DONE = "done.json"
STATE = "state.pt"
CHECKPOINTS = (0.8, 0.9, 1.0)
"""Shares of a run after which the policy is measured; tables show the mean of the three."""
BLOCK = 5
"""Steps whose means are kept as one row of `training`."""
_SAVE_EVERY = 10
_SHOWN = {"accuracy": "accuracy", "way_entropy": "entropy over ways", "locked/8": "locked pass@8"}


def train(out: Path, runs: Sequence[Run], settings: Settings, device: str, processes: int) -> int:
    """Make each run in `out`/lock/arm/seed, in order, unless it is done; 1 if one failed, else 0."""
    folder = prepare()
    work = partial(_guarded, out, folder, settings, device)
    if processes == 1:
        return max(map(work, runs), default=0)
    context = multiprocessing.get_context("spawn")
    with ProcessPoolExecutor(processes, context, _one_thread) as pool:
        return max(pool.map(work, runs), default=0)


def make(out: Path, folder: Path, settings: Settings, device: str, run: Run) -> dict[str, Any]:
    """The result of a run, made now unless it is there; goes on from the last state that was written."""
    path = out / run.name
    path.mkdir(parents=True, exist_ok=True)
    with _alone(path):
        if done := finished(path, identity(run, folder, settings)):
            return done
        result = _train(path, folder, settings, device, run)
        _write(path / DONE, json.dumps(result, indent=1).encode())
        (path / STATE).unlink(missing_ok=True)
    return result


def finished(path: Path, said: Mapping[str, Any]) -> dict[str, Any] | None:
    """The result in `path`, None where there is none yet; one of another run than is `said` ends the program."""
    if not (path / DONE).exists():
        return None
    done: dict[str, Any] = json.loads((path / DONE).read_text())
    if other := [f"{key}={done.get(key)}" for key, value in said.items() if done.get(key) != value]:
        sys.exit(f"{path} holds a finished run of {', '.join(other)}; give another --out, or delete it")
    return done


def identity(run: Run, folder: Path, settings: Settings) -> dict[str, Any]:
    """What a run is: two with the same one can be compared, and one needs no other."""
    steps = 0 if run.arm == "start" else settings.steps
    of_all = {**asdict(settings), "steps": steps, "betas": list(settings.betas)}
    return {**asdict(run), "settings": of_all, "how": asdict(arm_of(run.arm, settings)), "start": start_of(folder)}


@cache
def start_of(folder: Path) -> str:
    """16 hex digits of the starting model's weights."""
    return hashlib.sha256((folder / "model" / "model.safetensors").read_bytes()).hexdigest()[:16]


def _guarded(out: Path, folder: Path, settings: Settings, device: str, run: Run) -> int:
    try:
        started = time.monotonic()
        result = make(out, folder, settings, device, run)
    except Exception:  # the others go on
        sys.stdout.write(f"{run.name}: failed\n{traceback.format_exc()}")
        sys.stdout.flush()
        return 1
    means = {key: statistics.mean(point[key] for point in result["checkpoints"]) for key in _SHOWN}
    said = ", ".join(f"{name} {means[key]:.3f}" for key, name in _SHOWN.items())
    sys.stdout.write(f"{run.name}: {said}; {time.monotonic() - started:.0f} s\n")
    sys.stdout.flush()
    return 0


def _train(path: Path, folder: Path, settings: Settings, device: str, run: Run) -> dict[str, Any]:
    from transformers import AutoModelForCausalLM

    tokenizer, encoder, train, test = _shared(folder, device)
    said = identity(run, folder, settings)
    steps = said["settings"]["steps"]
    arm = arm_of(run.arm, settings)
    load = partial(AutoModelForCausalLM.from_pretrained, folder / "model", dtype=torch.float32)
    trainer = Trainer(
        load().to(device).eval(),  # no dropout in it
        load().to(device).eval() if arm.kl_loss_coef else None,
        tokenizer,
        train,
        arm,
        run.lock,
        run.seed,
        settings,
        encoder() if uses_similarity(arm) else None,
        steps // 2 + 1 if run.lock == "switch" else None,
    )
    blocks: list[dict[str, float]] = []
    checkpoints: list[dict[str, float]] = []
    rows: list[dict[str, Any]] = []
    seconds = 0.0
    if (path / STATE).exists():
        saved = torch.load(path / STATE, map_location=device, weights_only=True)
        if saved["said"] == json.dumps(said):
            trainer.load(saved["trainer"])
            blocks, checkpoints, rows, seconds = (saved[k] for k in ("blocks", "checkpoints", "rows", "seconds"))
    at = [int(share * steps) for share in CHECKPOINTS]
    started = time.process_time()
    while True:
        if trainer.done in at and len(checkpoints) < 1 + at.index(trainer.done):
            drawn = 10_000 * (1 + run.seed) + trainer.done
            measured = measure(trainer.model, tokenizer, test, run.lock, trainer.closed, drawn)
            checkpoints.append({"step": trainer.done, **{k: round(v, 5) for k, v in measured.items()}})
        if trainer.done == steps:
            break
        rows.append(trainer.step())
        if len(rows) == BLOCK:
            blocks.append(block_of(trainer.done, rows))
            rows = []
        if trainer.done % _SAVE_EVERY == 0:
            spent = seconds + time.process_time() - started
            kept = {"blocks": blocks, "checkpoints": checkpoints, "rows": rows, "seconds": spent}
            torch.save({"said": json.dumps(said), "trainer": trainer.state(), **kept}, path / f"{STATE}.new")
            os.replace(path / f"{STATE}.new", path / STATE)
    result = {**said, "checkpoints": checkpoints, "training": blocks, "closed": trainer.closed}
    return {**result, "cpu_seconds": round(seconds + time.process_time() - started, 1)}


def block_of(step: int, rows: Sequence[dict[str, Any]]) -> dict[str, float]:
    """Means of some steps' rows, the last of which is `step`."""
    ways = sum((Counter(row["ways"]) for row in rows), Counter())
    means = {key: statistics.mean(row[key] for row in rows) for key in rows[0] if key != "ways"}
    shares = {f"share/{way}": ways[way] / sum(ways.values()) for way in WAYS}
    return {"step": step, **{key: round(value, 4) for key, value in {**means, **shares}.items()}}


@cache
def _shared(folder: Path, device: str) -> tuple[Any, Any, Any, Any]:
    """Tokenizer, what gives the encoder, train and test questions: once for all runs of a process."""
    from transformers import AutoTokenizer

    from verl_dra.embedding import EmbeddingConfig, build_encoder

    prepared = Prepared()
    train, test = split_questions(prepared.test_size, prepared.seed)
    encoder = cache(lambda: build_encoder(EmbeddingConfig(device=device)))
    return AutoTokenizer.from_pretrained(folder / "model"), encoder, train, test


def _one_thread() -> None:
    torch.set_num_threads(1)


@contextmanager
def _alone(path: Path) -> Iterator[None]:
    """One process at a time makes a run; the kernel frees the lock of one that dies."""
    with (path / "lock").open("w") as file:
        fcntl.flock(file, fcntl.LOCK_EX)
        yield


def _write(path: Path, content: bytes) -> None:
    fresh = path.with_suffix(".new")
    fresh.write_bytes(content)
    os.replace(fresh, path)
