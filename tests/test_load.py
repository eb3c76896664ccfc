"""Whether scorers keep up, in metrics and in words."""

from __future__ import annotations

import time
from typing import Any

import numpy as np
import pytest
from verl.trainer.ppo.v1.trainer_sync import PPOTrainerSync

from verl_dra.config import DRAConfig
from verl_dra.scorer.asking import StepVectors
from verl_dra.scorer.messages import Events
from verl_dra.scorer.placement import ScorerConfig
from verl_dra.training.load import Load
from verl_dra.training.trainer import with_dra

KEEPS_UP = Load(tokens=60_000, tokens_per_s=20_000, busy_s=3, scorers=2, step_s=30, wait_s=0.4)
BEHIND = Load(tokens=600_000, tokens_per_s=20_000, busy_s=58, scorers=2, step_s=30, wait_s=12)


def test_scorers_that_keep_up() -> None:
    assert not KEEPS_UP.behind
    assert KEEPS_UP.metrics() == {"dra/scorers/tokens_per_s": 20_000, "dra/scorers/busy_frac": pytest.approx(0.05)}
    assert KEEPS_UP.line("cpu") == (
        "scorers embed 20,000 tokens/s, the rollout made 2,000 tokens/s for them, and the step waited 0.4 of its 30.0 s"
        " for scores"
    )


def test_scorers_that_are_behind_are_said_to_be_with_what_to_set() -> None:
    assert BEHIND.behind
    assert BEHIND.metrics()["dra/scorers/busy_frac"] == pytest.approx(58 / 60)
    assert "waited 12.0 of its 30.0 s for scores: set dra.scorer.num_replicas" in BEHIND.line("cpu")
    assert "dra.scorer.placement=dedicated" in BEHIND.line("colocated")


def test_a_short_wait_of_a_short_step_is_nothing_to_mend() -> None:
    assert not Load(tokens=10, tokens_per_s=10, busy_s=1, scorers=1, step_s=1.5, wait_s=0.9).behind


def test_a_run_says_it_at_first_and_when_it_changes(capfd: pytest.CaptureFixture[str]) -> None:
    trainer: Any = object.__new__(with_dra(PPOTrainerSync))
    trainer._scorers, trainer._behind, trainer._off = [None], None, False
    trainer._dra = DRAConfig(scorer=ScorerConfig(placement="cpu"))
    came = StepVectors(np.zeros((0, 0)), np.zeros(0), busy_s=1, tokens_per_s=500, events=Events(tokens=500))
    for wait_s in (0.0, 0.1, 50.0, 50.0, 0.0):
        trainer._last_at = time.monotonic() - 100
        trainer._measured(came, wait_s)
    said = [line for line in capfd.readouterr().out.splitlines() if "scorers embed" in line]
    assert ["set dra.scorer" in line for line in said] == [False, True, False]
