"""The metrics of a step, against loops over what each one's name says."""

from __future__ import annotations

import math
from dataclasses import fields, replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from verl.trainer.ppo.v1.replay_buffer import DAPO_FILTERED_REWARD_COUNTS_KEY

from verl_dra.algorithm import CosinePairs
from verl_dra.partition.step import StepGroupings
from verl_dra.record import RecordConfig, Recorder
from verl_dra.scorer.asking import StepVectors
from verl_dra.scorer.messages import Events
from verl_dra.scorer.scores import StepScores
from verl_dra.training.estimator import Step
from verl_dra.training.load import Load
from verl_dra.training.meanings import METRICS
from verl_dra.training.metrics import COUNTS, filter_metrics, record_metrics, step_metrics
from verl_dra.training.rows import Rows

# Uid, raw reward, adjusted reward, advantage, SMI, weight, whether it has a near-equal sibling: groups that teach
# nothing before, after, or before and after the adjustment, and right answers on both sides of their mean.
SESSIONS = [
    ("a", 1.0, 0.5, 0.4, 1.0, 0.5, True),
    ("b", 1.0, 0.25, -0.2, 3.0, 0.25, True),
    ("a", 1.0, 0.5, -0.3, 1.0, 0.5, True),
    ("b", 0.0, 0.0, -0.1, 0.0, 1.0, False),
    ("c", 0.0, 0.0, 0.0, 0.5, 1 / 1.5, False),
    ("c", 0.0, 0.0, 0.0, 0.25, 0.8, False),
    ("d", -1.0, -0.5, -0.6, 1.0, 0.5, False),
    ("d", 2.0, 1.6, 0.6, 0.25, 0.8, False),
    ("e", 1.0, 0.9, 0.0, 0.1, 0.9, False),
    ("e", 1.0, 0.8, -0.1, 0.25, 0.8, False),
]
# Of siblings, and whether they are of one cluster.
PAIRS = [(0.95, True), (0.99, True), (0.2, False), (0.5, False), (0.3, False), (0.91, True)]
PATHS = {"a": 1.0, "b": 2.0, "c": 1.5, "d": 1.25, "e": 1.75}
# Numbers that no two metrics share.
EVENTS = Events(*(1000 + i for i, _ in enumerate(fields(Events))))
CAME = {"missing_rows": 7, "fallbacks": 5, "tokens": 400, "truncated_tokens": 60, "unknown_tokens": 30, "cached": 4}


def made(
    without_scores: str = "", adjusted_all: bool = False, sessions: Any = SESSIONS, **came: int
) -> tuple[Step, StepScores, StepVectors]:
    """The step whose sessions are SESSIONS; the groups `without_scores` have none, as where their vectors are lost.

    With `adjusted_all` they are adjusted all the same, as where SMI is only shown.
    """
    seen: dict[str, int] = {}
    keys = []
    for uid, *_ in sessions:
        seen[uid] = seen.get(uid, -1) + 1
        keys.append(f"{uid}_{seen[uid]}_0")
    rows = Rows.of(keys, [False] * len(keys))
    raw, adjusted, advantage, smi, weights = (torch.tensor([row[i] for row in sessions]) for i in range(1, 6))
    scored = torch.tensor([row[0] not in without_scores for row in sessions])
    step = Step(rows, smi, weights, torch.ones_like(scored) if adjusted_all else scored, "grpo", "paper")
    step.raw, step.adjusted, step.advantage = raw, adjusted, advantage
    scores = StepScores(
        smi=torch.where(scored, smi, 0),
        duplicate=torch.tensor([row[6] for row in sessions]) & scored,
        scored=scored,
        effective_paths=torch.tensor(
            [math.nan if uid in without_scores else PATHS[uid] for uid in sorted(seen)], dtype=torch.float64
        ),
        pairs=pairs_of(PAIRS),
        empty=3,
        vectors=torch.eye(len(sessions)),
        index=torch.arange(len(sessions)),
    )
    values = {**CAME, **came}
    vectors = StepVectors(
        np.eye(len(keys)), np.arange(len(keys)), **values, replaced=2, backlog_bytes=4096, events=EVENTS
    )
    return step, scores, vectors


