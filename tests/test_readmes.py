"""Every command of every README, in a block or in its prose, is executed: here, by a test or CI that is named here; or
it is said not to be."""

from __future__ import annotations

import doctest
import re
import shlex
import shutil
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any

import pytest
from run_folders import make_run
from test_benchmarks import TABLES

from verl_dra.cli import main
from verl_dra.config.compose import check, composed

ROOT = Path(__file__).parents[1]
READMES = [
    ROOT / "README.md",
    ROOT / "CONTRIBUTING.md",
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
    "verl-dra simulate --scene policy --accuracies 0.6,0.58,0.4 --mode-cosine 0.8 --start-ratio 0.2 "
    "--estimator dr_grpo --lr 10 --steps 1000": None,
    "verl-dra simulate --std population": None,
    "verl-dra simulate --help": None,
}
"""What each leaves behind."""

RESOLVED_HERE = "pip install "
"""Is resolved and not installed."""

_SWEEP = "tests/slurm/test_sweep_on_slurm.py::"
_TWO_POINTS = _SWEEP + "test_two_points_train_each_on_a_ray_cluster_of_its_own"
_FAILED_POINTS = _SWEEP + "test_points_that_failed_are_submitted_again_and_no_others"
_TRAINING = "tests/stack/test_training.py::test_sync_advantages_are_the_formula_s"
_OWN = "tests/stack/test_training.py::test_unlikeliness_goes_by_the_policys_own_log_probs_in_a_trainer_of_ones_own"
_DEMO = "tests/stack/test_demo.py::test_the_demo_trains_and_shows_little"
_MULTIRUN = "tests/stack/test_demo.py::test_a_sweep_trains_every_point"
_LOCKS_STACK = "tests/stack/test_demo.py::test_an_arm_of_the_locks_study_trains"
_LOCKS = "tests/test_tiny_locks.py::test_the_studys_commands_work"
_SBATCH = "tests/slurm/test_ray_sbatch.py::test_two_jobs_share_the_nodes_and_each_has_both_of_its_own"
_LOOKED_INTO = "tests/slurm/test_ray_sbatch.py::test_its_cluster_is_looked_into_by_the_line_that_it_prints"
_SUBMITTED = "tests/stack/test_ray_job.py::test_a_job_gets_its_arguments_and_code_and_ends_as_it_does"
_JOB = "tests/stack/test_ray_job.py::test_a_submitted_job_trains"
_OPEN_RS = "tests/stack/test_open_rs_trains.py::test_from_published_rows_to_trained_steps"
_EVALUATE = "tests/test_evaluate.py::test_a_model_is_sampled_through_vllm_and_a_cut_off_run_goes_on"
_IMAGE = "tests/test_docker.py::test_the_image_has_what_the_base_carried_at_the_same_versions"
_SWEEPS = "tests/slurm/test_sweep_on_slurm.py::test_hydras_own_launcher_runs_the_trainer_on_a_node"
_CALIBRATED = "tests/test_calibrate.py::test_the_tables_of_the_readmes_are_what_the_commands_show"
_FRONT_PAGE = "tests/stack/test_front_page.py::test_who_has_this_page_alone_gets_to_a_report"
_PREPARED = "tests/test_tiny_paths.py::test_intact_folder_is_reused_and_made_alike_elsewhere"

