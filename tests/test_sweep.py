"""`verl-dra sweep` without a Slurm: the grid, the refusals, what a sweep's folder says. tests/slurm has a real one."""

from __future__ import annotations

import getopt
import json
import os
import re
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Sequence
from itertools import chain, zip_longest
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from full_disk import full_after
from hydra._internal.core_plugins.basic_sweeper import BasicSweeper
from hydra.core.override_parser.overrides_parser import OverridesParser
from hypothesis import given, settings
from hypothesis import strategies as st

from verl_dra import __version__
from verl_dra import main as main_module
from verl_dra.cli import main
from verl_dra.sweep import code as code_module
from verl_dra.sweep import ranges
from verl_dra.sweep import slurm as slurm_module
from verl_dra.sweep.checks import check_all
from verl_dra.sweep.code import changed, code
from verl_dra.sweep.folder import Submission, Sweep, SweepError, create, load
from verl_dra.sweep.job import added
from verl_dra.sweep.options import parse, replaced
from verl_dra.sweep.points import expand
from verl_dra.sweep.slurm import queued, sbatch
from verl_dra.sweep.status import OVER, status

ROOT = Path(__file__).parents[1]
RECIPE = ROOT / "recipes" / "tiny_paths"
RUN = ["--config-dir", os.path.relpath(RECIPE), "--config-name", "tiny_paths", "data_dir=/data", "recipe_dir=/recipe"]
GRID = ["--no-check", *RUN, "dra.smi=graph_cut,log_det"]


def sweep_of(points: list[list[str]], *submissions: Submission, sbatch: Sequence[str] = ()) -> Sweep:
    return Sweep(["verl-dra", "train", "x=1"], points, list(sbatch), 3, "/cwd", "/ray.sbatch", {}, list(submissions))


def fake(folder: Path, name: str, script: str) -> None:
    """A program of Slurm's, which a shell script stands in for."""
    (folder / name).write_text(f"#!/bin/sh\n{script}\n")
    (folder / name).chmod(0o755)


@pytest.fixture
def slurm(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """An sbatch that notes what it was given in the file that is returned, and a squeue that has nothing."""
    note = tmp_path / "submitted"
    shown = 'echo "$@"; env | grep -E "^(DRA_|VERL_PLATFORM)" | sort'
    for name, script in (("sbatch", f"{{ {shown}; }} >>{note}; echo 7"), ("squeue", "")):
        fake(tmp_path, name, script)
    monkeypatch.setenv("PATH", str(tmp_path), prepend=":")
    return note


values = st.sampled_from(["1", "2.5", "true", "null", "paper", "'a b'", "[1,2]", "{a:1}", "/data/x", "-3"])
overrides = st.lists(
    st.tuples(st.sampled_from(["a", "b.c", "d/e", "+f", "g"]), st.lists(values, min_size=1, max_size=3, unique=True)),
    max_size=4,
    unique_by=lambda pair: pair[0],
).map(lambda pairs: [f"{key}={','.join(chosen)}" for key, chosen in pairs])


@given(overrides)
def test_the_points_are_those_of_hydras_multirun(given_overrides: list[str]) -> None:
    shared, points = expand(given_overrides)
    parsed = OverridesParser.create().parse_overrides(given_overrides)
    swept = [override for override in parsed if override.is_sweep_override()]
    assert points == BasicSweeper.split_arguments(swept, None)[0]
    assert sorted([*shared, *(o.input_line for o in swept)]) == sorted(given_overrides)


def test_a_grid_and_what_its_points_share() -> None:
    shared, points = expand(["a=1,2", "x=[1,2]", "b=choice(p,q)", "c=range(0,2)"])
    assert shared == ["x=[1,2]"]
    assert len(points) == 8
    assert points[:3] == [["a=1", "b=p", "c=0"], ["a=1", "b=p", "c=1"], ["a=1", "b=q", "c=0"]]


@pytest.mark.parametrize(
    ("override", "said"),
    [
        ("a=interval(0,1)", "no points"),
        ("a=[1", "a=[1"),
        ("a='x\ny',z", "line break"),
        ("a=range(3,3)", "a=range(3,3) has no points"),
        ("no/such/group=glob(*)", "no/such/group=glob(*) has no points"),
    ],
)
def test_what_has_no_points_is_refused(override: str, said: str) -> None:
    with pytest.raises(SweepError) as error:
        expand([override])
    assert said in str(error.value)


def test_glob_chooses_from_config_groups(tmp_path: Path) -> None:
    (tmp_path / "lr").mkdir()
    for name in ("low", "high", "other"):
        (tmp_path / "lr" / f"{name}.yaml").touch()
    _, points = expand(["+lr=glob([low,h*])", "+platform=glob(*)"], tmp_path)
    assert points == [["+lr=high", "+platform=cpu"], ["+lr=low", "+platform=cpu"]]


@pytest.mark.slow
def test_every_point_is_composed_and_checked_before_anything_is_submitted(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], slurm: Path
) -> None:
    out = tmp_path / "out"
    assert main(["sweep", "--out", str(out), *RUN, "dra.smi=graph_cut,logdet"]) == 1
    assert "point 1 (dra.smi=logdet): dra.smi must be one of" in capsys.readouterr().err
    assert main(["sweep", "--out", str(out), *RUN, "no.such.key=1,2"]) == 1
    assert "point 0 (no.such.key=1): Could not override 'no.such.key'" in capsys.readouterr().err
    assert main(["sweep", "--out", str(out), *RUN, "data.train_batch_size=16,8"]) == 1
    assert "point 1 (data.train_batch_size=8): veRL refuses it" in capsys.readouterr().err
    # The GPUs that each job will have.
    assert main(["sweep", "--out", str(out), "--sbatch=--gres=gpu:7", *RUN, "dra.smi=graph_cut,log_det"]) == 1
    assert "divisible by minimal possible batch size (7)" in capsys.readouterr().err
    assert not out.exists()
    assert not slurm.exists()


