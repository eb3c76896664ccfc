"""What a report shows of some runs: curves, and groups by step."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from statistics import mean

from verl_dra.report.groups import Embed, Step, dumped, recorded
from verl_dra.report.runs import EFFECTIVE_PATHS, Run

TRAINING, VALIDATION = "training", "validation"


@dataclass
class Shown:
    """The groups of one run's training or validation, by step."""

    run: int
    kind: str
    """`TRAINING`, as `dra.record` wrote them, or `VALIDATION`, as veRL dumps them."""
    steps: dict[int, Step] = field(default_factory=dict)


def contents(runs: Sequence[Run], most: int, embed: Embed | None) -> list[Shown]:
    """The groups of all runs, `most` of a step. With `embed`, the runs' histories get `EFFECTIVE_PATHS`."""
    shown = []
    for number, run in enumerate(runs):
        training = Shown(number, TRAINING)
        for step, path in run.dumps("dra.record.folder", "groups").items():
            training.steps[step] = recorded(path, most)
        validation = Shown(number, VALIDATION)
        for step, path in run.dumps("trainer.validation_data_dir", "validation").items():
            validation.steps[step] = dumped(path, most, embed)
        measured = {step: list(_paths(of_step)) for step, of_step in validation.steps.items()}
        if any(measured.values()):
            run.history.values[EFFECTIVE_PATHS] = {step: mean(paths) for step, paths in measured.items() if paths}
        shown += [
            part
            for part in (validation, training)
            if any(step.groups or step.unreadable for step in part.steps.values())
        ]
    return shown


def unreadable(shown: Iterable[Shown]) -> int:
    """Lines of records and dumps that could not be read."""
    return sum(step.unreadable for part in shown for step in part.steps.values())


def has_dumps(runs: Sequence[Run]) -> bool:
    """Whether there are validation groups to measure."""
    return any(run.dumps("trainer.validation_data_dir", "validation") for run in runs)


def _paths(step: Step) -> Iterable[float]:
    return (group.effective_paths for group in step.groups if group.effective_paths is not None)
