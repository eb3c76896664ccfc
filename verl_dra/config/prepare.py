"""Checks that a run must pass before any worker starts, and the extension put in its place."""

from __future__ import annotations

import importlib.util
import os
import uuid
from collections.abc import Iterator
from pathlib import Path
from typing import Any, cast

from omegaconf import DictConfig, OmegaConf, open_dict
from omegaconf.errors import OmegaConfBaseException

from verl_dra.config.schema import DRAConfig
from verl_dra.config.similarity import check_similarity
from verl_dra.config.spelling import did_you_mean
from verl_dra.scorer.placement import settled

ESTIMATOR = "dra"
_ESTIMATOR_UNSET = "grpo"
_REWARD_MANAGER = "pkg://verl_dra.training.reward_manager:DRARewardManager"
_REWARDS = "pkg://verl_dra.rewards"
_MANAGER_UNSET = "naive"  # veRL's own default, which can't be told from one that was set

# What an estimator needs that the reward adjustment has no place in, or that veRL gives only under its own name.
_UNFIT_ESTIMATORS = {
    "gae": "is critic-based, and DRA compares the completions of a group",
    "remax": "needs the rewards of greedy completions, which the V1 trainer does not make",
    "gdpo": "takes its rewards per dimension from the batch, past the adjustment",
    "optimal_token_baseline": "needs the actor's sum_pi_squared, which veRL passes under its own name alone",
    "tir_optimal_token_baseline": "needs the actor's sum_pi_squared, which veRL passes under its own name alone",
    ESTIMATOR: "is DRA itself; name what it should adjust the rewards for, such as grpo",
}


class ConfigError(ValueError):
    """A setting, or a combination of settings, that can't train."""


def check_complete(config: DictConfig) -> None:
    """Refuse a configuration in which mandatory keys (`???`) have no value.

    Raises:
        ConfigError: names them.
    """
    unset = list(_without_value(OmegaConf.to_container(config, resolve=False)))
    if not OmegaConf.select(config, "reward.reward_model.enable"):
        unset = [key for key in unset if not key.startswith("reward.reward_model.")]
    if unset:
        raise ConfigError(f"{' and '.join(unset)} must be set; there is no default")


def prepare(config: DictConfig) -> DRAConfig:
    """Check the run's configuration and put the extension in its place, before any worker starts.

    With `dra.enabled` the estimator becomes `dra` and the reward manager `DRARewardManager`, around those that the
    configuration names (`dra.base_*`, or veRL's own keys); without, they are the base ones.

    Args:
        config: the composed configuration; changed in place.

    Returns:
        The group `dra`, as a dataclass.

    Raises:
        ConfigError: says which setting is wrong and what to set instead.
    """
    check_complete(config)
    try:
        _check_platform(config)
        dra = _typed(config)
        _fill_base(config, dra)
        _check_rewards(config)
        if dra.enabled:
            _check(config, dra)
    except ValueError as error:
        raise ConfigError(str(error)) from error
    _install(config, dra)
    return dra


def _without_value(node: Any, key: str = "") -> Iterator[str]:
    if isinstance(node, dict):
        for name, value in node.items():
            yield from _without_value(value, f"{key}.{name}" if key else str(name))
    elif node == "???":
        yield key


def _check_platform(config: DictConfig) -> None:
    if isinstance(config.get("platform"), str):
        raise ValueError(
            f"+platform={config.platform} was read as a plain key: the primary config's hydra.searchpath must hold "
            "pkg://verl_dra.config"
        )
    cpu_config = config.trainer.device == "cpu"
    variable = os.environ.get("VERL_PLATFORM", "").strip()
    if cpu_config and variable.lower() != "cpu":
        # With that this process has had the variable set.
        raise ValueError(
            f"trainer.device=cpu and VERL_PLATFORM={variable} contradict each other; unset VERL_PLATFORM"
            if variable
            else "trainer.device=cpu alone can't train; add +platform=cpu, which sets all that a CPU needs"
        )
    if variable.lower() == "cpu" and not cpu_config:
        raise ValueError(
            "VERL_PLATFORM=cpu is set and the run is one for GPUs; add +platform=cpu, or unset VERL_PLATFORM"
        )


def _typed(config: DictConfig) -> DRAConfig:
    try:
        # As a plain dictionary, or else keys that were added by force (+dra.x=1) would pass.
        given = OmegaConf.to_container(config.dra) if "dra" in config else {}
        merged = OmegaConf.merge(OmegaConf.structured(DRAConfig), given)
        return cast(DRAConfig, OmegaConf.to_object(merged))
    except OmegaConfBaseException as error:
        raise ValueError(f"dra.{error.full_key}: {str(error.msg).splitlines()[0]}") from error


def _fill_base(config: DictConfig, dra: DRAConfig) -> None:
    """Take veRL's own keys for the base estimator and reward manager, where the group `dra` does not say."""
    estimator = str(config.algorithm.adv_estimator)
    dra.base_estimator = (
        _one_of(
            "algorithm.adv_estimator",
            None if estimator == ESTIMATOR else estimator,
            "dra.base_estimator",
            dra.base_estimator,
        )
        or _ESTIMATOR_UNSET
    )
    manager = config.reward.reward_manager
    name = f"{manager.module.path}:{manager.name}" if manager.source == "importlib" else str(manager.name)
    given = None if name in (_REWARD_MANAGER, _MANAGER_UNSET) else name
    dra.base_reward_manager = (
        _one_of("reward.reward_manager", given, "dra.base_reward_manager", dra.base_reward_manager) or _MANAGER_UNSET
    )


