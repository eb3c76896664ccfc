"""Unit vectors from whatever an encoder gives, and the refusal of what can't be one."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import torch
from torch import Tensor

from verl_dra.algorithm.groups import Groups

# Rows of which cosine matrices are made at a time, which bounds memory.
_GRAM_ROWS = 2**13
# Outside this range the square of a norm may leave float32's range.
_SAFE_NORM = (1e-15, 1e15)


def check_embeddings(embeddings: Tensor) -> Tensor:
    """`embeddings` [N, D] in float32 or better, or a TypeError or ValueError that says what is wrong with it."""
    if not isinstance(embeddings, Tensor):
        raise TypeError(f"embeddings must be a torch tensor, not {type(embeddings).__name__}")
    if not embeddings.is_floating_point():
        raise TypeError(f"embeddings must be floating point, not {embeddings.dtype}")
    if embeddings.ndim != 2 or 0 in embeddings.shape:
        raise ValueError(
            "embeddings must have the shape [N, D] with at least one row and one dimension, "
            f"not {list(embeddings.shape)}"
        )
    embeddings = embeddings.detach()
    return embeddings if embeddings.dtype == torch.float64 else embeddings.float()


def inverse_norms(embeddings: Tensor, group: Tensor) -> tuple[Tensor, Tensor]:
    """Vectors [N, D] and the factors [N] that give each row unit length; a zero vector has the factor 0.

    The vectors are `embeddings` itself, but for rows so long or so short that their squares leave the range of
    the dtype: these are brought to unit length in a copy.

    Raises:
        ValueError: a row has a NaN or infinite entry; names the row and its group.
    """
    norms = torch.linalg.vector_norm(embeddings, dim=1)
    shortest, longest = torch.aminmax(norms)  # NaN where any norm is
    if bool((shortest >= _SAFE_NORM[0]) & (longest <= _SAFE_NORM[1])):
        return embeddings, norms.reciprocal_()
    rows = torch.nonzero(~((norms >= _SAFE_NORM[0]) & (norms <= _SAFE_NORM[1]))).squeeze(1)
    unsafe = embeddings[rows]
    _refuse_non_finite(unsafe, rows, group)
    largest = unsafe.abs().amax(dim=1, keepdim=True)
    zero = largest == 0
    unsafe = torch.where(zero, 0.0, unsafe.double() / largest)
    length = torch.linalg.vector_norm(unsafe, dim=1, keepdim=True)
    factors = norms.reciprocal()
    factors[rows] = (~zero).squeeze(1).to(factors.dtype)
    if not bool(zero.all()):
        embeddings = embeddings.clone()
        embeddings[rows] = torch.where(zero, 0.0, unsafe / length).to(embeddings.dtype)
    return embeddings, factors


@dataclass(frozen=True)
class GramMatrices:
    """The cosine matrices of k groups of similar size, padded to n rows each."""

    cosines: Tensor
    """[k, n, n] float64; 0 in padding and for zero vectors, their diagonal included."""
    groups: Tensor
    """[k] int64: positions of the groups in ascending order of their ids."""
    rows: Tensor
    """[k, n] int64: row numbers."""
    real: Tensor
    """[k, n] bool: False for padding."""


def gram_matrices(vectors: Tensor, group: Tensor) -> Iterator[GramMatrices]:
    """Cosine matrices of all groups of `vectors` [N, D] by `group` [N], in a few batches of similar size.

    Raises:
        ValueError: a row has a NaN or infinite entry; names the row and its group.
    """
    vectors, factors = inverse_norms(vectors, group)
    for of_a_size in Groups.of(group).padded():
        some = max(_GRAM_ROWS // of_a_size[1].shape[1], 1)
        for groups, rows, real in zip(*(torch.split(part, some) for part in of_a_size), strict=True):
            units = vectors[rows].double() * (factors[rows] * real).double().unsqueeze(2)
            # factors carry float32's rounding; one more step of the same normalisation removes it.
            units = torch.nn.functional.normalize(units, dim=2)
            yield GramMatrices(units @ units.transpose(1, 2), groups, rows, real)


def _refuse_non_finite(vectors: Tensor, rows: Tensor, group: Tensor) -> None:
    bad = torch.nonzero(~torch.isfinite(vectors).all(dim=1)).squeeze(1)
    if len(bad):
        row = int(rows[bad[0]])
        raise ValueError(
            f"embeddings[{row}] (group {int(group[row])}) has a NaN or infinite entry, "
            f"as {len(bad)} of {len(group)} rows have; check the encoder and its dtype"
        )