def pairs_of(pairs: list[tuple[float, bool]]) -> CosinePairs:
    return CosinePairs(torch.tensor([c for c, _ in pairs], dtype=torch.float64), torch.tensor([w for _, w in pairs]))


def cosines(name: str, values: list[float]) -> dict[str, float]:
    return {f"cosine/{name}p{percent}": float(np.percentile(values, percent)) for percent in (10, 50, 90)}


def expected(without_scores: str, adjusted_all: bool, sessions: Any, came: StepVectors) -> dict[str, float]:
    """By loops."""
    scored = [row for row in sessions if row[0] not in without_scores]
    weighted = sessions if adjusted_all else scored
    uids = {row[0] for row in sessions}
    of_group = {uid: [row for row in sessions if row[0] == uid] for uid in uids}
    right = [row for row in sessions if row[1] > 0]
    found: dict[str, float] = {"strength": 1.0, "adjusted_frac": 1.0}
    if scored:
        for name, some in (("", (True, False)), ("within/", (True,)), ("across/", (False,))):
            found |= cosines(name, [c for c, within in PAIRS if within in some])
        paths = [PATHS[uid] for uid in uids if uid not in without_scores]
        found["smi/mean"] = sum(row[4] for row in scored) / len(scored)
        found["effective_paths"] = sum(paths) / len(paths)
        found["duplicates_frac"] = sum(row[6] for row in scored) / len(scored)
    if weighted:
        found["weight/mean"] = sum(row[5] for row in weighted) / len(weighted)
        found["weight/min"] = min(row[5] for row in weighted)
    for at, name in ((1, "raw"), (2, "adjusted"), (5, "weight")):
        equal = [uid for uid, rows in of_group.items() if len({row[at] for row in rows}) == 1]
        found[f"zero_std_frac/{name}"] = len(equal) / len(uids)
    found |= {
        "correct_negative_adv_frac": sum(row[3] < 0 for row in right) / len(right) if right else 0.0,
        "missing_rows": 7,
        "fallbacks": 5,
        "unadjusted_groups": 0 if adjusted_all else len(uids & set(without_scores)),
        "empty_rows": 3,
        "replaced_rows": 2,
        "refused_rows": EVENTS.refused,
        "unsent_rows": EVENTS.unsent,
        "skipped_rows": EVENTS.skipped,
        "late_rows": EVENTS.late,
        "evicted_rows": EVENTS.evicted,
        "truncated_tokens_frac": 60 / 400 if came.tokens else 0.0,
        "unknown_tokens_frac": 30 / 400 if came.tokens else 0.0,
        "cached_frac": came.cached / len(sessions),
        "scorers/backlog_bytes": 4096,
    }
    return {f"dra/{name}": value for name, value in found.items()}


@pytest.mark.parametrize(
    ("without_scores", "adjusted_all"), [("", False), ("b", False), ("abcde", False), ("bd", True), ("abcde", True)]
)
def test_each_metric_of_a_step_is_what_it_is_called(without_scores: str, adjusted_all: bool) -> None:
    step, scores, came = made(without_scores, adjusted_all)
    metrics = step_metrics(step, scores, came)
    assert metrics == pytest.approx(expected(without_scores, adjusted_all, SESSIONS, came), rel=1e-6)
    assert set(COUNTS) <= set(metrics)


def test_nothing_is_divided_by_nothing() -> None:
    wrong = [(uid, -1.0, *rest) for uid, _, *rest in SESSIONS]
    step, scores, came = made(sessions=wrong, tokens=0, truncated_tokens=0, unknown_tokens=0, cached=0)
    metrics = step_metrics(step, scores, came)
    assert metrics == pytest.approx(expected("", False, wrong, came), rel=1e-6)
    assert metrics["dra/correct_negative_adv_frac"] == metrics["dra/truncated_tokens_frac"] == 0


