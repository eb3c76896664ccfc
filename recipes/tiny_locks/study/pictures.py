"""The study in pictures: frontier, locked pass@k, shares of ways, the rare way by seed, recovery."""

from __future__ import annotations

import statistics
from collections.abc import Callable, Mapping, Sequence
from operator import itemgetter
from pathlib import Path
from typing import Any

import matplotlib

matplotlib.use("Agg")
from matplotlib import pyplot as plt

from tiny_locks.measure import K
from tiny_locks.study.arms import ARMS, BEST_ENTROPY, label
from tiny_locks.study.report import at_end
from tiny_locks.study.stack import ways_of
from tiny_locks.task import RARE, WAYS

_COLOURS = plt.get_cmap("tab20").colors  # type: ignore[attr-defined]
_COLOUR = {arm: _COLOURS[at % 20] for at, arm in enumerate(ARMS)} | {"start": "black"}
_SHOWN = ("start", "grpo", BEST_ENTROPY, "kl_0.3", "unlikeliness", "dra")
_IN_FRONT = ("grpo", "entropy_0.03", "entropy_0.1", "kl_0.3", "dra_shuffled", "dra", "dra_correct")
_WORTH = 0.6
"""Accuracy below which an arm is left out of frontiers, whose scale it would take."""

Made = Mapping[str, Sequence[dict[str, Any]]]


def draw(runs: Mapping[str, Made], stack: Sequence[Mapping[str, Any]], path: Path) -> None:
    """All panels; those of locks without a run stay empty."""
    figure, axes = plt.subplots(2, 5, figsize=(25, 9), layout="constrained")
    even, rare, switch = (runs.get(lock, {}) for lock in ("even", "rare", "switch"))
    _frontier(axes[0][0], even, "way_entropy", "A: entropy over ways (nats)")
    _frontier(axes[0][1], even, "word_entropy", "A: entropy of words, the way given (nats)")
    _locked(axes[0][2], even)
    _found(axes[0][3], rare)
    for axis, arm in zip(axes[1], ("grpo", "dra"), strict=False):
        _areas(axis, even.get(arm, ()), f"A: ways of {label(arm)}, mean of seeds")
    _curves(axes[1][2], even, "accuracy", "A: accuracy in training")
    _curves(axes[1][3], switch, "reward", "C: reward in training")
    _beside(axes[0][4], even, stack, ways_of, "entropy over ways")
    _beside(axes[1][4], even, stack, itemgetter("reward"), "reward")
    figure.savefig(path, dpi=80, metadata={"Software": None})
    plt.close(figure)


def front(even: Made, path: Path) -> None:
    """README's picture: the ways of one run of GRPO and of DRA, and what some arms have at the end."""
    figure, axes = plt.subplots(1, 3, figsize=(13, 3.8), layout="constrained")
    for axis, arm in zip(axes[:2], ("grpo", "dra"), strict=True):
        _areas(axis, even.get(arm, ())[:1], f"{label(arm)}: shares of ways, one run")
    shown = {arm: even[arm] for arm in _IN_FRONT if arm in even}
    _frontier(axes[2], shown, "locked/8", "A: pass@8 where one way counts on each question")
    axes[2].set(title="at the end: each seed (small) and the mean")
    if shown:
        axes[2].legend(fontsize=8, loc="center left", bbox_to_anchor=(1, 0.5))
    figure.savefig(path, dpi=80, metadata={"Software": None})
    plt.close(figure)


def _frontier(axis: Any, made: Made, key: str, title: str) -> None:
    for arm, runs in made.items():
        across, up = [at_end(run, key) for run in runs], [at_end(run, "accuracy") for run in runs]
        if statistics.mean(up) < _WORTH:
            continue
        colour = _COLOUR.get(arm, "grey")
        axis.scatter(across, up, s=8, color=colour, alpha=0.5)
        axis.scatter([statistics.mean(across)], [statistics.mean(up)], s=50, color=colour, label=label(arm))
    axis.set(xlabel=title, ylabel="accuracy", title=f"accuracy against {title[3:].partition(' (')[0]}")
    if made:
        axis.legend(fontsize=6)


def _locked(axis: Any, made: Made) -> None:
    for arm in _SHOWN:
        if runs := made.get(arm):
            means = [statistics.mean(at_end(run, f"locked/{k}") for run in runs) for k in K]
            axis.plot(K, means, marker="o", ms=3, color=_COLOUR[arm], label=label(arm))
    axis.set(xscale="log", xlabel="k", title="A: locked pass@k", ylim=(0, 1))
    if made:
        axis.legend(fontsize=7)


def _found(axis: Any, made: Made) -> None:
    arms = list(made)
    for at, arm in enumerate(arms):
        for run in made[arm]:
            axis.scatter([at + 0.1 * (run["seed"] - 1.5)], [at_end(run, f"share/{RARE}")], color="tab:blue", s=20)
            axis.scatter(
                [at + 0.1 * (run["seed"] - 1.5)], [at_end(run, "reward")], color="tab:orange", s=20, marker="x"
            )
    axis.set_xticks(range(len(arms)), [label(arm) for arm in arms], rotation=30, ha="right", fontsize=7)
    axis.set(title="B by seed: share of the rare way (dots), reward (x)", ylim=(0, 1))


def _areas(axis: Any, runs: Sequence[dict[str, Any]], title: str) -> None:
    if runs:
        steps = [block["step"] for block in runs[0]["training"]]
        shares = [
            [statistics.mean(run["training"][i][f"share/{w}"] for run in runs) for i in range(len(steps))] for w in WAYS
        ]
        axis.stackplot(steps, shares, labels=list(WAYS))
        axis.legend(fontsize=7, loc="lower left")
    axis.set(title=title, xlabel="step", ylim=(0, 1))


def _curves(axis: Any, made: Made, key: str, title: str) -> None:
    for arm, runs in made.items():
        if arm in _SHOWN[1:]:
            for run in runs:
                steps = [block["step"] for block in run["training"]]
                axis.plot(steps, [block[key] for block in run["training"]], color=_COLOUR[arm], lw=0.8)
            axis.plot([], [], color=_COLOUR[arm], label=label(arm))
    axis.set(title=title, xlabel="step", ylim=(0, 1))
    if made:
        axis.legend(fontsize=7)


def _beside(
    axis: Any,
    made: Made,
    stack: Sequence[Mapping[str, Any]],
    of_block: Callable[[Mapping[str, float]], float],
    title: str,
) -> None:
    for arm in dict.fromkeys(run["arm"] for run in stack):
        of_stack = [run for run in stack if run["arm"] == arm]
        for runs, look in ((of_stack, {"lw": 1.8}), (made.get(arm, ()), {"lw": 0.6, "ls": "--"})):
            for run in runs:
                steps = [block["step"] for block in run["training"]]
                axis.plot(steps, [of_block(block) for block in run["training"]], color=_COLOUR[arm], **look)
        axis.plot([], [], color=_COLOUR[arm], label=label(arm))
    axis.set(title=f"A: {title}, real stack (thick) and loop (dashed)", xlabel="step", ylim=(0, None))
    if stack:
        axis.legend(fontsize=7)
