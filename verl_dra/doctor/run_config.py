"""What the checks read of a run's configuration."""

from __future__ import annotations

import os
from typing import Any

from omegaconf import DictConfig, OmegaConf

from verl_dra.config.checkpoints import is_remote as is_remote


def select(config: DictConfig, key: str) -> Any:
    """The value of a dotted `key`; None where it is not set."""
    return OmegaConf.select(config, key, throw_on_missing=False)


def cluster_address(config: DictConfig | None) -> str | None:
    """The address of the Ray cluster that a run joins; None where it starts a Ray of its own."""
    given = None if config is None else select(config, "ray_kwargs.ray_init.address")
    # Without one, Ray joins the cluster that the last `ray start` of this node made or joined.
    address = str(given or os.environ.get("RAY_ADDRESS") or _started_here(config) or "local")
    return None if address == "local" else address


def _started_here(config: DictConfig | None) -> str | None:
    import ray._private.utils

    temp_dir = None if config is None else select(config, "ray_kwargs.ray_init._temp_dir")
    address: str | None = ray._private.utils.read_ray_address(temp_dir)
    return address


def trains_on_cpu(config: DictConfig) -> bool:
    """Whether `+platform=cpu` is composed in."""
    return bool(select(config, "trainer.device") == "cpu")


def files(value: Any) -> list[str]:
    """One path or a list of them, as a list."""
    return [str(path) for path in ([value] if isinstance(value, str) else value or [])]
