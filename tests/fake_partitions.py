"""Partitions of the tests' own, also in actors."""

from __future__ import annotations

from verl_dra.partition import Grouping, PartitionConfig, PromptGroup


class ByFirstWord:
    """Completions that begin with the same word go the same way."""

    def __init__(self, config: PartitionConfig) -> None:
        self.config = config

    def __call__(self, group: PromptGroup) -> Grouping:
        words = [text.split()[0] for text in group.texts]
        return Grouping.of_labels([words.index(word) for word in words], calls=1, tokens=sum(map(len, group.texts)))
