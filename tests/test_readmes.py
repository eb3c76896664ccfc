"""Every command of every README is executed: here, by a test or CI that is named here; or it is said not to be."""

from __future__ import annotations

import re
import shlex
from collections.abc import Iterator
from dataclasses import dataclass
from functools import cache
from pathlib import Path

import pytest
from run_folders import make_run

from verl_dra.cli import main
from verl_dra.main import check, composed

ROOT = Path(__file__).parents[1]
READMES = [
    ROOT / "README.md",
    *(
        p
        for top in ("docker", "launch", "recipes", "tests", "verl_dra")
        for p in sorted((ROOT / top).rglob("README.md"))
    ),
]

EXECUTED_HERE = {
    "verl-dra report RUN_DIR RUN_DIR --out report.html": "report.html",
    "verl-dra simulate --plot group.png": "group.png",
    "verl-dra simulate --scene policy --plot policy.png": "policy.png",
    "verl-dra simulate --std population": None,
}
"""What each leaves behind."""

_SWEEP = "tests/slurm/test_sweep_on_slurm.py::"
_TWO_POINTS = _SWEEP + "test_two_points_train_each_on_a_ray_cluster_of_its_own"
_FAILED_POINTS = _SWEEP + "test_points_that_failed_are_submitted_again_and_no_others"
_TRAINING = "tests/stack/test_training.py::test_sync_advantages_are_the_formula_s"
_DEMO = "tests/stack/test_demo.py::test_the_demo_trains_and_shows_little"
_MULTIRUN = "tests/stack/test_demo.py::test_a_sweep_trains_every_point"
_STUDY = "tests/stack/test_demo.py::test_the_study_trains_measures_and_goes_on"
_SBATCH = "tests/slurm/test_ray_sbatch.py::test_two_jobs_share_the_nodes_and_each_has_both_of_its_own"
_JOB = "tests/stack/test_ray_job.py::test_a_submitted_job_trains"
_OPEN_RS = "tests/stack/test_open_rs_trains.py::test_from_published_rows_to_trained_steps"
_EVALUATE = "tests/test_evaluate.py::test_a_model_is_sampled_through_vllm_and_a_cut_off_run_goes_on"
_IMAGE = "tests/test_docker.py::test_the_image_has_what_the_base_carried_at_the_same_versions"
_PREPARED = "tests/test_tiny_paths.py::test_intact_folder_is_reused_and_made_alike_elsewhere"

EXECUTED_BY = {
    "make demo": _DEMO,
    "make test": ".ci/run::make test",
    "verl-dra train data.train_files=train.parquet": _TRAINING,
    "verl-dra train --config-dir recipes/tiny_paths": _DEMO,
    "verl-dra doctor OVERRIDES": "tests/test_doctor.py::test_a_recipe_is_composed_as_train_composes_it",
    "verl-dra sweep --out SWEEP": _TWO_POINTS,
    "verl-dra sweep --status SWEEP": _FAILED_POINTS,
    "verl-dra sweep --resubmit SWEEP": _FAILED_POINTS,
    "sbatch --nodes=2": _SBATCH,
    "launch/ray/submit.sh --address": _JOB,
    "ray job": _JOB,
    "verl-dra prepare-data gsm8k --out DATA": "tests/test_prepare_data.py::test_the_hub_is_read_at_one_commit",
    "verl-dra prepare-data open_rs --out DATA": _OPEN_RS,
    "DATA_DIR=$PWD/DATA recipes/open_rs/dra_grpo.sh": _OPEN_RS,
    "verl-dra evaluate --model MODEL": _EVALUATE,
    "python recipes/tiny_paths/prepare.py": _PREPARED,
    "python recipes/tiny_paths/measure.py": "tests/stack/test_demo.py::test_a_policy_is_measured",
    "python recipes/tiny_paths/demo.py --multirun": _MULTIRUN,
    "python recipes/tiny_paths/demo.py": _DEMO,
    "python recipes/tiny_paths/study": _STUDY,
    "verl-dra report outputs/tiny_paths/study": _STUDY,
    "docker build": _IMAGE,
}
"""By the command's first words, the longest that fit: the test that executes it, or what it is made of, for real."""

NOT_EXECUTED = {
    "docker": "Docker engine",
    "NODE=": "Docker engine",
    "mkdir -p work huggingface && sudo": "Docker engine",
    "openssl rand -hex 32 > token && sudo": "Docker engine",
    "export RAY_AUTH_TOKEN=": "cloud",
    "kubectl": "Kubernetes",
    "sky": "cloud",
}
"""What they need, which neither we nor CI have; the README that has them says that they were not run."""

