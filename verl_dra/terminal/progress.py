"""What a user sees of a run's output: the stages of its start, a row of a table each step, and what is said."""

from __future__ import annotations

import re
import time
from collections.abc import Mapping

PREFIX = "verl-dra: "
"""Of the lines that this package says."""
HEAD_EVERY = 20
"""Rows of the table between two heads."""

# The numbers in these keep a line that only looks like it from taking a time that grows with its square.
_RAY_PREFIX = re.compile(r"^(\x1b\[\d+m)?\([^)]{0,200}pid=[^)]{0,200}\)(\x1b\[0m)? ?")
_STEP = re.compile(r"^step:(\d+) - (.*)$")
# veRL prints numbers alone, by their repr; a name can hold anything, " - " and ":" too.
_VALUE = re.compile(
    r":([+-]?(?:\d[\d_]*(?:\.\d*)?|\.\d+)(?:e[+-]?\d+)?|[+-]?(?:nan|inf)|True|False|\w[\w.]{0,40}\([^()]{0,80}\))"
    r"(?: - |$)",
    re.IGNORECASE,
)
_BAR = "Training Progress:"
_STEPS_AND_LEFT = re.compile(
    rf"^{_BAR}[^|]{{0,20}}\|[^|]{{0,400}}\| \d+/(\d{{1,12}}) \[[\d:]{{1,20}}<([\d:]{{1,20}}|\?)"
)
_VALIDATION = re.compile(r"^val-core/(.*/mean@\d+)$")
# veRL's (0.9.1) and Ray's lines that end a stage, and what comes next.
_STAGES = tuple(
    (re.compile(rf"^.{{0,100}}{pattern}"), text)
    for pattern, text in (
        (r"Started a local Ray instance", "Ray runs; starting the trainer"),
        (r"Connected to Ray cluster", "Ray is joined; starting the trainer"),
        (
            r"train and validate dataloader initialized, train dataset size: (\d+), val dataset size: (\d+)",
            r"data are read, \1 prompts and \2 of validation; loading the model",
        ),
        (r"actor and ref model engine initialized", "the model is loaded; starting the rollout engine"),
        (r"all initialize finished, ready to fit", "the rollout engine runs; the first generation is next"),
    )
)
# Title, metric, how its value is written.
_COLUMNS = (
    ("reward", "critic/score/mean", "number"),
    ("paths", "dra/effective_paths", "short"),
    ("duplicates", "dra/duplicates_frac", "share"),
    ("pushed down", "dra/correct_negative_adv_frac", "share"),
    ("time", "timing_s/step", "seconds"),
    ("wait", "timing_s/dra_wait", "seconds"),
)
_WIDTHS = {"step": 5, "reward": 7, "paths": 10, "duplicates": 10, "pushed down": 11, "time": 6, "wait": 6, "left": 7}
_UNKNOWN = "-"
_LEGEND = f"{PREFIX}pushed down: right answers whose advantage is below 0; wait: of the time, for diversity scores"
# Counts of what should not happen.
_FAULTS = tuple(
    f"dra/{name}"
    for name in (
        *("missing_rows", "fallbacks", "unadjusted_groups", "refused_rows", "unsent_rows", "late_rows", "evicted_rows"),
        *("replaced_rows", "unrecorded_groups"),
    )
)


class Progress:
    """The lines of one run, in their order.

    Args:
        group_size: completions of a prompt, for the table's head; None where it is not known.
    """

    def __init__(self, group_size: int | None = None) -> None:
        self._paths = "paths" if group_size is None else f"paths of {group_size}"
        self._started = time.monotonic()
        self._told: set[int] = set()
        self._rows = 0
        self._steps = self._left = ""

    def shown(self, line: str) -> str | None:
        """What is shown of a line of output, one or more lines; None for nothing."""
        line = _plain(line)
        if line.startswith(_BAR):
            if bar := _STEPS_AND_LEFT.match(line):
                self._steps, self._left = bar[1], bar[2].replace("?", "")
            return None
        if stage := _stage(line):
            number, text = stage
            if number in self._told:
                return None
            self._told.add(number)
            return f"{PREFIX}{text} ({time.monotonic() - self._started:.0f} s)"
        if (step := _step(line)) is None:
            return shown_line(line)
        row = _row(*step, self._steps, self._left)
        return _joined(self._head() if row else None, row, _validation(*step))

    def _head(self) -> str | None:
        self._rows += 1
        if self._rows % HEAD_EVERY != 1:
            return None
        step = f"{'step':>{_step_width(self._steps)}}"
        titles = {title: self._paths if title == "paths" else title for title in _WIDTHS if title != "step"}
        head = "  ".join([step, *(f"{titles[title]:>{_WIDTHS[title]}}" for title in titles)])
        return _joined(_LEGEND if self._rows == 1 else None, head)


