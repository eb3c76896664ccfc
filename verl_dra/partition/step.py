"""What a partition said of a step's groups, as SMI, ways and counts."""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass, field

import numpy as np
import torch
from torch import Tensor

from verl_dra.scorer.messages import Session

# Above this, two completions go the same way; of labels, whose similarity is 0 or 1, that is to be of one label.
_SAME_WAY = 0.5


@dataclass(frozen=True)
class StepGroupings:
    """The groupings of a step, and what they took."""

    similarity: Mapping[str, np.ndarray]
    """By uid, [k, k] float32 of the group's completions in ascending order of their session ids; not of groups that
    have none."""
    needless: Collection[str] = ()
    """Groups that were not asked about, as fewer than two of their completions are inside the gate."""
    calls: int = 0
    tokens: int = 0
    truncated: int = 0
    retried: int = 0
    unplaced: int = 0
    unreadable: int = 0
    """Groups."""
    unasked: int = 0
    """Groups that `dra.partition.max_calls` left out."""
    fallbacks: int = 0
    """Times that an actor was lost, or a server away, and a group was asked about again."""
    seconds: float = 0.0
    """Seconds that were spent on looking, all actors together."""
    spent: int = field(default=0, compare=False)
    """Requests that count against `dra.partition.max_calls`: where it is not known how many a try took, the most that
    it may have."""

    def smi(self, names: Sequence[Session], inside: Tensor) -> tuple[Tensor, Tensor]:
        """SMI of a step's n sessions: of i the sum of its similarities to others.

        Args:
            names: [n] as they were asked for.
            inside: [n] bool: those among which similarity is measured.

        Returns:
            [n] float32 SMI, 0 outside and in groups without a grouping; [n] bool, False in those.
        """
        smi, known = torch.zeros(len(names)), torch.ones(len(names), dtype=torch.bool)
        for uid, rows in members(names).items():
            known[rows] = self.knows(uid)
            if (similarity := self.similarity.get(uid)) is not None:
                acts = inside[rows].double()
                smi[rows] = ((torch.from_numpy(similarity).double() @ acts - 1) * acts).float()
        return smi, known

    def knows(self, uid: str) -> bool:
        """Whether a group has its SMI."""
        return uid in self.similarity or uid in self.needless

    def ways(self, uid: str) -> list[int] | None:
        """[k] a number for the way that each completion of a group goes, in ascending order of their session ids.

        Those of one number are linked by similarities above a half. None where the group has no grouping.
        """
        if (similarity := self.similarity.get(uid)) is None:
            return None
        reach = similarity > _SAME_WAY
        for _ in range(max(len(reach) - 1, 1).bit_length()):
            # Each product doubles the length of the paths that are followed.
            reach = reach @ reach
        number: dict[int, int] = {}
        return [number.setdefault(first, len(number)) for first in reach.argmax(axis=1).tolist()]

    def counts(self) -> dict[str, float]:
        """Metrics that add up over the updates of a step, by name."""
        return {
            f"dra/partition/{name}": float(value)
            for name, value in {
                "calls": self.calls,
                "tokens": self.tokens,
                "seconds": self.seconds,
                "unreadable_groups": self.unreadable,
                "unasked_groups": self.unasked,
                "truncated_rows": self.truncated,
                "unplaced_rows": self.unplaced,
                "retried": self.retried,
                "fallbacks": self.fallbacks,
            }.items()
        }

    def metrics(self) -> dict[str, float]:
        """Those, and the mean number of ways of the groups that have a grouping."""
        ways = [len(set(of_group)) for uid in self.similarity if (of_group := self.ways(uid))]
        return self.counts() | ({"dra/partition/ways": sum(ways) / len(ways)} if ways else {})


def members(names: Sequence[Session]) -> dict[str, list[int]]:
    """The positions of each group's sessions, in ascending order of their ids."""
    found: dict[str, list[int]] = {}
    for row in sorted(range(len(names)), key=lambda row: names[row].session_id):
        found.setdefault(names[row].uid, []).append(row)
    return {uid: found[uid] for uid in dict.fromkeys(name.uid for name in names)}
