"""Lock A in the real stack: its arms are the loop's, its runs stand beside them. test_demo.py trains one."""

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

from tiny_locks.loop import Settings  # noqa: E402
from tiny_locks.study import report, stack  # noqa: E402
from tiny_locks.study.arms import ARMS  # noqa: E402
from tiny_locks.task import WAYS, Question, render  # noqa: E402


@pytest.mark.parametrize("arm", stack.OVERRIDES)
def test_an_arm_of_the_stack_is_that_of_the_loop(arm: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("VERL_PLATFORM", "cpu")
    arguments = stack.command(tmp_path, tmp_path / "run", arm, seed=1, steps=150)
    of_run = [word for word in arguments[arguments.index("+platform=cpu") :] if not word.startswith("hydra.")]
    with initialize_config_dir(str(stack.RECIPE), version_base=None):
        config = compose("tiny_locks", overrides=of_run)
    dra, looped, settings = prepare(config), ARMS[arm], Settings()
    validate_config(config, need_reference_policy(config), need_critic(config))
    model = config.actor_rollout_ref
    assert dra.enabled == (looped.dra.get("strength") != 0.0)
    assert model.actor.entropy_coeff == looped.entropy_coeff
    assert model.actor.use_kl_loss == bool(looped.kl_loss_coef)
    assert config.algorithm.norm_adv_by_std_in_grpo == looped.norm_adv_by_std_in_grpo
    assert config.data.train_batch_size == model.actor.ppo_mini_batch_size == settings.prompts
    assert model.rollout.n == settings.group
    assert (model.actor.optim.lr, model.actor.optim.lr_warmup_steps) == (settings.learning_rate, settings.warmup_steps)
    assert tuple(model.actor.optim.betas) == settings.betas
    assert model.actor.grad_clip == settings.clip_gradient
    assert model.actor.loss_agg_mode == "token-mean"
    assert config.trainer.total_training_steps == settings.steps
    assert Path(config.trainer.v1.sampler.custom_sampler.path).exists()


def trained(out: Path, arm: str, seed: int, right: int) -> None:
    """A run of 10 steps of 8 completions, two of each way, the first `right` of them right."""
    run = stack.folder(out) / arm / str(seed)
    (run / stack.ROLLOUTS).mkdir(parents=True)
    for step in range(1, 11):
        samples = [
            {"output": render(Question(37, (8, 6, 9)), list(WAYS)[i // 2], [0] * 8), "score": float(i < right)}
            for i in range(8)
        ]
        (run / stack.ROLLOUTS / f"{step}.jsonl").write_text("\n".join(map(json.dumps, samples)))
    said: dict[str, Any] = {"arm": arm, "seed": seed, "steps": 10, "overrides": [], "start": "0123", "seconds": 1}
    (run / "done.json").write_text(json.dumps(said))


@pytest.mark.slow
def test_runs_of_the_stack_are_held_beside_the_loops(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    trained(tmp_path / "here", "dra", 0, right=4)
    report.report(tmp_path / "here", tmp_path)
    trained(tmp_path / "there", "grpo", 1, right=0)
    report.report(tmp_path / "there", tmp_path)
    shown = capsys.readouterr().out
    assert "| DRA-GRPO | 0 | 10 | 0.500 |  | 1.386 |  |" in shown
    assert "| GRPO | 1 | 10 | 0.000 |  | 1.386 |  |" in shown
    kept = json.loads((tmp_path / "results.json").read_text())["stack"]
    assert [(run["arm"], [block["step"] for block in run["training"]]) for run in kept] == [
        ("dra", [5, 10]),
        ("grpo", [5, 10]),
    ]


def test_the_loops_span_at_the_same_steps_stands_beside_a_run_of_the_stack() -> None:
    def run(seed: int, reward: float, steps: int) -> dict[str, Any]:
        even = {f"share/{way}": 0.25 for way in WAYS}
        blocks = [{"step": step, "reward": reward if step <= 10 else 1.0, **even} for step in range(5, steps + 1, 5)]
        return {"arm": "dra", "seed": seed, "steps": steps, "training": blocks}

    shown = stack.table([run(0, 0.9, 10)], {"dra": [run(0, 0.85, 20), run(1, 0.95, 20)]})
    assert shown.splitlines()[-1] == "| DRA-GRPO | 0 | 10 | 0.900 | 0.850 to 0.950 | 1.386 | 1.386 to 1.386 |"


def test_a_finished_run_of_other_settings_is_not_written_over(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    trained(tmp_path, "dra", 0, right=4)
    monkeypatch.setattr(stack, "prepare", lambda: tmp_path)
    monkeypatch.setattr(stack, "start_of", lambda folder: "0123")
    with pytest.raises(SystemExit, match=r"stack/dra/0 holds a finished run of steps=10.*another --out"):
        stack.train(stack.folder(tmp_path), ["dra"], [0], steps=20)
