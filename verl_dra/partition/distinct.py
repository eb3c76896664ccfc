"""A group without its copies, which is what a partition looks at: equal texts must have equal weights."""

from __future__ import annotations

from dataclasses import dataclass, replace

import numpy as np

from verl_dra.partition.answers import FoundAnswers
from verl_dra.partition.partition import PromptGroup


@dataclass(frozen=True)
class Distinct:
    """The m different texts of a group of n completions, blank ones left out: those count as unique."""

    group: PromptGroup
    """Of those m, each with the reward of the first that has its text."""
    place: np.ndarray
    """[n] int64: of each completion its text among those m; -1 where it is blank."""

    @classmethod
    def of(cls, group: PromptGroup) -> Distinct:
        """Lone surrogates, which no request can hold, become question marks."""
        texts = [text.encode(errors="replace").decode() for text in group.texts]
        first: dict[str, int] = {}
        for at, text in enumerate(texts):
            if text.strip():
                first.setdefault(text, at)
        number = {text: at for at, text in enumerate(first)}
        different = list(first)
        return cls(
            replace(
                group,
                texts=different,
                rewards=[group.rewards[at] for at in first.values()],
                answers=FoundAnswers(different),
            ),
            np.array([number.get(text, -1) for text in texts], dtype=np.int64),
        )

    def expanded(self, similarity: np.ndarray) -> np.ndarray:
        """[n, n] float32 of all completions, from that [m, m] of the different texts."""
        of_all = np.eye(len(self.place), dtype=np.float32)
        there = np.flatnonzero(self.place >= 0)
        of_all[np.ix_(there, there)] = similarity[np.ix_(self.place[there], self.place[there])]
        return of_all
