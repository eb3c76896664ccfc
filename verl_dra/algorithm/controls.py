"""SMI that means nothing, for control runs: what is left of DRA where similarity says nothing of the completions."""

from __future__ import annotations

import torch
from torch import Tensor

from verl_dra.algorithm.groups import Groups, check_group
from verl_dra.algorithm.rewards import check_finite
from verl_dra.algorithm.smi import graph_cut_smi

CONTROLS = ("shuffled", "random")
"""Names that the configuration gives them, in the place of an SMI function's."""


def shuffled_smi(smi: Tensor, group: Tensor, rank: Tensor, draw: Tensor) -> Tensor:
    """SMI dealt out anew within each group: the row of the k-th lowest rank gets that of the k-th lowest draw.

    Each group keeps its SMIs, so its weights, to the last one; whose they are is chance.

    Args:
        smi: [N] floating point.
        group: [N] any integer ids.
        rank: [N] integers that differ within a group: a place that does not hang on the order of rows.
        draw: [N] random integers that differ within a group.

    Returns:
        [N], of the same dtype.

    Raises:
        TypeError, ValueError: as `diversity_weights`; also group ids that don't match.
    """
    check_finite(smi, "smi", group)
    group = check_group(group, len(smi), "smi")
    dealt = torch.empty_like(smi)
    dealt[_by_group(group, rank)] = smi[_by_group(group, draw)]
    return dealt


def random_smi(smi: Tensor, group: Tensor, noise: Tensor) -> Tensor:
    """Graph-Cut SMI of random unit vectors whose mean cosine in a group is that of its embeddings.

    Those are sqrt(c) u + sqrt(1 - c) r_i: c the mean of the group's I_i / (n - 1) for n completions, not below 0,
    r_i the unit vectors of `noise` and u a direction at right angles to them. So it is (n - 1) c + (1 - c) sum over
    j != i of r_i . r_j. Weights have about the mean of the real ones, so that the scale of rewards stays; what tells
    siblings apart is chance alone.

    Args:
        smi: [N] floating point: Graph-Cut SMI.
        group: [N] any integer ids.
        noise: [N, D] normal random numbers.

    Returns:
        [N], of the same dtype.

    Raises:
        TypeError, ValueError: as `diversity_weights`; also group ids that don't match, and as `graph_cut_smi`.
    """
    check_finite(smi, "smi", group)
    groups = Groups.of(check_group(group, len(smi), "smi"))
    others = (groups.sizes - 1)[groups.index()].to(smi.dtype)
    cosine = (groups.mean(smi) / others.clamp(min=1)).clamp(0, 1)
    return others * cosine + (1 - cosine) * graph_cut_smi(noise, group).to(smi.dtype)


def _by_group(group: Tensor, key: Tensor) -> Tensor:
    """[N] row numbers, groups side by side in ascending order of their ids, the rows of each in that of `key`."""
    by_key = key.argsort(stable=True)
    return by_key[group[by_key].argsort(stable=True)]
