"""Flat rows to groups: which rows belong together, in any order and of any sizes."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import torch
from torch import Tensor

_INTEGERS = (torch.int64, torch.int32, torch.int16, torch.int8, torch.uint8)


@dataclass(frozen=True)
class Groups:
    """A partition of N rows into K groups, the groups in ascending order of their ids."""

    order: Tensor
    """[N] int64: row numbers, those of one group side by side, in row order inside it."""
    starts: Tensor
    """[K] int64: where each group starts in `order`."""
    sizes: Tensor
    """[K] int64: rows of each group, at least 1."""

    @classmethod
    def of(cls, group: Tensor) -> Groups:
        """Partition by group ids [N] (any integers)."""
        ids, order = torch.sort(group, stable=True)
        _, sizes = torch.unique_consecutive(ids, return_counts=True)
        return cls(order, torch.cumsum(sizes, 0) - sizes, sizes)

    def __len__(self) -> int:
        return len(self.sizes)

    def index(self) -> Tensor:
        """[N] int64: for each row, in row order, the position of its group."""
        position = torch.repeat_interleave(self.sizes)
        return torch.empty_like(position).scatter_(0, self.order, position)

    def mean(self, values: Tensor) -> Tensor:
        """[N], of the dtype of `values` [N]: for each row, in row order, the mean of its group."""
        position = self.index()
        sums = torch.zeros(len(self), dtype=torch.float64, device=values.device).index_add_(
            0, position, values.double()
        )
        return (sums / self.sizes)[position].to(values.dtype)

    def padded(self) -> Iterator[tuple[Tensor, Tensor, Tensor]]:
        """Groups of similar size as rectangles, for batched matrix work.

        Yields (groups [k], rows [k, n], real [k, n]): positions of the groups, their row numbers, and where a
        row is real rather than padding. Each n is a power of two, so that there are at most log2(largest
        group) + 1 rectangles and never more padding than rows.
        """
        widths = 2 ** torch.ceil(torch.log2(self.sizes.double())).long()
        for width in torch.unique(widths).tolist():
            groups = torch.nonzero(widths == width).squeeze(1)
            offsets = torch.arange(width, device=self.order.device)
            real = offsets < self.sizes[groups, None]
            rows = self.order[torch.where(real, self.starts[groups, None] + offsets, 0)]
            yield groups, rows, real


def gated(group: Tensor, inside: Tensor) -> Tensor:
    """Group ids in which each row outside a gate is a group of its own: similar to none, and of weight 1.

    With a gate of the right answers, similarity is measured among them alone (as arXiv 2601.08763 does with clusters).

    Args:
        group: [N] any integer ids.
        inside: [N] bool.

    Returns:
        [N] int64; rows inside share an id where they did.
    """
    group = check_group(group, len(inside), "inside")
    groups = Groups.of(group)
    return torch.where(inside, groups.index(), len(groups) + torch.arange(len(group), device=group.device))


def check_group(group: Tensor, rows: int, of_what: str) -> Tensor:
    """`group` as int64 [rows], or a TypeError or ValueError that says what is wrong with it."""
    if not isinstance(group, Tensor):
        raise TypeError(
            f"group must be a torch tensor of integers, one id a row, not {type(group).__name__}; "
            "number string ids first, for example with numpy.unique(uids, return_inverse=True)[1]"
        )
    if group.dtype not in _INTEGERS:
        raise TypeError(f"group must hold integers, not {group.dtype}")
    if group.ndim != 1 or len(group) != rows:
        raise ValueError(f"group must have the shape [{rows}], one id per row of {of_what}, not {list(group.shape)}")
    return group.long()
