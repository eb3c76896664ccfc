"""DRA of texts, for notebooks and other trainers: no veRL, no Ray."""

from __future__ import annotations

from collections.abc import Hashable, Sequence
from functools import cache
from typing import Any

import torch
from torch import Tensor

from verl_dra.algorithm import SMI_FUNCTIONS, NegativeRewards, adjust_rewards, diversity_weights
from verl_dra.embedding import EmbeddingConfig, Encoder, build_encoder, encode_all


def dra_rewards(
    texts: Sequence[str],
    rewards: Sequence[float] | Tensor,
    groups: Sequence[Hashable] | Tensor,
    encoder: Encoder | None = None,
    smi: str = "graph_cut",
    negative_rewards: NegativeRewards = "paper",
) -> Tensor:
    """Diversity-adjusted rewards of completions (arXiv 2505.09655), R_i / (1 + SMI_i), as the trainer makes them.

    Args:
        texts: n completions.
        rewards: [n] their rewards.
        groups: [n] what tells the prompt of each, such as its text or a number; in any order.
        encoder: an object with `encode` as `verl_dra.embedding.Encoder` has it, such as `build_encoder` makes; None for
            the bundled all-MiniLM-L6-v2, on the GPU where torch sees one.
        smi: `graph_cut` (the paper's), `log_det` or `clusters`.
        negative_rewards: see `verl_dra.adjust_rewards`.

    Returns:
        [n] float32.

    Raises:
        ValueError: there are no texts, or more or fewer rewards or groups than texts; a reward is not finite; there is
            no such `smi`.
    """
    if not len(texts) == len(rewards) == len(groups) or not len(texts):
        raise ValueError(
            f"{len(texts)} texts, {len(rewards)} rewards and {len(groups)} groups: there must be as many of each, and "
            "one at least"
        )
    if smi not in SMI_FUNCTIONS:
        raise ValueError(f"smi must be one of {', '.join(SMI_FUNCTIONS)}, not {smi!r}")
    names: list[Any] = groups.tolist() if isinstance(groups, Tensor) else list(groups)
    number = {name: at for at, name in enumerate(dict.fromkeys(names))}
    group = torch.tensor([number[name] for name in names])
    vectors = encode_all(encoder or _bundled(), texts)
    weights = diversity_weights(SMI_FUNCTIONS[smi](vectors, group).float())
    return adjust_rewards(torch.as_tensor(rewards, dtype=torch.float32).cpu(), weights, group, negative_rewards)


@cache
def _bundled() -> Encoder:
    return build_encoder(EmbeddingConfig(device="cuda" if torch.cuda.is_available() else "cpu"))
