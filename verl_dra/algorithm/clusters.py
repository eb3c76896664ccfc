"""Ways of reasoning as clusters of similar completions, where a count is wanted and not a sum of cosines."""

from __future__ import annotations

import torch
from torch import Tensor

from verl_dra.algorithm.groups import check_group
from verl_dra.algorithm.vectors import GramMatrices, check_embeddings, gram_matrices


def cluster_smi(embeddings: Tensor, group: Tensor, cosine: float = 0.9) -> Tensor:
    """The number of others in each row's cluster: I_i = |C(i)| - 1.

    Clusters are the connected components of a group under cosines above `cosine`. With them 1 / (1 + I_i) is
    1 / |C(i)|, the form of uniqueness-aware RL (arXiv 2601.08763). DARLING (arXiv 2509.02534) counts the same way, but
    asks a classifier of pairs.

    Args:
        embeddings: [N, D], as for `graph_cut_smi`.
        group: [N], as for `graph_cut_smi`.
        cosine: above this, two completions are of one cluster; what it should be depends on the encoder.

    Returns:
        [N] float32 (float64 for float64 input), whole numbers from 0 to the group's size - 1; 0 for a zero vector.

    Raises:
        TypeError, ValueError: as `graph_cut_smi`; also a `cosine` that is not between -1 and 1.
    """
    if not -1 < cosine < 1:
        raise ValueError(f"cosine must be between -1 and 1, not {cosine}")
    vectors = check_embeddings(embeddings)
    smi = torch.empty(len(vectors), dtype=vectors.dtype, device=vectors.device)
    for gram in gram_matrices(vectors, check_group(group, len(vectors), "embeddings")):
        others = (connected(gram, cosine).sum(dim=2) - 1).clamp_(min=0)
        smi[gram.rows[gram.real]] = others[gram.real].to(smi.dtype)
    return smi


def connected(gram: GramMatrices, cosine: float) -> Tensor:
    """[k, n, n] bool: whether a chain of cosines above `cosine` leads from one row to the other, itself included.

    False for padding and zero vectors.
    """
    somewhere = gram.cosines.diagonal(dim1=1, dim2=2) > 0  # neither padding nor a zero vector
    linked = (gram.cosines > cosine) & somewhere.unsqueeze(2) & somewhere.unsqueeze(1)
    reach = linked.float()
    for _ in range(max(reach.shape[1] - 1, 1).bit_length()):
        # Each product doubles the length of the paths that are followed.
        reach = (reach @ reach).clamp_(max=1)
    return reach > 0