def _one_of(key: str, value: str | None, dra_key: str, dra_value: str | None) -> str | None:
    if value is not None and dra_value is not None and value != dra_value:
        raise ValueError(f"{key}={value} and {dra_key}={dra_value} contradict each other; set one of them")
    return dra_value or value


def _check(config: DictConfig, dra: DRAConfig) -> None:
    dra.check_words()
    if dra.weight == "darling" and dra.smi == "log_det":
        raise ValueError(
            "dra.weight=darling takes the SMI's share of the group's size, and dra.smi=log_det doesn't grow with that; "
            "set dra.smi=clusters or graph_cut"
        )
    if not config.trainer.use_v1:
        raise ValueError("trainer.use_v1 must be True: DRA works with veRL's V1 trainer")
    n = config.actor_rollout_ref.rollout.n
    if not isinstance(n, int):
        raise ValueError(f"actor_rollout_ref.rollout.n={n} must be a whole number, the completions of a prompt")
    if n < 2:
        raise ValueError(
            f"actor_rollout_ref.rollout.n={n} gives groups of one, in which there is no diversity to measure; set it "
            "to 2 or more"
        )
    if config.critic.enable:
        raise ValueError("critic.enable=True: DRA's estimators use no critic; remove it")
    _check_estimator(cast(str, dra.base_estimator))
    check_similarity(config, dra)
    _check_reward_manager(config, cast(str, dra.base_reward_manager))
    dra.embedding.check()
    dra.scorer.check()
    dra.partition.check()
    dra.record.check()
    _check_device(config, dra)


def _check_estimator(name: str) -> None:
    from verl.trainer.ppo.core_algos import ADV_ESTIMATOR_REGISTRY

    if name in _UNFIT_ESTIMATORS:
        raise ValueError(f"dra.base_estimator={name} {_UNFIT_ESTIMATORS[name]}; use grpo, rloo or another one")
    if name not in ADV_ESTIMATOR_REGISTRY:
        fit = sorted(ADV_ESTIMATOR_REGISTRY.keys() - _UNFIT_ESTIMATORS.keys())
        raise ValueError(
            f"dra.base_estimator={name} is not registered with veRL; registered are {', '.join(fit)}"
            f"{did_you_mean(name, fit)}"
        )


def _check_rewards(config: DictConfig) -> None:
    if config.reward.custom_reward_function.path == _REWARDS and importlib.util.find_spec("math_verify") is None:
        raise ValueError(
            f"reward.custom_reward_function.path={_REWARDS} needs math-verify, which is not installed; "
            "pip install 'verl_dra[math]' on every node"
        )
    model = config.reward.reward_model
    if model.enable and model.enable_resource_pool and config.reward.custom_reward_function.path is None:
        # reward_loop.py, compute_score_disrm, and agent_loop.py, which asks it for reward_extra_info.
        raise ValueError(
            "reward.reward_model.enable_resource_pool=True needs a reward.custom_reward_function that asks the model: "
            "without one veRL 0.9.1 ends at the first completion with KeyError: 'reward_extra_info'; set one, or "
            "enable_resource_pool=False"
        )


def _check_reward_manager(config: DictConfig, name: str) -> None:
    from verl_dra.config.reward_managers import base_reward_manager
    from verl_dra.config.reward_source import may_register

    # A custom reward function's file may register a manager; veRL loads it in the reward workers.
    path = config.reward.custom_reward_function.path
    if ":" in name or not path or not may_register(path, name):
        base_reward_manager(name)


def _check_device(config: DictConfig, dra: DRAConfig) -> None:
    """Refuse devices that contradict each other, and settle what `auto` comes to."""
    from verl.utils.device import get_device_name

    device = dra.embedding.device
    asked = dra.scorer.placement
    if asked in ("dedicated", "colocated") and device != "cpu" and get_device_name() == "cpu":
        raise ValueError(f"dra.scorer.placement={asked} needs a GPU and there is none here; use cpu or auto")
    dra.scorer.placement = settled(asked, config.trainer.device, dra.embedding.encoder, device)
    if dra.scorer.placement == "cpu" and device not in (None, "cpu"):
        why = "" if asked == "cpu" else f", which trainer.device={config.trainer.device} makes of {asked},"
        raise ValueError(
            f"dra.embedding.device={device} but dra.scorer.placement=cpu{why} gives the scorers no GPU; use dedicated "
            "or colocated"
        )


def _install(config: DictConfig, dra: DRAConfig) -> None:
    with open_dict(config):
        if dra.enabled:
            dra.embedding.model = _absolute(dra.embedding.model)
            dra.embedding.tokenizer = dra.embedding.tokenizer and _absolute(dra.embedding.tokenizer)
            dra.scorer.name = dra.scorer.name or f"dra_scorer_{uuid.uuid4().hex[:8]}"
            config.algorithm.adv_estimator = ESTIMATOR
            _set_reward_manager(config, _REWARD_MANAGER)
        else:
            config.algorithm.adv_estimator = dra.base_estimator
            _set_reward_manager(config, cast(str, dra.base_reward_manager))
        config.dra = OmegaConf.structured(dra)


def _absolute(model: str) -> str:
    """A folder's absolute path, as the scorers' working directory is another one; a name as it is."""
    folder = Path(os.path.expanduser(model))
    return str(folder.resolve()) if folder.is_dir() else model


def _set_reward_manager(config: DictConfig, name: str) -> None:
    path, _, cls = name.rpartition(":")
    config.reward.reward_manager.source = "importlib" if path else "register"
    config.reward.reward_manager.name = cls
    config.reward.reward_manager.module.path = path or None
