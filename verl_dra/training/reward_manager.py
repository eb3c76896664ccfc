"""veRL's reward manager, with each finished completion on its way to a diversity scorer."""

from __future__ import annotations

from typing import Any

from omegaconf import DictConfig
from verl import DataProto
from verl.experimental.reward_loop.reward_manager.base import RewardManagerBase

from verl_dra.config.reward_managers import base_reward_manager
from verl_dra.config.schedule import Schedule
from verl_dra.scorer.client import ScorerClient
from verl_dra.scorer.messages import Session
from verl_dra.training.text import diversity_texts
from verl_dra.training.validation import is_validation


class DRARewardManager(RewardManagerBase):
    """Rewards of `dra.base_reward_manager`, unchanged; completions go to their scorer without waiting.

    veRL makes one in every reward worker (`reward.reward_manager`), with the arguments of its own managers.
    """

    def __init__(self, config: DictConfig, tokenizer: Any, compute_score: Any, **kwargs: Any) -> None:
        super().__init__(config, tokenizer, compute_score)
        self._base: RewardManagerBase = base_reward_manager(config.dra.base_reward_manager)(
            config=config, tokenizer=tokenizer, compute_score=compute_score, **kwargs
        )
        self._scorers = ScorerClient(config.dra.scorer.name)
        self._strength = Schedule.of(config.dra.strength)
        self._which: str = config.dra.text

    async def run_single(self, data: DataProto) -> dict[str, Any]:
        """The base manager's reward and extra info for one trajectory (its outputs are the rows of `data`)."""
        final = data[-1]
        if not {"uid", "session_id"} <= final.non_tensor_batch.keys():
            # A colocated reward model scores the sampled batch, whose rows veRL 0.9.1 strips of their names; the
            # trainer fetches the texts then.
            return await self._rewarded(data)
        session = Session(str(final.non_tensor_batch["uid"]), int(final.non_tensor_batch["session_id"]))
        # The step that the prompt was drawn for; an asynchronous trainer may train on it in a later one, and fetches it
        # where that one wants it.
        step = final.non_tensor_batch.get("global_steps")
        off = step is not None and not self._strength.at(int(step))
        # Which tokens are the policy's own veRL 0.9.1 tells the trainer alone.
        if is_validation(final.non_tensor_batch) or off or self._which == "assistant":
            self._scorers.skip(session)
            return await self._rewarded(data)
        responses = final.batch["responses"]
        # `response_len` leaves out the padding that a trajectory of several outputs brings.
        length = final.non_tensor_batch.get("response_len")
        if length is None:
            length = final.batch["attention_mask"][-responses.shape[-1] :].sum()
        response = [responses[: int(length)]]
        (text,) = await self.loop.run_in_executor(None, diversity_texts, self._which, self.tokenizer, response)
        self._scorers.submit(session, text)
        return await self._rewarded(data)

    async def _rewarded(self, data: DataProto) -> dict[str, Any]:
        reward: dict[str, Any] = await self._base.run_single(data)
        return reward
