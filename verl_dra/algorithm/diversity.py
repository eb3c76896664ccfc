"""How diverse each group is: the measures behind the metrics of a training step."""

from __future__ import annotations

import torch
from torch import Tensor

from verl_dra.algorithm.groups import check_group
from verl_dra.algorithm.vectors import check_embeddings, gram_matrices

DUPLICATE_COSINE = 0.99
"""Completions above this cosine count as duplicates."""


def group_diversity(embeddings: Tensor, group: Tensor) -> tuple[Tensor, Tensor]:
    """Duplicates and effective paths, from one pass over the groups' cosine matrices.

    Args:
        embeddings: [N, D], as for `graph_cut_smi`.
        group: [N], as for `graph_cut_smi`.

    Returns:
        [N] bool, whether a row has a sibling of a cosine above `DUPLICATE_COSINE`; and `effective_paths`.

    Raises:
        TypeError, ValueError: as `graph_cut_smi`.
    """
    vectors = check_embeddings(embeddings)
    group = check_group(group, len(vectors), "embeddings")
    found = torch.zeros(len(vectors), dtype=torch.bool, device=vectors.device)
    paths = torch.empty(len(torch.unique(group)), dtype=torch.float64, device=vectors.device)
    for gram in gram_matrices(vectors, group):
        diagonal = gram.cosines.diagonal(dim1=1, dim2=2)
        diagonal.zero_()
        found[gram.rows[gram.real]] = (gram.cosines > DUPLICATE_COSINE).any(dim=2)[gram.real]
        diagonal.copy_(gram.real)
        shares = torch.linalg.eigvalsh(gram.cosines) / gram.real.sum(1, keepdim=True)
        paths[gram.groups] = torch.exp(-torch.special.xlogy(shares, shares.clamp(min=1e-300)).sum(1))
    return found, paths


def effective_paths(embeddings: Tensor, group: Tensor) -> Tensor:
    """Vendi score of each group (Friedman and Dieng 2023): the effective number of different completions.

    exp of the entropy of the eigenvalues of the group's cosine matrix over its size: 1 where all are clones, the
    group's size where all are orthogonal. A zero vector counts as different from all others.

    Args:
        embeddings: [N, D], as for `graph_cut_smi`.
        group: [N], as for `graph_cut_smi`.

    Returns:
        [K] float64, groups in ascending order of their ids, from 1 to the group's size.

    Raises:
        TypeError, ValueError: as `graph_cut_smi`.
    """
    return group_diversity(embeddings, group)[1]
