"""Groups of a batch as partitions look at them: prompts, texts, rewards and right answers together."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from verl_dra.partition.answers import FoundAnswers
from verl_dra.partition.looking import FetchGroups
from verl_dra.partition.partition import PromptGroup
from verl_dra.partition.step import members
from verl_dra.scorer.asking import FetchTexts
from verl_dra.training.rows import Rows
from verl_dra.training.text import completion_text
from verl_dra.training.transfer import fetch_columns


def group_fetcher(batch: Any, rows: Rows, tokenizer: Any, texts_of: FetchTexts) -> FetchGroups:
    """What gives groups of `batch`, whole; other threads may fetch of it meanwhile.

    Args:
        batch: veRL's batch, whose rows veRL still keeps.
        rows: those of it.
        tokenizer: the policy's.
        texts_of: gives texts of sessions of `batch`.
    """
    of_uid, final = members(rows.names), rows.real_final

    def groups_of(uids: Sequence[str]) -> list[PromptGroup]:
        places = [place for uid in uids for place in of_uid[uid]]
        texts = texts_of([rows.names[place] for place in places])
        rewards = dict(zip(places, rewards_of(batch, [final[place] for place in places]).tolist(), strict=True))
        data = fetch_columns(batch, [final[of_uid[uid][0]] for uid in uids], ["prompts", "reward_model"])
        reward_models = data.pop("reward_model", None)
        truths = [{} for _ in uids] if reward_models is None else reward_models.tolist()
        groups = []
        for uid, prompt, truth in zip(uids, data["prompts"].unbind(), truths, strict=True):
            of_group = [texts[rows.names[place]] for place in of_uid[uid]]
            right = truth.get("ground_truth")
            groups.append(
                PromptGroup(
                    uid,
                    completion_text(tokenizer, prompt),
                    of_group,
                    [rewards[place] for place in of_uid[uid]],
                    FoundAnswers(of_group),
                    None if right is None else str(right),
                )
            )
        return groups

    return groups_of


def rewards_of(batch: Any, rows: Sequence[int]) -> Tensor:
    """[n] float32: what the reward manager gave some rows of a batch."""
    data = fetch_columns(batch, rows, ["rm_scores"])
    return torch.stack([scores.float().sum() for scores in data["rm_scores"].unbind()])
