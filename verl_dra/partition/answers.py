"""Completions of equal final answers go the same way."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from functools import cached_property

from verl_dra.partition.config import PartitionConfig
from verl_dra.partition.partition import Grouping, PromptGroup


class FoundAnswers(Sequence[str | None]):
    """The final answer of each of n texts, found when one is asked for: whoever asks for none pays nothing.

    Answers are found as the package's rewards find them, in processes of their own, each within 5 s. One that takes
    longer is none.

    Raises:
        CheckerError: when one is asked for, without math-verify.
    """

    def __init__(self, texts: Sequence[str]) -> None:
        self._texts = texts

    def __len__(self) -> int:
        return len(self._texts)

    def __getitem__(self, at: int) -> str | None:  # type: ignore[override]
        return self._found[at]

    def __iter__(self) -> Iterator[str | None]:
        return iter(self._found)

    @cached_property
    def _found(self) -> list[str | None]:
        from verl_dra.rewards import check

        return [check(None, text).answer for text in self._texts]


class AnswersPartition:
    """Equal are answers that the package's judge finds equal by value (`verl_dra.rewards.alike`); a completion without
    one is alone."""

    def __init__(self, config: PartitionConfig) -> None:
        from verl_dra.rewards import check

        check(None, "")  # without math-verify it ends here

    def __str__(self) -> str:
        return "equal final answers"

    def __call__(self, group: PromptGroup) -> Grouping:
        """See `Partition`."""
        from verl_dra.rewards import alike

        found = list(group.answers)
        forms = iter(alike([answer for answer in found if answer is not None]))
        label: dict[str, int] = {}
        labels = [
            -1 - at if answer is None else label.setdefault(next(forms), len(label)) for at, answer in enumerate(found)
        ]
        return Grouping.of_labels(labels, unplaced=found.count(None))
