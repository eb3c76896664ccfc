"""Histograms of cosines, an encoder each, in Okabe and Ito's colours."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np
from matplotlib.figure import Figure
from numpy.typing import NDArray

from verl_dra.calibrate.encoders import Seen
from verl_dra.terminal.colours import GREEN, PINK

_BINS = 40


def histograms(
    seen: Sequence[Seen], parts: Mapping[str, NDArray[np.bool_]], cuts: Sequence[float | None], titles: Sequence[str]
) -> Figure:
    """A panel for each encoder.

    Args:
        seen: the encoders' cosines [P].
        parts: [P] which pairs each of the histograms is of, by its name.
        cuts: where each encoder's `cluster_cosine` is drawn; None for nowhere.
        titles: of the panels.
    """
    figure = Figure(figsize=(9, 0.4 + 2.5 * len(seen)), layout="constrained")
    for axes, one, cut, title in zip(
        figure.subplots(len(seen), 1, squeeze=False)[:, 0], seen, cuts, titles, strict=True
    ):
        edges = np.linspace(min(0.0, float(one.cosine.min())), 1, _BINS + 1)
        for (name, of), colour in zip(parts.items(), (GREEN.light, PINK.light), strict=True):
            if of.any():
                shares = np.full(int(of.sum()), 1 / of.sum())
                axes.hist(one.cosine[of], edges, weights=shares, alpha=0.6, color=colour, label=f"{name} ({of.sum()})")
        if cut is not None:
            axes.axvline(cut, color="black", linestyle=":", linewidth=1.2, label=f"cluster_cosine {cut:.3f}")
        axes.set(title=title, xlabel="cosine", ylabel="share of pairs")
        axes.legend(frameon=False, loc="best")
        axes.spines[["top", "right"]].set_visible(False)
    return figure