EXECUTED_BY = {
    "make demo": _DEMO,
    "make test": ".ci/run::make test",
    "make env": ".ci/run::make env",
    "make lint types": ".ci/run::make lint types",
    "make reference": "tests/test_reference.py::test_the_tables_are_those_of_the_code",
    "make test-slow": ".ci/run::make test-slow",
    "make test-pins": ".ci/run::make test-pins",
    ".venv/bin/python tests/benchmarks smi": ".ci/run::tests/benchmarks smi",
    "python -m verl_dra.main": _DEMO,
    "docker/install.sh .": _IMAGE,
    "git clone": ".ci/run::on a clean checkout",
    "cd dra": ".ci/run::on a clean checkout",
    "ARGUMENTS=(": _FRONT_PAGE,
    **dict.fromkeys(
        (f'verl-dra {command} "${{ARGUMENTS[@]}}"' for command in ("doctor", "train")),
        _FRONT_PAGE,
    ),
    "verl-dra prepare-data gsm8k --out DATA --system-prompt": _FRONT_PAGE,
    "verl-dra report outputs/gsm8k": _FRONT_PAGE,
    "verl-dra sweep --dry-run": _FRONT_PAGE,
    "verl-dra train --config-dir recipes/tiny_paths": _DEMO,
    "verl-dra train --config-dir recipes/examples --config-name lora": "tests/stack/test_training.py::"
    "test_a_scorer_that_dies_in_mid_step_changes_no_advantage",
    "verl-dra train --config-dir recipes/examples/multi_turn": "tests/stack/test_training.py::"
    "test_turns_with_a_tool_are_compared_by_what_the_policy_wrote",
    "verl-dra train --multirun hydra/launcher=dra_slurm": _SWEEPS,
    "verl-dra doctor --address": "tests/stack/test_ray_nodes.py::"
    "test_a_node_without_the_package_and_one_that_stands_still_are_named",
    "verl-dra --help": "tests/test_docker.py::test_the_command_works_as_the_user",
    "python launch/slurm/sweep.py": "tests/test_sweep.py::test_it_starts_from_a_checkout_too",
    "verl-dra sweep --out SWEEP": _TWO_POINTS,
    "verl-dra sweep --status SWEEP": _FAILED_POINTS,
    "verl-dra sweep --resubmit SWEEP": _FAILED_POINTS,
    "sbatch --nodes=2": _SBATCH,
    "launch/ray/submit.sh --address": _JOB,
    "ray job": _SUBMITTED,
    "pgrep -f 'ray::": _SUBMITTED,
    "ray status": _LOOKED_INTO,
    "sbatch --nodes=2 --gres=gpu:8 launch/slurm/ray.sbatch bash": _LOOKED_INTO,
    "verl-dra prepare-data gsm8k --out DATA": "tests/test_prepare_data.py::test_the_front_pages_set_comes_from_the_hub",
    "verl-dra prepare-data open_rs --out": _OPEN_RS,
    "DATA_DIR=$PWD/DATA recipes/open_rs/dra_grpo.sh": _OPEN_RS,
    "verl-dra prepare-data other --repo": "tests/test_prepare_columns.py::test_a_set_comes_from_the_hub_by_its_columns",
    "verl-dra evaluate --model MODEL": _EVALUATE,
    "verl-dra evaluate --compare": "tests/test_compare.py::test_a_comparison_by_hand",
    "verl-dra calibrate recipes/strategies": _CALIBRATED,
    "python recipes/strategies/make.py": "tests/test_calibrate.py::test_the_files_are_what_the_program_makes",
    "python recipes/tiny_paths/prepare.py": _PREPARED,
    "python recipes/tiny_paths/measure.py": "tests/stack/test_demo.py::test_a_policy_is_measured",
    "python recipes/tiny_paths/demo.py --multirun": _MULTIRUN,
    "python recipes/tiny_paths/demo.py": _DEMO,
    "python recipes/tiny_locks/prepare.py": "tests/test_tiny_locks.py::test_the_folder_is_made_once",
    "python recipes/tiny_locks/study": _LOCKS,
    "python recipes/tiny_locks/study stack": _LOCKS_STACK,
    "verl-dra train --config-dir recipes/tiny_locks": _LOCKS_STACK,
    "verl-dra report --text outputs/tiny_paths/sweep_": _MULTIRUN,
    "docker build": _IMAGE,
    "vllm serve CLASSIFIER": "tests/test_pairs.py::test_vllms_probabilities_are_the_models_own",
    "vllm serve JUDGE": "tests/test_judge.py::"
    "test_vllm_keeps_to_the_schema_and_answers_the_same_when_it_was_killed_and_is_back",
    "python own_runner.py": _OWN,
}
"""By the command's first words, the longest that fit: the test that executes it, or what it is made of, for real."""

NOT_EXECUTED = {
    "docker": "Docker engine",
    "NODE=": "Docker engine",
    "mkdir -p work": "Docker engine",
    "openssl rand -hex 32 > token && sudo": "Docker engine",
    "export RAY_AUTH_TOKEN=": "cloud",
    "kubectl": "Kubernetes",
    "sky": "cloud",
    "ray metrics launch-prometheus": "Prometheus",
    "python -m verl.model_merger": "a checkpoint",
}
"""What they need, which neither we nor CI have; the README that has them says that they were not run."""

