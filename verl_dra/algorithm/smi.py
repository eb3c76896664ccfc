"""Submodular mutual information (SMI) between each completion and the rest of its group."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor
from torch.nn.functional import embedding_bag

from verl_dra.algorithm.groups import Groups, check_group
from verl_dra.algorithm.vectors import check_embeddings, gram_matrices, inverse_norms

SMIFunction = Callable[[Tensor, Tensor], Tensor]
"""SMI [N] from embeddings [N, D] and group ids [N]."""

# The sums of this share of the rows' number of groups are held at a time (or of 128 KiB), which bounds memory.
_SUMS_SHARE = 0.045
_SUMS_BYTES = 2**17


def graph_cut_smi(embeddings: Tensor, group: Tensor) -> Tensor:
    """Graph-Cut SMI: I_i = sum over j != i in i's group of cos(e_i, e_j) (arXiv 2505.09655).

    With S the sum of the group's unit vectors, I_i = e_i . S - 1: no similarity matrix, O(N D), three sequential
    passes over the vectors and no copy of them. Memory beyond float32 input: at most a tenth of it where D >= 128
    and it is larger than 10 MiB.

    Args:
        embeddings: [N, D] floating point, any dtype and device, of any length other than 0. Sums are taken in
            float32, for float64 input in float64.
        group: [N] any integer ids; rows of a group in any order, groups of any sizes.

    Returns:
        [N] float32 (float64 for float64 input), from -1 to the group's size - 1; 0 for a singleton and for a
        zero vector.

    Raises:
        TypeError: integer embeddings, or group ids that are no integers.
        ValueError: empty input, shapes that don't match, a NaN or infinite entry (names the row and the group).
    """
    vectors = check_embeddings(embeddings)
    group = check_group(group, len(vectors), "embeddings")
    vectors, factors = inverse_norms(vectors, group)
    groups = Groups.of(group)
    position = groups.index()
    products = torch.empty_like(factors)
    row_bytes = vectors.shape[1] * vectors.element_size()
    step = max(int(_SUMS_SHARE * len(vectors)), _SUMS_BYTES // row_bytes, 1)
    edges = [*groups.starts[::step].tolist(), len(vectors)]
    for first, start, end in zip(range(0, len(groups), step), edges[:-1], edges[1:], strict=True):
        by_group = groups.order[start:end]
        starts = groups.starts[first : first + step] - start
        sums = embedding_bag(by_group, vectors, starts, mode="sum", per_sample_weights=factors[by_group])
        rows = by_group.sort().values  # in the order of memory
        products[rows] = _dot_sum(vectors, rows, sums, position[rows] - first)
    # A zero vector, whose factor is 0, has no product with itself to subtract.
    return products.mul_(factors).sub_(factors.sign_())


def _dot_sum(vectors: Tensor, rows: Tensor, sums: Tensor, of_sum: Tensor) -> Tensor:
    """[n]: vectors[rows] . sums[of_sum], row by row, without gathering either (a gather costs two more copies).

    This is what the embedding bag's backward pass computes for its weights. Through autograd the same call takes
    0.1 ms longer, which is more than all the rest for a batch of 1,024 rows.
    """
    products: Tensor = torch.ops.aten._embedding_bag_per_sample_weights_backward(
        sums, vectors, rows, rows.new_empty(0), of_sum, 0
    )
    return products


def log_det_smi(embeddings: Tensor, group: Tensor, ridge: float = 1e-3) -> Tensor:
    """Log-determinant SMI: I_i = log S_ii - log(S_ii - S_iQ S_Q^-1 S_Qi), Q the others of i's group.

    S is the group's cosine matrix plus `ridge` on the diagonal. By the Schur complement I_i = log(S_ii (S^-1)_ii):
    one batched Cholesky factorisation in float64 gives all rows, O(sum of n^3) for groups of n.

    Args:
        embeddings: [N, D], as for `graph_cut_smi`.
        group: [N], as for `graph_cut_smi`.
        ridge: what the diagonal gets, above 0. It bounds the SMI of clones near log(1 / ridge) and sets the noise
            level below which vectors count as equal; the default is the noise of a bfloat16 encoder's cosines.

    Returns:
        [N] float32 (float64 for float64 input), at least 0; 0 for a singleton and for a zero vector.

    Raises:
        TypeError, ValueError: as `graph_cut_smi`; also a ridge that is not above 0.
    """
    if not ridge > 0:
        raise ValueError(f"ridge must be above 0, not {ridge}")
    vectors = check_embeddings(embeddings)
    smi = torch.empty(len(vectors), dtype=vectors.dtype, device=vectors.device)
    for gram in gram_matrices(vectors, check_group(group, len(vectors), "embeddings")):
        similarity = gram.cosines
        similarity.diagonal(dim1=1, dim2=2).fill_(1 + ridge)
        inverse = torch.cholesky_inverse(torch.linalg.cholesky(similarity))
        values = torch.log((1 + ridge) * inverse.diagonal(dim1=1, dim2=2)).clamp_(min=0)
        smi[gram.rows[gram.real]] = values[gram.real].to(smi.dtype)
    return smi
