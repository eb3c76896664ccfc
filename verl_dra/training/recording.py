"""What is recorded of a training batch: its sampled groups, of the batch, the estimator and the scorers."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, cast

import numpy as np
import torch
from torch import Tensor

from verl_dra.config import DRAConfig
from verl_dra.partition.step import StepGroupings, members
from verl_dra.record import recorded_group
from verl_dra.scorer.scores import StepScores
from verl_dra.training.estimator import Step
from verl_dra.training.text import completion_text
from verl_dra.training.transfer import fetch_columns


@dataclass(frozen=True)
class FetchedGroup:
    """A group of a batch whose texts are tokens still: a step fetches it, and need not wait until it is decoded."""

    prompt: Tensor
    responses: Sequence[Tensor]
    numbers: Mapping[str, Sequence[Any]]
    similarity: np.ndarray | None
    about: Mapping[str, Any]

    def record(self, tokenizer: Any, max_characters: int) -> dict[str, Any]:
        """The group as `recorded_group` has it."""
        return recorded_group(
            completion_text(tokenizer, self.prompt),
            [completion_text(tokenizer, response) for response in self.responses],
            self.numbers,
            self.similarity,
            max_characters,
            **self.about,
        )


def fetched_groups(
    batch: Any,
    number: int,
    uids: Sequence[str],
    step: Step,
    scores: StepScores,
    dra: DRAConfig,
    groupings: StepGroupings | None = None,
) -> list[FetchedGroup]:
    """The groups `uids` of a batch.

    Args:
        batch: veRL's batch, whose rows veRL still keeps.
        number: the training step.
        uids: groups of it.
        step: what the estimator made of it.
        scores: what its vectors say.
        dra: the group `dra` of the configuration.
        groupings: what a partition said, where the weights are of one.
    """
    assert step.raw is not None
    assert step.adjusted is not None
    assert step.advantage is not None
    places: dict[str, list[int]] = {uid: [] for uid in uids}
    for place, name in enumerate(step.rows.names):
        if name.uid in places:
            places[name.uid].append(place)
    order = [place for of_group in places.values() for place in of_group]
    final = step.rows.real_final
    data = fetch_columns(batch, [final[place] for place in order], ["prompts", "responses", "reward_model"])
    fetched = {place: at for at, place in enumerate(order)}
    prompts, responses = list(data["prompts"].unbind()), list(data["responses"].unbind())
    reward_models = data.pop("reward_model", None)
    truths = [{} for _ in order] if reward_models is None else reward_models.tolist()
    without, group = step.advantage_without, step.rows.group
    columns: dict[str, Tensor] = {
        "reward": step.raw,
        "adjusted": step.adjusted,
        "smi": step.smi,
        "weight": step.weights,
        "advantage": step.advantage,
        "advantage_without": torch.full_like(step.advantage, torch.nan) if without is None else without,
    }
    groups = []
    ordered = members(step.rows.names)
    for uid, of_group in places.items():
        first, embedded = fetched[of_group[0]], bool(scores.scored[of_group[0]])
        scored, ways = embedded, None
        if groupings is not None:
            scored, ways = groupings.knows(uid), groupings.ways(uid)
        truth = truths[first].get("ground_truth")
        groups.append(
            FetchedGroup(
                prompts[first],
                [responses[fetched[place]] for place in of_group],
                {
                    "session": [step.rows.names[place].session_id for place in of_group],
                    **{name: column[of_group].tolist() for name, column in columns.items()},
                    "duplicate": scores.duplicate[of_group].tolist(),
                    **({} if ways is None else {"way": [ways[ordered[uid].index(place)] for place in of_group]}),
                },
                scores.similarity(of_group) if embedded else None,
                {
                    "step": number,
                    "uid": uid,
                    "ground_truth": None if truth is None else str(truth),
                    "text": dra.text,
                    "smi": dra.smi,
                    "weight": dra.weight,
                    "strength": step.strength,
                    "cosine": f"power {dra.cosine_power:g}" if dra.cosine == "power" else dra.cosine,
                    "among": dra.among,
                    "base_estimator": cast(str, dra.base_estimator),
                    "scored": scored,
                    "effective_paths": scores.effective_paths[group[of_group[0]]].item() if embedded else None,
                    **({} if groupings is None else {"partition": dra.partition.by}),
                },
            )
        )
    return groups
