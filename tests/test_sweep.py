"""`verl-dra sweep` without a Slurm: the grid, the refusals, what a sweep's folder says. tests/slurm has a real one."""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
from collections.abc import Sequence
from itertools import chain
from pathlib import Path

import pytest
from hydra._internal.core_plugins.basic_sweeper import BasicSweeper
from hydra.core.override_parser.overrides_parser import OverridesParser
from hypothesis import given
from hypothesis import strategies as st

from verl_dra import main as main_module
from verl_dra.cli import main
from verl_dra.sweep.folder import Submission, Sweep, SweepError, create, load
from verl_dra.sweep.job import added
from verl_dra.sweep.points import expand
from verl_dra.sweep.slurm import sbatch
from verl_dra.sweep.status import status

ROOT = Path(__file__).parents[1]
RECIPE = ROOT / "recipes" / "tiny_paths"
RUN = ["--config-dir", os.path.relpath(RECIPE), "--config-name", "tiny_paths", "data_dir=/data", "recipe_dir=/recipe"]


def sweep_of(points: list[list[str]], *submissions: Submission, sbatch: Sequence[str] = ()) -> Sweep:
    return Sweep(["verl-dra", "train", "x=1"], points, list(sbatch), 3, "/cwd", "/ray.sbatch", {}, list(submissions))


@pytest.fixture
def slurm(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """An sbatch that notes what it was given in the file that is returned, and a squeue that has nothing."""
    note = tmp_path / "submitted"
    shown = 'echo "$@"; env | grep -E "^(DRA_|VERL_PLATFORM)" | sort'
    for name, script in (("sbatch", f"{{ {shown}; }} >>{note}; echo 7"), ("squeue", "")):
        (tmp_path / name).write_text(f"#!/bin/sh\n{script}\n")
        (tmp_path / name).chmod(0o755)
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
    ("override", "said"), [("a=interval(0,1)", "no points"), ("a=[1", "a=[1"), ("a='x\ny',z", "line break")]
)
def test_what_has_no_points_is_refused(override: str, said: str) -> None:
    with pytest.raises(SweepError) as error:
        expand([override])
    assert said in str(error.value)


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


def test_a_sweep_is_submitted_again_as_it_was(
    tmp_path: Path, slurm: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    run = ["--config-dir", str(RECIPE), *RUN[2:], "dra.smi=graph_cut,log_det"]
    # A folder whose name Hydra would read as more than a name.
    out, script = tmp_path / "lr=1e-3, (it's) [a] #1", tmp_path / "my.sbatch"
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("DRA_SETUP", "/setup.sh")
    assert main(["sweep", "--out", str(out), "--script", "my.sbatch", "--sbatch=--nodes=1", *run]) == 0
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
        *("sweep", "--dry-run", "--out", str(tmp_path / "out"), "--max-running", "2"),
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
        (["--sbatch=--array=1-2", "dra.smi=a,b"], "array and output are the sweep's own"),
        (["--status", "/nowhere"], "/nowhere/sweep.json can't be read as a sweep"),
        (["--resubmit", "/nowhere", "dra.smi=a,b"], "leave out overrides"),
        (["--resubmit", "/nowhere", "--script", "x"], "leave out script"),
        (["--config-dir", "/nowhere", "dra.smi=a,b"], "Additional config directory '/nowhere' not found"),
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
    }
    sweep = sweep_of([[f"a={i}"] for i in said], Submission(5, list(range(9))), Submission(6, [8]))
    create(tmp_path, sweep)
    for number, states in said.items():
        (tmp_path / str(number) / "state.log").write_text("".join(f"2026-01-01T00:00:00 {s} job=1\n" for s in states))
    queue = {(5, 0): "PENDING", (5, 1): "RUNNING", (5, 5): "PENDING", (6, 8): "RUNNING", (5, 9): "RUNNING"}
    points = status(tmp_path, sweep, queue)
    assert [point.state for point in points] == [
        *("waiting", "running", "completed", "failed", "lost", "requeued", "time", "lost", "running", "not submitted"),
    ]
    assert [point.job for point in points[7:]] == ["5_7", "6_8", ""]


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
    command = ["sweep", "--out", str(tmp_path / "out"), *RUN, "dra.smi=graph_cut,log_det"]
    for _ in range(2):
        assert main(command) == 1
        assert "sbatch refused: Batch job submission failed: no such partition" in capsys.readouterr().err