def shown_line(line: str) -> str | None:
    """What is shown of a line of output alone: the line, a row of the table, a stage of the start, or None."""
    line = _plain(line)
    if line.startswith((PREFIX, _BAR)):
        return line
    if stage := _stage(line):
        return f"{PREFIX}{stage[1]}"
    if (step := _step(line)) is None:
        return None
    return _joined(_row(*step), _validation(*step))


def _plain(line: str) -> str:
    return _RAY_PREFIX.sub("", line).rstrip("\r").rsplit("\r", 1)[-1]


def _joined(*lines: str | None) -> str | None:
    return "\n".join(line for line in lines if line is not None) or None


def _stage(line: str) -> tuple[int, str] | None:
    """Which stage of the start has ended, and how that is told."""
    for number, (pattern, text) in enumerate(_STAGES):
        if found := pattern.match(line):
            return number, found.expand(text)
    return None


def _step(line: str) -> tuple[str, dict[str, str]] | None:
    """The step and its metrics, of veRL's line for its console."""
    step = _STEP.match(line)
    if step is None:
        return None
    metrics, at = {}, 0
    for value in _VALUE.finditer(step[2]):
        name, at = step[2][at : value.start()], value.end()
        # veRL prints numpy's numbers by their repr.
        metrics[name] = re.sub(r"^np\.\w+\((.*)\)$", r"\1", value[1])
    return step[1], metrics


def _row(step: str, metrics: Mapping[str, str], steps: str = "", left: str = "") -> str | None:
    """A step's row; None where nothing of it is in `metrics`, as for a validation alone."""
    if not any(metric in metrics for _, metric, _ in _COLUMNS):
        return None
    cells = [f"{f'{step}/{steps}' if steps else step:>{_step_width(steps)}}"]
    for title, metric, kind in _COLUMNS:
        cell = _cell(metrics[metric], kind) if metric in metrics else _UNKNOWN
        cells.append(f"{cell:>{_WIDTHS[title]}}")
    cells.append(f"{left or _UNKNOWN:>{_WIDTHS['left']}}")
    faults = [f"{name} {_cell(metrics[name], 'count')}" for name in _FAULTS if _is_above_0(metrics.get(name, "0"))]
    return "  ".join([*cells, *([", ".join(faults)] if faults else [])])


def _step_width(steps: str) -> int:
    return max(_WIDTHS["step"], 2 * len(steps) + 1)


def _validation(step: str, metrics: Mapping[str, str]) -> str | None:
    found = [(name[1], value) for name, value in ((_VALIDATION.match(n), v) for n, v in metrics.items()) if name]
    shown = ", ".join(f"{name} {_cell(value, 'number')}" for name, value in found)
    return f"{PREFIX}validation at step {step}: {shown}" if shown else None


def _cell(value: str, kind: str) -> str:
    try:
        number = float(value)
    except ValueError:
        return value
    if kind == "share":
        return f"{100 * number:.0f} %"
    if kind == "seconds":
        return f"{1000 * number:.0f} ms" if number < 1 else f"{number:.1f} s" if number < 100 else f"{number:.0f} s"
    if kind == "count" or abs(number) >= 1000:
        return f"{number:.4g}"
    return f"{number:.2f}" if kind == "short" else f"{number:.3f}"


def _is_above_0(value: str) -> bool:
    try:
        return float(value) > 0
    except ValueError:
        return False
