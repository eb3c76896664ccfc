"""Installed and not used, the extension leaves veRL as it is; and what it relies on in veRL holds."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from omegaconf import OmegaConf
from verl import DataProto
from verl.trainer.ppo.core_algos import get_adv_estimator_fn, register_adv_est
from verl.trainer.ppo.ray_trainer import compute_advantage
from verl.trainer.ppo.v1.utils import compute_advantage_for_multi_trajectories

BEHAVIOUR = """
import asyncio, inspect, json, sys
sys.path.insert(0, sys.argv[1])
import numpy as np, torch
if sys.argv[2] == "imported":
    import verl_dra, verl_dra.cli, verl_dra.config, verl_dra.main, verl_dra.plugin, verl_dra.training.reward_manager
    import verl_dra.scorer.pool, verl_dra.training.task_runner, verl_dra.training.trainer
from omegaconf import OmegaConf
from trajectories import byte_tokenizer, trajectory
from verl import DataProto
from verl.experimental.reward_loop.reward_manager.registry import REWARD_MANAGER
from verl.trainer.main_ppo import TaskRunnerV1
from verl.trainer.ppo.core_algos import ADV_ESTIMATOR_REGISTRY, POLICY_LOSS_REGISTRY
from verl.trainer.ppo.ray_trainer import compute_advantage
from verl.trainer.ppo.v1.trainer_base import TRAINER_REGISTRY

def named(registry):
    return {str(getattr(key, "value", key)): f"{v.__module__}.{v.__qualname__}" for key, v in registry.items()}

def advantages(name):
    random = torch.Generator().manual_seed(0)
    mask = torch.ones(8, 5, dtype=torch.int64)
    mask[::2, 3:] = 0
    rewards = torch.zeros(8, 5)
    rewards[:, 2] = torch.randn(8, generator=random)
    numbers = {name: torch.rand(8, 5, generator=random) for name in ("values", "sum_pi_squared", "old_log_probs")}
    data = DataProto.from_dict(
        tensors={"token_level_rewards": rewards, "response_mask": mask, "reward_baselines": torch.zeros(8), **numbers},
        non_tensors={"uid": np.array(list("aaabbbbb"), dtype=object)},
    )
    config = OmegaConf.create({"gamma": 0.9, "lam": 0.95, "norm_adv_by_std_in_grpo": True})
    try:
        return compute_advantage(data, name, gamma=0.9, lam=0.95, config=config).batch["advantages"].tolist()
    except Exception as error:
        return repr(error)

def reward(name):
    async def run():
        config = OmegaConf.create({"reward": {"num_workers": 1}, "trainer": {"experiment_name": "x"}})
        def score(solution_str, **_):
            return {"score": len(solution_str), "acc": 1.0}
        tokenizer = byte_tokenizer()
        return await REWARD_MANAGER[name](config, tokenizer, score).run_single(trajectory(tokenizer, [("q", "answer")]))
    return asyncio.run(run())

runner = TaskRunnerV1.__ray_metadata__.modified_class
estimators = named(ADV_ESTIMATOR_REGISTRY)
sys.__stdout__.write("BEHAVIOUR" + json.dumps({
    "estimators": estimators,
    "losses": named(POLICY_LOSS_REGISTRY),
    "reward managers": named(REWARD_MANAGER),
    "trainers": named(TRAINER_REGISTRY),
    "task runner": f"{runner.__module__}.{runner.__qualname__}",
    "advantages": {name: advantages(name) for name in estimators},
    "rewards": {name: reward(name) for name in ("naive", "dapo", "gdpo", "rate_limited")},
    "replaced": sorted(
        f"{name}.{key}"
        for name, module in list(sys.modules.items()) if name.split(".")[0] == "verl"
        for key, value in vars(module).items()
        if str(inspect.getattr_static(value, "__module__", "")).split(".")[0] == "verl_dra"
    ),
}) + "\\n")
"""


@pytest.fixture(scope="module")
def behaviours() -> dict[str, dict[str, Any]]:
    """What veRL does without the extension's plugin, and with all of the extension imported."""
    environment = {name: value for name, value in os.environ.items() if name != "VERL_PLATFORM"}
    running = {
        how: subprocess.Popen(
            [sys.executable, "-c", BEHAVIOUR, str(Path(__file__).parent), how],
            env={**environment, "VERL_USE_EXTERNAL_PLUGINS": plugins},
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
        )
        for how, plugins in (("without", "none"), ("imported", "auto"))
    }
    outputs = {how: process.communicate(timeout=300) for how, process in running.items()}
    for how, (out, error) in outputs.items():
        assert "BEHAVIOUR" in out, f"{how}: {error}"
    return {how: json.loads(out.partition("BEHAVIOUR")[2].splitlines()[0]) for how, (out, _) in outputs.items()}


@pytest.mark.slow
def test_verls_registries_advantages_and_rewards_are_as_without_the_extension(behaviours: Any) -> None:
    assert behaviours["imported"] == behaviours["without"]


@pytest.mark.slow
def test_the_comparison_sees_verls_estimators_managers_and_trainers(behaviours: Any) -> None:
    without = behaviours["without"]
    assert "dra" not in without["estimators"]
    assert len(without["estimators"]) >= 14
    numbers = [name for name, value in without["advantages"].items() if not isinstance(value, str)]
    assert {"gae", "grpo", "rloo", "remax", "opo", "optimal_token_baseline"} <= set(numbers)
    assert {"naive", "dapo", "gdpo", "rate_limited", "remote"} == without["reward managers"].keys()
    assert {"sync", "colocate_async"} <= without["trainers"].keys()
    assert without["rewards"]["naive"]["reward_score"] == 6
    assert without["replaced"] == []


def test_verl_refuses_another_estimator_under_a_taken_name() -> None:
    with pytest.raises(ValueError, match="Adv estimator grpo has already been registered"):
        register_adv_est("grpo")(lambda **_: None)
    with pytest.raises(ValueError, match="Unknown advantage estimator"):
        get_adv_estimator_fn("no_such_estimator")


def data_of(rewards: torch.Tensor, uids: str) -> DataProto:
    return DataProto.from_dict(
        tensors={"token_level_rewards": rewards, "response_mask": torch.ones_like(rewards)},
        non_tensors={"uid": np.array(list(uids), dtype=object)},
    )


def test_verls_grpo_is_its_vectorised_grpo() -> None:
    rewards = torch.randn(9, 4, generator=torch.Generator().manual_seed(0))
    grpo, vectorised = (
        compute_advantage(data_of(rewards, "aabbbcccc"), name, config=OmegaConf.create({"gamma": 1.0}))
        for name in ("grpo", "grpo_vectorized")
    )
    torch.testing.assert_close(grpo.batch["advantages"], vectorised.batch["advantages"], rtol=1e-4, atol=1e-5)


def test_verl_broadcasts_the_advantage_of_a_sessions_last_output_for_grpo() -> None:
    rewards = torch.tensor([[1.0], [0.0], [0.0], [5.0]])
    keys = ["a_0_1", "a_1_0", "a_2_0", "a_0_0"]
    data = compute_advantage_for_multi_trajectories(
        data_of(rewards, "aaaa"), keys, "grpo", norm_adv_by_std_in_grpo=False
    )
    assert data.batch["advantages"].flatten().tolist() == pytest.approx([2 / 3, -1 / 3, -1 / 3, 2 / 3])
