"""Independent float64 oracles, written from the paper's formulas with loops and numpy alone."""

from __future__ import annotations

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


def grpo(rewards: np.ndarray, group: np.ndarray, norm_by_std: bool = True) -> np.ndarray:
    """Group advantages as veRL defines them: sample standard deviation, epsilon 1e-6, singletons keep the reward."""
    out = np.zeros(len(rewards))
    for i in range(len(rewards)):
        members = np.array([rewards[j] for j in range(len(rewards)) if group[j] == group[i]], dtype=np.float64)
        if len(members) == 1:
            out[i] = rewards[i] / (1.0 + 1e-6) if norm_by_std else rewards[i]
            continue
        out[i] = rewards[i] - members.mean()
        if norm_by_std:
            out[i] /= members.std(ddof=1) + 1e-6
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
    smi = np.zeros(len(e))
    for i in range(len(e)):
        reached, frontier = {i}, [i]
        while frontier:
            at = frontier.pop()
            for j in range(len(e)):
                if j not in reached and group[j] == group[i] and float(np.dot(e[at], e[j])) > cosine:
                    reached.add(j)
                    frontier.append(j)
        smi[i] = len(reached) - 1
    return smi


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
