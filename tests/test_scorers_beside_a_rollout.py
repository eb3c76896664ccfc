"""What doctor says of scorers before a run: whether they keep up with its rollout, and have room beside vLLM."""

from __future__ import annotations

import copy
from collections.abc import Callable

import pytest
from omegaconf import DictConfig, OmegaConf

from verl_dra.config.compose import composed
from verl_dra.doctor.check import Check
from verl_dra.doctor.scorers import fit_beside_vllm, keep_up

Composed = Callable[..., DictConfig]
GIB = 2**30
SMALL = ["data.train_batch_size=100", "data.max_response_length=1000", "actor_rollout_ref.rollout.n=10"]


@pytest.fixture(scope="module")
def configured() -> Composed:
    config, _ = composed(["data.train_files=x", "data.val_files=x", *SMALL])
    OmegaConf.set_struct(config, False)

    def call(placement: str, *overrides: str) -> DictConfig:
        changed = copy.deepcopy(config)
        changed.merge_with_dotlist([f"dra.scorer.placement={placement}", *overrides])
        return changed

    return call


def speed(config: DictConfig, tokens_per_s: float, on_gpu: bool, parameters: int = 10**9) -> Check:
    (check,) = keep_up(config, tokens_per_s, on_gpu, parameters)
    return check


def test_cores_that_keep_up_and_cores_that_do_not(configured: Composed) -> None:
    check = speed(configured("cpu"), 22_000, on_gpu=False)
    assert check.state == "ok"
    assert check.found == (
        "10 cores embed about 220,000 tokens/s as measured here, and the rollout of 8 GPUs makes up to 217,600 for them"
    )
    check = speed(configured("cpu", "dra.scorer.num_replicas=2", "dra.scorer.num_cpus=2.5"), 10_000, on_gpu=False)
    assert check.state == "warn"
    assert check.found.startswith("4 cores embed about 40,000 tokens/s")
    assert check.found.endswith("a step of 1,360,000 tokens, its most, takes the scorers 34 s")
    assert check.fix.startswith("set dra.scorer.placement=colocated, or dra.scorer.num_replicas and num_cpus higher")


def test_the_larger_the_policy_the_less_its_rollout_makes(configured: Composed) -> None:
    two_nodes = configured("cpu", "trainer.nnodes=2")
    assert speed(two_nodes, 10_000, on_gpu=False, parameters=8 * 10**9).state == "ok"  # 20 x 10,000 against 108,800
    assert speed(two_nodes, 10_000, on_gpu=False, parameters=10**9).state == "warn"
    assert speed(two_nodes, 10_000, on_gpu=False, parameters=0).state == "warn"


def test_scorers_on_gpus_are_held_against_the_rollout_where_one_was_tried(configured: Composed) -> None:
    assert speed(configured("colocated"), 3e6, on_gpu=True).found.startswith("8 scorers on GPUs embed about 24,000,000")
    check = speed(configured("dedicated"), 100_000, on_gpu=True)
    assert check.found.startswith("1 scorers on GPUs embed about 100,000 tokens/s")
    assert check.fix.startswith("set dra.scorer.placement=colocated, or dra.scorer.num_replicas higher, or embed less")
    assert speed(configured("colocated"), 10_000, on_gpu=False).state == "skip"
    assert speed(configured("cpu", "dra.embedding.encoder=openai"), 10_000, on_gpu=False).state == "skip"
    assert speed(configured("cpu", "trainer.device=cpu"), 10_000, on_gpu=False).state == "skip"


def test_rollouts_of_their_own_count_too(configured: Composed) -> None:
    apart = ["trainer.v1.trainer_mode=separate_async", "actor_rollout_ref.rollout.nnodes=1"]
    assert "the rollout of 16 GPUs" in speed(configured("cpu", *apart), 10_000, on_gpu=False).found


def room(config: DictConfig, memory: int, parameters: int) -> Check:
    (check,) = fit_beside_vllm(config, memory, 80 * GIB, parameters)
    return check


def test_a_scorer_has_what_vllm_and_the_trainer_leave(configured: Composed) -> None:
    utilization = "actor_rollout_ref.rollout.gpu_memory_utilization"
    check = room(configured("colocated", f"{utilization}=0.9"), 2 * GIB, parameters=0)
    assert check.state == "ok"
    assert check.found == (
        "of a GPU's 80.0 GiB vLLM takes 72.0 GiB (gpu_memory_utilization=0.9), the trainer keeps about 0 MiB beside "
        "it, and a scorer 2.5 GiB"
    )
    check = room(configured("colocated", f"{utilization}=0.95"), 6 * GIB, parameters=0)
    assert check.state == "warn"
    assert check.found.endswith("2.5 GiB too much when vLLM wakes up")
    assert check.fix.startswith(f"set {utilization}=0.91, dra.embedding.batch_tokens lower, or dra.scorer.placement")


def test_what_the_trainer_moves_away_is_room(configured: Composed) -> None:
    config = configured("colocated", "actor_rollout_ref.rollout.gpu_memory_utilization=0.9")
    fsdp = config.actor_rollout_ref.actor.fsdp_config
    # In 8 GPUs, 12 bytes of each parameter.
    check = room(config, 2 * GIB, parameters=8 * GIB)
    assert check.state == "warn"
    assert "the trainer keeps about 12.0 GiB beside it" in check.found
    fsdp.optimizer_offload = True
    check = room(config, 2 * GIB, parameters=8 * GIB)
    assert check.state == "ok"
    assert "the trainer keeps about 4.0 GiB beside it" in check.found


def test_scorers_elsewhere_need_no_room_on_the_trainers_gpus(configured: Composed) -> None:
    assert list(fit_beside_vllm(configured("cpu"), None, 0, 0)) == []
    apart = ["trainer.v1.trainer_mode=separate_async", "actor_rollout_ref.hybrid_engine=False"]
    assert list(fit_beside_vllm(configured("colocated", *apart), GIB, 80 * GIB, 0)) == []
    (check,) = fit_beside_vllm(configured("colocated"), None, 0, 0)
    assert check.state == "skip"
