"""Which metrics a report shows, and in which chart."""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from verl_dra.report.runs import Run


@dataclass(frozen=True)
class Chart:
    """Curves over the training steps, of the metrics that fit a pattern."""

    title: str
    lines: tuple[tuple[str, str], ...]
    """Names and patterns. What group 1 of a pattern finds is shown where it finds several, such as validation sets."""
    note: str = ""


EFFECTIVE_PATHS = "report/effective_paths"
"""Of the validation groups that the report shows; measured by the report, so that runs without DRA have it as well."""

CHARTS = (
    Chart(
        "Different ways to answer",
        (("", rf"^{EFFECTIVE_PATHS}$"),),
        "effective paths (Vendi score) of validation groups: 1 where all completions say the same",
    ),
    Chart("Validation accuracy", (("", r"^val-core/(.*)/(?:acc|reward)/mean@\d+$"),)),
    Chart("Training reward", (("", r"^critic/score/mean$"),), "raw, with DRA and without"),
    Chart("Effective paths in training", (("", r"^dra/effective_paths$"),), "measured where DRA is on"),
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


def charts(runs: Sequence[Run]) -> list[dict[str, Any]]:
    """Those charts that have a curve: title, note, and `series` of run number, name, dash, steps and values.

    A name has the same dash in each run.
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
            {
                "run": number,
                "name": name,
                "dash": dashes.index(name),
                "x": list(run.history.values[metric]),
                "y": [float(f"{value:.5g}") for value in run.history.values[metric].values()],
            }
            for number, run in enumerate(runs)
            for metric, name in name_of.items()
            if metric in run.history.values
        ]
        if series:
            found.append({"title": chart.title, "note": chart.note, "series": series})
    return found
