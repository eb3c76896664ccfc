"""`verl-dra sweep` on a real Slurm: arrays, states, resubmission, and two points that train."""

from __future__ import annotations

import json
import os
import re
import sys
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest
from lab import Lab, LabError, wait_until

sys.path.append(str(Path(__file__).parents[2] / "recipes"))
from tiny_paths.demo import HERE as RECIPE
from tiny_paths.demo import environment
from tiny_paths.prepare import prepare

pytestmark = [pytest.mark.slow, pytest.mark.timeout(1500)]

# In the place of ray.sbatch: fails at point 1 until told to go on.
SCRIPT = """#!/usr/bin/env bash
[[ $1 == --sweep ]] || exit 9
sweep=$2
shift 2
run=$sweep/$SLURM_ARRAY_TASK_ID
echo "now running" >>"$run/state.log"
if [[ $SLURM_ARRAY_TASK_ID == 1 && ! -e $sweep/go_on ]]; then
  echo "now failed exit=7" >>"$run/state.log"
  exit 7
fi
echo "$* $(<"$run/overrides.txt")" >"$run/arguments"
echo "now completed exit=0" >>"$run/state.log"
"""

# Needs more than a minute, as its point 0 does.
LONG = """#!/usr/bin/env bash
run=$2/$SLURM_ARRAY_TASK_ID
say() { echo "now $*" >>"$run/state.log"; }
if [[ $SLURM_ARRAY_TASK_ID == 0 ]]; then trap 'say time exit=124; exit 124' USR1; else trap '' USR1; fi
say running
if [[ $SLURM_ARRAY_TASK_ID == 0 && $(squeue --noheader --jobs="$SLURM_JOB_ID" --format=%l) == 1:00 ]]; then
  sleep 100 &
  wait
fi
say completed exit=0
"""
GREETS = """#!/bin/sh
echo "Welcome. You have used 3 % of your 100"
echo called >>"$0.log"
/usr/bin/sbatch "$@" || exit
echo "42 jobs wait"
"""


def sweep(slurm: Lab, *arguments: str) -> str:
    return slurm.run("verl-dra", "sweep", *arguments, environment=environment()).stdout


def wait_for(slurm: Lab, out: Path, ends: list[str], seconds: float) -> str:
    """Wait for how the points' jobs say that they ended; gives what `--status` shows then."""

    def said() -> list[str]:
        logs = [out / str(point) / "state.log" for point in range(len(ends))]
        lines = [log.read_text().splitlines() if log.exists() else [] for log in logs]
        return [of_point[-1].split()[1] if of_point else "" for of_point in lines]

    wait_until(lambda: said() == ends, seconds, lambda: f"{said()}, not {ends}; {slurm.run('squeue').stdout}")
    wait_until(lambda: not slurm.run("squeue", "--noheader").stdout, 60, lambda: slurm.run("squeue").stdout)
    return sweep(slurm, "--status", str(out))


def test_points_that_failed_are_submitted_again_and_no_others(slurm: Lab, tmp_path: Path) -> None:
    script, out = tmp_path / "script", tmp_path / "out"
    script.write_text(SCRIPT)
    shared = ["+platform=cpu", "actor_rollout_ref.rollout.n=4", "actor_rollout_ref.actor.use_dynamic_bsz=True"]
    grid = ["dra.smi=graph_cut,log_det,clusters", *shared]
    shown = sweep(slurm, "--script", str(script), "--out", str(out), "--max-running=2", *grid)
    assert (first := re.search(r"submitted 3 points as job (\d+)", shown))
    shown = wait_for(slurm, out, ["completed", "failed", "completed"], 300)
    assert "2 completed, 1 failed; in " in shown
    assert re.search(rf"^1  dra.smi=log_det\s+failed\s+{first[1]}_1\b.* {out}/1$", shown, re.MULTILINE)
    (out / "go_on").touch()
    shown = sweep(slurm, "--resubmit", str(out))
    assert "submitted 1 points" in shown
    assert "3 completed; in " in wait_for(slurm, out, ["completed"] * 3, 300)
    assert (out / "1" / "arguments").read_text() == f"verl-dra train {' '.join(shared)} dra.smi=log_det\n"
    assert [len((out / str(i) / "state.log").read_text().splitlines()) for i in range(3)] == [2, 4, 2]
    again = slurm.run("verl-dra", "sweep", "--resubmit", str(out), check=False)
    assert (again.returncode, "no point failed" in again.stderr) == (1, True)


