"""The weights of DRA's neighbours: other ways to make a reward say how rare a completion is."""

from __future__ import annotations

import torch
from torch import Tensor

from verl_dra.algorithm.groups import Groups, check_group
from verl_dra.algorithm.rewards import check_finite

_DARLING_FLOOR = 0.1
_UNLIKELINESS_PENALTY = 0.25


def darling_weights(smi: Tensor, group: Tensor) -> Tensor:
    """max((n - 1 - I_i) / (n - 1), 0.1), n the group's size: DARLING (arXiv 2509.02534), as its code has it.

    With `cluster_smi` as I that is (n - |C(i)|) / (n - 1): the share of the others that are of another kind. With
    `graph_cut_smi` it is 1 less the mean cosine to the others. Times the reward, quality gates diversity: what earns
    nothing gains nothing by being different.

    Args:
        smi: [N] floating point.
        group: [N] any integer ids.

    Returns:
        [N] from 0.1 to 1, of the same dtype; 1 for a singleton.

    Raises:
        TypeError, ValueError: as `diversity_weights`; also group ids that don't match.
    """
    check_finite(smi, "smi", group)
    groups = Groups.of(check_group(group, len(smi), "smi"))
    others = groups.sizes[groups.index()].to(smi.dtype) - 1
    return (1 - smi / others.clamp(min=1)).clamp(_DARLING_FLOOR, 1)


def unlikeliness_weights(log_probs: Tensor, group: Tensor) -> Tensor:
    """1 - 0.25 rank_i / n, n the group's size: 'Rewarding the Unlikely' (arXiv 2506.02355), as its code has it.

    The rank is the number of siblings that are less likely: 0 for the rarest, which keeps its reward. Equals share one.

    Args:
        log_probs: [N] floating point: mean log-probability of each completion's tokens under the policy that made it.
        group: [N] any integer ids.

    Returns:
        [N] above 0.75, to 1, of the same dtype.

    Raises:
        TypeError, ValueError: as `diversity_weights`; also group ids that don't match.
    """
    check_finite(log_probs, "log_probs", group)
    groups = Groups.of(check_group(group, len(log_probs), "log_probs"))
    rank = torch.empty_like(log_probs)
    for _, rows, real in groups.padded():
        values = log_probs[rows]
        less = (values.unsqueeze(1) < values.unsqueeze(2)) & real.unsqueeze(1)
        rank[rows[real]] = less.sum(dim=2)[real].to(rank.dtype)
    return 1 - _UNLIKELINESS_PENALTY * rank / groups.sizes[groups.index()]
