"""Which metrics a report shows, and in which chart."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from verl_dra.report.contents import Shown
from verl_dra.report.runs import EFFECTIVE_PATHS, Run

ACCURACY = r"^val-core/(.*)/(?:acc|reward)/mean@\d+$"
REWARD = r"^critic/score/mean$"
TRAINING_PATHS = r"^dra/effective_paths$"
_LARGE = 2
"""Charts that the page draws large."""
_SAME = 0.005
"""Of a chart's height: curves that are nowhere further apart than this coincide."""


@dataclass(frozen=True)
class Chart:
    """Curves over the training steps, of the metrics that fit a pattern."""

    title: str
    lines: tuple[tuple[str, str], ...]
    """Names and patterns. What group 1 of a pattern finds is shown where it finds several, such as validation sets."""
    note: str = ""


CHARTS = (
    Chart(
        "Different ways to answer",
        (("", rf"^{EFFECTIVE_PATHS}$"),),
        "effective paths (Vendi score) of validation groups: 1 where all completions say the same",
    ),
    Chart("Validation accuracy", (("", ACCURACY),)),
    Chart("Training reward", (("", REWARD),), "raw, with DRA and without"),
    Chart("Effective paths in training", (("", TRAINING_PATHS),), "measured where DRA is on"),
    Chart("Validation, best of all samples", (("", r"^val-core/(.*)/(?:acc|reward)/best@\d+/mean$"),)),
    Chart("Policy entropy", (("", r"^actor/entropy$"),)),
    Chart(
        "Weights", (("mean", r"^dra/weight/mean$"), ("least", r"^dra/weight/min$")), "what rewards are multiplied by"
    ),
    Chart(
        "Groups without a gradient",
        (("raw", r"^dra/zero_std_frac/raw$"), ("adjusted", r"^dra/zero_std_frac/adjusted$")),
        "all rewards of the group are equal, before and after DRA",
    ),
    Chart("Right answers pushed down", (("", r"^dra/correct_negative_adv_frac$"),)),
    Chart("Seconds a step", (("all", r"^timing_s/step$"), ("waiting for scores", r"^timing_s/dra_wait$"))),
    Chart("Response tokens", (("", r"^response_length/mean$"),)),
)


PASS_AT_K = Chart(
    "pass@k",
    (("last validation", ""), ("first validation", "")),
    "chance that k samples of a prompt hold a right one, mean over all prompts of a validation",
)


def charts(runs: Sequence[Run], shown: Sequence[Shown]) -> list[dict[str, Any]]:
    """Those charts that have a curve: title, note, what `x` is (`steps`, or the `k` of pass@k), and `series` of run
    number, name, dash, `x` and values.

    A name has the same dash in each run. `same` lists the numbers of series that coincide, in groups; where all of them
    look the same, being the seeds of one setting, they are left out.
    """
    metrics = sorted({metric for run in runs for metric in run.history.values})
    found = []
    for chart in CHARTS:
        name_of: dict[str, str] = {}
        for name, pattern in chart.lines:
            matches = [match for metric in metrics if (match := re.match(pattern, metric))]
            several = len({match.groups() for match in matches}) > 1
            name_of |= {m[0]: " ".join(filter(None, (name, m[1] if several else ""))) for m in matches}
        dashes = list(dict.fromkeys(name_of.values()))
        series = [
            _series(number, name, dashes, run.history.values[metric])
            for number, run in enumerate(runs)
            for metric, name in name_of.items()
            if metric in run.history.values
        ]
        found.append(_chart(chart, "steps", series, runs))
    found.insert(_LARGE, _chart(PASS_AT_K, "k", _pass_at_k(shown), runs))
    return [chart for chart in found if chart["series"]]


def _pass_at_k(shown: Sequence[Shown]) -> list[dict[str, Any]]:
    last, first = names = [name for name, _ in PASS_AT_K.lines]
    series = []
    for part in shown:
        judged = [step.pass_at for step in part.steps.values() if step.pass_at]
        if judged:
            series.append(_series(part.run, last, names, judged[-1]))
        if len(judged) > 1:
            series.append(_series(part.run, first, names, judged[0]))
    return series


def _series(run: int, name: str, names: Sequence[str], values: Mapping[int, float]) -> dict[str, Any]:
    return {
        "run": run,
        "name": name,
        "dash": names.index(name),
        "x": list(values),
        "y": [float(f"{value:.5g}") for value in values.values()],
    }


def _chart(chart: Chart, x: str, series: list[dict[str, Any]], runs: Sequence[Run]) -> dict[str, Any]:
    looks = [(runs[one["run"]].family, one["name"]) for one in series]
    same = [group for group in _same(series) if len({looks[at] for at in group}) > 1]
    return {"title": chart.title, "note": chart.note, "x": x, "series": series, "same": same}


def _same(series: Sequence[Mapping[str, Any]]) -> list[list[int]]:
    """Numbers of series that coincide, in groups; one that is alone is a group."""
    values = [value for one in series for value in one["y"]]
    near = _SAME * (max(values) - min(values)) if values else 0.0
    curves = [dict(zip(one["x"], one["y"], strict=True)) for one in series]
    groups: list[list[int]] = []
    for at, curve in enumerate(curves):
        for group in groups:
            other = curves[group[0]]
            if set(curve) == set(other) and all(abs(value - other[x]) <= near for x, value in curve.items()):
                group.append(at)
                break
        else:
            groups.append([at])
    return groups