def test_a_point_that_ran_out_of_time_is_given_more_where_sbatch_greets(slurm: Lab, tmp_path: Path) -> None:
    script, out, greeting = tmp_path / "script", tmp_path / "100%a of my runs", tmp_path / "sbatch"
    script.write_text(LONG)
    greeting.write_text(GREETS)
    greeting.chmod(0o755)
    path = {"PATH": f"{tmp_path}:{Path(sys.executable).parent}:/usr/sbin:{os.environ['PATH']}"}

    def greeted(*arguments: str) -> str:
        return slurm.run("verl-dra", "sweep", *arguments, environment={**environment(), **path}).stdout

    # Slurm sends it up to half a minute earlier, and so at least ten seconds after the start.
    options = "--sbatch=-t1 --signal=B:USR1@20"
    shown = greeted("--script", str(script), "--out", str(out), options, "--no-check", "a=1,2")
    assert (first := re.search(r"submitted 2 points as job (\d+)\n", shown))
    shown = wait_for(slurm, out, ["time", "completed"], 300)
    assert re.search(rf"^0  a=1\s+time\s+{first[1]}_0\b", shown, re.MULTILINE)
    shown = greeted("--resubmit", str(out), "--points", "0", "--sbatch=--time=5")
    assert (second := re.search(r"submitted 1 points as job (\d+) with --signal=B:USR1@20 --time=5\n", shown))
    shown = wait_for(slurm, out, ["completed"] * 2, 300)
    assert re.search(rf"^0  a=1\s+completed\s+{second[1]}_0\b", shown, re.MULTILINE)
    assert (out / "0" / "slurm.out").is_file()
    assert (tmp_path / "sbatch.log").read_text() == "called\n" * 2
    assert [len((out / str(i) / "state.log").read_text().splitlines()) for i in range(2)] == [4, 2]


def test_two_points_train_each_on_a_ray_cluster_of_its_own(slurm: Lab, tmp_path: Path) -> None:
    out = tmp_path / "out"
    shown = slurm.run(
        *("verl-dra", "sweep", "--out", str(out), "--config-dir", str(RECIPE), "--config-name", "tiny_paths"),
        *("--max-running=1", "--sbatch=--nodes=1 --gres=gpu:1 --cpus-per-task=32"),
        *("+platform=cpu", f"data_dir={prepare()}", f"recipe_dir={RECIPE}", "dra.smi=graph_cut,clusters"),
        # The job's cluster, in the place of one that the CPU platform makes.
        *(f"ray_kwargs.ray_init.{key}=null" for key in ("address", "num_cpus", "num_gpus", "include_dashboard")),
        *("trainer.total_training_steps=1", "trainer.val_before_train=False", "trainer.test_freq=-1"),
        environment={**environment(), "DRA_TMP": "/tmp/ray"},
    ).stdout
    assert "submitted 2 points" in shown
    try:
        shown = wait_for(slurm, out, ["completed"] * 2, 1200)
    except LabError:
        sys.stderr.write("".join(path.read_text()[-3000:] for path in out.glob("*/*.out")))
        raise
    smi = []
    for point in ("0", "1"):
        (line,) = (out / point / "metrics.jsonl").read_text().splitlines()
        smi.append(json.loads(line)["data"]["dra/smi/mean"])
        assert (out / point / "checkpoints").is_dir() is False  # save_freq is -1
        assert [line.split()[1] for line in (out / point / "state.log").read_text().splitlines()] == [
            "running",
            "completed",
        ]
    # Sums of cosines, and numbers of siblings in the same cluster.
    assert 0 < smi[1] < smi[0] < 7
    assert re.search(r"^0  dra.smi=graph_cut\s+completed\s+\S+\s+1 +\S+ ", shown, re.MULTILINE)


def test_hydras_own_launcher_runs_the_trainer_on_a_node(slurm: Lab, tmp_path: Path) -> None:
    # It takes seconds to be refused, and minutes to train; that it is refused there shows that it ran there. Without
    # Slurm's accounting, which the lab has not, submitit does not see that a job without a result has ended.
    run = [
        "timeout",
        "300",
        "verl-dra",
        "train",
        "--multirun",
        "hydra/launcher=dra_slurm",
        f"hydra.sweep.dir={tmp_path}",
    ]
    overrides = ["trainer.n_gpus_per_node=4", "hydra.launcher.cpus_per_task=8", "actor_rollout_ref.rollout.n=4"]
    with ThreadPoolExecutor() as pool:
        launcher = pool.submit(slurm.run, *run, *overrides, "dra.cluster_cosine=2,3", check=False)

        def refused() -> bool:
            logs = "".join(path.read_text(errors="replace") for path in tmp_path.glob(".submitit/*/*.err"))
            said = r"^verl-dra: dra\.cluster_cosine must be between -1 and 1, not {}$"
            return all(re.search(said.format(name), logs, re.MULTILINE) for name in ("2.0", "3.0"))

        try:
            wait_until(refused, 250, lambda: str(list(tmp_path.rglob("*"))))
        finally:
            slurm.run("pkill", "--full", "--", "hydra/launcher=dra_slurm", check=False)
            launcher.result()
    (script, *_) = [path.read_text() for path in tmp_path.glob(".submitit/*/*.sh")]
    assert "#SBATCH --gpus-per-node=4" in script
