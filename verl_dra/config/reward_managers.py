"""veRL's reward managers, by the names that a configuration gives them."""

from __future__ import annotations

from typing import Any

from omegaconf import OmegaConf
from verl.experimental.reward_loop.reward_manager.base import RewardManagerBase
from verl.experimental.reward_loop.reward_manager.registry import REWARD_MANAGER
from verl.trainer.ppo.reward import resolve_reward_manager_cls


def base_reward_manager(name: str) -> type[RewardManagerBase]:
    """The class that `name` (`dra.base_reward_manager`) stands for: a registered name, or `path:Class` with a module
    path as veRL takes it (`pkg://package.module`, or a file).

    Raises:
        ValueError: there is no such manager.
    """
    path, _, cls = name.rpartition(":")
    spec: dict[str, Any] = {"source": "register", "name": name, "module": None}
    if path:
        spec = {"source": "importlib", "name": cls, "module": {"path": path}}
    try:
        return resolve_reward_manager_cls(OmegaConf.create({"reward": {"reward_manager": spec}}))
    except (ValueError, ImportError, AttributeError, OSError) as error:
        raise ValueError(
            f"dra.base_reward_manager: {name!r} is neither a registered reward manager of veRL "
            f"({', '.join(sorted(REWARD_MANAGER))}) nor a class as pkg://package.module:Class or path/to/file.py:Class "
            f"({error})"
        ) from error
