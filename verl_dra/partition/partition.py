"""What a partition is: from the completions of one prompt to how alike they are."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Protocol

import numpy as np


@dataclass(frozen=True)
class PromptGroup:
    """The n completions of one prompt, of which no two are the same text, and none is blank."""

    uid: str
    prompt: str
    texts: Sequence[str]
    rewards: Sequence[float]
    answers: Sequence[str | None]
    """The final answer of each text, as the package's rewards find it when one is asked for; None where there is none.
    Needs math-verify."""
    ground_truth: str | None = None


@dataclass(frozen=True)
class Grouping:
    """How alike n completions are, and what it cost to know."""

    similarity: np.ndarray
    """[n, n] float32 from 0 to 1, symmetric, with ones on the diagonal; of labels, 1 where they are equal. A
    completion's SMI is the sum of its row less 1."""
    calls: int = 0
    """Requests to a server."""
    tokens: int = 0
    """Tokens of those, prompt and answer, as the server counts them; 0 where it does not."""
    truncated: int = 0
    """Completions that were cut before they were looked at."""
    retried: int = 0
    """Answers that could not be read, and were asked for again."""
    unplaced: int = 0
    """Completions of which it can't be told, such as those without a final answer."""

    @classmethod
    def of_labels(cls, labels: Sequence[int], **costs: int) -> Grouping:
        """Completions of one label go the same way."""
        column = np.asarray(labels)
        return cls((column[:, None] == column[None, :]).astype(np.float32), **costs)


class PartitionUnavailableError(RuntimeError):
    """A server is away, or does not answer; the same group is tried again until the deadline."""


class UnreadableError(ValueError):
    """What a server answered is no partition of this group, also when it was asked again.

    Args:
        why: in words.
        costs: what it cost to find out, by the names that `Grouping` has.
    """

    def __init__(self, why: str, **costs: int) -> None:
        super().__init__(why)
        self.costs = costs


class Partition(Protocol):
    """Looks at whole groups, one at a time; a class of your own is made with `PartitionConfig`. `str()` of it is shown
    at the start.

    A class that asks a server can have `most_calls(completions: int) -> int` as well, the requests that a group of so
    many takes at most: `dra.partition.max_calls` is kept by it, and without one a group counts as one request.
    """

    def __call__(self, group: PromptGroup) -> Grouping:
        """How alike the completions of `group` are.

        Raises:
            PartitionUnavailableError: try again later.
            UnreadableError: this group has no partition; it is counted, and has the mean weight of the others,
                whatever `dra.on_failure` says: a completion that makes a judge fail must neither gain by it nor end the
                run.
        """
        ...
