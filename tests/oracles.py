"""Independent float64 oracles, written from the paper's formulas with loops and numpy alone."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import pairwise

import numpy as np


def unit(vectors: np.ndarray) -> np.ndarray:
    vectors = np.asarray(vectors, dtype=np.float64)
    lengths = np.linalg.norm(vectors, axis=1, keepdims=True)
    return np.divide(vectors, lengths, out=np.zeros_like(vectors), where=lengths > 0)


def graph_cut_smi(vectors: np.ndarray, group: np.ndarray) -> np.ndarray:
    e = unit(vectors)
    smi = np.zeros(len(e))
    for i in range(len(e)):
        for j in range(len(e)):
            if i != j and group[i] == group[j]:
                smi[i] += float(np.dot(e[i], e[j]))
    return smi


def log_det_smi(vectors: np.ndarray, group: np.ndarray, ridge: float = 1e-3) -> np.ndarray:
    """log det S_i + log det S_Q - log det S_(i and Q), the definition by three determinants."""
    e = unit(vectors)
    smi = np.zeros(len(e))
    for i in range(len(e)):
        members = [j for j in range(len(e)) if group[j] == group[i]]
        s = e[members] @ e[members].T
        np.fill_diagonal(s, 1 + ridge)
        others = [k for k, j in enumerate(members) if j != i]
        log_det_others = np.linalg.slogdet(s[np.ix_(others, others)])[1] if others else 0.0
        smi[i] = np.log(1 + ridge) + log_det_others - np.linalg.slogdet(s)[1]
    return smi


def weights(smi: np.ndarray) -> np.ndarray:
    return np.array([1.0 / max(1.0, 1.0 + value) for value in smi])


def fill_unscored(weight: np.ndarray, scored: np.ndarray) -> np.ndarray:
    there = [float(w) for w, has in zip(weight, scored, strict=True) if has]
    mean = sum(there) / len(there) if there else 1.0
    return np.array([float(w) if has else mean for w, has in zip(weight, scored, strict=True)])


def adjust(rewards: np.ndarray, weight: np.ndarray, group: np.ndarray, negative: str = "paper") -> np.ndarray:
    out = np.zeros(len(rewards))
    for i, reward in enumerate(np.asarray(rewards, dtype=np.float64)):
        if negative == "positive_only" and reward < 0:
            out[i] = reward
        elif negative == "shift":
            lowest = min(float(rewards[j]) for j in range(len(rewards)) if group[j] == group[i])
            out[i] = (reward - min(lowest, 0.0)) * weight[i]
        else:
            out[i] = reward * weight[i]
    return out


def grpo(rewards: np.ndarray, group: np.ndarray, norm_by_std: bool = True, epsilon: float = 1e-6) -> np.ndarray:
    """Group advantages as veRL defines them: sample standard deviation, epsilon 1e-6, singletons keep the reward."""
    out = np.zeros(len(rewards))
    for i in range(len(rewards)):
        members = np.array([rewards[j] for j in range(len(rewards)) if group[j] == group[i]], dtype=np.float64)
        if len(members) == 1:
            out[i] = rewards[i] / (1.0 + epsilon) if norm_by_std else rewards[i]
            continue
        out[i] = rewards[i] - members.mean()
        if norm_by_std:
            out[i] /= members.std(ddof=1) + epsilon
    return out


def effective_paths(vectors: np.ndarray, group: np.ndarray) -> np.ndarray:
    e = unit(vectors)
    scores = []
    for g in np.unique(group):
        members = e[group == g]
        gram = members @ members.T
        np.fill_diagonal(gram, 1.0)
        values = np.linalg.eigvalsh(gram / len(members))
        values = values[values > 1e-12]
        scores.append(float(np.exp(-(values * np.log(values)).sum())))
    return np.array(scores)


def cluster_smi(vectors: np.ndarray, group: np.ndarray, cosine: float = 0.9) -> np.ndarray:
    """Others in the cluster: what can be reached by steps between siblings of a cosine above the threshold."""
    e = unit(vectors)
    siblings = [[j for j in range(len(e)) if group[j] == group[i]] for i in range(len(e))]
    return np.array([len(linked(e, siblings[i], i, cosine)) - 1 for i in range(len(e))], dtype=np.float64)


def linked(e: np.ndarray, siblings: Sequence[int], start: int, cosine: float) -> set[int]:
    """What a walk from `start` reaches, by steps between siblings of a cosine above the threshold; zero vectors, which
    have no cosines, lead nowhere."""
    reached, frontier = {start}, [start]
    while frontier:
        at = frontier.pop()
        near = [j for j in siblings if j not in reached and e[at].any() and e[j].any()]
        new = [j for j in near if float(np.dot(e[at], e[j])) > cosine]
        reached.update(new)
        frontier += new
    return reached


def darling_weights(smi: np.ndarray, group: np.ndarray) -> np.ndarray:
    sizes = [sum(1 for other in group if other == own) for own in group]
    return np.array(
        [1.0 if n == 1 else min(max((n - 1 - value) / (n - 1), 0.1), 1.0) for value, n in zip(smi, sizes, strict=True)]
    )


def unlikeliness_weights(log_probs: np.ndarray, group: np.ndarray) -> np.ndarray:
    out = np.zeros(len(log_probs))
    for i in range(len(log_probs)):
        siblings = [j for j in range(len(log_probs)) if group[j] == group[i]]
        rank = sum(1 for j in siblings if log_probs[j] < log_probs[i])
        out[i] = 1 - 0.25 * rank / len(siblings)
    return out


def centered(vectors: np.ndarray) -> np.ndarray:
    """Unit vectors less the mean of those that are not zero, at unit length again."""
    e = unit(vectors)
    there = [i for i in range(len(e)) if np.any(e[i])]
    mean = sum(e[i] for i in there) / max(len(there), 1)
    out = np.zeros_like(e)
    for i in there:
        rest = e[i] - mean
        if np.linalg.norm(rest) > 1e-4:
            out[i] = rest / np.linalg.norm(rest)
    return out


def power_smi(vectors: np.ndarray, group: np.ndarray, power: float) -> np.ndarray:
    e = unit(vectors)
    smi = np.zeros(len(e))
    for i in range(len(e)):
        for j in range(len(e)):
            if i != j and group[i] == group[j]:
                cosine = float(np.dot(e[i], e[j]))
                smi[i] += np.sign(cosine) * abs(cosine) ** power
    return smi


def among(smi, vectors: np.ndarray, group: np.ndarray, inside: np.ndarray) -> np.ndarray:
    """`smi` of those inside a gate, as if there were no others; 0 for the others."""
    out = np.zeros(len(vectors))
    out[inside] = smi(vectors[inside], group[inside])
    return out


def level_small_spreads(smi: np.ndarray, group: np.ndarray, floor: float) -> np.ndarray:
    out = np.array(smi, dtype=np.float64)
    for g in set(group.tolist()):
        rows = [i for i in range(len(group)) if group[i] == g]
        values = [float(smi[i]) for i in rows]
        if (max(values) - min(values)) / max(len(rows) - 1, 1) < floor:
            for i in rows:
                out[i] = sum(values) / len(values)
    return out


def shuffled_smi(smi: np.ndarray, group: np.ndarray, rank: np.ndarray, draw: np.ndarray) -> np.ndarray:
    out = np.zeros(len(smi))
    for g in set(group.tolist()):
        rows = [i for i in range(len(group)) if group[i] == g]
        for to, of in zip(sorted(rows, key=lambda i: rank[i]), sorted(rows, key=lambda i: draw[i]), strict=True):
            out[to] = smi[of]
    return out


def random_smi(smi: np.ndarray, group: np.ndarray, noise: np.ndarray) -> np.ndarray:
    """Of vectors that are made: noise beside a direction of the group's own, so that the mean cosine is the group's."""
    made = np.zeros((len(smi), noise.shape[1] + 1))
    for i in range(len(smi)):
        others = [float(smi[j]) for j in range(len(smi)) if group[j] == group[i]]
        cosine = min(max(sum(others) / len(others) / max(len(others) - 1, 1), 0.0), 1.0)
        made[i, 0] = np.sqrt(cosine)
        made[i, 1:] = np.sqrt(1 - cosine) * noise[i] / np.linalg.norm(noise[i])
    return graph_cut_smi(made, group)


def kept_scale(weight: np.ndarray, acted: np.ndarray) -> np.ndarray:
    there = [float(w) for w, acts in zip(weight, acted, strict=True) if acts]
    return np.array([len(there) / sum(there) if acts else 1.0 for acts in acted])


def strength_at(points: list[list[float]], step: int) -> float:
    """On the line between the points around a step; the nearest point's beyond the ends."""
    if step <= points[0][0]:
        return points[0][1]
    for (start, first), (end, last) in pairwise(points):
        if step <= end:
            return first + (last - first) * (step - start) / (end - start)
    return points[-1][1]
