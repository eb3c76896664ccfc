"""The study's results: one JSON, the tables of README made of it, and pictures."""

from __future__ import annotations

import json
import statistics
import sys
from collections import defaultdict
from collections.abc import Callable, Mapping, Sequence
from functools import partial
from math import sqrt
from pathlib import Path
from typing import Any

from scipy.stats import t as student

from tiny_locks.study import stack, wording
from tiny_locks.study.arms import Run, label, wanted
from tiny_locks.study.train import DONE
from tiny_locks.task import LOCKS, RARE
from verl_dra.evaluate.estimators import interval

RESULTS = "results.json"
README = Path(__file__).resolve().parents[1] / "README.md"
START, END = "<!-- made by `study plot` -->\n", "<!-- end -->"
FOUND_SHARE, FOUND_ACCURACY = 0.2, 0.8
RECOVERED = 0.9
_DRAWS = 2000
_COMPARED = ("dra", "dra_correct")
"""What the others are held against; the second since three seeds of lock A were seen."""

Runs = Mapping[str, Mapping[str, Sequence[dict[str, Any]]]]
"""By lock and arm, in the order of their seeds."""


def report(out: Path, results: Path) -> None:
    """Put all finished runs below `out` into results.json of `results`, draw what it says, and print the tables.

    What results.json says of other runs stays there: they may have been made elsewhere. Where `results` is the study's
    own folder, README's tables are renewed.
    """
    finished = [json.loads(path.read_text()) for lock in LOCKS for path in sorted(out.glob(f"{lock}/*/*/{DONE}"))]
    trained = [stack.measured(path.parent) for path in sorted(stack.folder(out).glob(f"*/*/{DONE}"))]
    kept = json.loads((results / RESULTS).read_text()) if (results / RESULTS).exists() else {"runs": []}
    if not finished and not trained and not kept["runs"] and "wording" not in kept:
        sys.exit(f"no finished run is in {out} and no {RESULTS} in {results}; start `study run` first")
    content = {
        **kept,
        "stack": _of_both(kept.get("stack", []), trained, ("arm", "seed")),
        "runs": merged(kept["runs"], finished),
    }
    results.mkdir(parents=True, exist_ok=True)
    write(results / RESULTS, content)
    from tiny_locks.study import pictures

    made = by_lock(content["runs"])
    pictures.draw(made, content["stack"], results / "curves.png")
    pictures.front(made.get("even", {}), results / "front.png")
    shown = tables(content)
    sys.stdout.write(shown)
    if results.resolve() == README.parent / "study":
        before, _, rest_of = README.read_text().partition(START)
        README.write_text(f"{before}{START}\n{shown}\n{END}{rest_of.partition(END)[2]}")


def write(path: Path, content: Mapping[str, Any]) -> None:
    """A line a run."""
    lines = ",\n".join(json.dumps(run, sort_keys=True) for run in content["runs"])
    rest = "".join(f'"{key}": {json.dumps(value)},\n' for key, value in content.items() if key != "runs")
    path.write_text(f'{{{rest}"runs": [\n{lines}\n]}}\n')


def merged(kept: Sequence[dict[str, Any]], finished: Sequence[dict[str, Any]]) -> list[dict[str, Any]]:
    """The runs of both, of one that is in both the finished one; in the order of lock, arm and seed."""
    runs = _of_both(kept, finished, ("lock", "arm", "seed"))
    if len(starts := {run["start"] for run in runs}) > 1:
        sys.exit(
            f"the runs start from different models ({', '.join(sorted(starts))}), which one table can't compare; give "
            "--results a folder of its own"
        )
    made = {json.dumps({**run["settings"], "steps": 0}, sort_keys=True) for run in runs}
    steps = {run["settings"]["steps"] for run in runs if run["arm"] != "start"}
    how: dict[str, set[str]] = defaultdict(set)
    for run in runs:
        how[run["arm"]].add(json.dumps(run["how"], sort_keys=True))
    differ = [arm for arm, ways in how.items() if len(ways) > 1]
    if len(made) > 1 or len(steps) > 1 or differ:
        what = f"arms {', '.join(differ)}" if differ else f"steps {sorted(steps)} or settings"
        sys.exit(f"the runs differ in {what}, which one table can't compare; give --results a folder of its own")
    return runs


