"""`make demo`: train the task's model with DRA and without on this machine's CPU, and show both side by side.

python recipes/tiny_paths/demo.py [Hydra options] [Hydra overrides]

Overrides are for both trainings; with dra.enabled among them, or --multirun, that training alone is made.
"""

from __future__ import annotations

import os
import re
import subprocess
import sys
from collections.abc import Mapping, Sequence
from datetime import datetime
from itertools import takewhile
from pathlib import Path

sys.path.append(str(Path(__file__).resolve().parents[1]))

from tiny_paths.prepare import prepare

HERE = Path(__file__).resolve().parent
TWINS = {
    "with DRA": ("with_dra", ()),
    "without DRA": ("without_dra", ("dra.enabled=False", "dra.record.every_n_steps=0")),
}
"""By name: the folder of the run and what makes it one."""
_ALONE = re.compile(r"-m|--multirun|-c|--cfg|--(hydra-)?help|-h|\+{0,2}dra\.enabled=.*")
_RUN_DIR = "hydra.run.dir="
_SHOWN = {
    "accuracy": ("accuracy", 2),
    "ways to a right answer": ("right_paths", 1),
    "effective paths": ("effective_paths", 2),
}


def command(folder: Path, arguments: Sequence[str]) -> list[str]:
    """The training command over the prepared `folder`; `arguments` are Hydra's options, then overrides."""
    # Hydra takes no overrides on both sides of an option.
    options = list(takewhile(lambda argument: argument.startswith("-"), arguments))
    return [
        *(sys.executable, "-m", "verl_dra.main", "--config-dir", str(HERE), "--config-name", "tiny_paths", *options),
        "+platform=cpu",
        f"data_dir={folder}",
        f"recipe_dir={HERE}",
        *arguments[len(options) :],
    ]


def environment() -> dict[str, str]:
    """What the training's environment needs beside this process's own."""
    return {"RAY_AUTH_MODE": "disabled", "HF_HUB_OFFLINE": "1"}


def main() -> int:
    """The exit status of the training that failed, or 0."""
    _say("preparing data and starting model (once; about a minute)")
    folder, arguments = prepare(), sys.argv[1:]
    if any(_ALONE.fullmatch(argument) for argument in arguments):
        return _train(folder, arguments)
    given = [word.removeprefix(_RUN_DIR) for word in arguments if word.startswith(_RUN_DIR)]
    out = Path(given[-1] if given else f"outputs/tiny_paths/{datetime.now():%Y-%m-%d_%H-%M-%S}").absolute()
    runs = {name: out / of_run for name, (of_run, _) in TWINS.items()}
    for number, (name, (_, overrides)) in enumerate(TWINS.items(), start=1):
        _say(f"\ntraining {number} of {len(TWINS)}, {name}")
        shared = [word for word in arguments if not word.startswith(_RUN_DIR)]
        if status := _train(folder, [*shared, *overrides, f"{_RUN_DIR}{runs[name]}"]):
            return status
    return _show(runs, out)


def _train(folder: Path, arguments: Sequence[str]) -> int:
    return subprocess.run(command(folder, arguments), env={**os.environ, **environment()}, check=False).returncode


def _show(runs: Mapping[str, Path], out: Path) -> int:
    """What validation says of the trainings, before and after, and one report of both."""
    # Of a training alone nothing is measured.
    from tiny_paths.samples import encoder_config, samples_of, validation
    from verl_dra.cli import main as verl_dra
    from verl_dra.embedding import build_encoder
    from verl_dra.report.groups import embedding
    from verl_dra.terminal.tables import table

    _say("\nmeasuring both")
    embed = embedding(build_encoder(encoder_config()))
    rows, questions, samples, last = [], 0, 0, 0
    for name, run in runs.items():
        dumps = sorted((run / "validation").glob("*.jsonl"), key=lambda path: int(path.stem))
        ends = [samples_of(path) for path in (dumps[0], dumps[-1])]
        found = [validation(end, embed) for end in ends]
        questions, samples = len({sample["input"] for sample in ends[-1]}), len(ends[-1])
        last = int(dumps[-1].stem)
        cells = (" -> ".join(f"{end[key]:.{digits}f}" for end in found) for key, digits in _SHOWN.values())
        rows.append([name, *cells])
    _say(
        f"\n{questions} questions that training does not show, {samples // questions} samples each, before training "
        f"and after {last} steps:\n\n{table(['', *_SHOWN], rows)}"
    )
    report = ["report", *(f"{name}={run}" for name, run in runs.items()), "--out", str(out / "report.html")]
    return verl_dra(report)


def _say(text: str) -> None:
    sys.stdout.write(f"{text}\n")
    sys.stdout.flush()


if __name__ == "__main__":
    sys.exit(main())
