"""The GPUs and CPUs that a run books with Ray, and whether nodes have room for them: what has no room waits for ever.

Read of veRL 0.9.1, TransferQueue 0.1.11 and Ray 2.60; tests/stack holds the sum against what a training really books.
Agent loops, reward workers, vLLM's servers and load balancers state no CPUs, book none, and start on full nodes too.
Not counted is what a class of the user's own books.
"""

from __future__ import annotations

from bisect import bisect_left
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Literal

from omegaconf import DictConfig, OmegaConf

from verl_dra.scorer.placement import settled

# For each GPU of veRL's pools (single_controller/ray/base.py, ResourcePoolManager), and of a replica that generates
# on GPUs of its own (workers/rollout/replica.py, init_standalone).
_CPUS_OF_A_GPU = 3
_CPUS_OF_A_ROLLOUT_GPU = 2
STORAGE_UNITS = "transfer_queue.backend.SimpleStorage.num_data_storage_units"


@dataclass(frozen=True)
class Need:
    """Groups of GPUs and CPUs, each of which must find one node that has it all."""

    what: str
    """The setting that asks for them, or who books them."""
    groups: int
    gpus: int = 0
    """Of each group."""
    cpus: float = 0
    """Of each group."""
    place: Literal["fits", "beside GPUs", "in turn", "in turn or fits", "anywhere"] = "fits"
    """`fits`: Ray takes a node that has room. `beside GPUs`: one on which the run has GPUs. `in turn`: group k is on
    node k of all nodes in turn, in the order of their Ray ids. `in turn or fits`: that is asked for, and need not be
    so. `anywhere`: it is there before the others are, on a node that is not known before."""


@dataclass(frozen=True)
class Node:
    """What a node has to give."""

    name: str
    gpus: float
    cpus: float


def needs(config: DictConfig) -> list[Need]:
    """What a run books at least, whatever the order in which it does: without `dra.scorer.num_replicas`, scorers on
    CPUs take what is free then, so that one of them is enough.

    Args:
        config: the run's, composed.
    """
    pools = [
        _pool(config, "trainer", _CPUS_OF_A_GPU),
        *_standalone_rollouts(config),
    ]
    if _get(config, "reward.reward_model.enable_resource_pool"):
        # Not enabled, its GPUs must be there and are not booked.
        cpus = _CPUS_OF_A_GPU if _get(config, "reward.reward_model.enable") else 0
        pools.append(_pool(config, "reward.reward_model", cpus))
    if _get(config, "distillation.enabled"):
        pools.append(_pool(config, "distillation", _CPUS_OF_A_GPU))
    dra = bool(_get(config, "dra.enabled"))
    return [
        *pools,
        *_transfer_queue(config),
        *_remote_rewards(config, dra),
        *(
            [Need("veRL's task runner", 1, cpus=1, place="anywhere"), *_scorers(config), *_partitions(config)]
            if dra
            else []
        ),
    ]


def unplaced(needs: Sequence[Need], nodes: Sequence[Node], at_worst: bool = False) -> Need | None:
    """The first need that finds no room beside the others; None where all do.

    Args:
        needs: of the run.
        nodes: in the order of their Ray ids.
        at_worst: whether there is room wherever Ray puts what can be anywhere; else where that is put best.
    """
    every = range(len(nodes))
    gpus, cpus = [node.gpus for node in nodes], [node.cpus for node in nodes]
    with_gpus: set[int] = set()

    def book(need: Need, candidates: Sequence[int]) -> bool:
        fit = [i for i in candidates if gpus[i] >= need.gpus and cpus[i] >= need.cpus]
        if fit:
            best = min(fit, key=lambda i: (gpus[i], cpus[i]))
            gpus[best] -= need.gpus
            if need.gpus:
                with_gpus.add(best)
            cpus[best] -= need.cpus
        return bool(fit)

    def candidates(need: Need) -> list[Sequence[int]]:
        """The nodes that each of its groups may be on."""
        in_turn = need.place == "in turn" or (at_worst and need.place == "in turn or fits")
        if at_worst and need.place == "anywhere":
            return [[i] for i in every for _ in range(need.groups)]
        return [[k % len(nodes)] if in_turn else every for k in range(need.groups)]

    def order(pair: tuple[Need, Sequence[int]]) -> tuple[float, bool, float]:
        need = pair[0]
        return -need.gpus, need.place != "beside GPUs", -need.cpus

    # What has no choice first; then the largest, each where it fits most tightly.
    bound = [(need, group) for need in needs for group in candidates(need) if len(group) < len(nodes)]
    free = [(need, group) for need in needs for group in candidates(need) if len(group) == len(nodes)]
    for need, group in [*bound, *sorted(free, key=order)]:
        if not book(need, sorted(with_gpus) if need.place == "beside GPUs" else group):
            return need
    return None