NO_COMMANDS = ("SMI_i = ", "verl_dra/algorithm/ ", "`runtime_env` with")
"""How blocks begin that are no commands."""


@dataclass(frozen=True)
class Command:
    """A command as a README has it, on one line and without its comment."""

    readme: Path
    text: str

    def __str__(self) -> str:
        return f"{self.readme.relative_to(ROOT)}: {self.text}"


@cache
def commands() -> list[Command]:
    return [
        Command(readme, text) for readme in READMES for block in blocks(readme.read_text()) for text in joined(block)
    ]


def blocks(markdown: str) -> Iterator[list[str]]:
    """Indented and fenced blocks that are commands."""
    block: list[str] = []
    fenced = False
    for line in [*markdown.split("\n"), ""]:
        if line.startswith("```"):
            fenced = not fenced
        elif fenced or (line.startswith("    ") and line.strip()):
            block.append(line.strip())
            continue
        if block and not block[0].startswith(NO_COMMANDS):
            yield block
        block = []


def joined(block: list[str]) -> Iterator[str]:
    """Whole commands: lines that end in a backslash, or in mid quotation, go on."""
    text = ""
    for line in block:
        text = f"{text} {line}".strip()
        if line.endswith("\\"):
            text = text[:-1].strip()
        elif text.count('"') % 2 == 0:
            if text := re.sub(r"\s+#.*", "", text):
                yield re.sub(r"\s+", " ", text)
            text = ""
    assert not text, f"a command does not end: {text}"


def how(command: Command) -> str | None:
    """The longest entry of the tables that the command begins with."""
    known = [*EXECUTED_HERE, *EXECUTED_BY, *NOT_EXECUTED]
    return max((entry for entry in known if command.text.startswith(entry)), key=len, default=None)


def test_every_command_is_executed_somewhere_or_said_not_to_be() -> None:
    unknown = [str(command) for command in commands() if how(command) is None]
    assert not unknown, "execute these in a test, and name it in EXECUTED_BY"
    used = {how(command) for command in commands()}
    assert not {*EXECUTED_HERE, *EXECUTED_BY, *NOT_EXECUTED} - used, "these are in no README any more; remove them"


@pytest.mark.parametrize("place", sorted(set(EXECUTED_BY.values())))
def test_what_executes_a_command_is_there(place: str) -> None:
    file, _, name = place.partition("::")
    text = (ROOT / file).read_text()
    assert name in text if file == ".ci/run" else f"def {name}(" in text


@pytest.mark.parametrize("text", EXECUTED_HERE)
def test_a_command_works_as_it_stands(text: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    program, *arguments = shlex.split(text)
    assert program == "verl-dra"
    for i in [i for i, argument in enumerate(arguments) if argument == "RUN_DIR"]:
        arguments[i] = str(make_run(tmp_path / f"run{i}", steps=3))
    assert main(arguments) == 0
    if left := EXECUTED_HERE[text]:
        assert (tmp_path / left).stat().st_size > 1000


def trainings() -> list[Command]:
    """Those that train, on whatever machine."""
    return [
        command
        for command in commands()
        if re.search(r"\b(verl-dra train|verl_dra train|submit\.sh|sweep --out)\b", command.text)
    ]


@pytest.mark.parametrize("command", trainings(), ids=str)
def test_a_trainings_settings_are_taken(command: Command, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """By Hydra, and where the command is not cut short, by the checks before a run, veRL's among them."""
    monkeypatch.chdir(ROOT)
    monkeypatch.delenv("VERL_PLATFORM", raising=False)
    words = shlex.split(command.text.replace("$PWD", str(ROOT)))
    arguments = [word for word in words if re.match(r"\+{0,2}(\w+\.[\w.]+|data_dir|recipe_dir)=", word)]
    if "--config-dir" in words:
        at = words.index("--config-dir")
        arguments = [*words[at : at + 4], *arguments]
    # Of a grid, the first point.
    config, _ = composed([re.sub(r"=(\w+),.*", r"=\1", argument) for argument in arguments])
    assert config.dra.enabled
    if not {"OVERRIDES", "...", "ARGUMENTS"} & set(words):
        check(config)


@pytest.mark.parametrize("entry", NOT_EXECUTED)
def test_what_was_not_run_is_said_to_be(entry: str) -> None:
    for command in commands():
        if how(command) == entry:
            said = command.readme.read_text()
            assert re.search(r"(?i)not (been )?run|not checked|not prove", said), f"{command}: say that it was not run"
