"""Whether completions reach the scorers while others are still generated."""

from __future__ import annotations

from omegaconf import DictConfig


def why_not_streamed(config: DictConfig) -> str | None:
    """Why a run fetches all texts after the generation: veRL 0.9.1 hands reward managers no completions until then, or
    not what is needed of them.

    None where it does. Agent loops that set their own score can't be seen here.
    """
    if config.dra.text == "assistant":
        return "dra.text=assistant: veRL tells reward managers not which tokens are the policy's own"
    reward = config.reward
    if reward.reward_model.enable and not reward.reward_model.enable_resource_pool:
        return "reward.reward_model.enable_resource_pool=False: the reward model scores when all is generated"
    return None
