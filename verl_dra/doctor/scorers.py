"""Whether scorers keep up with the rollout, and have room beside it on a GPU: arithmetic, of what was measured here."""

from __future__ import annotations

import math
from collections.abc import Iterator

from omegaconf import DictConfig

from verl_dra.doctor.check import Check, gib, ok, skip, warn
from verl_dra.doctor.run_config import select, trains_on_cpu
from verl_dra.scorer.placement import cores_of

_SPEED = "scorers' speed"
_MEMORY = "scorers' memory"
# What a GPU of the H100's kind makes with a model of 1 B, four times as much as with one of 8 B; and the encoder's
# tokens to one of the policy's, as they came out on code.
_POLICY_TOKENS_PER_S = 20_000
_ENCODER_TOKENS = 1.36
# FSDP's weights and Adam's two moments, in float32; what CUDA itself takes in a process.
_WEIGHT_BYTES, _OPTIMIZER_BYTES = 4, 8
_CONTEXT_BYTES = 2**29


def keep_up(config: DictConfig, tokens_per_s: float, on_gpu: bool, parameters: int) -> Iterator[Check]:
    """What the scorers embed against what the rollout makes.

    Args:
        config: the run's, prepared.
        tokens_per_s: what the encoder embeds here, on a GPU or on one core.
        on_gpu: which of both.
        parameters: of the policy; 0 where that is not known.
    """
    scorer, trainer = config.dra.scorer, config.trainer
    if trains_on_cpu(config) or config.dra.embedding.encoder == "openai":
        yield skip(_SPEED, "what a rollout makes is known of GPUs, and not what many clients get of a server")
        return
    if scorer.placement != "cpu" and not on_gpu:
        yield skip(_SPEED, f"dra.scorer.placement={scorer.placement} embeds on a GPU, which was not tried here")
        return
    gpus = _rollout_gpus(config)
    if scorer.placement == "cpu":
        units = trainer.nnodes * cores_of(trainer.n_gpus_per_node)
        if scorer.num_replicas:
            units = scorer.num_replicas * max(int(scorer.num_cpus or 1), 1)
        what = f"{units} cores"
    else:
        colocated = scorer.placement == "colocated"
        units = scorer.num_replicas or (trainer.nnodes * trainer.n_gpus_per_node if colocated else 1)
        what = f"{units} scorers on GPUs"
    embedded = units * tokens_per_s
    billions = max(parameters / 1e9, 1)
    made = gpus * _ENCODER_TOKENS * _POLICY_TOKENS_PER_S / billions ** (2 / 3)
    found = (
        f"{what} embed about {embedded:,.0f} tokens/s as measured here, and the rollout of {gpus} GPUs makes up to "
        f"{made:,.0f} for them"
    )
    if embedded >= made:
        yield ok(_SPEED, found)
        return
    most = _ENCODER_TOKENS * config.data.train_batch_size * config.actor_rollout_ref.rollout.n
    most *= config.data.max_response_length
    yield warn(
        _SPEED,
        f"{found}: a step of {most:,.0f} tokens, its most, takes the scorers {most / embedded:,.0f} s",
        f"set {'' if scorer.placement == 'colocated' else 'dra.scorer.placement=colocated, or '}dra.scorer.num_replicas"
        f"{' and num_cpus' if scorer.placement == 'cpu' else ''} higher, or embed less by dra.embedding.max_windows",
    )


def fit_beside_vllm(config: DictConfig, memory: int | None, gpu: int, parameters: int) -> Iterator[Check]:
    """Whether a trainer's GPU has room for a scorer when vLLM has taken its share again.

    Args:
        config: the run's, prepared.
        memory: bytes that the encoder takes there at most; None where it was not loaded on a GPU.
        gpu: bytes of the GPU.
        parameters: of the policy; 0 where that is not known.
    """
    separate = select(config, "trainer.v1.trainer_mode") == "separate_async"
    if config.dra.scorer.placement != "colocated" or (separate and not config.actor_rollout_ref.hybrid_engine):
        return  # no vLLM is there
    if memory is None:
        yield skip(_MEMORY, "dra.scorer.placement=colocated takes memory of a GPU, which was not tried here")
        return
    fsdp = config.actor_rollout_ref.actor.fsdp_config
    kept = _WEIGHT_BYTES * (not fsdp.param_offload) + _OPTIMIZER_BYTES * (not fsdp.optimizer_offload)
    trainer = kept * parameters // (config.trainer.nnodes * config.trainer.n_gpus_per_node)
    share = float(select(config, "actor_rollout_ref.rollout.gpu_memory_utilization"))
    scorer = memory + _CONTEXT_BYTES
    left = int(gpu * (1 - share)) - trainer - scorer
    found = (
        f"of a GPU's {gib(gpu)} vLLM takes {gib(gpu * share)} (gpu_memory_utilization={share:g}), the trainer keeps "
        f"about {gib(trainer)} beside it, and a scorer {gib(scorer)}"
    )
    if left >= 0:
        yield ok(_MEMORY, found)
        return
    lower = max(math.floor(100 * (share + left / gpu)) / 100, 0)
    yield warn(
        _MEMORY,
        f"{found}: {gib(-left)} too much when vLLM wakes up",
        f"set actor_rollout_ref.rollout.gpu_memory_utilization={lower:.2f}, dra.embedding.batch_tokens lower, or "
        "dra.scorer.placement=cpu",
    )


def _rollout_gpus(config: DictConfig) -> int:
    gpus = config.trainer.nnodes * config.trainer.n_gpus_per_node
    if select(config, "trainer.v1.trainer_mode") == "separate_async":
        rollout = config.actor_rollout_ref.rollout
        gpus += rollout.nnodes * rollout.n_gpus_per_node
    return int(gpus)
