"""`make demo` as a user sees it, cut to two steps: what it shows, what it leaves behind, how it fails."""

from __future__ import annotations

import json
import re
from pathlib import Path

import isolated
import pytest

from verl_dra.cli import main
from verl_dra.training.meanings import METRICS

pytestmark = [pytest.mark.slow, pytest.mark.timeout(900)]

DEMO = Path(__file__).resolve().parents[2] / "recipes" / "tiny_paths" / "demo.py"


def demo(tmp_path: Path, *overrides: str) -> tuple[int, str]:
    log = tmp_path / "shown.txt"
    done = isolated.run(
        ["python", str(DEMO), *overrides, f"hydra.run.dir={tmp_path}/out"],
        log=log,
        cwd=tmp_path,
        environment={},
        timeout_s=800,
    )
    return done.returncode, log.read_text(errors="replace")


def test_the_demo_trains_and_shows_little(tmp_path: Path) -> None:
    status, shown = demo(
        tmp_path,
        "trainer.total_training_steps=2",
        "trainer.test_freq=2",
        "dra.record.every_n_steps=1",
        "actor_rollout_ref.rollout.val_kwargs.n=4",
        "data.val_max_samples=16",
    )
    assert status == 0, shown[-3000:]
    out = tmp_path / "out"
    for expected in (
        "verl-dra: training with DRA over grpo",
        "verl-dra: training with grpo",
        "verl-dra: the model is loaded; starting the rollout engine (",
        "  paths of 8  duplicates  pushed down ",
        "\n  1/2 ",
        "\n  2/2 ",
        "verl-dra: validation at step 2: tiny_paths/acc/mean@4 ",
        "verl-dra: steps: 2",
        "verl-dra: effective paths: ",
        f"verl-dra: train.log, metrics.jsonl and tensorboard/ are in {out}/with_dra; to see them: "
        f"verl-dra report {out}/with_dra",
        "\n16 questions that training does not show, 4 samples each, before training and after 2 steps:\n",
        f"\n{out}/report.html: 2 runs, ",
    ):
        assert expected in shown
    told, *rows = re.findall(r"^(?:with DRA|without DRA|) +(?:accuracy|\d\.\d\d -> ).*$", shown, re.MULTILINE)
    assert told.split() == ["accuracy", "ways", "to", "a", "right", "answer", "effective", "paths"]
    (accuracy, _), (ways, _), (paths, _) = (
        (float(before), float(after)) for before, after in re.findall(r"([\d.]+) -> ([\d.]+)", rows[0])
    )
    assert 0.4 < accuracy < 0.8
    assert 1 < ways < 4
    assert 1 < paths < 4
    assert len(rows) == 2
    assert "UserWarning" not in shown
    assert "Loading weights" not in shown
    assert len(shown.splitlines()) < 60
    assert "UserWarning" in (out / "with_dra" / "train.log").read_text(errors="replace")
    assert list((out / "with_dra" / "tensorboard").glob("events.*"))
    for run in ("with_dra", "without_dra"):
        steps = [json.loads(line) for line in (out / run / "metrics.jsonl").read_text().splitlines()]
        assert [step["step"] for step in steps] == [0, 1, 2]
        assert ("dra/effective_paths" in steps[-1]["data"]) == (run == "with_dra")
        ours = {name for step in steps for name in step["data"] if name.startswith(("dra/", "timing_s/dra"))}
        assert ours <= set(METRICS)
        wanted = {"timing_s/dra_wait", "timing_s/dra_record", "dra/recorded_groups"}
        assert wanted <= ours if run == "with_dra" else not ours
        assert sorted(path.name for path in (out / run / "validation").iterdir()) == ["0.jsonl", "2.jsonl"]
    assert (out / "with_dra" / "groups").exists()


