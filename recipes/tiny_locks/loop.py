"""A plain training loop over this package's own functions: sample, reward, weigh, estimate, update; no Ray, no veRL
trainer, nothing on disk in a step.

Similarity, weights and advantages are those of `verl_dra`, whose estimator calls veRL's; loss, clipping, entropy and
KL are veRL's functions.
"""

from __future__ import annotations

import random
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, field
from types import SimpleNamespace
from typing import Any

import numpy as np
import torch
from torch import Tensor
from transformers import DynamicCache, PreTrainedModel, PreTrainedTokenizerFast
from verl.trainer.ppo.core_algos import agg_loss, compute_policy_loss_vanilla, kl_penalty
from verl.workers.config import ActorConfig

from tiny_locks.pretrain import prompt_tokens
from tiny_locks.task import Question, answer_of, opens, way_of
from verl_dra.config import DRAConfig
from verl_dra.config.schedule import Schedule
from verl_dra.embedding import Encoder, encode_all
from verl_dra.scorer.scores import step_scores
from verl_dra.training.estimator import Step, compute_dra_advantage, estimating
from verl_dra.training.rows import Rows
from verl_dra.training.weighing import Weighing

MOST_TOKENS = 32
"""Of a completion; a worked answer has 28 with the end of text."""


@dataclass(frozen=True)
class Settings:
    """What all arms share."""

    steps: int = 150
    prompts: int = 32
    group: int = 8
    learning_rate: float = 6e-4
    warmup_steps: int = 15
    betas: tuple[float, float] = (0.9, 0.999)
    clip_gradient: float = 1.0


@dataclass(frozen=True)
class Arm:
    """What an arm changes of GRPO, in the words of the real stack's configuration."""

    dra: dict[str, Any] = field(default_factory=lambda: {"strength": 0.0})
    """Settings of `dra`; a strength of 0 is GRPO."""
    base_estimator: str = "grpo"
    norm_adv_by_std_in_grpo: bool = True
    entropy_coeff: Any = 0.0
    """A number or points [[step, value], ...]."""
    kl_loss_coef: float = 0.0
    updates: int = 1
    """Optimiser steps that a step's completions are split into."""
    clip_ratio_high: float = 0.2


@dataclass(frozen=True)
class Drawn:
    """n completions of prompts of one length."""

    prompts: Tensor
    """[n, P] int64."""
    tokens: Tensor
    """[n, L] int64, padded after the end of text."""
    mask: Tensor
    """[n, L] float: 1 to the end of text, itself included."""
    log_probs: Tensor
    """[n, L]."""
    entropy: Tensor
    """[n] nats: sum of its tokens' entropies, an estimate of the policy's over whole completions."""


@dataclass(frozen=True)
class Judged:
    """What n completions are."""

    ways: list[str | None]
    right: Tensor
    """[n] float: 1 for the right answer."""
    reward: Tensor
    """[n] float: 1 for the right answer by a way that counts."""


@torch.no_grad()
def sample(model: PreTrainedModel, prompts: Tensor, generator: torch.Generator) -> Drawn:
    """One completion of each prompt [n, P] at temperature 1."""
    pad, end = model.config.pad_token_id, model.config.eos_token_id
    cache, current = DynamicCache(config=model.config), prompts
    alive = torch.ones(len(prompts), dtype=torch.bool, device=prompts.device)
    columns: list[tuple[Tensor, Tensor, Tensor]] = []
    entropy = torch.zeros(len(prompts), device=prompts.device)
    for _ in range(MOST_TOKENS):
        logits = model(input_ids=current, past_key_values=cache, use_cache=True, logits_to_keep=1).logits[:, -1]
        log_probs = logits.log_softmax(-1)
        probs = log_probs.exp()
        token = torch.multinomial(probs, 1, generator=generator)
        entropy -= (probs * log_probs).sum(-1) * alive
        token = torch.where(alive[:, None], token, pad)
        columns.append((token[:, 0], alive, log_probs.gather(1, token)[:, 0]))
        alive = alive & (token[:, 0] != end)
        current = token
        if not bool(alive.any()):
            break
    tokens, mask, log_probs = (torch.stack(column, 1) for column in zip(*columns, strict=True))
    return Drawn(prompts, tokens, mask.float(), log_probs * mask, entropy)