BY_HAND = (
    *("make lock", "make format", "make test-gpu", "python tests/gpu train"),
    *("make test-servers", "make bench", "make mutants", "SAMPLE=60 make mutants", "make test-trl"),
    *(f".venv/bin/python tests/benchmarks {name}" for name in TABLES if name != "smi"),
)
"""Too long for CI; their pages say so."""

NO_COMMANDS = (
    *("SMI_i = ", "acc_rare", "verl_dra/algorithm/ ", "`runtime_env` with", ">>> ", "entrypoint: "),
    *(
        "# own_runner.py",
        "# ways.py",
        "accuracy  ways",
        "def compute_score",
        "verl.experimental",
        "from dra_reward",
        "adjusted reward",
    ),
)
"""How blocks begin that are no commands."""

PROGRAMS = (
    r"(pip|make|python|\.venv/bin/python|verl-dra|docker|docker/install\.sh|ray|kubectl|sky|sbatch|launch/\S+"
    r"|recipes/\S+\.sh) \S"
)
"""How commands in prose begin."""

NAMES = r"verl-dra \S+|ray (start|stop|stack)|sbatch --\w+"
"""What is the name of a command, and none that one would type as it stands."""


@dataclass(frozen=True)
class Command:
    """A command as a README has it, on one line and without its comment."""

    readme: Path
    text: str

    def __str__(self) -> str:
        return f"{self.readme.relative_to(ROOT)}: {self.text}"


@cache
def commands() -> list[Command]:
    found = []
    for readme in READMES:
        markdown = readme.read_text()
        found += [Command(readme, text) for block in blocks(markdown) for text in joined(block)]
        found += [Command(readme, text) for text in inline(markdown)]
    return list(dict.fromkeys(found))


def inline(markdown: str) -> Iterator[str]:
    """Commands in the prose."""
    prose = re.sub(r"^```.*?^```|^    .*?$", "", markdown, flags=re.DOTALL | re.MULTILINE)
    for code in re.findall(r"`([^`]+)`", prose):
        text = re.sub(r"\s+", " ", code)
        if re.match(PROGRAMS, text) and (text.startswith("verl-dra --") or not re.fullmatch(NAMES, text)):
            yield text


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
    known = [*EXECUTED_HERE, RESOLVED_HERE, *EXECUTED_BY, *NOT_EXECUTED, *BY_HAND]
    return max((entry for entry in known if command.text.startswith(entry)), key=len, default=None)


def test_every_command_is_executed_somewhere_or_said_not_to_be() -> None:
    unknown = [str(command) for command in commands() if how(command) is None]
    assert not unknown, "execute these in a test, and name it in EXECUTED_BY"
    used = {how(command) for command in commands()}
    assert not {*EXECUTED_HERE, *EXECUTED_BY, *NOT_EXECUTED, *BY_HAND} - used, (
        "these are in no README any more; remove them"
    )


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
    if "--help" in arguments:
        with pytest.raises(SystemExit, match=r"^0$"):
            main(arguments)
        return
    assert main(arguments) == 0
    if left := EXECUTED_HERE[text]:
        assert (tmp_path / left).stat().st_size > 1000


def trainings() -> list[Command]:
    """Those that train, on whatever machine."""
    return [
        command
        for command in commands()
        if re.search(r"\b(verl-dra train|verl_dra train|submit\.sh|sweep .*--out)\b", command.text)
    ]


