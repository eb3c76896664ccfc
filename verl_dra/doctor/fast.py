"""What can be told of a run in a moment, without loading a model: asked before each training."""

from __future__ import annotations

import math
from collections.abc import Iterator
from pathlib import Path

from omegaconf import DictConfig

from verl_dra.config import ConfigError
from verl_dra.doctor import (
    cluster,
    data_files,
    encoder,
    group_filter,
    machine,
    model,
    partition,
    resuming,
    reward_function,
    versions,
)
from verl_dra.doctor.check import Check, guarded, skip
from verl_dra.doctor.run_config import cluster_address, select, trains_on_cpu

# FSDP saves the weights and Adam's two moments in float32.
_CHECKPOINT_BYTES_OF_A_PARAMETER = 12


def examine(config: DictConfig, output: Path) -> list[str]:
    """Look at what would stop this run.

    Args:
        config: the configuration after `prepare`.
        output: the folder of the run's logs.

    Returns:
        Warnings, a line each.

    Raises:
        ConfigError: lists everything that would stop it, each with its fix.
    """
    checks = [
        *fast_checks(config, output),
        *guarded("GPUs and CPUs", cluster.room, config),
        *guarded("partition", partition.server_looks, config),
    ]
    failed = [check.problem for check in checks if check.state == "fail"]
    if failed:
        more = "verl-dra doctor with the same arguments looks further"
        raise ConfigError("\n".join(["this run can't work:", *(f"  - {line}" for line in failed), more]))
    return [check.problem for check in checks if check.state == "warn"]


def fast_checks(config: DictConfig, output: Path) -> list[Check]:
    """Every check of a run that needs neither its cluster nor its models."""
    return guarded("configuration", _checks, config, output)


def file_checks(config: DictConfig, elsewhere: bool) -> list[Check]:
    """The files that a run reads.

    Args:
        config: the configuration, after `prepare` or before.
        elsewhere: whether other nodes may read them, so that their absence here proves little.
    """
    return [
        *guarded("model", model.model, config, elsewhere),
        *guarded("tokenizer", model.tokenizer, config, elsewhere, False),
        *guarded("data", data_files.data_files, config, elsewhere),
        *guarded("reward function", reward_function.reward_function, config, elsewhere),
        *guarded("reward manager", reward_function.reward_manager, config),
        *guarded("encoder", _encoder_files, config),
    ]


def machine_checks(config: DictConfig, output: Path, address: str | None) -> list[Check]:
    """This machine, against what the run writes, keeps and finds here."""
    joins = address is not None
    store = select(config, "ray_kwargs.ray_init.object_store_memory")
    temp = select(config, "ray_kwargs.ray_init._temp_dir")
    return [
        *guarded("outputs", machine.folder, "outputs", output),
        *guarded("checkpoints", _checkpoints, config, joins),
        *guarded("resuming", resuming.resuming, config, joins),
        *guarded("/dev/shm", machine.shared_memory, store, not joins),
        *guarded("/dev/shm for weights", _weights_in_shared_memory, config),
        *([] if joins else guarded("Ray's temp folder", machine.ray_folder, temp)),
        *guarded("Ray's authentication", machine.ray_authentication, joins),
        *guarded("other Ray clusters", machine.other_rays, joins),
        *guarded("home", machine.home),
    ]


def needed_distributions(config: DictConfig) -> list[str]:
    """Those of the supported matrix that this run imports."""
    unused = set()
    if select(config, "actor_rollout_ref.rollout.name") != "vllm":
        unused.add("vllm")
    if not select(config, "dra.enabled") or select(config, "dra.embedding.encoder") != "sentence_transformers":
        unused.add("sentence-transformers")
    return [name for name in versions.TESTED if name not in unused]


def _checks(config: DictConfig, output: Path) -> Iterator[Check]:
    address = cluster_address(config)
    yield from (
        *guarded("versions", versions.versions, needed_distributions(config)),
        *guarded("veRL plugin", versions.plugin, False),
        *guarded("transfer_queue", versions.transfer_queue, False),
        *file_checks(config, address is not None),
        *guarded("group filter", group_filter.group_filter, config),
        *machine_checks(config, output, address),
        *(guarded("ray_kwargs.ray_init", cluster.joining, config, address) if address else []),
    )


def _encoder_files(config: DictConfig) -> Iterator[Check]:
    if not select(config, "dra.enabled"):
        yield skip("encoder", "dra.enabled=False needs none")
        return
    yield from encoder.encoder_files(encoder.embedding_config(config))


def _checkpoints(config: DictConfig, elsewhere: bool) -> Iterator[Check]:
    if config.trainer.save_freq <= 0:
        yield skip("checkpoints", "trainer.save_freq saves none")
        return
    path = str(config.trainer.default_local_dir)
    if "://" not in path and (lost := machine.goes_with_the_job("checkpoints", path, "trainer.default_local_dir")):
        yield lost
        return
    if elsewhere and not Path(path).is_dir():
        yield skip("checkpoints", f"{path} may be on other nodes")
        return
    weights, parameters = model_size(config)
    if "model" not in (select(config, "actor_rollout_ref.actor.checkpoint.save_contents") or ()):
        weights = 0
    # Every node saves its share, unless the folder is shared.
    nodes = max(config.trainer.nnodes, 1)
    likely = parameters * _CHECKPOINT_BYTES_OF_A_PARAMETER // nodes
    yield from machine.checkpoints(path, weights // nodes, likely, _kept_checkpoints(config))


def _kept_checkpoints(config: DictConfig) -> int:
    """How many there will be at the same time; 1 where the number of steps comes from the data."""
    steps: int = select(config, "trainer.total_training_steps") or 0
    saved: int = max(math.ceil(steps / config.trainer.save_freq), 1)
    most: int = select(config, "trainer.max_actor_ckpt_to_keep") or saved
    return min(most, saved)


def _weights_in_shared_memory(config: DictConfig) -> Iterator[Check]:
    if not trains_on_cpu(config):
        yield skip("/dev/shm for weights", "GPUs share their memory by CUDA")
        return
    mebibytes = select(config, "actor_rollout_ref.rollout.checkpoint_engine.update_weights_bucket_megabytes") or 0
    yield from machine.weights_in_shared_memory(int(mebibytes) * 2**20, model_size(config)[0])


def model_size(config: DictConfig) -> tuple[int, int]:
    """Bytes of the model's files of weights, and about how many parameters they hold; zeros where they are not here."""
    place = model.local_folder(str(select(config, "actor_rollout_ref.model.path")))
    if place is None:
        return 0, 0
    size = sum(file.stat().st_size for file in model.weight_files(place))
    return size, size // (4 if model.is_float32(place) else 2)