def least_cpus(needs: Sequence[Need], nodes: Sequence[Node]) -> int | None:
    """The CPUs that would do at worst if every node had as many; None where the nodes' GPUs don't do."""
    most = int(sum(need.groups * need.cpus for need in needs)) + 1

    def fits(cpus: int) -> bool:
        return unplaced(needs, [Node(node.name, node.gpus, cpus) for node in nodes], at_worst=True) is None

    return bisect_left(range(most), True, key=fits) if fits(most) else None


def _pool(config: DictConfig, key: str, cpus_of_a_gpu: int) -> Need:
    gpus = int(_get(config, f"{key}.n_gpus_per_node") or 0)
    return Need(f"{key}.n_gpus_per_node", int(_get(config, f"{key}.nnodes") or 0), gpus, cpus_of_a_gpu * gpus)


def _standalone_rollouts(config: DictConfig) -> list[Need]:
    """The replicas of separate_async, counted as LLMServerManager does (workers/rollout/llm_server.py)."""
    if _get(config, "trainer.v1.trainer_mode") != "separate_async":
        return []
    rollout = config.actor_rollout_ref.rollout
    parallel = of_replica = int(rollout.tensor_model_parallel_size)
    if _get(rollout, "disaggregation.enabled"):
        split = rollout.disaggregation
        decode = split.decode_tensor_model_parallel_size or parallel
        of_replica = parallel * split.prefill_replicas + decode * split.decode_replicas
    of_replica *= int(rollout.data_parallel_size) * int(rollout.pipeline_model_parallel_size)
    gpus = min(of_replica, int(rollout.n_gpus_per_node))
    if gpus < 1:
        return []
    replicas = int(rollout.n_gpus_per_node) * int(rollout.nnodes) // of_replica
    cpus = _CPUS_OF_A_ROLLOUT_GPU * gpus
    return [Need("actor_rollout_ref.rollout.n_gpus_per_node", replicas * (of_replica // gpus), gpus, cpus)]


def _transfer_queue(config: DictConfig) -> list[Need]:
    found = [Need("TransferQueue's controller", 1, cpus=1, place="anywhere")]
    if _get(config, "transfer_queue.backend.storage_backend") == "SimpleStorage":
        found.append(Need(STORAGE_UNITS, int(_get(config, STORAGE_UNITS) or 0), cpus=1, place="in turn"))
    return found


def _remote_rewards(config: DictConfig, dra: bool) -> list[Need]:
    """Each of the reward workers has as many processes as there are reward workers (reward_manager/remote.py)."""
    manager = _get(config, "dra.base_reward_manager" if dra else "reward.reward_manager.name")
    if manager != "remote":
        return []
    workers = int(config.reward.num_workers)
    return [
        Need(f"reward.num_workers={workers} of the remote reward manager", workers**2, cpus=1, place="in turn or fits")
    ]


def _scorers(config: DictConfig) -> list[Need]:
    scorer, embedding = config.dra.scorer, config.dra.embedding
    placement = settled(scorer.placement, config.trainer.device, embedding.encoder, embedding.device)
    if placement == "colocated":  # within the trainer's pool
        return []
    dedicated = placement == "dedicated"
    cpus = 1 if scorer.num_cpus is None else scorer.num_cpus
    what = "dra.scorer.placement=dedicated" if dedicated else "dra.scorer.num_cpus"
    return [Need(what, scorer.num_replicas or 1, int(dedicated), cpus, "fits" if dedicated else "beside GPUs")]


def _partitions(config: DictConfig) -> list[Need]:
    partition = config.dra.partition
    if partition.by is None:
        return []
    return [Need("dra.partition.num_cpus", partition.num_actors, cpus=partition.num_cpus, place="beside GPUs")]


def _get(config: DictConfig, key: str) -> Any:
    return OmegaConf.select(config, key, throw_on_missing=False)