def test_a_failing_run_says_why_and_exits_non_zero(tmp_path: Path) -> None:
    reward = tmp_path / "reward.py"
    reward.write_text("def compute_score(**_):\n    pass\n\n\nraise RuntimeError('this reward is not ready')\n")
    status, shown = demo(tmp_path, f"reward.custom_reward_function.path={reward}")
    assert status != 0
    assert "training 2 of 2" not in shown
    assert "this reward is not ready" in shown
    assert f"the run failed; above are the last lines of its log {tmp_path}/out/with_dra/train.log" in shown


def test_a_sweep_trains_every_point(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """Each to its last step, with checkpoints; and one goes on from them with its own settings alone."""
    own = [
        "actor_rollout_ref.rollout.n=4",
        "reward.custom_reward_function.reward_kwargs.wrong=-0.5",
        "dra.enabled=True",  # that training alone
        "trainer.total_training_steps=1",
        "trainer.val_before_train=False",
        "trainer.test_freq=-1",
        "trainer.save_freq=1",
        "trainer.resume_mode=auto",
    ]
    status, shown = demo(
        tmp_path, "--multirun", f"hydra.sweep.dir={tmp_path}/sweep", "dra.smi=graph_cut,clusters", *own
    )
    assert status == 0, shown[-3000:]
    smi = []
    for point in ("0", "1"):
        (line,) = (tmp_path / "sweep" / point / "metrics.jsonl").read_text().splitlines()
        data = json.loads(line)["data"]
        smi.append(data["dra/smi/mean"])
        assert data["critic/score/min"] == -0.5
    # Sums of cosines, and numbers of siblings in the same cluster.
    assert 0 < smi[1] < smi[0] < 3
    assert main(["report", "--text", *(str(tmp_path / "sweep" / point) for point in ("0", "1"))]) == 0
    shown = capsys.readouterr().out
    assert "dra.smi=graph_cut" in shown
    assert "dra.smi=clusters" in shown

    folder = tmp_path / "sweep" / "0" / "checkpoints"
    resumed = [*own, f"trainer.default_local_dir={folder}", "trainer.total_training_steps=2"]
    status, shown = demo(tmp_path, *resumed, "dra.smi=log_det")
    assert status == 1
    assert f"resuming: {folder}/global_step_1 is of other settings: dra.smi was graph_cut and is log_det" in shown
    assert "starting Ray" not in shown
    status, shown = demo(tmp_path, *resumed)
    assert status == 0, shown[-3000:]
    (line,) = (tmp_path / "out" / "metrics.jsonl").read_text().splitlines()
    assert json.loads(line)["step"] == 2


def test_a_policy_is_measured(tmp_path: Path) -> None:
    log = tmp_path / "log.txt"
    measure = ["python", str(DEMO.with_name("measure.py"))]
    assert isolated.run(measure, log=log, cwd=tmp_path, environment={}, timeout_s=500).returncode == 0
    shown = log.read_text(errors="replace")
    for path in ("column", "coins", "number_line", "rounding"):
        assert path in shown


def test_an_arm_of_the_locks_study_trains(tmp_path: Path) -> None:
    study = ["python", str(DEMO.parents[1] / "tiny_locks" / "study"), "--out", str(tmp_path / "study")]
    log = tmp_path / "log.txt"
    results = tmp_path / "results"
    for command in (
        [*study, "stack", "--arms", "dra", "--seeds", "0", "--steps", "5"],
        [*study, "plot", "--results", str(results)],
    ):
        done = isolated.run(command, log=log, cwd=tmp_path, environment={}, timeout_s=800)
        shown = log.read_text(errors="replace")
        assert done.returncode == 0, shown[-3000:]
    (run,) = json.loads((results / "results.json").read_text())["stack"]
    (block,) = run["training"]
    # The starting model has 0.66 and shares of 0.51, 0.27, 0.18 and 0.03.
    assert block["reward"] == pytest.approx(0.69, abs=0.06)
    assert block["share/market"] == pytest.approx(0.5, abs=0.1)
    assert "| DRA-GRPO | 0 | 5 | 0." in shown
