"""A report for a terminal."""

from __future__ import annotations

from collections.abc import Sequence

from verl_dra.report.contents import Shown
from verl_dra.report.curves import charts
from verl_dra.report.findings import findings
from verl_dra.report.groups import Completion, Group
from verl_dra.report.runs import Run
from verl_dra.terminal.tables import signed, table

_BLOCKS = "▁▂▃▄▅▆▇█"
_WIDTH = 24
_TEXT = 64
_BAR = 8


def render(runs: Sequence[Run], shown: Sequence[Shown]) -> str:
    """What happened in a sentence, each chart as a table of first and last values with a small curve, then the most
    redundant group of each run."""
    said = findings(runs)
    parts = ["\n".join(filter(None, said)) + "\n"]
    for chart in charts(runs, shown):
        values = [value for series in chart["series"] for value in series["y"]]
        rows = [
            [
                " ".join(filter(None, (runs[series["run"]].name, series["name"]))),
                _curve(series["y"], min(values), max(values)),
                f"{series['y'][0]:.4g}",
                f"{series['y'][-1]:.4g}",
                f"{series['x'][0]} to {series['x'][-1]}",
            ]
            for series in chart["series"]
        ]
        note = f" ({chart['note']})" if chart["note"] else ""
        parts.append(f"{chart['title']}{note}\n{table(['run', '', 'first', 'last', chart['x']], rows, left=2)}")
    for part in shown:
        step = max(part.steps)
        groups = [group for group in part.steps[step].groups if group.effective_paths is not None]
        if groups:
            group = min(groups, key=lambda group: group.effective_paths or 0.0)
            parts.append(f"{runs[part.run].name}, {part.kind}, step {step}: {_group(group)}")
    return "\n".join(parts)


def _curve(values: Sequence[float], low: float, high: float) -> str:
    at = (
        [round(i * (len(values) - 1) / (_WIDTH - 1)) for i in range(_WIDTH)]
        if len(values) > _WIDTH
        else range(len(values))
    )
    span = (high - low) or 1.0
    return "".join(_BLOCKS[round((values[i] - low) / span * (len(_BLOCKS) - 1))] for i in at)


def _group(group: Group) -> str:
    rows = [
        [
            f"{_letter(completion.cluster)}",
            _line(completion.text, _TEXT),
            f"{completion.reward:.3g}",
            "" if completion.smi is None else f"{completion.smi:.2f}",
            *_advantages(completion),
        ]
        for completion in group.completions
    ]
    header = ["", "completion", "reward", "SMI", "without DRA", "with DRA", ""]
    head = f"the group of fewest effective paths ({group.effective_paths:.2f})"
    return f"{head}\n{_line(group.prompt, 2 * _TEXT)}\n{table(header, rows, left=2)}"


def _line(text: str, characters: int) -> str:
    """`text` on one line, and without what would command the terminal or can't be written to it."""
    line = "".join(c if c.isprintable() else "\N{REPLACEMENT CHARACTER}" for c in " ".join(text.split()))
    return line if len(line) <= characters else f"{line[: characters - 4]} ..."


def _letter(cluster: int) -> str:
    return chr(ord("A") + cluster) if cluster < 26 else str(cluster)


def _advantages(completion: Completion) -> list[str]:
    if completion.advantage is None or completion.advantage_without is None:
        return ["", "", ""]
    bar = "#" * min(round(abs(completion.advantage) * _BAR / 2), _BAR)
    drawn = f"{'':{_BAR}}|{bar:{_BAR}}" if completion.advantage >= 0 else f"{bar:>{_BAR}}|{'':{_BAR}}"
    return [signed(completion.advantage_without, 2), signed(completion.advantage, 2), drawn]