def judge(questions: Sequence[Question], texts: Sequence[str], lock: str, closed: str | None) -> Judged:
    """Ways, right answers and rewards of completions under a lock."""
    ways = [way_of(text) for text in texts]
    right = [float(answer_of(text) == q.total) for q, text in zip(questions, texts, strict=True)]
    counts = [opens(q, way, lock, closed) for q, way in zip(questions, ways, strict=True)]
    return Judged(ways, torch.tensor(right), torch.tensor(right) * torch.tensor(counts))


def advantages(
    arm: Arm,
    step: int,
    uids: Sequence[str],
    texts: Sequence[str],
    reward: Tensor,
    log_probs: Tensor,
    mask: Tensor,
    encoder: Encoder | None,
) -> Tensor:
    """[n, L] what the estimator of the real stack gives, of rows whose groups lie side by side.

    Args:
        arm: says how.
        step: the training step.
        uids: [n] the prompt of each completion.
        texts: [n].
        reward: [n] raw.
        log_probs: [n] mean log-probability of each completion's tokens.
        mask: [n, L].
        encoder: embeds the texts; not needed where the arm uses no similarity.
    """
    dra = DRAConfig(**arm.dra)
    seen: Counter[str] = Counter()
    keys = []
    for uid in uids:
        keys.append(f"{uid}_{seen[uid]}_0")
        seen[uid] += 1
    rows = Rows.of(keys, [False] * len(keys))
    strength = dra.schedule().at(step)
    inside = reward > dra.correct_above if dra.among == "correct" and strength else torch.ones(len(reward)).bool()
    weighing = Weighing(dra, step, strength, rows.names, rows.group, inside)
    smi, scored = torch.zeros(len(reward)), torch.ones(len(reward), dtype=torch.bool)
    if uses_similarity(arm) and strength:
        assert encoder is not None
        vectors = encode_all(encoder, texts)
        index = np.arange(len(texts))
        scores = step_scores(
            vectors.numpy(),
            index,
            rows.group,
            dra.smi_function(),
            center=dra.cosine == "centered",
            inside=inside,
            cluster_cosine=dra.cluster_cosine,
        )
        smi = weighing.smi(scores.smi, scores.scored, vectors.shape[1])
    at_step = Step(
        rows,
        smi=smi,
        weights=weighing.weights(smi, scored, log_probs),
        scored=scored,
        base_estimator=arm.base_estimator,
        negative_rewards="paper",
        strength=strength,
        inside=inside,
    )
    tokens = torch.zeros_like(mask)
    tokens[torch.arange(len(mask)), mask.sum(1).long() - 1] = reward
    algorithm = _Section(gamma=1.0, lam=1.0, norm_adv_by_std_in_grpo=arm.norm_adv_by_std_in_grpo)
    with estimating(at_step):
        return compute_dra_advantage(tokens, mask, np.array(uids, dtype=object), algorithm)[0]


def uses_similarity(arm: Arm) -> bool:
    """Whether the arm's weights come of embeddings."""
    return arm.dra.get("strength") != 0.0 and arm.dra.get("weight") != "unlikeliness"


