"""DRA as a reward function of TRL's GRPOTrainer, over true groups on however many processes."""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence
from typing import Any

from torch import distributed

from verl_dra import dra_rewards
from verl_dra.embedding import Encoder

RewardFunction = Callable[..., Sequence["float | None"]]


def with_dra(reward_function: RewardFunction, encoder: Encoder | None = None, **options: Any) -> RewardFunction:
    """`reward_function` with its rewards divided by 1 + SMI, among the completions of a prompt.

    TRL calls a reward function on the rows of one process, which may hold a part of a group: all processes' rows are
    brought together here first, as TRL does with rewards afterwards. Equal prompts of a batch are one group.

    Args:
        reward_function: as TRL takes it; rows for which it gives None keep that and are in no group. Of several reward
            functions wrap one that adds them up.
        encoder, options: as `verl_dra.dra_rewards` takes them.
    """

    def adjusted(prompts: Sequence[Any], completions: Sequence[Any], **columns: Any) -> list[float | None]:
        rewards = reward_function(prompts=prompts, completions=completions, **columns)
        mine = [
            (json.dumps(prompt), _text(completion), reward)
            for prompt, completion, reward in zip(prompts, completions, rewards, strict=True)
        ]
        everyones, start = _of_all_processes(mine)
        rewarded = [row for row in everyones if row[2] is not None]
        found: list[float] = []
        if rewarded:
            groups, texts, raw = zip(*rewarded, strict=True)
            found = dra_rewards(texts, raw, groups, encoder, **options).tolist()
        of_row = iter(found)
        results = [None if reward is None else next(of_row) for _, _, reward in everyones]
        return results[start : start + len(mine)]

    adjusted.__name__ = f"dra_{getattr(reward_function, '__name__', 'reward')}"
    return adjusted


def _text(completion: Any) -> str:
    """What the model wrote: of a conversation, its own messages."""
    if isinstance(completion, str):
        return completion
    return "\n".join(str(message.get("content") or "") for message in completion if message["role"] == "assistant")


def _of_all_processes(rows: list[Any]) -> tuple[list[Any], int]:
    """Everyone's rows in the order of the processes, and where one's own begin."""
    if not (distributed.is_available() and distributed.is_initialized()):
        return rows, 0
    gathered: list[Any] = [None] * distributed.get_world_size()
    distributed.all_gather_object(gathered, rows)
    before = gathered[: distributed.get_rank()]
    return [row for part in gathered for row in part], sum(map(len, before))