def test_rewards_that_rounding_alone_tells_apart_are_equal() -> None:
    nearly = [("a", 1.0, 1.0, 0.0, 0.0, 1.0, False), ("a", 1.0 + 5e-7, 1.0 + 5e-6, 0.0, 0.0, 1.0, False)]
    metrics = step_metrics(*made(sessions=nearly))
    assert (metrics["dra/zero_std_frac/raw"], metrics["dra/zero_std_frac/adjusted"]) == (1, 0)


def test_what_becomes_of_records_is_counted_in_groups() -> None:
    assert record_metrics({"recorded": 3, "thinned": 0}) == {"dra/recorded_groups": 3, "dra/thinned_groups": 0}


def test_a_gate_keeps_others_out_of_the_metrics_of_smi() -> None:
    step, scores, came = made(without_scores="d")
    step.inside = torch.tensor([row[1] > 0 for row in SESSIONS])
    step.strength = 0.5
    metrics = step_metrics(step, scores, came)
    among = [row[4] for row in SESSIONS if row[1] > 0 and row[0] != "d"]
    assert metrics["dra/smi/mean"] == pytest.approx(sum(among) / len(among))
    assert metrics["dra/adjusted_frac"] == pytest.approx(6 / 10)
    assert metrics["dra/strength"] == 0.5
    step.inside = torch.zeros(len(SESSIONS), dtype=torch.bool)
    assert "dra/smi/mean" not in step_metrics(step, scores, came)


def test_dra_that_is_off_says_so() -> None:
    step, scores, came = made(without_scores="abcde", adjusted_all=True)
    step.strength = 0.0
    metrics = step_metrics(step, scores, came)
    assert (metrics["dra/strength"], metrics["dra/adjusted_frac"], metrics["dra/unadjusted_groups"]) == (0, 0, 0)
    assert not [name for name in metrics if name.startswith(("dra/smi", "dra/cosine", "dra/effective"))]


def test_cosines_of_one_kind_alone_have_no_quantiles_of_the_other() -> None:
    step, scores, came = made()
    for within, there, absent in ((True, "within", "across"), (False, "across", "within")):
        metrics = step_metrics(step, replace(scores, pairs=pairs_of([(0.5, within)])), came)
        assert metrics[f"dra/cosine/{there}/p50"] == metrics["dra/cosine/p10"] == 0.5
        assert f"dra/cosine/{absent}/p50" not in metrics
    none = CosinePairs(torch.zeros(0, dtype=torch.float64), torch.zeros(0, dtype=torch.bool))
    assert not [name for name in step_metrics(step, replace(scores, pairs=none), came) if "cosine" in name]


def test_groups_that_a_filter_took_count_where_they_are_right() -> None:
    assert filter_metrics({DAPO_FILTERED_REWARD_COUNTS_KEY: {1.0: 3, 0.5: 1, 0.0: 5, -1.0: 2}}) == {
        "dra/filtered_groups": 4
    }
    assert filter_metrics({"critic/score/mean": 1.0}) == {"dra/filtered_groups": 0}


def test_the_table_of_metrics_has_all_that_there_are_and_no_more(tmp_path: Path) -> None:
    recorder = Recorder(RecordConfig(every_n_steps=1, folder=str(tmp_path)))
    there = {
        *step_metrics(*made()),
        *record_metrics(recorder.counts()),
        *filter_metrics({}),
        *Load(tokens=1, tokens_per_s=1.0, busy_s=1.0, scorers=1, step_s=1.0, wait_s=1.0).metrics(),
        *StepGroupings({"a": np.ones((2, 2), np.float32)}).metrics(),
        "dra/partition/wait_s",
        # What veRL's timer makes of `dra_wait` and `dra_record`, seen in trainings.
        *("timing_s/dra_wait", "timing_s/dra_record"),
    }
    recorder.close()
    assert there == set(METRICS)
