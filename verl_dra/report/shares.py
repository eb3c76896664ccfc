"""How a run's completions are spread over clusters, step by step."""

from __future__ import annotations

from collections.abc import Sequence
from statistics import mean
from typing import Any

from verl_dra.report.contents import Shown
from verl_dra.report.groups import Group

RANKS = 6
"""Clusters of a group that are told apart; all smaller ones are one share."""
_DIGITS = 4


def shares(shown: Sequence[Shown]) -> list[dict[str, Any]]:
    """The mean shares of the largest cluster of a group, the second largest and so on, and of all the others.

    A cluster is one of its own group's: the largest of one prompt and that of another need have nothing in common.

    Returns:
        For each part that has two steps or more with clusters: its number (`part`), the steps (`x`), and by rank
        ([`RANKS` + 1], the last for all others) the shares ([steps], which add up to 1 over the ranks).
    """
    found = []
    for number, part in enumerate(shown):
        by_step = {
            step: [_ranked(group) for group in of_step.groups if _clustered(group)]
            for step, of_step in part.steps.items()
        }
        steps = [step for step, groups in by_step.items() if groups]
        if len(steps) > 1:
            ranks = [
                [round(mean(group[rank] for group in by_step[step]), _DIGITS) for step in steps]
                for rank in range(RANKS + 1)
            ]
            found.append({"part": number, "x": steps, "shares": ranks})
    return found


def _clustered(group: Group) -> bool:
    return group.similarity is not None and len(group.completions) > 1


def _ranked(group: Group) -> list[float]:
    """[RANKS + 1] shares of its clusters, which are numbered by size."""
    shares = [0.0] * (RANKS + 1)
    for completion in group.completions:
        shares[min(completion.cluster, RANKS)] += 1 / len(group.completions)
    return shares
