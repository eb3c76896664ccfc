"""The study's results: one JSON file, curves with their spread over seeds, and the tables of README."""

from __future__ import annotations

import json
import statistics
import sys
from collections import defaultdict
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from tiny_paths.samples import K, encoder_config
from tiny_paths.study.arms import ARMS, MAIN
from tiny_paths.study.measure import measure
from tiny_paths.study.train import DONE
from verl_dra.embedding import build_encoder
from verl_dra.report.groups import embedding
from verl_dra.terminal.colours import of_settings

RESULTS = "results.json"
LABELS = {"grpo": "GRPO", "dra_grpo": "DRA-GRPO", "dr_grpo": "Dr.GRPO", "dra_dr_grpo": "DRA-Dr.GRPO"}
CURVES = {
    "accuracy": "accuracy",
    f"pass@{K}": f"pass@{K}",
    "strategy_entropy": "entropy of the paths of right answers",
    "effective_paths": "effective paths (Vendi score of 16 samples)",
}
COLUMNS = ("accuracy", f"pass@{K}", "strategy_entropy", "right_paths", "effective_paths")


def report(out: Path, results: Path) -> None:
    """Measure all finished runs below `out`; write results.json and curves.png into `results`, print the tables.

    What results.json says of other arms and seeds stays there: they may have been trained elsewhere.
    """
    finished = sorted(out.glob(f"*/*/{DONE}"))
    if not finished and not (results / RESULTS).exists():
        sys.exit(f"no finished run is in {out} and no {RESULTS} in {results}; start `study run` first")
    embed = embedding(build_encoder(encoder_config()))
    runs = merged(results / RESULTS, [measure(path.parent, embed) for path in finished])
    by_arm: dict[str, list[dict[str, Any]]] = defaultdict(list)
    for run in runs:
        by_arm[run["arm"]].append(run)
    results.mkdir(parents=True, exist_ok=True)
    (results / RESULTS).write_text(json.dumps(runs, indent=1, sort_keys=True) + "\n")
    if main := [arm for arm in MAIN if arm in by_arm]:
        _plot({arm: by_arm[arm] for arm in main}, results / "curves.png")
        sys.stdout.write(table(main, by_arm) + "\n")
    if knobs := [arm for arm in ARMS if arm in by_arm and arm not in MAIN]:
        sys.stdout.write("\n" + table(knobs, by_arm) + "\n")


def merged(path: Path, measured: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """The runs of the file that were not measured now, and those that were, by arm and seed."""
    runs = {}
    for run in json.loads(path.read_text()) if path.exists() else []:
        runs[run["arm"], run["seed"]] = {**run, "validation": {int(k): v for k, v in run["validation"].items()}}
    runs |= {(run["arm"], run["seed"]): run for run in measured}
    for arm in sorted({arm for arm, _ in runs}):
        made = {(run["steps"], *run.get("overrides", ())) for run in runs.values() if run["arm"] == arm}
        if len(made) > 1:
            said = " and ".join(sorted(" ".join(map(str, settings)) for settings in made))
            sys.exit(
                f"the runs of {arm} have different steps or overrides ({said}), which one row can't show; give "
                "--results a folder of their own"
            )
    if len(starts := {run["data"] for run in runs.values()}) > 1:
        sys.exit(
            f"the runs start from different models ({', '.join(sorted(starts))}), which {path} cannot compare; "
            "give --results a folder of their own"
        )
    return [runs[key] for key in sorted(runs)]


def table(arms: Sequence[str], by_arm: dict[str, list[dict[str, Any]]]) -> str:
    """Markdown: the last validation of each arm, mean and sample standard deviation over seeds."""
    lines = [
        "| arm | seeds | steps | " + " | ".join(COLUMNS) + " | seconds a step | of it waiting for scores |",
        "|---" * (len(COLUMNS) + 5) + "|",
    ]
    # All from one model, whose samples differ from run to run.
    starts = [run["validation"][0] for arm in arms for run in by_arm[arm] if 0 in run["validation"]]
    if starts:
        cells = [_spread([start[column] for start in starts]) for column in COLUMNS]
        lines.append(f"| before RL | {len(starts)} | 0 | {' | '.join(cells)} | | |")
    for arm in arms:
        runs = by_arm[arm]
        last = [run["validation"][max(run["validation"])] for run in runs]
        cells = [_spread([point[column] for point in last]) for column in COLUMNS]
        seconds = statistics.median(run["step_seconds"] for run in runs)
        wait = statistics.median(run["dra_wait_share"] for run in runs)
        steps = "/".join(sorted({str(run["steps"]) for run in runs}))
        lines.append(
            f"| {LABELS.get(arm, arm)} | {len(runs)} | {steps} | {' | '.join(cells)} | {seconds:.2f} | {wait:.2%} |"
        )
    return "\n".join(lines)


def _spread(values: Sequence[float]) -> str:
    mean = statistics.mean(values)
    return f"{mean:.3f} ± {statistics.stdev(values):.3f}" if len(values) > 1 else f"{mean:.3f}"


def _plot(by_arm: dict[str, list[dict[str, Any]]], path: Path) -> None:
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot as plt

    figure, axes = plt.subplots(2, 2, figsize=(10, 7), sharex=True, layout="constrained")
    shades = of_settings(["dra.enabled=False" not in ARMS[arm] for arm in MAIN])
    colours = {arm: shade.light for arm, shade in zip(MAIN, shades, strict=True)}
    for axis, (measured, title) in zip(axes.flat, CURVES.items(), strict=True):
        for arm, runs in by_arm.items():
            steps = sorted(set.intersection(*(set(run["validation"]) for run in runs)))
            values = [[run["validation"][step][measured] for run in runs] for step in steps]
            axis.plot(steps, [statistics.mean(v) for v in values], label=LABELS[arm], color=colours[arm])
            axis.fill_between(steps, [min(v) for v in values], [max(v) for v in values], color=colours[arm], alpha=0.15)
        axis.set_title(title, fontsize=10)
        axis.grid(alpha=0.3)
    for axis in axes[1]:
        axis.set_xlabel("training step")
    axes[0][0].legend(fontsize=9)
    figure.suptitle(f"tiny_paths: mean of {max(map(len, by_arm.values()))} seeds, the band from least to most")
    figure.savefig(path, dpi=120, metadata={"Software": None})
