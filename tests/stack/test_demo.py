"""`make demo` as a user sees it, cut to two steps: what it shows, what it leaves behind, how it fails."""

from __future__ import annotations

import json
from pathlib import Path

import isolated
import pytest

pytestmark = [pytest.mark.slow, pytest.mark.timeout(900)]

DEMO = Path(__file__).resolve().parents[2] / "recipes" / "tiny_paths" / "demo.py"


def demo(tmp_path: Path, *overrides: str) -> tuple[int, str]:
    log = tmp_path / "shown.txt"
    done = isolated.run(
        ["python", str(DEMO), f"hydra.run.dir={tmp_path}/out", *overrides],
        log=log,
        cwd=tmp_path,
        environment={},
        timeout_s=800,
    )
    return done.returncode, log.read_text(errors="replace")


def test_the_demo_trains_and_shows_little(tmp_path: Path) -> None:
    status, shown = demo(tmp_path, "trainer.total_training_steps=2", "trainer.test_freq=2")
    assert status == 0, shown[-3000:]
    for expected in (
        "verl-dra: training with DRA over grpo",
        "Training Progress: 100%",
        "step 2: dra/smi/mean ",
        "verl-dra: steps: 2",
        "verl-dra: validation tiny_paths/acc/mean@4: ",
        "verl-dra: effective paths: ",
        f"verl-dra: train.log, metrics.jsonl and tensorboard/ are in {tmp_path}/out",
    ):
        assert expected in shown
    assert "UserWarning" not in shown
    assert len(shown.splitlines()) < 40
    out = tmp_path / "out"
    assert "UserWarning" in (out / "train.log").read_text(errors="replace")
    assert list((out / "tensorboard").glob("events.*"))
    steps = [json.loads(line) for line in (out / "metrics.jsonl").read_text().splitlines()]
    assert [step["step"] for step in steps] == [0, 1, 2]
    assert steps[-1]["data"]["dra/effective_paths"] > 1


def test_a_failing_run_says_why_and_exits_non_zero(tmp_path: Path) -> None:
    status, shown = demo(tmp_path, "reward.custom_reward_function.path=/nowhere/reward.py")
    assert status != 0
    assert "/nowhere/reward.py" in shown
    assert f"the run failed; above are the last lines of its log {tmp_path}/out/train.log" in shown