def _of_both(
    kept: Sequence[dict[str, Any]], fresh: Sequence[dict[str, Any]], key: Sequence[str]
) -> list[dict[str, Any]]:
    runs = {tuple(run[name] for name in key): run for run in (*kept, *fresh)}
    return [runs[at] for at in sorted(runs)]


def by_lock(runs: Sequence[dict[str, Any]]) -> Runs:
    """Sorted runs by lock and arm."""
    found: dict[str, dict[str, list[dict[str, Any]]]] = defaultdict(lambda: defaultdict(list))
    for run in runs:
        found[run["lock"]][run["arm"]].append(run)
    return found


def at_end(run: Mapping[str, Any], key: str) -> float:
    """The mean of a measure over a run's checkpoints; 0 where there is none of it, as of a way that nobody took."""
    return statistics.mean(point.get(key, 0.0) for point in run["checkpoints"])


def found(run: Mapping[str, Any]) -> bool:
    """Whether a run has found the rare way: it takes it often and is mostly right by it."""
    return at_end(run, f"share/{RARE}") >= FOUND_SHARE and at_end(run, f"accuracy/{RARE}") >= FOUND_ACCURACY


def recovery(run: Mapping[str, Any]) -> int | None:
    """Steps from the switch to the end of the first block whose reward is again `RECOVERED` of that before it."""
    half = run["settings"]["steps"] // 2
    before = [block["reward"] for block in run["training"] if block["step"] <= half][-1]
    after = (block for block in run["training"] if block["step"] > half)
    return next((block["step"] - half for block in after if block["reward"] >= RECOVERED * before), None)


def tables(content: Mapping[str, Any]) -> str:
    """Markdown of all that results.json says, what is missing included."""
    runs = by_lock(content["runs"])
    plan: dict[str, dict[str, list[int]]] = defaultdict(lambda: defaultdict(list))
    for run in wanted():
        plan[run.lock][run.arm].append(run.seed)
    missing = [run for run in wanted() if run.seed not in _seeds(runs, run)]
    total = len(wanted())
    parts = [
        wording.table(content["wording"]) if "wording" in content else "",
        f"{total - len(missing)} of {total} runs are made.",
        "### Lock A, even",
        _table(
            plan["even"],
            runs.get("even", {}),
            {
                "accuracy": _mean_of("accuracy"),
                "entropy over ways": _mean_of("way_entropy"),
                "entropy of words": _mean_of("word_entropy"),
                "locked pass@1": _mean_of("locked/1"),
                "locked pass@8": _mean_of("locked/8"),
                "locked pass@64": _mean_of("locked/64"),
            },
        ),
        *(
            f"{label(arm)} less another arm, of the seeds that both have:\n\n"
            + _differences(
                arm,
                plan["even"],
                runs.get("even", {}),
                {
                    "accuracy": partial(at_end, key="accuracy"),
                    "entropy over ways": partial(at_end, key="way_entropy"),
                    "entropy of words": partial(at_end, key="word_entropy"),
                    "locked pass@8": partial(at_end, key="locked/8"),
                },
            )
            for arm in _COMPARED
        ),
        "The same lock through the real stack, beside the span of the loop's seeds:",
        stack.table(content.get("stack", ()), runs.get("even", {})),
        "### Lock B, a rare better way",
        _table(
            plan["rare"],
            runs.get("rare", {}),
            {
                "reward": _mean_of("reward"),
                "accuracy": _mean_of("accuracy"),
                "share of the rare way": _mean_of(f"share/{RARE}"),
                "found": lambda of: f"{sum(map(found, of))} of {len(of)}",
            },
        ),
        f"{label('dra')} less another arm:",
        _differences(
            "dra",
            plan["rare"],
            runs.get("rare", {}),
            {"reward": partial(at_end, key="reward"), "share of the rare way": partial(at_end, key=f"share/{RARE}")},
        ),
        "### Lock C, switch",
        _table(
            plan["switch"],
            runs.get("switch", {}),
            {
                "reward before": lambda of: _spread([_block_at(run, after=0) for run in of]),
                "in the 5 steps after": lambda of: _spread([_block_at(run, after=1) for run in of]),
                "at the end": _mean_of("reward"),
                "steps to recover": lambda of: ", ".join(str(recovery(run) or "never") for run in of),
            },
        ),
        f"{label('dra')} less another arm:",
        _differences(
            "dra",
            plan["switch"],
            runs.get("switch", {}),
            {
                "reward before": partial(_block_at, after=0),
                "in the 5 steps after": partial(_block_at, after=1),
                "at the end": partial(at_end, key="reward"),
            },
        ),
    ]
    return "\n\n".join(part for part in parts if part) + "\n"


