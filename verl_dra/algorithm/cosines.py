"""What is done to cosines before they are summed, where all of them are high; and a look at them as they are."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor

from verl_dra.algorithm.clusters import connected
from verl_dra.algorithm.groups import Groups, check_group
from verl_dra.algorithm.vectors import check_embeddings, gram_matrices, inverse_norms

Cosine = Literal["raw", "centered", "power"]

# What is left of a unit vector below this length is rounding: two such vectors differ by 5e-9 in their cosine.
_NOTHING_LEFT = 1e-4
_MOST_PAIRS = 2**14


def centered(embeddings: Tensor, group: Tensor) -> Tensor:
    """Unit vectors less their mean over all rows, of whatever group, at unit length again.

    That takes out what all completions of a batch share: register, layout, the direction that an encoder gives to every
    text. The mean is the batch's and not the group's: less the group's, near-copies would differ by their noise alone,
    at full size. So a row's cosines depend on the other groups of the batch, which raw ones don't.

    Args:
        embeddings: [N, D], as for `graph_cut_smi`.
        group: [N], as for `graph_cut_smi`; for the words of an error.

    Returns:
        [N, D] float32 (float64 for float64 input) of length 1; a zero vector stays one, and what differs from the mean
        by rounding alone becomes one. Neither counts in the mean.

    Raises:
        TypeError, ValueError: as `graph_cut_smi`.
    """
    vectors = check_embeddings(embeddings)
    vectors, factors = inverse_norms(vectors, check_group(group, len(vectors), "embeddings"))
    units = vectors * factors.unsqueeze(1)
    there = factors > 0
    units -= (units.sum(0, dtype=torch.float64) / there.sum().clamp(min=1)).to(units.dtype)
    length = torch.linalg.vector_norm(units, dim=1)
    left = there & (length > _NOTHING_LEFT)
    return units.mul_(torch.where(left, length.reciprocal(), 0).unsqueeze(1))


def power_smi(embeddings: Tensor, group: Tensor, power: float) -> Tensor:
    """Graph-Cut SMI of powered cosines: I_i = sum over j != i of sign(c_ij) |c_ij|^power.

    It draws high cosines apart: with a power of 4, 0.95 and 0.8 become 0.81 and 0.41. It needs the groups' cosine
    matrices, in float64 and a few groups at a time: O(sum of n^2 D) for groups of n.

    Args:
        embeddings: [N, D], as for `graph_cut_smi`.
        group: [N], as for `graph_cut_smi`.
        power: at least 1; 1 is Graph-Cut SMI.

    Returns:
        [N] float32 (float64 for float64 input), from -1 to the group's size - 1; 0 for a singleton and for a zero
        vector.

    Raises:
        TypeError, ValueError: as `graph_cut_smi`; also a power below 1 or without end.
    """
    if not 1 <= power < float("inf"):
        raise ValueError(f"power must be 1 or more and finite, not {power}")
    vectors = check_embeddings(embeddings)
    smi = torch.empty(len(vectors), dtype=vectors.dtype, device=vectors.device)
    for gram in gram_matrices(vectors, check_group(group, len(vectors), "embeddings")):
        gram.cosines.diagonal(dim1=1, dim2=2).zero_()
        values = (gram.cosines.sign() * gram.cosines.abs().pow_(power)).sum(dim=2)
        smi[gram.rows[gram.real]] = values[gram.real].to(smi.dtype)
    return smi


@dataclass(frozen=True)
class CosinePairs:
    """The cosines of P pairs of siblings, each pair once."""

    cosines: Tensor
    """[P] float64."""
    within: Tensor
    """[P] bool: whether both are of one cluster."""


def cosine_pairs(embeddings: Tensor, group: Tensor, cosine: float = 0.9, most: int = _MOST_PAIRS) -> CosinePairs:
    """The cosines of pairs of siblings, and whether a chain of cosines above `cosine` links them (as `cluster_smi`).

    Whole groups in ascending order of their ids, until there are `most` pairs; more would not move a quantile. Zero
    vectors have no cosines.

    Args:
        embeddings: [N, D], as for `graph_cut_smi`.
        group: [N], as for `graph_cut_smi`.
        cosine: as for `cluster_smi`.
        most: pairs after which no further group is looked at.

    Raises:
        TypeError, ValueError: as `graph_cut_smi`.
    """
    vectors = check_embeddings(embeddings)
    groups = Groups.of(check_group(group, len(vectors), "embeddings"))
    pairs = groups.sizes * (groups.sizes - 1) // 2
    taken = (pairs.cumsum(0) - pairs < most)[groups.index()]
    cosines, within = [], []
    for gram in gram_matrices(vectors[taken], group[taken]):
        somewhere = gram.cosines.diagonal(dim1=1, dim2=2) > 0
        pair = torch.triu(somewhere.unsqueeze(2) & somewhere.unsqueeze(1), diagonal=1)
        cosines.append(gram.cosines[pair])
        within.append(connected(gram, cosine)[pair])
    return CosinePairs(torch.cat(cosines), torch.cat(within))
