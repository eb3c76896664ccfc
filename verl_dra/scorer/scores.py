"""What a step's vectors say of its groups: SMI, duplicates, effective paths, similarities. Pure, and of one process."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np
import torch
from torch import Tensor

from verl_dra.algorithm import CosinePairs, SMIFunction, centered, cosine_pairs, gated, group_diversity
from verl_dra.scorer.messages import Vectors


@dataclass(frozen=True)
class StepScores:
    """The scores of a step's n sessions in K groups. A group is scored where each of its sessions has a vector."""

    smi: Tensor
    """[n] float32; 0 where the group is not scored, or the session is outside the gate."""
    duplicate: Tensor
    """[n] bool: has a near-equal sibling."""
    scored: Tensor
    """[n] bool."""
    effective_paths: Tensor
    """[K] float64: Vendi score of each group, by its number; NaN where it is not scored."""
    pairs: CosinePairs
    """Cosines of siblings, of some of the scored groups."""
    empty: int
    """Sessions with a zero vector, as of a text without tokens; they count as unique."""
    vectors: Tensor
    """[m, D] float32, of the different texts."""
    index: Tensor
    """[n] int64: the row of each session in `vectors`; -1 where it has none."""

    def similarity(self, sessions: Sequence[int]) -> np.ndarray:
        """[k, k] float32 cosines of scored sessions, by their positions."""
        unit = torch.nn.functional.normalize(self.vectors[self.index[list(sessions)]], dim=1)
        return (unit @ unit.T).clamp(-1, 1).numpy()


def step_scores(
    vectors: np.ndarray,
    index: np.ndarray,
    group: Tensor,
    smi: SMIFunction,
    *,
    center: bool = False,
    inside: Tensor | None = None,
    cluster_cosine: float = 0.9,
) -> StepScores:
    """The scores of sessions whose vectors are there.

    Args:
        vectors: [m, D] float32, of the different texts.
        index: [n] int64: the row of each session in `vectors`; -1 where it has none.
        group: [n] int64, from 0 to K - 1.
        smi: the SMI function.
        center: whether it gets the vectors less their mean over all scored sessions. Duplicates, effective paths and
            similarities are of the vectors as they are.
        inside: [n] bool: among which sessions of a group SMI is measured; None for all.
        cluster_cosine: above this cosine two completions are linked, in `pairs`.
    """
    of_text, row = torch.from_numpy(vectors), torch.from_numpy(index)
    scored = ~torch.isin(group, group[row < 0])
    paths = torch.full((int(group.max()) + 1 if len(group) else 0,), torch.nan, dtype=torch.float64)
    scores = StepScores(
        smi=torch.zeros(len(row)),
        duplicate=torch.zeros(len(row), dtype=torch.bool),
        scored=scored,
        effective_paths=paths,
        pairs=CosinePairs(torch.zeros(0, dtype=torch.float64), torch.zeros(0, dtype=torch.bool)),
        empty=int((~of_text.any(dim=1))[row[row >= 0]].sum()),
        vectors=of_text,
        index=row,
    )
    if bool(scored.any()):
        flat, of_group = of_text[row[scored]], group[scored]
        scores.duplicate[scored], paths[torch.unique(of_group)] = group_diversity(flat, of_group)
        acting = centered(flat, of_group) if center else flat
        if inside is None:
            scores.smi[scored] = smi(acting, of_group)
        else:
            scores.smi[scored] = torch.where(inside[scored], smi(acting, gated(of_group, inside[scored])), 0)
        scores = replace(scores, pairs=cosine_pairs(acting, of_group, cluster_cosine))
    return scores


def put_together(sessions: int, answers: Sequence[tuple[int, np.ndarray, Vectors]]) -> tuple[np.ndarray, np.ndarray]:
    """One vector for each different text of a step, whichever scorers embedded it: that of the lowest one.

    A half-precision encoder's noise, which differs from batch to batch, would tell clones apart.

    Args:
        sessions: how many the step has.
        answers: scorer, positions in the step of the sessions that it was asked for, and its answer; in any order, but
            for those of one scorer.

    Returns:
        [m, D] float32 vectors, and the row [n] of each session in them; -1 where it has none.

    Raises:
        ValueError: scorers gave vectors of different dimensions.
    """
    index = np.full(sessions, -1, dtype=np.int64)
    place: dict[bytes, int] = {}
    chosen: list[np.ndarray] = []
    for scorer, rows, answer in sorted(answers, key=lambda one: one[0]):
        if not answer.digests:
            continue
        if chosen and answer.vectors.shape[1] != chosen[0].shape[1]:
            raise ValueError(
                f"diversity scorer {scorer} gave vectors of {answer.vectors.shape[1]} dimensions, and another one of "
                f"{chosen[0].shape[1]}: they run different encoders"
            )
        chosen.append(answer.vectors[[digest not in place for digest in answer.digests]])
        for digest in answer.digests:
            place.setdefault(digest, len(place))
        of_answer = np.array([place[digest] for digest in answer.digests])
        there = answer.index >= 0
        index[rows[there]] = of_answer[answer.index[there]]
    return (np.concatenate(chosen) if chosen else np.empty((0, 0), np.float32)), index
