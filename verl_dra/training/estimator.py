"""The advantage estimator `dra`: rewards times their weights, 1 / (1 + SMI), then the base estimator."""

from __future__ import annotations

import logging
import time
from collections.abc import Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor
from verl import DataProto
from verl.trainer.ppo.core_algos import get_adv_estimator_fn, register_adv_est
from verl.trainer.ppo.ray_trainer import compute_advantage

from verl_dra.algorithm import NegativeRewards, adjust_rewards, kept_scale
from verl_dra.training.rows import Rows

logger = logging.getLogger(__name__)

NAME = "dra"


@dataclass
class Step:
    """What the estimator needs beside veRL's arguments, and what came of it. n sessions, padding left out."""

    rows: Rows
    smi: Tensor
    """[n] float32: SMI of each session's final output; 0 where it is not scored."""
    weights: Tensor
    """[n] float32 in (0, 1]: what each session's reward is multiplied by, `fill_unscored` where it is not scored."""
    scored: Tensor
    """[n] bool: False where a group has no scores."""
    base_estimator: str
    negative_rewards: NegativeRewards
    strength: float = 1.0
    """What the weights have been raised to the power of; 0 where DRA is off."""
    inside: Tensor | None = None
    """[n] bool: those that a weight acts on, where a gate keeps others out, whose weight is 1; None for all."""
    keep_scale: bool = False
    """Whether adjusted rewards are divided by the batch's mean weight."""
    epsilon: float | None = None
    """What the base estimator adds to a standard deviation; None for its own."""
    raw: Tensor | None = None
    """[n] rewards as the reward manager gave them (with veRL's KL penalty where that is in the reward)."""
    adjusted: Tensor | None = None
    """[n] rewards that the base estimator got."""
    advantage: Tensor | None = None
    """[n] advantage at the first token of the session's final output."""
    compare: bool = False
    """Whether `advantage_without` is wanted."""
    advantage_without: Tensor | None = None
    """[n] what the base estimator gives there for the raw rewards; None where it fails, or is none of veRL's, which may
    have a state that a call more changes."""
    compare_s: float = 0.0
    """Seconds that it took."""


_current: ContextVar[Step | None] = ContextVar("dra_step", default=None)


@contextmanager
def estimating(step: Step) -> Iterator[None]:
    """Make `step` the one that the estimator works on; veRL's own call has no place for it."""
    token = _current.set(step)
    try:
        yield
    finally:
        _current.reset(token)


def compute_dra_advantage(
    token_level_rewards: Tensor,
    response_mask: Tensor,
    index: np.ndarray,
    config: Any,
    **_: Any,
) -> tuple[Tensor, Tensor]:
    """veRL's estimator interface (registered as `dra`): advantages and returns, each [N, length].

    Rewards of each session's final output are adjusted (arXiv 2505.09655) and go through the base estimator as veRL
    calls it. The other outputs of a session get its advantage, as veRL does for grpo. Padding rows get 0 and are kept
    from the base estimator: veRL 0.9.1's opo makes NaN of them, and its grpo_passk stops at a single one.

    Args:
        token_level_rewards: [N, length] float.
        response_mask: [N, length].
        index: [N] uids.
        config: veRL's `algorithm` section.
    """
    step = _current.get()
    if step is None:
        raise RuntimeError(
            "the estimator 'dra' needs verl_dra's trainer: start the run by `verl-dra train` or "
            "`python -m verl_dra.main`, not by verl.trainer.main_ppo"
        )
    real = step.rows.real_final
    uids, mask = index[real], response_mask[real]
    first = torch.arange(len(real)), mask.argmax(dim=1)
    of_real, returns_of_real = _base(step, _adjusted(step, token_level_rewards[real], mask), mask, uids, config)
    step.advantage = of_real[first]
    if step.compare and _is_verls(step.base_estimator):
        started = time.perf_counter()
        try:
            step.advantage_without = _base(step, token_level_rewards[real].clone(), mask, uids, config)[0][first]
        except Exception as error:  # what is only recorded must not end the run
            logger.warning("%s has no advantages of the raw rewards: %r", step.base_estimator, error)
        step.compare_s = time.perf_counter() - started
    per_session = token_level_rewards.new_zeros(len(step.rows.final))
    per_session[step.rows.real] = step.advantage
    advantages = per_session[step.rows.session].unsqueeze(1) * response_mask
    returns = advantages.clone()
    advantages[real], returns[real] = of_real, returns_of_real
    return advantages, returns


def register() -> None:
    """Make `algorithm.adv_estimator=dra` known to veRL in this process."""
    register_adv_est(NAME)(compute_dra_advantage)


def _is_verls(name: str) -> bool:
    module: str = get_adv_estimator_fn(name).__module__  # type: ignore[no-untyped-call]
    return module.partition(".")[0] == "verl"


def _base(step: Step, tokens: Tensor, mask: Tensor, uids: np.ndarray, config: Any) -> tuple[Tensor, Tensor]:
    """The base estimator's advantages and returns, each [n, length], of token-level rewards."""
    if step.epsilon is not None:
        return _with_epsilon(step, tokens, mask, uids, config)
    data = compute_advantage(
        DataProto.from_dict(
            tensors={"token_level_rewards": tokens, "response_mask": mask},
            non_tensors={"uid": uids},
        ),
        adv_estimator=step.base_estimator,  # type: ignore[arg-type]  # veRL takes registered names as well
        gamma=config.gamma,
        lam=config.lam,
        norm_adv_by_std_in_grpo=config.get("norm_adv_by_std_in_grpo", True),
        config=config,
    )
    found: dict[str, Tensor] = data.batch
    return found["advantages"], found["returns"]


def _with_epsilon(step: Step, tokens: Tensor, mask: Tensor, uids: np.ndarray, config: Any) -> tuple[Tensor, Tensor]:
    """As `_base`: veRL's `compute_advantage` passes each function the same, but for epsilon."""
    of_grpo = {"norm_adv_by_std_in_grpo": config.get("norm_adv_by_std_in_grpo", True)}
    found: tuple[Tensor, Tensor] = get_adv_estimator_fn(step.base_estimator)(  # type: ignore[no-untyped-call]
        token_level_rewards=tokens,
        response_mask=mask,
        index=uids,
        config=config,
        epsilon=step.epsilon,
        **(of_grpo if step.base_estimator == "grpo" else {}),
    )
    return found


def _adjusted(step: Step, tokens: Tensor, mask: Tensor) -> Tensor:
    """Adjusted token-level rewards [n, length] of the real sessions' final outputs, from theirs.

    Rewards scale token by token; what a policy for negative rewards adds goes to the last token.
    """
    step.raw = tokens.sum(dim=1)
    weights = step.weights.to(tokens.dtype)
    step.adjusted = adjust_rewards(step.raw, weights, step.rows.group, negative=step.negative_rewards)
    if step.keep_scale:
        # What is multiplied by no weight is divided by none.
        acted = torch.ones_like(step.scored) if step.inside is None else step.inside
        if step.negative_rewards == "positive_only":
            acted = acted & (step.raw > 0)
        scale = kept_scale(weights, acted)
        step.adjusted, weights = step.adjusted * scale, weights * scale
    tokens = tokens * weights[:, None]
    last = mask.shape[1] - 1 - mask.flip(1).argmax(dim=1)
    tokens[torch.arange(len(tokens)), last] += step.adjusted - tokens.sum(dim=1)
    return tokens
