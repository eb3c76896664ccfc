"""Checks of what makes weights of similarity: settings that can't be, or that would have no effect."""

from __future__ import annotations

import inspect
import math
from typing import cast

from omegaconf import DictConfig

from verl_dra.algorithm import CONTROLS
from verl_dra.config.schema import DRAConfig

_DIVIDE = ("grpo", "grpo_vectorized", "grpo_passk")
"""veRL's estimators that divide by the standard deviation. Others have the argument `epsilon` and don't use it."""
_MOST_POWER = 64.0


def check_similarity(config: DictConfig, dra: DRAConfig) -> None:
    """Raise a ValueError that says which setting is wrong, and what to set instead."""
    dra.smi_function()
    dra.schedule()
    _check_cosine(dra)
    _check_gate(dra)
    _check_floor(dra)
    _check_epsilon(config, dra)
    if dra.weight == "unlikeliness":
        _refuse_for_unlikeliness(dra)
    if dra.partition.by is not None:
        _refuse_for_partition(dra)


def _check_cosine(dra: DRAConfig) -> None:
    if not 1 <= dra.cosine_power <= _MOST_POWER:
        raise ValueError(f"dra.cosine_power must be from 1 to {_MOST_POWER:g}, not {dra.cosine_power}")
    if dra.cosine != "power" and dra.cosine_power != DRAConfig.cosine_power:
        raise ValueError(f"dra.cosine_power has no effect with dra.cosine={dra.cosine}; set dra.cosine=power")
    if dra.cosine == "power" and dra.smi == "log_det":
        raise ValueError(
            "dra.cosine=power with dra.smi=log_det: a matrix of powered cosines need not have a determinant above 0; "
            "set dra.smi=graph_cut, or dra.cosine=centered"
        )
    if dra.cosine == "power" and dra.smi == "clusters":
        raise ValueError(
            "dra.cosine=power has no effect with dra.smi=clusters, which link by a threshold alone; set "
            "dra.cluster_cosine"
        )


def _check_gate(dra: DRAConfig) -> None:
    if not math.isfinite(dra.correct_above):
        raise ValueError(f"dra.correct_above must be a finite number, not {dra.correct_above}")
    if dra.among == "all" and dra.correct_above != DRAConfig.correct_above:
        raise ValueError("dra.correct_above has no effect with dra.among=all; set dra.among=correct")
    if dra.among == "correct" and dra.negative_rewards == "shift":
        raise ValueError(
            "dra.among=correct with dra.negative_rewards=shift can rank a wrong answer above a right one: it lifts "
            "wrong ones above 0 and weights right ones alone; set dra.negative_rewards=paper"
        )


def _check_floor(dra: DRAConfig) -> None:
    if not 0 <= dra.spread_floor < 1:
        raise ValueError(f"dra.spread_floor must be from 0 to below 1, not {dra.spread_floor}")
    if dra.spread_floor and dra.smi in ("log_det", "clusters"):
        raise ValueError(
            f"dra.spread_floor is in units of a cosine, and dra.smi={dra.smi} is no sum of cosines; set "
            "dra.smi=graph_cut, or dra.spread_floor=0"
        )


def _check_epsilon(config: DictConfig, dra: DRAConfig) -> None:
    from verl.trainer.ppo.core_algos import get_adv_estimator_fn

    if dra.epsilon is None:
        return
    if not 0 < dra.epsilon < math.inf:
        raise ValueError(f"dra.epsilon must be above 0 and finite, not {dra.epsilon}")
    name = cast(str, dra.base_estimator)
    function = get_adv_estimator_fn(name)  # type: ignore[no-untyped-call]
    of_verl = function.__module__.partition(".")[0] == "verl"
    if (name not in _DIVIDE) if of_verl else ("epsilon" not in inspect.signature(function).parameters):
        why = "divides by no standard deviation" if of_verl else "has no argument epsilon"
        raise ValueError(f"dra.epsilon: dra.base_estimator={name} {why}; remove it, or use {', '.join(_DIVIDE)}")
    if name in ("grpo", "grpo_passk") and not config.algorithm.get("norm_adv_by_std_in_grpo", True):
        raise ValueError(
            "dra.epsilon has no effect with algorithm.norm_adv_by_std_in_grpo=False, which divides by no standard "
            "deviation; remove it"
        )


def _refuse_for_unlikeliness(dra: DRAConfig) -> None:
    idle = {
        f"dra.smi={dra.smi}": dra.smi in CONTROLS,
        f"dra.cosine={dra.cosine}": dra.cosine != "raw",
        f"dra.spread_floor={dra.spread_floor:g}": dra.spread_floor > 0,
    }
    for setting, given in idle.items():
        if given:
            raise ValueError(f"{setting} has no effect with dra.weight=unlikeliness, which uses no SMI; remove it")


def _refuse_for_partition(dra: DRAConfig) -> None:
    if dra.weight == "unlikeliness":
        raise ValueError(
            f"dra.partition.by={dra.partition.by} has no effect with dra.weight=unlikeliness, which uses no SMI; "
            "remove it, or set dra.weight=inverse"
        )
    idle = {
        f"dra.smi={dra.smi}": dra.smi not in ("graph_cut", "shuffled"),
        f"dra.cosine={dra.cosine}": dra.cosine != "raw",
        f"dra.spread_floor={dra.spread_floor:g}": dra.spread_floor > 0,
    }
    for setting, given in idle.items():
        if given:
            raise ValueError(
                f"{setting} is of cosines, and has no effect with dra.partition.by={dra.partition.by}; remove it"
            )
