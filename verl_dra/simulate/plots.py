"""The pictures of both scenes, in colours safe for colour-blind eyes: Okabe and Ito's palette, cividis and viridis."""

from __future__ import annotations

from collections.abc import Sequence
from math import log

import matplotlib
import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from verl_dra.simulate.group_scene import GroupResult
from verl_dra.simulate.policy_scene import PolicyResult, Trajectory
from verl_dra.terminal.colours import DRA, GRPO, WRONG
from verl_dra.terminal.tables import signed

_MAX_CELLS_WITH_TEXT = 12


def group_figure(result: GroupResult) -> Figure:
    """Bars of both advantages beside the similarity heat map."""
    scale = min(max(result.scene.group_size / 10, 1), 6)
    figure = Figure(figsize=(11 * scale, 4.6 * scale), layout="constrained")
    bars, heat = figure.subplots(1, 2, width_ratios=(1.45, 1))
    _advantage_bars(bars, result)
    _similarity_map(heat, result)
    return figure


def policy_figure(result: PolicyResult) -> Figure:
    """Entropy of the right modes and log(p1 / p2) over the steps, beside the mode probabilities under both methods."""
    figure = Figure(figsize=(17, 4.4), layout="constrained")
    entropy, ratio, grpo, dra = figure.subplots(1, 4)
    _entropies(entropy, result)
    _log_ratios(ratio, result)
    for axes, run, name in zip((grpo, dra), (result.grpo, result.dra), result.scoring.names, strict=True):
        _mode_areas(axes, run, name, result.scene.labels())
    areas, labels = dra.get_legend_handles_labels()
    figure.legend(areas[::-1], labels[::-1], loc="outside right center", frameon=False, title="mode")
    return figure


def _advantage_bars(axes: Axes, result: GroupResult) -> None:
    scene, scores, names = result.scene, result.scores, result.scoring.names
    place = np.arange(scene.group_size)
    axes.bar(place - 0.2, scores.grpo.numpy(), 0.4, label=names[0], color=GRPO.light)
    axes.bar(place + 0.2, scores.dra.numpy(), 0.4, label=names[1], color=DRA.light, hatch="//", edgecolor="white")
    axes.axhline(0, color="black", linewidth=0.8)
    axes.set_xticks(place, [f"{label}\n{kind}" for label, kind in zip(scene.labels, scene.kinds, strict=True)])
    axes.set_ylabel("advantage")
    titles = [
        f"{name}: {signed(advantages[0].item(), 2)} for clone {scene.labels[0]}, "
        f"{signed(advantages[-1].item(), 2)} for the equally right {scene.labels[-1]}"
        for name, advantages in zip(names, (scores.grpo, scores.dra), strict=True)
    ]
    axes.set_title("\n".join(titles))
    axes.legend(frameon=False, loc="upper left")
    axes.spines[["top", "right"]].set_visible(False)


def _similarity_map(axes: Axes, result: GroupResult) -> None:
    cosines = result.similarity.numpy()
    image = axes.imshow(cosines, cmap="cividis", vmin=min(0.0, cosines.min()), vmax=1)
    axes.set_xticks(range(len(cosines)), result.scene.labels)
    axes.set_yticks(range(len(cosines)), result.scene.labels)
    axes.tick_params(length=0)
    if len(cosines) <= _MAX_CELLS_WITH_TEXT:
        for (i, j), value in np.ndenumerate(cosines):
            text, colour = f"{value:.2f}".replace("-0.00", "0.00"), "black" if value > 0.5 else "white"
            axes.text(j, i, text, ha="center", va="center", fontsize=8, color=colour)
    clones = cosines[: result.scene.clones, : result.scene.clones]
    axes.set_title(f"Cosines, among clones at least {clones.min():.3f}")
    axes.figure.colorbar(image, ax=axes, shrink=0.85)


def _mode_areas(axes: Axes, run: Trajectory, name: str, labels: Sequence[str]) -> None:
    right = int((run.chances > 0).sum())
    shades = matplotlib.colormaps["viridis"](np.linspace(0.1, 0.95, right))
    axes.stackplot(
        range(len(run.probabilities)),
        run.probabilities.T,
        labels=labels,
        colors=[*shades, WRONG][: len(labels)],
        edgecolor="white",
        linewidth=0.4,
    )
    axes.set(xlim=(0, len(run.probabilities) - 1), ylim=(0, 1), xlabel="step", ylabel="probability of each mode")
    axes.set_title(
        f"{name}: {run.covered[-1]:.1f} of {right} modes in a group\n"
        f"of {run.group_size} at the end, {run.covered[0]:.1f} at the start"
    )


def _entropies(axes: Axes, result: PolicyResult) -> None:
    most = log(result.scene.modes)
    axes.axhline(most, color="black", linestyle=":", linewidth=1)
    axes.annotate("all right modes equally often", (0, most), (4, 4), textcoords="offset points", fontsize=9)
    runs = (result.grpo, result.dra)
    for run, name, colour, style in zip(runs, result.scoring.names, (GRPO.light, DRA.light), ("--", "-"), strict=True):
        axes.plot(run.entropy, style, color=colour, linewidth=2.2, label=name)
    axes.set(xlim=(0, result.scene.steps), ylim=(0, most * 1.12), xlabel="step", ylabel="entropy of right modes (nats)")
    course = [
        f"{name}: entropy from {run.entropy[0]:.2f} to {run.entropy[-1]:.2f}"
        for run, name in zip(runs, result.scoring.names, strict=True)
    ]
    axes.set_title("\n".join(course))
    axes.legend(frameon=False, loc="lower left")
    axes.spines[["top", "right"]].set_visible(False)


def _log_ratios(axes: Axes, result: PolicyResult) -> None:
    runs = (result.grpo, result.dra)
    for run, name, colour, style in zip(runs, result.scoring.names, (GRPO.light, DRA.light), ("--", "-"), strict=True):
        axes.plot(run.log_ratio, style, color=colour, linewidth=2.2, label=name)
    axes.axhline(0, color="black", linestyle=":", linewidth=1)
    axes.set(xlim=(0, result.scene.steps), xlabel="step", ylabel="log(p1 / p2) of the two commonest modes")
    course = [
        f"{name}: log(p1 / p2) from {run.log_ratio[0]:.2f} to {run.log_ratio[-1]:.2f}"
        for run, name in zip(runs, result.scoring.names, strict=True)
    ]
    axes.set_title("\n".join(course))
    axes.spines[["top", "right"]].set_visible(False)
