"""What is recorded of a training batch: its sampled groups, from TransferQueue, the estimator and the scorers."""

from __future__ import annotations

from typing import Any, cast

import transfer_queue as tq
from torch import Tensor

from verl_dra.config import DRAConfig
from verl_dra.estimator import Step
from verl_dra.record import recorded_group
from verl_dra.scorer.pool import StepScores
from verl_dra.text import completion_text


def groups_of_batch(
    batch: Any, number: int, uids: list[str], step: Step, scores: StepScores, dra: DRAConfig, tokenizer: Any
) -> list[dict[str, Any]]:
    """The groups `uids` of a batch as they are recorded.

    Args:
        batch: veRL's batch, whose rows are still in TransferQueue.
        number: the training step.
        uids: groups of it.
        step: what the estimator made of it, `advantage_without` included.
        scores: what the scorers said, with the similarities of those groups.
        dra: the group `dra` of the configuration.
        tokenizer: decodes the prompts and the completions.
    """
    assert step.raw is not None
    assert step.adjusted is not None
    assert step.advantage is not None
    assert step.advantage_without is not None
    places: dict[str, list[int]] = {uid: [] for uid in uids}
    for place, name in enumerate(step.rows.names):
        if name.uid in places:
            places[name.uid].append(place)
    order = [place for of_group in places.values() for place in of_group]
    data = tq.kv_batch_get(
        keys=[batch.keys[step.rows.final[step.rows.real[place]]] for place in order],
        partition_id=batch.partition_id,
        select_fields=["prompts", "responses", "reward_model"],
    )
    fetched = {place: at for at, place in enumerate(order)}
    prompts, responses = list(data["prompts"].unbind()), list(data["responses"].unbind())
    reward_models = data.pop("reward_model").tolist()
    columns: dict[str, Tensor] = {
        "reward": step.raw,
        "adjusted": step.adjusted,
        "smi": step.smi,
        "weight": step.weights,
        "advantage": step.advantage,
        "advantage_without": step.advantage_without,
    }
    groups = []
    for uid, of_group in places.items():
        first, shown = fetched[of_group[0]], scores.shown.get(uid)
        truth = reward_models[first].get("ground_truth")
        groups.append(
            recorded_group(
                completion_text(tokenizer, prompts[first]),
                [completion_text(tokenizer, responses[fetched[place]]) for place in of_group],
                {
                    "session": [step.rows.names[place].session_id for place in of_group],
                    **{name: column[of_group].tolist() for name, column in columns.items()},
                    "duplicate": scores.duplicate[of_group].tolist(),
                },
                None if shown is None else shown.similarity,
                dra.record.max_characters,
                step=number,
                uid=uid,
                ground_truth=None if truth is None else str(truth),
                smi=dra.smi,
                weight=dra.weight,
                base_estimator=cast(str, dra.base_estimator),
                scored=shown is not None,
                effective_paths=None if shown is None else shown.effective_paths,
            )
        )
    return groups