def _seeds(runs: Runs, run: Run) -> list[int]:
    return [one["seed"] for one in runs.get(run.lock, {}).get(run.arm, ())]


def _table(
    plan: Mapping[str, Sequence[int]],
    made: Mapping[str, Sequence[dict[str, Any]]],
    columns: Mapping[str, Callable[[Sequence[dict[str, Any]]], str]],
) -> str:
    lines = [f"| arm | {' | '.join(columns)} | seeds | missing seeds |", "|---" * (len(columns) + 3) + "|"]
    for arm in [*plan, *(arm for arm in made if arm not in plan)]:
        runs = made.get(arm, ())
        seeds = [run["seed"] for run in runs]
        cells = [column(runs) if runs else "" for column in columns.values()]
        not_there = ", ".join(str(seed) for seed in plan.get(arm, ()) if seed not in seeds)
        lines.append(f"| {label(arm)} | {' | '.join(cells)} | {len(runs)} | {not_there} |")
    return "\n".join(lines)


def _differences(
    ours: str,
    plan: Mapping[str, Sequence[int]],
    made: Mapping[str, Sequence[dict[str, Any]]],
    measures: Mapping[str, Callable[[Mapping[str, Any]], float]],
) -> str:
    """Paired by seed; bold where the interval excludes 0. Empty where nothing can be compared."""
    of_ours = {run["seed"]: run for run in made.get(ours, ())}
    lines = []
    for arm in plan:
        theirs = {run["seed"]: run for run in made.get(arm, ()) if run["seed"] in of_ours}
        if arm in (ours, "start") or len(theirs) < 2:
            continue
        cells = [_difference([of(of_ours[s]) - of(run) for s, run in theirs.items()]) for of in measures.values()]
        lines.append(f"| {label(arm)} | {' | '.join(cells)} | {len(theirs)} |")
    header = [f"| less | {' | '.join(measures)} | seeds |", "|---" * (len(measures) + 2) + "|"]
    return "\n".join([*header, *lines]) if lines else "(no two arms have two seeds in common so far)"


def _difference(values: Sequence[float]) -> str:
    """Mean and Student's 95 % interval: with few seeds a bootstrap's excludes 0 as soon as all of them agree."""
    mean = statistics.mean(values)
    half = float(student.ppf(0.975, len(values) - 1)) * statistics.stdev(values) / sqrt(len(values))
    said = f"{mean:+.3f} ({mean - half:+.3f} to {mean + half:+.3f})"
    return f"**{said}**" if abs(mean) > half else said


def _mean_of(key: str) -> Callable[[Sequence[dict[str, Any]]], str]:
    return lambda runs: _spread([at_end(run, key) for run in runs])


def _spread(values: Sequence[float]) -> str:
    """Mean and bootstrap interval over seeds."""
    ends = interval(values, _DRAWS) if len(values) > 1 else None
    mean = f"{statistics.mean(values):.3f}"
    return mean if ends is None else f"{mean} ({ends[0]:.3f} to {ends[1]:.3f})"


def _block_at(run: Mapping[str, Any], after: int) -> float:
    """The reward of the block just before the switch, or of that `after` it."""
    half = run["settings"]["steps"] // 2
    before = [at for at, block in enumerate(run["training"]) if block["step"] <= half]
    return float(run["training"][before[-1] + after]["reward"])