@pytest.mark.slow
@pytest.mark.usefixtures("vllm_of_a_gpu")
@pytest.mark.parametrize("command", trainings(), ids=str)
def test_a_trainings_settings_are_taken(command: Command, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """By Hydra, and where the command is not cut short, by the checks before a run, veRL's among them."""
    monkeypatch.chdir(ROOT)
    monkeypatch.delenv("VERL_PLATFORM", raising=False)
    words = shlex.split(with_arguments(command).replace("$PWD", str(ROOT)))
    arguments = [word for word in words if re.match(r"\+{0,2}(\w+\.[\w.]+|data_dir|recipe_dir)=", word)]
    if "--config-dir" in words:
        at = words.index("--config-dir")
        arguments = [*words[at : at + 4], *arguments]
    # Of a grid, the first point.
    config, _ = composed([re.sub(r"=(\w+),.*", r"=\1", argument) for argument in arguments])
    assert config.dra.enabled == ("dra.enabled=False" not in words)
    if not {"OVERRIDES", "...", "ARGUMENTS"} & set(words):
        check(config)


@pytest.mark.slow
def test_what_is_to_be_installed_can_be_resolved(tmp_path: Path) -> None:
    source = tmp_path / "source"
    shutil.copytree(ROOT / "verl_dra", source / "verl_dra", ignore=shutil.ignore_patterns("__pycache__"))
    for name in ("pyproject.toml", "README.md", "LICENSE", "launch"):
        (shutil.copytree if (ROOT / name).is_dir() else shutil.copy)(ROOT / name, source / name)
    texts = {command.text for command in commands() if command.text.startswith(RESOLVED_HERE)}
    assert len(texts) > 2
    for text in sorted(texts):
        dry = ["--dry-run", "--no-index", "--no-build-isolation", "--quiet"]
        words = [sys.executable, "-m", *shlex.split(text), *dry]
        done = subprocess.run(words, cwd=source, capture_output=True, text=True, check=False)
        assert done.returncode == 0, f"{text}: {done.stderr[-1000:]}"


@pytest.mark.parametrize("readme", READMES, ids=lambda path: str(path.relative_to(ROOT)))
def test_python_examples_give_what_they_say(readme: Path) -> None:
    assert doctest.testfile(str(readme), module_relative=False).failed == 0


def with_arguments(command: Command) -> str:
    """The command with its page's array of arguments in its place."""
    (array,) = [c.text for c in commands() if c.readme == command.readme and c.text.startswith("ARGUMENTS=(")] or [""]
    return command.text.replace('"${ARGUMENTS[@]}"', array.removeprefix("ARGUMENTS=(").removesuffix(")"))


def test_what_ci_leaves_to_hand_is_said_to_be() -> None:
    assert "run by hand, as CI runs the table smi alone" in " ".join(
        (ROOT / "tests" / "benchmarks" / "README.md").read_text().split()
    )


@pytest.mark.parametrize("entry", NOT_EXECUTED)
def test_what_was_not_run_is_said_to_be(entry: str) -> None:
    for command in commands():
        if how(command) == entry:
            said = command.readme.read_text()
            assert re.search(r"(?i)not (been )?run|not checked|not prove", said), f"{command}: say that it was not run"


@pytest.mark.parametrize("readme", READMES, ids=lambda path: str(path.relative_to(ROOT)))
def test_links_lead_somewhere(readme: Path) -> None:
    missing = []
    for link in re.findall(r"\]\(([^)\s]+)\)", re.sub(r"^```.*?^```", "", readme.read_text(), flags=re.M | re.S)):
        file, _, anchor = link.partition("#")
        if re.match(r"\w+:", link):
            continue
        target = (readme.parent / file).resolve() if file else readme
        if not target.exists() or (anchor and anchor not in anchors(target)):
            missing.append(link)
    assert not missing


def anchors(page: Path) -> set[str]:
    """Of its headings, as GitHub makes them."""
    headings = re.findall(r"^#+ (.+)$", page.read_text(), flags=re.MULTILINE)
    return {re.sub(r"[^\w\- ]", "", heading.lower()).replace(" ", "-") for heading in headings}


def test_the_front_page_is_a_page() -> None:
    page = (ROOT / "README.md").read_text()
    assert len(page.splitlines()) <= 200
    assert len(page.encode()) <= 12_000


def test_the_metric_that_dapos_filter_may_go_by_tells_right_completions_apart() -> None:
    (code,) = re.findall(
        r"```python\n(def compute_score.*?)```", (ROOT / "verl_dra" / "README.md").read_text(), re.DOTALL
    )
    names: dict[str, Any] = {}
    exec(code, names)
    texts = ["it is 4", "so it is 4", "it is 5", "so it is 6"]
    scores = [names["compute_score"]("toy", text, "4") for text in texts]
    assert [score["acc"] for score in scores] == [1, 1, 0, 0]
    assert [score["length_if_right"] for score in scores] == [7, 10, 0, 0]
