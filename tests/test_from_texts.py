"""`verl_dra.dra_rewards`: texts, rewards and groups in, adjusted rewards out, as the estimator has them."""

from __future__ import annotations

import numpy as np
import oracles
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from omegaconf import OmegaConf
from verl.trainer.ppo.core_algos import compute_grpo_outcome_advantage

import verl_dra
from verl_dra.embedding import encode_all
from verl_dra.embedding.ngram import NgramEncoder
from verl_dra.training.estimator import Step, compute_dra_advantage, estimating
from verl_dra.training.rows import Rows

ENCODER = NgramEncoder()
WAYS = st.sampled_from(["add both sides", "add both sides twice", "draw a graph", "guess", "", "count them all"])
COMPLETIONS = st.lists(st.tuples(WAYS, st.floats(-2, 2, width=32), st.sampled_from("abc")), min_size=1, max_size=12)


@settings(max_examples=60, deadline=None)
@given(COMPLETIONS, st.sampled_from(["graph_cut", "clusters"]))
def test_rewards_are_those_of_the_formula(rows: list[tuple[str, float, str]], smi: str) -> None:
    texts, rewards, groups = zip(*rows, strict=True)
    found = verl_dra.dra_rewards(texts, rewards, groups, ENCODER, smi=smi)
    vectors = encode_all(ENCODER, texts).numpy()
    value = {"graph_cut": oracles.graph_cut_smi, "clusters": oracles.cluster_smi}[smi](vectors, np.array(groups))
    expected = oracles.adjust(np.array(rewards, dtype=np.float64), oracles.weights(value), np.array(groups))
    np.testing.assert_allclose(found, expected, atol=1e-5)


def test_grpo_makes_the_estimators_advantages_of_them() -> None:
    texts = ["add", "add both", "draw", "guess", "draw", "count", "count"]
    uids, rewards = np.array(list("aabbabb"), dtype=object), torch.tensor([1.0, 0.5, 1.0, 0.0, 1.0, -1.0, 1.0])
    rows = Rows.of([f"{uid}_{at}_0" for at, uid in enumerate(uids)], [False] * len(texts))
    smi = verl_dra.graph_cut_smi(encode_all(ENCODER, texts), rows.group)
    weights = verl_dra.diversity_weights(smi)
    step = Step(rows, smi, weights, torch.ones(len(texts), dtype=torch.bool), "grpo", "paper")
    config = OmegaConf.create({"gamma": 1.0, "lam": 1.0})
    with estimating(step):
        advantages, _ = compute_dra_advantage(rewards[:, None], torch.ones(len(texts), 1), uids, config)
    found = verl_dra.dra_rewards(texts, rewards, list(uids), ENCODER)
    expected, _ = compute_grpo_outcome_advantage(found[:, None], torch.ones(len(texts), 1), uids)
    torch.testing.assert_close(advantages, expected)
    assert advantages.abs().min() > 0


def test_a_rare_right_way_keeps_its_reward() -> None:
    texts = ["Add 3 and 4 to get 7, then double it: 14."] * 3 + ["Draw 14 dots and count them one by one."]
    found = verl_dra.dra_rewards(texts, [1.0] * 4, ["q"] * 4).tolist()
    assert found[0] == found[1] == found[2] < 0.4 < found[3]


def test_groups_may_be_numbers_in_any_order() -> None:
    texts, rewards = ["add", "draw", "add", "add"], torch.tensor([1.0, 1.0, 1.0, 1.0])
    found = verl_dra.dra_rewards(texts, rewards, torch.tensor([7, 7, 3, 7]), ENCODER)
    assert found[2] == 1
    assert found[0] == found[3] < 1


@pytest.mark.parametrize(
    ("texts", "rewards", "groups", "options", "says"),
    [
        ([], [], [], {}, "0 texts, 0 rewards and 0 groups: .* one at least"),
        (["a"], [1.0, 2.0], ["q"], {}, "1 texts, 2 rewards and 1 groups: there must be as many"),
        (["a", "b"], [1.0, float("nan")], ["q", "q"], {}, r"rewards\[1\] \(group 0\) is nan"),
        (["a"], [1.0], ["q"], {"smi": "cosine"}, "smi must be one of graph_cut, .*, not 'cosine'"),
    ],
)
def test_what_is_wrong_is_said(
    texts: list[str], rewards: list[float], groups: list[str], options: dict[str, str], says: str
) -> None:
    with pytest.raises(ValueError, match=says):
        verl_dra.dra_rewards(texts, rewards, groups, ENCODER, **options)  # type: ignore[arg-type]