class Trainer:
    """One policy of one arm, one lock and one seed, step by step; `state` and `load` cut it off and go on."""

    def __init__(
        self,
        model: PreTrainedModel,
        reference: PreTrainedModel | None,
        tokenizer: PreTrainedTokenizerFast,
        questions: Sequence[Question],
        arm: Arm,
        lock: str,
        seed: int,
        settings: Settings,
        encoder: Encoder | None,
        switch_at: int | None = None,
    ) -> None:
        """Args that need a word:
        reference: the starting model, for a KL term.
        switch_at: for the lock `switch`, the step from which the way that was commonest in the step before does not
            count.
        """
        self.model, self._reference, self._tokenizer = model, reference, tokenizer
        self._questions, self._arm, self._lock, self._seed = questions, arm, lock, seed
        self._settings, self._encoder, self._switch_at = settings, encoder, switch_at
        self._optimizer = torch.optim.AdamW(
            model.parameters(), lr=settings.learning_rate, betas=settings.betas, weight_decay=0.0
        )
        self._entropy = Schedule.of(arm.entropy_coeff)
        self._loss = ActorConfig(
            strategy="fsdp",
            rollout_n=settings.group,
            use_dynamic_bsz=True,
            clip_ratio_high=arm.clip_ratio_high,
        )
        self.done = 0
        """Steps."""
        self.closed: str | None = None
        self._commonest: str | None = None

    def state(self) -> dict[str, Any]:
        """What `load` goes on from, to the last digit."""
        return {
            "model": self.model.state_dict(),
            "optimizer": self._optimizer.state_dict(),
            "done": self.done,
            "closed": self.closed,
            "commonest": self._commonest,
        }

    def load(self, state: dict[str, Any]) -> None:
        """Go on from a `state`."""
        self.model.load_state_dict(state["model"])
        self._optimizer.load_state_dict(state["optimizer"])
        self.done, self.closed, self._commonest = state["done"], state["closed"], state["commonest"]

    def step(self) -> dict[str, Any]:
        """Train one step; what it saw: reward, accuracy, entropy in nats a completion, and completions by way."""
        step, settings = self.done + 1, self._settings
        if step == self._switch_at:
            self.closed = self._commonest
        device = self.model.device
        rng = random.Random(f"{self._seed}/{step}")
        generator = torch.Generator(device).manual_seed(rng.getrandbits(63))
        chosen = rng.sample(self._questions, settings.prompts)
        asked = [question for question in chosen for _ in range(settings.group)]
        prompts = prompt_tokens(self._tokenizer, chosen).repeat_interleave(settings.group, 0).to(device)
        drawn = sample(self.model, prompts, generator)
        texts = self._tokenizer.batch_decode(drawn.tokens, skip_special_tokens=True)
        judged = judge(asked, texts, self._lock, self.closed)
        uids = [f"{self._seed}-{at}" for at in range(settings.prompts) for _ in range(settings.group)]
        given = advantages(
            self._arm,
            step,
            uids,
            texts,
            judged.reward,
            (drawn.log_probs.sum(1) / drawn.mask.sum(1)).cpu(),
            drawn.mask.cpu(),
            self._encoder,
        ).to(device)
        for group in self._optimizer.param_groups:
            group["lr"] = settings.learning_rate * min(1.0, step / settings.warmup_steps)
        order = list(range(len(texts)))
        if self._arm.updates > 1:
            rng.shuffle(order)
        norm = 0.0
        for part in torch.tensor(order, device=device).chunk(self._arm.updates):
            norm += self._update(drawn, given, part, self._entropy.at(step)) / self._arm.updates
        self.done = step
        count = Counter(judged.ways)
        self._commonest = max((way for way in count if way), key=lambda way: (count[way], way), default=None)
        return {
            "reward": float(judged.reward.mean()),
            "accuracy": float(judged.right.mean()),
            "entropy": float(drawn.entropy.mean()),
            "gradient": norm,
            "no_advantage": float((given.abs().amax(1).view(-1, settings.group).amax(1) < 1e-9).float().mean()),
            "ways": {way or "none": number for way, number in count.items()},
        }

    def _update(self, drawn: Drawn, given: Tensor, part: Tensor, entropy_coeff: float) -> float:
        """One optimiser step on the rows `part`; the gradient's norm before it was clipped."""
        mask = drawn.mask[part]
        log_probs, entropy = _log_probs(self.model, drawn, part, with_entropy=entropy_coeff > 0)
        loss, _ = compute_policy_loss_vanilla(drawn.log_probs[part], log_probs, given[part], mask, config=self._loss)
        if entropy is not None:
            loss = loss - entropy_coeff * agg_loss(entropy, mask, "token-mean")
        if self._arm.kl_loss_coef:
            assert self._reference is not None
            with torch.no_grad():
                of_start = _log_probs(self._reference, drawn, part, with_entropy=False)[0]
            penalty = kl_penalty(log_probs, of_start, "low_var_kl")
            loss = loss + self._arm.kl_loss_coef * agg_loss(penalty, mask, "token-mean")
        self._optimizer.zero_grad(set_to_none=True)
        loss.backward()
        norm = torch.nn.utils.clip_grad_norm_(self.model.parameters(), self._settings.clip_gradient)
        self._optimizer.step()
        return float(norm)


class _Section(SimpleNamespace):
    """veRL's `algorithm` section, as far as estimators read it."""

    def get(self, key: str, default: Any = None) -> Any:
        return getattr(self, key, default)


def _log_probs(model: PreTrainedModel, drawn: Drawn, part: Tensor, with_entropy: bool) -> tuple[Tensor, Tensor | None]:
    """[rows, L] of the rows `part`, and the entropies of their tokens."""
    tokens = drawn.tokens[part]
    whole = torch.cat([drawn.prompts[part], tokens], 1)
    length = tokens.shape[1]
    logits = model(input_ids=whole[:, :-1], use_cache=False, logits_to_keep=length).logits
    log_probs = logits.log_softmax(-1)
    entropy = -(log_probs.exp() * log_probs).sum(-1) if with_entropy else None
    return log_probs.gather(2, tokens.unsqueeze(2)).squeeze(2) * drawn.mask[part], entropy
