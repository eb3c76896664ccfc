"""The file of the reward function, before reward workers import it minutes into a run."""

from __future__ import annotations

import ast
from collections.abc import Iterator
from pathlib import Path

from omegaconf import DictConfig

from verl_dra.config.reward_source import binds, source_of
from verl_dra.doctor.check import Check, fail, ok, skip, warn
from verl_dra.doctor.run_config import is_remote, select

_NAME = "reward function"
_KEY = "reward.custom_reward_function"
_MANAGER = "reward manager"
_PACKAGE = "pkg://"


def reward_function(config: DictConfig, elsewhere: bool) -> Iterator[Check]:
    """That `reward.custom_reward_function` names a function of a file or module that is there; runs nothing of it.

    Args:
        config: the run's.
        elsewhere: whether other nodes import it, so that its absence here proves little.
    """
    path, function = select(config, f"{_KEY}.path"), str(select(config, f"{_KEY}.name"))
    if not path:
        yield ok(_NAME, "veRL's own, by data_source")
    elif path.startswith(_PACKAGE):
        try:
            file = source_of(path)
        except (ImportError, ValueError):
            yield fail(_NAME, f"{_KEY}.path={path} is not installed", "install it on every node")
            return
        yield _defines(file, function, path) if file else ok(_NAME, f"{function} of {path}")
    elif is_remote(path.removeprefix("file://")):
        yield skip(_NAME, f"{path} is remote")
    elif (file := source_of(path)) is None:
        bad = warn if elsewhere else fail
        yield bad(_NAME, f"{_KEY}.path={path} is not there", "give the absolute path of a file that every node has")
    else:
        yield _defines(file, function, str(file))


def reward_manager(config: DictConfig) -> Iterator[Check]:
    """Nothing, unless the base reward manager is one that the reward function must register."""
    from verl_dra.config.reward_managers import base_reward_manager

    name, path = select(config, "dra.base_reward_manager"), select(config, f"{_KEY}.path")
    if name is None or not path or ":" in str(name):
        return
    try:
        base_reward_manager(str(name))
    except ValueError:
        found = f"dra.base_reward_manager={name} is none of veRL's own"
        yield warn(_MANAGER, found, f"see that {path}, or what it imports, registers it")


def _defines(file: Path, function: str, called: str) -> Check:
    try:
        tree = ast.parse(file.read_bytes())
    except (OSError, SyntaxError, ValueError) as error:
        return fail(_NAME, f"{called} is no Python: {error}", "mend it")
    if binds(tree, function):
        return ok(_NAME, f"{function} of {called}")
    return fail(_NAME, f"{called} has no {function}", f"set {_KEY}.name to the function's name")
