"""What is compared: each arm as the overrides that make it of recipes/tiny_paths/tiny_paths.yaml (DRA-GRPO)."""

from __future__ import annotations

_DR = (
    "algorithm.norm_adv_by_std_in_grpo=False",
    "actor_rollout_ref.actor.loss_agg_mode=seq-mean-token-sum-norm",
    # Unset, veRL divides by the longest response of each micro-batch.
    "actor_rollout_ref.actor.loss_scale_factor=64",
)
_WITHOUT = ("dra.enabled=False",)
# As many completions a step.
_GROUPS_OF_16 = (
    "actor_rollout_ref.rollout.n=16",
    "data.train_batch_size=8",
    "actor_rollout_ref.actor.ppo_mini_batch_size=8",
)

MAIN: dict[str, tuple[str, ...]] = {
    "grpo": _WITHOUT,
    "dra_grpo": (),
    "dr_grpo": (*_DR, *_WITHOUT),
    "dra_dr_grpo": _DR,
}
"""The four that the paper compares."""

KNOBS: dict[str, tuple[str, ...]] = {
    "grpo_hot": (*_WITHOUT, "actor_rollout_ref.rollout.temperature=1.3"),
    "dra_grpo_hot": ("actor_rollout_ref.rollout.temperature=1.3",),
    "grpo_n16": (*_WITHOUT, *_GROUPS_OF_16),
    "dra_grpo_n16": _GROUPS_OF_16,
    "grpo_slow": (*_WITHOUT, "actor_rollout_ref.actor.optim.lr=5e-5"),
    "dra_grpo_slow": ("actor_rollout_ref.actor.optim.lr=5e-5",),
    "dra_dr_grpo_fast": (*_DR, "actor_rollout_ref.actor.optim.lr=1e-3"),
    "dr_grpo_fast": (*_DR, *_WITHOUT, "actor_rollout_ref.actor.optim.lr=1e-3"),
    "dra_grpo_ngram": ("dra.embedding.encoder=ngram",),
    "dra_grpo_clusters": ("dra.smi=clusters", "dra.cluster_cosine=0.8"),
}
"""One thing changed at a time, to see what the outcome hangs on."""

ARMS = {**MAIN, **KNOBS}