def test_how_far_the_checking_is_is_said_every_ten_seconds(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    clock = [0.0]

    def composed(overrides: Sequence[str]) -> tuple[Any, Path]:
        clock[0] += 4
        return SimpleNamespace(trainer=SimpleNamespace(default_local_dir=f"{clock}")), Path(f"{clock}")

    monkeypatch.setattr("verl_dra.sweep.checks.time", SimpleNamespace(monotonic=lambda: clock[0]))
    monkeypatch.setattr("verl_dra.config.compose.composed", composed)
    monkeypatch.setattr("verl_dra.config.compose.check", lambda config: None)
    monkeypatch.setattr("verl_dra.doctor.fast.file_checks", lambda config, elsewhere: [])
    check_all([], [[f"a={number}"] for number in range(8)], tmp_path, [])
    assert capsys.readouterr().err.splitlines() == [
        "verl-dra sweep: checking 8 points",
        "verl-dra sweep: 3 of 8 points are checked",
        "verl-dra sweep: 6 of 8 points are checked",
    ]


@pytest.mark.slow
@pytest.mark.parametrize(
    ("shared", "said"),
    [
        ("trainer.default_local_dir=/ckpt", "points 0 and 1 share trainer.default_local_dir=/ckpt, where each would"),
        ("hydra.run.dir=/runs/x", "points 0 and 1 share hydra.run.dir=/runs/x"),
        ("trainer.default_local_dir=/ckpt/${dra.smi}", None),
        ("trainer.default_local_dir=${hydra:run.dir}/ckpt", None),
    ],
)
def test_points_that_would_write_to_one_folder_are_refused(
    shared: str, said: str | None, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    arguments = ["sweep", "--dry-run", "--out", str(tmp_path / "out"), *RUN, "dra.smi=graph_cut,log_det", shared]
    assert main(arguments) == int(said is not None)
    assert (said or "") in capsys.readouterr().err


@pytest.mark.parametrize(
    ("sbatch", "nodes_and_gpus"),
    [
        (["--nodes=2", "--gres=gpu:8"], ["trainer.nnodes=2", "trainer.n_gpus_per_node=8"]),
        (["-N2", "--gres", "nvme:1,gpu:h100:4", "-t", "1-0"], ["trainer.nnodes=2", "trainer.n_gpus_per_node=4"]),
        (["-N", "2", "--gpus-per-node=h100:8"], ["trainer.nnodes=2", "trainer.n_gpus_per_node=8"]),
        (["--nodes=2", "-G16"], ["trainer.nnodes=2", "trainer.n_gpus_per_node=8"]),
        (["--nodes=2-4", "--gpus=16", "--gpu-bind=none"], []),
        (["--gres=gpu"], ["trainer.n_gpus_per_node=1"]),
        (["--nodes"], []),
        (["--gpus-per-node=\u00b2", "-G\u00b2"], []),
    ],
)
def test_a_point_is_checked_with_what_its_job_will_add(sbatch: list[str], nodes_and_gpus: list[str]) -> None:
    own = ["hydra.run.dir='/s/lr=1/0'", "hydra.sweep.dir='/s/lr=1/0'"]
    assert added([], Path("/s/lr=1/0"), sbatch) == [*nodes_and_gpus, *own]
    given = ["++trainer.nnodes=1", "trainer.n_gpus_per_node=1", "+hydra.run.dir=x"]
    assert added(given, Path("/s/lr=1/0"), sbatch) == [own[1]]


def test_gpus_that_slurm_does_not_know_of_are_added_too(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("DRA_GPUS", "4")
    assert "trainer.n_gpus_per_node=4" in added([], Path("/s"), ["--nodes=2"])
    monkeypatch.setenv("DRA_GPUS", "0")
    assert not [line for line in added([], Path("/s"), ["--nodes=2"]) if "gpus" in line]
    for value in ("eight", "-1", "\u00b2", "08", "8.0"):
        monkeypatch.setenv("DRA_GPUS", value)
        with pytest.raises(SweepError, match=f"DRA_GPUS='{value}' is no number of GPUs"):
            added([], Path("/s"), ["--nodes=2"])


def test_a_sweep_is_submitted_again_as_it_was(
    tmp_path: Path, slurm: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    run = ["--config-dir", str(RECIPE), *RUN[2:], "dra.smi=graph_cut,log_det"]
    # A folder whose name Hydra would read as more than a name.
    out, script = tmp_path / "lr=1e-3, (it's) [a] #1", tmp_path / "my.sbatch"
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("DRA_SETUP", "/setup.sh")
    assert main(["sweep", "--no-check", "--out", str(out), "--script", "my.sbatch", "--sbatch=--nodes=1", *run]) == 0
    shown = capsys.readouterr().out
    assert re.search(rf"^1  dra.smi=log_det +{re.escape(str(out))}/1$", shown, re.MULTILINE)
    first = slurm.read_text()
    monkeypatch.chdir("/")
    monkeypatch.setenv("DRA_SETUP", "/other.sh")
    monkeypatch.setenv("DRA_TMP", "/other")
    monkeypatch.setenv("VERL_PLATFORM", "cpu")
    assert main(["sweep", "--resubmit", str(out)]) == 0
    assert slurm.read_text() == first + first
    assert first.splitlines() == [
        f"--parsable --array=0-1 --output={out}/%a/slurm.out --chdir={tmp_path} --nodes=1 {script} --sweep {out} "
        f"verl-dra train --config-dir {RECIPE} --config-name tiny_paths data_dir=/data recipe_dir=/recipe",
        "DRA_SETUP=/setup.sh",
    ]
    shown = capsys.readouterr().out
    assert re.search(rf"^1  dra.smi=log_det +lost +7_1 .*{re.escape(str(out))}/1$", shown, re.MULTILINE)


def test_a_dry_run_shows_the_points_and_the_submission(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    arguments = [
        *("sweep", "--dry-run", "--no-check", "--out", str(tmp_path / "out"), "--max-running", "2"),
        *("--sbatch=--nodes=2 --comment='a b'", *RUN),
        *("dra.negative_rewards=paper,shift", "trainer.total_training_steps=3"),
    ]
    assert main(arguments) == 0
    shown = capsys.readouterr().out
    assert "1  dra.negative_rewards=shift" in shown
    assert (
        f"not submitted: sbatch --parsable --array=0-1%2 --output={tmp_path}/out/%a/slurm.out --chdir={Path.cwd()} "
        f"--nodes=2 '--comment=a b' {ROOT}/launch/slurm/ray.sbatch --sweep {tmp_path}/out "
        f"verl-dra train --config-dir {RECIPE} --config-name tiny_paths data_dir=/data recipe_dir=/recipe "
        "trainer.total_training_steps=3\n"
    ) in shown
    assert not (tmp_path / "out").exists()


def test_it_starts_from_a_checkout_too(tmp_path: Path) -> None:
    program = [sys.executable, str(ROOT / "launch" / "slurm" / "sweep.py")]
    done = subprocess.run(
        [*program, "--status", str(tmp_path)], capture_output=True, text=True, check=False, cwd=tmp_path
    )
    assert done.returncode == 1
    assert f"{tmp_path}/sweep.json can't be read as a sweep" in done.stderr


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        ([], "nothing to sweep"),
        (["--max-running", "0", "dra.smi=a,b"], "--max-running must be at least 1, not 0"),
        (["--max-running", "1", "a=[1"], "a=[1: "),
        (["--sbatch=--array=1-2", "dra.smi=a,b"], "array and output are the sweep's own"),
        (["--status", "/nowhere"], "/nowhere/sweep.json can't be read as a sweep"),
        (["--resubmit", "/nowhere", "dra.smi=a,b"], "leave out overrides"),
        (["--resubmit", "/nowhere", "--script", "x"], "leave out script"),
        (["--config-dir", "/nowhere", "dra.smi=graph_cut,log_det"], "Additional config directory '/nowhere' not found"),
    ],
)
def test_impossible_options_are_refused(arguments: list[str], said: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["sweep", *arguments]) == 1
    assert said in capsys.readouterr().err


def test_without_slurm_it_says_what_is_missing(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    create(tmp_path / "sweep", sweep_of([["a=1"]]))
    monkeypatch.setenv("PATH", str(tmp_path))
    assert main(["sweep", "--status", str(tmp_path / "sweep")]) == 1
    assert "squeue can't be run" in capsys.readouterr().err


def test_looking_after_a_sweep_needs_neither_hydra_nor_verl(tmp_path: Path) -> None:
    code = (
        "import sys; from verl_dra.cli import main; main(['sweep', '--status', '/nowhere']); "
        "sys.exit(', '.join({'hydra', 'omegaconf', 'verl', 'ray'} & set(sys.modules)) or 0)"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, cwd=tmp_path, check=False)
    assert done.returncode == 0, done.stderr


def test_a_folder_keeps_its_sweep(tmp_path: Path) -> None:
    sweep = sweep_of([["a=1", "b='x y'"], ["a=2", "b=z"]], sbatch=["--nodes=2"])
    create(tmp_path, sweep)
    sweep.submissions.append(Submission(7, [0, 1]))
    sweep.save(tmp_path)
    assert load(tmp_path) == sweep
    assert (tmp_path / "0" / "overrides.txt").read_text() == "a=1\nb='x y'\n"
    with pytest.raises(SweepError, match="holds a sweep"):
        create(tmp_path, sweep)


def test_a_disk_that_is_full_in_mid_write_leaves_the_sweep_as_it_was(tmp_path: Path) -> None:
    sweep = sweep_of([["a=1"]])
    create(tmp_path, sweep)
    before = load(tmp_path)
    sweep.submissions.append(Submission(7, [0]))
    with full_after(30), pytest.raises(OSError, match="File too large"):
        sweep.save(tmp_path)
    assert load(tmp_path) == before
    sweep.save(tmp_path)
    assert load(tmp_path) == sweep


@given(st.sets(st.integers(0, 60), min_size=1))
def test_an_array_names_its_points_and_no_others(points: set[int]) -> None:
    command = sbatch(Path("/out"), sweep_of([]), sorted(points))
    ranges = command[2].removeprefix("--array=").removesuffix("%3").split(",")
    named = [range(int(part.split("-")[0]), int(part.split("-")[-1]) + 1) for part in ranges]
    assert list(chain(*named)) == sorted(points)


def test_each_points_state_comes_from_the_queue_and_from_what_its_job_wrote(tmp_path: Path) -> None:
    said = {
        0: [],
        1: ["running"],
        2: ["running", "completed exit=0"],
        3: ["running", "failed exit=1"],
        4: ["running"],
        5: ["running", "requeued exit=0"],
        6: ["running", "time exit=124"],
        7: [],
        8: ["running", "failed exit=1"],
        9: [],
        10: ["running", "requeued exit=0"],
        11: ["running", "completed exit=0"],
    }
    sweep = sweep_of([[f"a={i}"] for i in said], Submission(5, [*range(9), 10, 11]), Submission(6, [8]))
    create(tmp_path, sweep)
    for number, states in said.items():
        (tmp_path / str(number) / "state.log").write_text("".join(f"2026-01-01T00:00:00 {s} job=1\n" for s in states))
    queue = {(5, 0): "PENDING", (5, 1): "RUNNING", (5, 5): "PENDING", (6, 8): "RUNNING", (5, 9): "RUNNING"}
    points = status(tmp_path, sweep, queue)
    assert [point.state for point in points] == [
        *("waiting", "running", "completed", "failed", "lost", "requeued", "time", "lost", "running", "not submitted"),
        *("lost", "completed"),
    ]
    assert [point.job for point in points[7:10]] == ["5_7", "6_8", ""]


@pytest.mark.parametrize("said", ["", "running", "requeued exit=0"])
@pytest.mark.parametrize(
    ("in_queue", "waits"),
    [
        *[(state, True) for state in ("PENDING", "REQUEUED", "REQUEUE_HOLD", "SPECIAL_EXIT")],
        *[(state, False) for state in ("RUNNING", "CONFIGURING", "COMPLETING", "SUSPENDED", "STAGE_OUT", "STOPPED")],
    ],
)
def test_slurms_states_are_those_of_points(in_queue: str, waits: bool, said: str, tmp_path: Path) -> None:
    sweep = sweep_of([["a=1"]], Submission(5, [0]))
    create(tmp_path, sweep)
    if said:
        (tmp_path / "0" / "state.log").write_text(f"now {said} job=5_0\n")
    (point,) = status(tmp_path, sweep, {(5, 0): in_queue})
    assert point.state == (("requeued" if "requeued" in said else "waiting") if waits else "running")


@pytest.mark.parametrize(
    ("said", "submissions", "state"),
    [
        ("", 1, "unknown"),
        ("running", 1, "unknown"),
        ("requeued exit=0", 1, "unknown"),
        ("completed exit=0", 1, "completed"),
        ("completed exit=0", 2, "completed"),
        ("failed exit=1", 1, "failed"),
        ("cancelled exit=1", 1, "cancelled"),
        ("time exit=124", 1, "time"),
        ("failed exit=1", 2, "unknown"),  # which may be of the one before
    ],
)
def test_of_a_submission_without_an_id_the_points_files_tell_what_they_can(
    said: str, submissions: int, state: str, tmp_path: Path
) -> None:
    sweep = sweep_of([["a=1"]], *[Submission(5, [0])] * (submissions - 1), Submission(None, [0], said="Welcome"))
    create(tmp_path, sweep)
    if said:
        (tmp_path / "0" / "state.log").write_text(f"now {said} job=5_0\n")
    (point,) = status(tmp_path, sweep, {})
    assert (point.state, point.job) == (state, "")
    assert point.notes == (["whether it is submitted is not known; sbatch said Welcome"] if state == "unknown" else [])


def test_a_sweeps_table_by_hand(tmp_path: Path, slurm: Path, capsys: pytest.CaptureFixture[str]) -> None:
    create(tmp_path / "out", sweep_of([["a=1", "b=2"], ["a=2"]], Submission(5, [0, 1])))
    data = {
        "critic/score/mean": 0.123456,
        "critic/score/mean_of": 9.0,
        "val-core/AIME - 2024/acc/mean@8": 12345.6,
        "dra/effective_paths": 2.5,
        "timing_s/step": 31.0,
    }
    (tmp_path / "out" / "0" / "metrics.jsonl").write_text(json.dumps({"step": 12, "data": data}) + "\n")
    fake(tmp_path, "squeue", "echo verl_dra 5 0 RUNNING x")
    assert main(["sweep", "--status", str(tmp_path / "out")]) == 0
    rows = [line.split() for line in capsys.readouterr().out.splitlines()]
    assert rows == [
        ["point", "state", "job", "step", "score", "validation", "effective", "paths", "s/step", "folder"],
        rows[1],
        ["0", "a=1", "b=2", "running", "5_0", "12", "0.1235", "1.235e+04", "2.5", "31", f"{tmp_path}/out/0"],
        ["1", "a=2", "lost", "5_1", f"{tmp_path}/out/1"],
        [],
        ["1", "running,", "1", "lost;", "in", f"{tmp_path}/out"],
    ]


def test_a_sweep_has_a_folder_of_its_time_unless_one_is_given(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    assert main(["sweep", "--dry-run", "--no-check", "a=1,2"]) == 0
    assert re.search(rf" {tmp_path}/outputs/sweeps/\d{{4}}-\d\d-\d\d_\d\d-\d\d-\d\d/1$", capsys.readouterr().out, re.M)


def test_the_newest_metrics_are_shown_though_a_line_is_torn(tmp_path: Path) -> None:
    sweep = sweep_of([["a=1"]])
    create(tmp_path, sweep)
    lines = [{"step": 1, "data": {"dra/effective_paths": 2.0}}, {"step": 2, "data": {"critic/score/mean": 0.5}}]
    text = "".join(json.dumps(line) + "\n" for line in lines)
    (tmp_path / "0" / "metrics.jsonl").write_text(text + '{"step": 3, "da')
    (point,) = status(tmp_path, sweep, {})
    assert (point.step, point.metrics) == (2, {"dra/effective_paths": 2.0, "critic/score/mean": 0.5})


def test_a_resumed_runs_metrics_are_those_of_all_its_parts(tmp_path: Path) -> None:
    sweep = sweep_of([["a=1"]])
    create(tmp_path, sweep)
    for step in range(1, 12):
        main_module._set_aside(tmp_path / "0" / "metrics.jsonl")
        line = {"step": step, "data": {f"only/{step}": 1.0, "critic/score/mean": step / 10}}
        (tmp_path / "0" / "metrics.jsonl").write_text(json.dumps(line) + "\n")
    (point,) = status(tmp_path, sweep, {})
    assert (point.step, point.metrics["critic/score/mean"], len(point.metrics)) == (11, 1.1, 12)


def test_a_sweep_that_slurm_refuses_can_be_submitted_again(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "sbatch").write_text("#!/bin/sh\necho 'Batch job submission failed: no such partition' >&2\nexit 1\n")
    (tmp_path / "sbatch").chmod(0o755)
    monkeypatch.setenv("PATH", str(tmp_path), prepend=":")
    command = ["sweep", "--out", str(tmp_path / "out"), *GRID]
    for _ in range(2):
        assert main(command) == 1
        assert "sbatch refused: Batch job submission failed: no such partition" in capsys.readouterr().err


# --- submitted, or perhaps, and never twice ---


def submitted(slurm: Path) -> int:
    """How often the fake sbatch was called."""
    return slurm.read_text().count("--parsable") if slurm.exists() else 0


@pytest.mark.parametrize(
    ("answer", "cluster"),
    [
        ("echo 'Welcome to 2 clusters!'; echo 7; printf 'bye \\377\\n'", ""),
        ("echo '7;north'", "north"),
        ("echo 7; exit 3", ""),  # as under SBATCH_WAIT, or of a site's own sbatch
    ],
)
def test_the_id_is_the_line_that_is_one(
    answer: str, cluster: str, tmp_path: Path, slurm: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    out = tmp_path / "out"
    fake(tmp_path, "sbatch", f"cp {out}/sweep.json {tmp_path}/before; [ -z $SBATCH_WAIT ] || exit 4; {answer}")
    os.environ["SBATCH_WAIT"] = "1"
    try:
        assert main(["sweep", "--out", str(out), *GRID]) == 0
    finally:
        del os.environ["SBATCH_WAIT"]
    assert "submitted 2 points as job 7\n" in capfd.readouterr().out
    (submission,) = load(out).submissions
    assert (submission.job, submission.points, submission.cluster) == (7, [0, 1], cluster)
    (before,) = json.loads((tmp_path / "before").read_text())["submissions"]
    assert (before["job"], before["points"]) == (None, [0, 1])
    # That cluster's queue is asked too.
    fake(tmp_path, "squeue", f"case $* in *--clusters={cluster or 'none'}*) echo verl_dra 7 1 RUNNING x;; esac")
    assert queued(out, load(out)) == ({(7, 1): "RUNNING"} if cluster else {})


@pytest.mark.parametrize(
    "answer",
    [
        "",
        "echo Welcome; echo 7; echo 2026",
        "echo 'sbatch: error: Batch job submission failed: Socket timed out on send/recv operation' >&2; exit 1",
        "kill -9 $$",
    ],
)
def test_what_may_be_submitted_is_submitted_again_only_by_name(
    answer: str, tmp_path: Path, slurm: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out = tmp_path / "out"
    note = f'echo "$@" >>{slurm}'
    fake(tmp_path, "sbatch", f"{note}; {answer}")
    assert main(["sweep", "--out", str(out), *GRID]) == 1
    assert "told no job's id, so whether points 0-1 are submitted is not known" in capsys.readouterr().err
    assert main(["sweep", "--status", str(out)]) == 0
    shown = capsys.readouterr().out
    assert "2 unknown; in " in shown
    assert "point 1: whether it is submitted is not known; sbatch said " in shown
    fake(tmp_path, "sbatch", f"{note}; echo 8")
    assert main(["sweep", "--resubmit", str(out)]) == 1
    assert "left out, as they may be running: points 0-1" in capsys.readouterr().err
    assert submitted(slurm) == 1
    assert main(["sweep", "--resubmit", str(out), "--points", "1"]) == 0
    assert re.search(r"^1 .* lost +8_1 ", capsys.readouterr().out, re.MULTILINE)
    assert submitted(slurm) == 2
    # How a job of the unknown submission ended is known where it wrote it down.
    (out / "0" / "state.log").write_text("now running\nnow failed exit=1\n")
    assert [point.state for point in status(out, load(out), {})] == ["failed", "lost"]


def test_the_queue_tells_the_id_that_sbatch_did_not(
    tmp_path: Path, slurm: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out = tmp_path / "my runs"
    lines = [
        "Welcome",
        "verl_dra 5 0 RUNNING /ray.sbatch --sweep /other verl-dra train",
        f"verl_dra 9 0 RUNNING /ray.sbatch --sweep {out} verl-dra train",
        f"verl_dra 9 1 PENDING /ray.sbatch --sweep {out} verl-dra train",
        "verl_dra 3 N/A RUNNING /a",
    ]
    fake(tmp_path, "sbatch", "")
    fake(tmp_path, "squeue", "\n".join(f'echo "{line}"' for line in lines))
    assert main(["sweep", "--out", str(out), *GRID]) == 0
    shown = capsys.readouterr().out
    assert "submitted 2 points as job 9" in shown
    assert f"verl-dra sweep --status '{out}'" in shown
    for points in ([], ["--points", "0"], ["--points", "1"]):
        assert main(["sweep", "--resubmit", str(out), *points]) == 1
    said = capsys.readouterr().err
    assert "no point failed" in said
    assert "point 0 is running; nothing was submitted" in said
    assert "point 1 is waiting; nothing was submitted" in said
    # Of two submissions without an id, the newest has what the queue holds, so that its points count as queued.
    sweep = sweep_of([["a=1"], ["a=2"]], Submission(None, [0, 1]), Submission(None, [0, 1]))
    assert {point.job for point in status(out, sweep, queued(out, sweep))} == {"9_0", "9_1"}
    assert [submission.job for submission in sweep.submissions] == [None, 9]
    # A task may have ended; one that no submission asked for is another's.
    for points, job in (([0, 1, 2], 9), ([0], None)):
        sweep = sweep_of([["a=1"], ["a=2"], ["a=3"]], Submission(None, points))
        queued(out, sweep)
        assert sweep.submissions[0].job == job
    assert main(["sweep", "--out", str(out), *GRID]) == 1
    assert f"`verl-dra sweep --status '{out}'`" in capsys.readouterr().err
    fake(tmp_path, "squeue", "echo 'verl_dra 9 0-'")
    assert main(["sweep", "--resubmit", str(out)]) == 1
    assert "squeue says what can't be read: 'verl_dra 9 0-'" in capsys.readouterr().err


def test_an_id_that_can_not_be_written_down_is_said(
    tmp_path: Path, slurm: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out = tmp_path / "out"
    fake(tmp_path, "sbatch", f"mkdir {out}/sweep.json.new; echo 7")  # as a full disk
    assert main(["sweep", "--out", str(out), *GRID]) == 1
    assert "points 0-1 are submitted as job 7, but that can't be written" in capsys.readouterr().err
    assert [point.state for point in status(out, load(out), {})] == ["unknown", "unknown"]


def test_two_at_once_do_not_both_submit(tmp_path: Path, slurm: Path, capsys: pytest.CaptureFixture[str]) -> None:
    out = tmp_path / "out"
    assert main(["sweep", "--out", str(out), *GRID]) == 0
    # The other one submits while this one asks the queue.
    newer = load(out)
    newer.submissions.append(Submission(8, [0]))
    newer.save(tmp_path)
    fake(tmp_path, "squeue", f"cp {tmp_path}/sweep.json {out}")
    assert main(["sweep", "--resubmit", str(out)]) == 1
    assert "sweep.json has changed meanwhile" in capsys.readouterr().err
    assert submitted(slurm) == 1


def test_points_are_submitted_again_with_other_options(
    tmp_path: Path, slurm: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out = tmp_path / "out"
    options = "--sbatch=--nodes=2 -t1:00 --mem 4G --comment='a b'"
    assert main(["sweep", "--out", str(out), options, "--no-check", *RUN, "a=1,2,3"]) == 0
    assert main(["sweep", "--resubmit", str(out), "--points", "2", "0-1", "--sbatch=-t 2:00"]) == 0
    assert main(["sweep", "--resubmit", str(out), "--points", "0", "2", "--sbatch=--mem-per-cpu=1G -xn1"]) == 0
    assert main(["sweep", "--resubmit", str(out)]) == 0  # each with what it had last
    given = [
        re.sub(rf"--output.*--chdir=\S+ |{re.escape(str(ROOT))}.*", "", line) for line in slurm.read_text().splitlines()
    ]
    first, second = "--nodes=2 --time=1:00 --mem=4G --comment=a b", "--nodes=2 --mem=4G --comment=a b --time=2:00"
    third = "--nodes=2 --comment=a b --time=2:00 --mem-per-cpu=1G --exclude=n1"
    assert [line.strip() for line in given] == [
        f"--parsable --array=0-2 {first}",
        f"--parsable --array=0-2 {second}",
        f"--parsable --array=0,2 {third}",
        f"--parsable --array=0,2 {third}",
        f"--parsable --array=1 {second}",
    ]
    assert "submitted 1 points as job 7 with --nodes=2 --mem=4G '--comment=a b' --time=2:00" in capsys.readouterr().out
    assert [submission.points for submission in load(out).submissions] == [[0, 1, 2], [0, 1, 2], [0, 2], [0, 2], [1]]
    for words, said in (
        (["7"], "names no point; the sweep has 0 to 2"),
        (["2-1"], "names no point"),
        (["1,2"], "neither a number nor a range"),
    ):
        assert main(["sweep", "--resubmit", str(out), "--points", *words]) == 1
        assert said in capsys.readouterr().err
    (out / "1" / "state.log").write_text("now completed exit=0\n")
    assert main(["sweep", "--resubmit", str(out), "--points", "0-1"]) == 1
    assert "point 1 is completed; nothing was submitted" in capsys.readouterr().err
    assert main(["sweep", "--status", str(out), "--points", "1"]) == 1
    assert "leave out points" in capsys.readouterr().err


def test_a_point_is_not_submitted_again_with_other_overrides(
    tmp_path: Path, slurm: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out = tmp_path / "out"
    assert main(["sweep", "--out", str(out), *GRID]) == 0
    (out / "1" / "overrides.txt").write_text("dra.smi=log")
    assert main(["sweep", "--resubmit", str(out)]) == 1
    assert "point 1: overrides.txt is not what sweep.json says of the point" in capsys.readouterr().err
    assert submitted(slurm) == 1
    (out / "1" / "overrides.txt").unlink()
    assert main(["sweep", "--resubmit", str(out)]) == 0
    assert (out / "1" / "overrides.txt").read_text() == "dra.smi=log_det\n"


def test_jobs_are_not_started_in_another_folder(
    tmp_path: Path, slurm: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "work").mkdir()
    monkeypatch.chdir(tmp_path / "work")
    assert main(["sweep", "--out", str(tmp_path / "100%a"), "--no-check", "a=1,2"]) == 0
    assert f"--output={tmp_path}/100%%a/%a/slurm.out" in slurm.read_text()
    monkeypatch.chdir("/")
    (tmp_path / "work").rmdir()
    assert main(["sweep", "--resubmit", str(tmp_path / "100%a")]) == 1
    assert f"working folder {tmp_path}/work is not there" in capsys.readouterr().err


# --- options of sbatch ---


@pytest.mark.parametrize(
    ("option", "said"),
    [
        *[(option, "array and output are the sweep's own") for option in ("-a0-3", "-ox", "--arra=1", "--out=x")],
        *[(option, "array and output are the sweep's own") for option in ("-Ha 1", "-t 1 -o x", "--time 1 --array 2")],
        *[(option, "it submits nothing") for option in ("--test-only", "--test", "-V", "-h", "--usage")],
        ("-Q", "must know the id"),
        ("-HQ", "must know the id"),
        ("--quie", "must know the id"),
        ("-W", "does not wait for its jobs"),
        ("--wrap=x", "--script replaces ray.sbatch"),
        ("--o=x", "can be open-mode, output, overcommit, oversubscribe"),
        ("--nodes=2 x", "'x' is no option of sbatch"),
        ("--nodes=2 -- x", "'--' is no option of sbatch"),
        ("-Z", "no option -Z"),
        ("--nodes", "--nodes has no value"),
        ("-N", "-N has no value"),
    ],
)
def test_options_that_no_sweep_can_have_are_refused(option: str, said: str, capsys: pytest.CaptureFixture[str]) -> None:
    for command in (["dra.smi=a,b"], ["--resubmit", "/nowhere"]):
        if command[0] == "--resubmit":
            with pytest.raises(SweepError, match=re.escape(said)):
                replaced([], option.split())
        else:
            assert main(["sweep", f"--sbatch={option}", *command]) == 1
            assert said in capsys.readouterr().err


long_options = {
    "nodes": "N:",
    "time": "t:",
    "hold": "H",
    "verbose": "v",
    "partition": "p:",
    "mem": None,
    "exclude": "x:",
}
words = st.sampled_from(
    [
        "-N",
        "-N2",
        "-HN",
        "-Hv",
        "-vt1",
        "--node",
        "--nodes",
        "--nodes=3",
        "--parti=4",
        "--part",
        "--hol",
        "--mem",
        "--mem=",
        "x",
        "-x-",
        "-1",
    ]
)


@given(st.lists(words, max_size=5))
def test_options_are_read_as_getopt_long_reads_them(given_words: list[str]) -> None:
    # Of these alone, abbreviations mean what they mean among all of sbatch's; but for --node and --mem, which go on.
    exact = [f"{name}s" if name == "--node" else name for name in given_words]
    short = "".join(letter for letter in long_options.values() if letter)
    long = [f"{name}{'=' if letter is None or ':' in letter else ''}" for name, letter in long_options.items()]
    of_letter = {f"-{letter[0]}": f"--{name}" for name, letter in long_options.items() if letter}
    try:
        pairs, rest = getopt.getopt(exact, short, long)
    except getopt.GetoptError:
        rest = ["refused"]
    if rest or "--" in exact:
        with pytest.raises(SweepError):
            parse(exact)
        return
    expected = [(of_letter.get(name, name).removeprefix("--"), value) for name, value in pairs]
    assert [(option.name, option.long.partition("=")[2]) for option in parse(exact)] == expected


def test_an_option_of_a_newer_slurm_is_passed_on() -> None:
    assert [option.word for option in parse(["--new", "3", "--newer", "--newest=1", "-N2"])] == [
        *("--new=3", "--newer", "--newest=1", "--nodes=2"),
    ]


@given(st.sets(st.integers(0, 60), min_size=1))
def test_numbers_of_points_are_read_as_they_are_shown(points: set[int]) -> None:
    assert ranges.read(ranges.shown(points).split(","), 61) == sorted(points)


# --- what a dying job leaves ---


@pytest.mark.parametrize(
    ("log", "state", "note"),
    [
        (b"", "lost", None),
        (b"\0\0\0\0", "lost", None),
        (b"now running\n\0\0\0\0now completed exit=0\n", "completed", None),
        (b"now running\nnow failed exit=1\nnow runn", "failed", "1 line of state.log can't be read"),
        (b"now running\nnow compl2026-01-02T00:00:00 failed exit=1\n", "failed", None),
        (b"now completed", "completed", None),
        (b"now\n", "lost", "1 line of state.log"),
        (b"\xff\xfe running\n\xff\n\xff\n", "lost", "2 lines of state.log"),
        (b"now finished exit=0\n", "unknown", "ends with the state 'finished', which is none of running, requeued"),
    ],
)
def test_a_torn_state_log_is_read_as_such(log: bytes, state: str, note: str | None, tmp_path: Path) -> None:
    sweep = sweep_of([["a=1"], ["a=2"]], Submission(5, [0, 1]))
    create(tmp_path, sweep)
    (tmp_path / "0" / "state.log").write_bytes(log)
    (tmp_path / "1" / "state.log").write_text("now completed exit=0\n")
    points = status(tmp_path, sweep, {})
    assert [point.state for point in points] == [state, "completed"]
    assert (note or "") in "; ".join(points[0].notes)
    assert bool(points[0].notes) == (note is not None)


def test_what_can_not_be_read_is_shown(tmp_path: Path, slurm: Path, capsys: pytest.CaptureFixture[str]) -> None:
    sweep = sweep_of([["a=1"], ["a=2"]], Submission(5, [0, 1]))
    create(tmp_path / "out", sweep)
    for name in ("state.log", "metrics.jsonl"):
        (tmp_path / "out" / "0" / name).mkdir()
    shutil.rmtree(tmp_path / "out" / "1")
    assert main(["sweep", "--status", str(tmp_path / "out")]) == 0
    shown = capsys.readouterr().out
    assert "1 unknown, 1 lost; in" in shown
    assert "point 0: state.log can't be read (Is a directory)" in shown
    assert "point 0: metrics.jsonl can't be read (Is a directory)" in shown
    assert "point 1: overrides.txt can't be read (No such file or directory)" in shown


pieces = [
    *(b'{"step": 1, "data": {"a": 1}}', b'{"step": 1e999, "data": {}}', b'{"step": 1, "data": [[1, 2]]}'),
    *(b'{"step": 2, "data": {"a": 1' + b"0" * 400 + b"}}", b"[" * 9000, b"now running", b"now failed"),
    *(b"\n", b"\0", b"\xff"),
]
files = st.binary(max_size=40) | st.lists(st.sampled_from(pieces), max_size=5).map(b"".join)


@given(files, files, files)
def test_one_points_files_never_hide_another_point(log: bytes, metrics: bytes, overrides: bytes) -> None:
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        sweep = sweep_of([["a=1"], ["a=2"]], Submission(5, [0, 1]))
        create(folder, sweep)
        for file, content in (("state.log", log), ("metrics.jsonl", metrics), ("overrides.txt", overrides)):
            (folder / "0" / file).write_bytes(content)
        (folder / "1" / "state.log").write_text("now completed exit=0\n")
        broken, whole = status(folder, sweep, {})
        assert (whole.state, whole.notes) == ("completed", [])
        assert broken.state in (*OVER, "completed", "unknown")
        assert bool(overrides != b"a=1\n") == any("overrides.txt" in note for note in broken.notes)


def json_values(leaves: st.SearchStrategy[object]) -> st.SearchStrategy[object]:
    return st.recursive(leaves, lambda inner: st.lists(inner, max_size=3), max_leaves=4)


@given(
    st.sampled_from(
        ["command", "points", "sbatch", "max_running", "cwd", "script", "environment", "submissions", "new"]
    ),
    json_values(
        st.none() | st.booleans() | st.integers(-2, 2) | st.sampled_from(["x", "\0", "\ud800"]) | st.just({"job": 1})
    ),
)
def test_a_sweep_json_is_read_whole_or_refused(key: str, value: object) -> None:
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        create(folder, sweep_of([["a=1"]], Submission(5, [0])))
        (folder / "sweep.json").write_text(json.dumps({**json.loads((folder / "sweep.json").read_text()), key: value}))
        try:
            sweep = load(folder)
        except SweepError:
            return
        assert len(status(folder, sweep, {})) == len(sweep.points)
        assert sbatch(folder, sweep, [0])


TASK, TORN = b"verl_dra 5 0 RUNNING x", b"verl_dra 5"


@settings(max_examples=20, deadline=None)
@given(st.lists(st.sampled_from([TASK, TORN, b"verl_dra 5 N/A RUNNING", b"Welcome", b"\0", b"\xff"])))
def test_squeues_answer_is_read_whole_or_refused(lines: list[bytes]) -> None:
    with tempfile.TemporaryDirectory() as name, pytest.MonkeyPatch.context() as patch:
        (Path(name) / "answer").write_bytes(b"".join(line + b"\n" for line in lines))
        fake(Path(name), "squeue", f"cat {name}/answer")
        patch.setenv("PATH", name, prepend=":")
        if TORN in lines:
            with pytest.raises(SweepError, match="squeue says what can't be read"):
                queued(Path("/out"), sweep_of([]))
        else:
            assert queued(Path("/out"), sweep_of([])) == ({(5, 0): "RUNNING"} if TASK in lines else {})


said_lines = st.sampled_from(
    ["7", "7;north", "  12 ", "Welcome", "sbatch: error: timed out", "7 8", "\u0667", "", "\0"]
)
said = st.lists(said_lines | st.text(max_size=8), max_size=4).map("\n".join)


def answers(stdout: str, stderr: str, code: int) -> Any:
    """In place of running one of Slurm's commands."""
    return lambda command, variables=None: subprocess.CompletedProcess(command, code, stdout, stderr)


@settings(max_examples=60)
@given(said, said, st.sampled_from([0, 1, 255, -9]), said)
def test_whatever_sbatch_says_a_submission_is_known_or_perhaps_or_refused(
    stdout: str, stderr: str, code: int, queue: str
) -> None:
    with tempfile.TemporaryDirectory() as name, pytest.MonkeyPatch.context() as patch:
        folder = Path(name)
        sweep = sweep_of([["a=1"], ["a=2"]])
        create(folder, sweep)
        patch.setattr(slurm_module, "code", lambda: "1 abc")
        run = {"sbatch": answers(stdout, stderr, code), "squeue": answers(queue, "", 0)}
        patch.setattr(slurm_module, "_run", lambda command, variables=None: run[command[0]](command))
        ids = [line.strip() for line in stdout.splitlines() if line.strip() in ("7", "7;north", "12")]
        refused = None
        try:
            slurm_module.submit(folder, sweep, [0, 1])
        except SweepError as error:
            refused = str(error)
        if refused is not None:
            assert refused.startswith("sbatch refused: ")
            assert (code > 0, ids, sweep.submissions) == (True, [], [])
            assert "timed out" not in f"{stdout} {stderr}"
        else:
            (submission,) = sweep.submissions
            assert submission.job is not None or submission.said
            assert len(ids) != 1 or submission.job in (None, int(ids[0].partition(";")[0]))
        assert load(folder) == sweep
        assert len(status(folder, sweep, {})) == 2


tasks = st.tuples(st.integers(0, 9), st.integers(0, 9), st.sampled_from(["PENDING", "RUNNING", "SPECIAL_EXIT"]))


@settings(max_examples=60)
@given(st.lists(tasks, max_size=4), st.lists(st.text(max_size=8) | said_lines, max_size=4))
def test_between_whatever_a_site_says_no_task_is_lost(there: list[tuple[int, int, str]], chatter: list[str]) -> None:
    lines = [f"verl_dra {job} {task} {state} /x --sweep /out y" for job, task, state in there]
    mixed = "\n".join(line for pair in zip_longest(chatter, lines, fillvalue="") for line in pair)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(slurm_module, "_run", answers(mixed, "", 0))
        assert queued(Path("/out"), sweep_of([])) == {(job, task): state for job, task, state in there}


def test_a_sweep_of_an_earlier_version_can_be_looked_after(
    tmp_path: Path, slurm: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    create(tmp_path / "out", sweep_of([["a=1"]], sbatch=["--nodes=1"]))
    path = tmp_path / "out" / "sweep.json"
    read = json.loads(path.read_text())
    path.write_text(json.dumps({**read, "cwd": "/", "submissions": [{"job": 5, "points": [0]}]}))
    assert main(["sweep", "--resubmit", str(tmp_path / "out")]) == 0
    assert "the code was verl_dra of an unknown version" in capsys.readouterr().err
    assert "--nodes=1" in slurm.read_text()


# --- what a machine has not ---


@pytest.mark.parametrize(
    ("absent", "said"),
    [
        ("verl", "the points can't be checked here: import of verl halted; None in sys.modules; pip install"),
        ("hydra", "a grid is read by Hydra, which is not here"),
    ],
)
def test_what_a_login_node_lacks_is_said_in_a_sentence(
    absent: str, said: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    for name in ("verl_dra.sweep.points", "verl_dra.sweep.checks"):
        monkeypatch.delitem(sys.modules, name, raising=False)
    for name in {absent, *(name for name in sys.modules if name.startswith(f"{absent}."))}:
        monkeypatch.setitem(sys.modules, name, None)
    arguments = ["sweep", "--dry-run", "--out", str(tmp_path / "out"), *RUN, "dra.smi=graph_cut,log_det"]
    unchecked = ["sweep", "--no-check", *arguments[1:]]
    assert main(arguments) == 1
    (shown,) = capsys.readouterr().err.splitlines()
    assert said in shown
    assert main(unchecked) == int(absent == "hydra")
    assert ("--array=0-1" in capsys.readouterr().out) == (absent == "verl")
    # The folders are looked at all the same.
    assert main([*unchecked, "trainer.default_local_dir=/ckpt"]) == 1
    assert ("points 0 and 1 share trainer.default_local_dir=/ckpt" in capsys.readouterr().err) == (absent == "verl")
    assert main([*unchecked, "trainer.default_local_dir=/${dra.smi}"]) == int(absent == "hydra")


@pytest.mark.slow
def test_files_that_are_absent_here_are_warned_of_and_broken_ones_refused(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    arguments = ["sweep", "--dry-run", "--out", str(tmp_path / "out"), *RUN]
    train = tmp_path / "train.parquet"
    assert main([*arguments, f"data.train_files={train}", "dra.smi=graph_cut"]) == 0
    said = capsys.readouterr().err
    assert "verl-dra sweep: checking 1 points\n" in said
    assert f"verl-dra sweep: all points: data.train_files: {train} is not on this node; it must be on" in said
    train.write_bytes(b"PAR1 and no more")
    assert main([*arguments, f"data.train_files=/none,{train}"]) == 1
    assert f"point 1 (data.train_files={train}): data.train_files: {train} can't be read" in capsys.readouterr().err


# --- which code ---


def test_which_code_is_submitted_is_written_down(
    tmp_path: Path, slurm: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    package = tmp_path / "repository" / "verl_dra"
    (package / "sweep").mkdir(parents=True)

    def git(*arguments: str) -> str:
        as_one = ["-c", "user.name=x", "-c", "user.email=x@example.org"]
        command = ["git", "-C", str(package), *as_one, *arguments]
        return subprocess.run(command, check=True, capture_output=True, text=True).stdout.strip()

    monkeypatch.setattr(code_module, "__file__", str(package / "sweep" / "code.py"))
    (package / "__init__.py").write_text("")
    assert code() == __version__
    git("init")
    assert code() == __version__  # in a checkout of something else
    git("add", ".")
    git("commit", "-m", "first")
    first = git("rev-parse", "HEAD")
    assert code() == f"{__version__} {first}"
    out = tmp_path / "out"
    assert main(["sweep", "--out", str(out), *GRID]) == 0
    assert load(out).submissions[0].code == f"{__version__} {first}"
    assert main(["sweep", "--resubmit", str(out)]) == 0
    assert capsys.readouterr().err == ""
    (package / "__init__.py").write_text("changed = True")
    assert code() == f"{__version__} {first}-dirty"
    assert main(["sweep", "--resubmit", str(out)]) == 0
    said = f"the code was verl_dra {__version__} {first} and is {__version__} {first}-dirty now\n"
    assert capsys.readouterr().err == f"verl-dra sweep: since these points were submitted: {said}"
    assert "what has changed since can't be told" in (changed(code(), code()) or "")
