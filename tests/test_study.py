"""The study's arms, and what `study plot` makes of hand-made runs; tests/stack/test_demo.py trains one."""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Any

import pytest
from hydra import compose, initialize_config_dir
from verl.trainer.ppo.utils import need_critic, need_reference_policy
from verl.utils.config import validate_config

from verl_dra.config import prepare

RECIPES = Path(__file__).resolve().parents[1] / "recipes"
sys.path.append(str(RECIPES))

from tiny_paths.demo import command  # noqa: E402
from tiny_paths.study import train  # noqa: E402
from tiny_paths.study.arms import ARMS, MAIN  # noqa: E402
from tiny_paths.study.report import merged, report, table  # noqa: E402

COLUMN = "Write 8 below 7, the column adds to 15, carry 1: 45."
ROUNDING = "Round 8 up to 10 for 47, then take the extra 2 back: 45."


@pytest.mark.parametrize("arm", ARMS)
def test_every_arm_passes_its_checks_and_verls(arm: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("VERL_PLATFORM", "cpu")
    arguments = command(tmp_path, ARMS[arm])
    with initialize_config_dir(str(RECIPES / "tiny_paths"), version_base=None):
        config = compose("tiny_paths", overrides=arguments[arguments.index("+platform=cpu") :])
    assert prepare(config).enabled == arm.startswith("dra_")
    validate_config(config, need_reference_policy(config), need_critic(config))
    model = config.actor_rollout_ref
    completions = config.data.train_batch_size * model.rollout.n
    assert completions == 128
    # veRL refuses a batch that micro-batches don't divide, after its rollout.
    for part, key in ((model.actor, "ppo"), (model.rollout, "log_prob")):
        assert completions % part[f"{key}_micro_batch_size_per_gpu"] == 0


def finished_run(out: Path, arm: str, *, right: int, seed: int = 0, steps: int = 100, data: str = "0123") -> None:
    """Of one question, 16 samples a validation, half of them of each path; at the end `right` of them are right."""
    run = out / arm / str(seed)
    (run / "validation").mkdir(parents=True)
    for step, good in ((0, 8), (75, 8), (steps, right)):
        samples = [
            {
                "input": "What is 37 + 8?",
                "output": ROUNDING if i % 2 else COLUMN,
                "strategy": "rounding" if i % 2 else "column",
                "acc": float(i < good),
            }
            for i in range(16)
        ]
        (run / "validation" / f"{step}.jsonl").write_text("\n".join(map(json.dumps, samples)))
    (run / "metrics.jsonl").write_text(json.dumps({"step": 1, "data": {"timing_s/step": 2.0}}) + "\n")
    (run / "done.json").write_text(json.dumps({"arm": arm, "seed": seed, "steps": steps, "data": data}))


def test_runs_of_another_machine_stay_in_the_results(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    results = tmp_path / "results"
    finished_run(tmp_path / "here", "grpo", right=16)
    report(tmp_path / "here", results)
    finished_run(tmp_path / "there", "dra_grpo", right=12)
    finished_run(tmp_path / "there", "grpo_slow", right=4)
    capsys.readouterr()
    report(tmp_path / "there", results)

    runs = {run["arm"]: run for run in json.loads((results / "results.json").read_text())}
    assert list(runs) == ["dra_grpo", "grpo", "grpo_slow"]
    assert runs["grpo"]["validation"]["100"]["accuracy"] == 1
    assert runs["dra_grpo"]["validation"]["100"]["strategy_entropy"] == pytest.approx(0.693, abs=1e-3)
    shown = capsys.readouterr().out
    assert "| GRPO | 1 | 100 | 1.000 | 1.000 | 0.693 | 2.000 |" in shown
    assert "| DRA-GRPO | 1 | 100 | 0.750 |" in shown
    assert "| grpo_slow | 1 | 100 | 0.250 |" in shown


def test_the_start_is_shown_with_its_spread_over_the_runs(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    finished_run(tmp_path, "grpo", right=16)
    finished_run(tmp_path, "dra_grpo", right=16)
    start = tmp_path / "dra_grpo" / "0" / "validation" / "0.jsonl"
    samples = [{**json.loads(line), "acc": 1.0} for line in start.read_text().splitlines()]
    start.write_text("\n".join(map(json.dumps, samples)))
    report(tmp_path, tmp_path)
    assert "| before RL | 2 | 0 | 0.750 ± 0.354 |" in capsys.readouterr().out


def test_the_readmes_table_is_that_of_the_results() -> None:
    by_arm: dict[str, list[dict[str, Any]]] = {}
    for run in merged(RECIPES / "tiny_paths" / "study" / "results.json", []):
        by_arm.setdefault(run["arm"], []).append(run)
    assert table(list(MAIN), by_arm) in (RECIPES / "tiny_paths" / "README.md").read_text()


def test_a_run_that_was_measured_again_replaces_its_result(tmp_path: Path) -> None:
    for where, right in (("first", 16), ("second", 4)):
        finished_run(tmp_path / where, "grpo", right=right)
        report(tmp_path / where, tmp_path)
    (run,) = json.loads((tmp_path / "results.json").read_text())
    assert run["validation"]["100"]["accuracy"] == 0.25


def test_runs_from_different_models_are_not_compared(tmp_path: Path) -> None:
    finished_run(tmp_path / "here", "grpo", right=16)
    report(tmp_path / "here", tmp_path)
    finished_run(tmp_path / "there", "dra_grpo", right=16, data="4567")
    with pytest.raises(SystemExit, match="different models"):
        report(tmp_path / "there", tmp_path)


def test_knobs_have_a_table_without_the_main_arms_too(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    finished_run(tmp_path, "grpo_slow", right=4)
    report(tmp_path, tmp_path)
    assert "| grpo_slow | 1 | 100 | 0.250 |" in capsys.readouterr().out


def test_runs_of_an_arm_that_differ_are_not_averaged(tmp_path: Path) -> None:
    finished_run(tmp_path / "here", "grpo", right=16)
    finished_run(tmp_path / "here", "grpo", right=16, seed=1, steps=90)
    with pytest.raises(SystemExit, match=r"the runs of grpo have different steps or overrides \(100 and 90\)"):
        report(tmp_path / "here", tmp_path)


def test_tables_and_curves_can_be_made_of_the_results_alone(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    finished_run(tmp_path / "here", "grpo", right=12)
    report(tmp_path / "here", tmp_path)
    made = [(tmp_path / name).read_bytes() for name in ("results.json", "curves.png")]
    shown = capsys.readouterr().out
    (tmp_path / "curves.png").unlink()
    report(tmp_path / "nowhere", tmp_path)
    assert [(tmp_path / name).read_bytes() for name in ("results.json", "curves.png")] == made
    assert capsys.readouterr().out == shown


def test_a_finished_run_is_not_written_over(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    trained: list[Path] = []
    monkeypatch.setattr(train, "prepare", lambda: tmp_path / "0123")
    monkeypatch.setattr(train, "_run", lambda folder, run, *_: trained.append(run) or 0)
    assert train.train(tmp_path, ["grpo"], [0], 100) == 0
    assert train.train(tmp_path, ["grpo", "dra_grpo"], [0], 100) == 0
    assert trained == [tmp_path / arm / "0" for arm in ("grpo", "dra_grpo")]
    with pytest.raises(SystemExit, match=r"grpo/0 holds a finished run of steps=100; give another --out"):
        train.train(tmp_path, ["dr_grpo", "grpo"], [0], 10)
    assert json.loads((tmp_path / "grpo" / "0" / "done.json").read_text())["steps"] == 100
    assert len(trained) == 2, "found out after a training"


def test_nothing_to_plot_is_an_error(tmp_path: Path) -> None:
    with pytest.raises(SystemExit, match="no finished run"):
        report(tmp_path, tmp_path)
