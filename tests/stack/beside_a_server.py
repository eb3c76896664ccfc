"""A training beside vLLM's own server of a classifier of pairs, which is lost in mid-step: `make test-servers`.

Some minutes long, so that CI leaves it out.
"""

from __future__ import annotations

import math
from hashlib import sha256
from itertools import combinations
from pathlib import Path
from typing import Any

import kept_server
import numpy as np
import oracles
import partition_servers
import partition_toys
import pytest
import torch
import toy
from test_training import assert_advantages_of, train
from transformers import AutoModelForSequenceClassification, AutoTokenizer

pytestmark = [pytest.mark.slow, pytest.mark.timeout(900)]


def recomputed_by_pairs(step: dict[str, Any], toy_folder: Path, classifier: Path) -> np.ndarray:
    """float64 advantage of each row; how alike two texts are is what the classifier itself makes of them."""
    tokenizer = AutoTokenizer.from_pretrained(toy_folder / "model")
    texts = [tokenizer.decode(ids, skip_special_tokens=True) for ids in step["responses"]]
    model = AutoModelForSequenceClassification.from_pretrained(classifier).eval()
    of_pair = AutoTokenizer.from_pretrained(classifier)
    rewards = np.array([sum(scores) for scores in step["rm_scores"]], dtype=np.float64)
    group = np.array([key.rsplit("_", 2)[0] for key in step["keys"]])
    smi = np.zeros(len(texts))
    for i, j in combinations(range(len(texts)), 2):
        if group[i] == group[j] and texts[i].strip() and texts[j].strip():
            # As verl_dra/partition/README.md has it: the text of the smaller SHA-256 comes first.
            pair = sorted((texts[i], texts[j]), key=lambda text: sha256(text.encode()).digest())
            with torch.no_grad():
                logit = model(**of_pair(*pair, return_tensors="pt")).logits.item()
            likeness = 1.0 if texts[i] == texts[j] else 1 / (1 + math.exp(-logit))
            smi[[i, j]] += likeness
    return oracles.grpo(oracles.adjust(rewards, oracles.weights(smi), group), group)


def test_a_classifier_of_pairs_that_is_killed_in_mid_step_changes_no_advantage(
    tmp_path: Path,
) -> None:
    toy.make(toy_folder := tmp_path / "toy")
    classifier = tmp_path / "classifier"
    partition_toys.make_pair_classifier(classifier)
    run = train(
        toy_folder,
        tmp_path,
        [
            *("trainer.total_training_steps=2", "data.max_response_length=12"),
            *("dra.partition.by=pairs", f"dra.partition.model={partition_servers.MODEL}"),
            *(f"dra.partition.base_url={kept_server.URL}", "dra.partition.api_key_env=PAIRS_KEY"),
            "dra.partition.max_retries=0",
        ],
        SERVE=str(classifier),
        PAIRS_KEY=partition_servers.KEY,
        KILL="2:sampled:server",
    )
    assert len(run.steps) == 2
    for step in run.steps:
        assert_advantages_of(step, recomputed_by_pairs(step, toy_folder, classifier))
        assert step["metrics"]["dra/partition/calls"] >= 4
        assert step["metrics"]["dra/partition/truncated_rows"] == 0
    before, after = run.metric("dra/partition/fallbacks")
    assert before == 0 < after
