"""What Hydra's arguments come to: `train`, `doctor` and `sweep` compose and check alike."""

from __future__ import annotations

import io
import os
import sys
import warnings
from collections.abc import Sequence
from contextlib import redirect_stderr, redirect_stdout
from pathlib import Path
from typing import Any
from unittest.mock import patch

import hydra
from hydra.core.hydra_config import HydraConfig
from hydra.errors import HydraException
from omegaconf import DictConfig, OmegaConf, read_write
from omegaconf.errors import OmegaConfBaseException

from verl_dra.config import checkpoints
from verl_dra.config.prepare import ConfigError, check_complete, prepare
from verl_dra.config.schema import DRAConfig

PRIMARY: dict[str, Any] = {"config_path": "config", "config_name": "dra_trainer", "version_base": None}
"""What `hydra.main` is told of the primary config, as seen from `verl_dra.main`."""


def _nothing(config: DictConfig) -> None:
    """Hydra's task where it only shows what it composes."""


# From its task's module Hydra takes the job's name, and where relative paths begin.
_nothing.__module__ = "verl_dra.main"
_show = hydra.main(**PRIMARY)(_nothing)


def composed(arguments: Sequence[str]) -> tuple[DictConfig, Path]:
    """The configuration that `verl-dra train` with these Hydra arguments would run, and the folder it would write to.

    Raises:
        ConfigError: Hydra's message, which mandatory keys have no value, or what of `trainer` can't be resolved.
    """
    shown, said = io.StringIO(), io.StringIO()
    # Hydra's own way to show what it composes; it makes no folder and runs nothing.
    command = ["verl-dra train", "--cfg", "all", *arguments]
    try:
        with patch.object(sys, "argv", command), redirect_stdout(shown), redirect_stderr(said):
            _show()
    except SystemExit:
        lines = [line for line in said.getvalue().splitlines() if line.strip() and "HYDRA_FULL_ERROR" not in line]
        raise ConfigError(" ".join(lines)) from None
    config = OmegaConf.create(shown.getvalue())
    assert isinstance(config, DictConfig)
    output = Path(str(config.hydra.run.dir))
    del config["hydra"]
    check_complete(config)
    composing: Any = HydraConfig.get()
    with read_write(composing):
        composing.runtime.output_dir = str(output.absolute())  # Hydra has it in a run alone
    settle(config, output)
    OmegaConf.set_struct(config, True)
    return config, output


def check(config: DictConfig) -> DRAConfig:
    """Put the extension in its place, and make this package's checks and veRL's of `config`, which is changed.

    Raises:
        ConfigError: says which setting is wrong.
    """
    from verl.trainer.ppo.utils import need_critic, need_reference_policy
    from verl.utils.config import validate_config
    from verl.utils.device import auto_set_device

    if OmegaConf.select(config, "ray_kwargs.ray_init.runtime_env.env_vars.VERL_PLATFORM") == "cpu":
        _use_cpu()
    auto_set_device(config)
    dra = prepare(config)
    with warnings.catch_warnings():
        # That there is no critic, which a group's estimator needs none of.
        warnings.filterwarnings("ignore", "Disabled critic", UserWarning)
        critic = need_critic(config)
    said = io.StringIO()
    try:
        with redirect_stdout(said):
            validate_config(config=config, use_reference_policy=need_reference_policy(config), use_critic=critic)
    except (ValueError, AssertionError, NotImplementedError, HydraException) as error:
        raise ConfigError(f"veRL refuses it: {error}") from error
    # Its notices are of use, and that all is well is not.
    sys.stdout.writelines(line for line in said.getvalue().splitlines(keepends=True) if "checks passed" not in line)
    return dra


def _use_cpu() -> None:
    """What `+platform=cpu` asks of this process; in Ray's workers the plugin does it, by a variable."""
    if not os.environ.get("VERL_PLATFORM", "").strip():
        from verl_dra.cpu import platform

        platform.activate()


def settle(config: DictConfig, output: Path) -> None:
    """Name the run as its folder, unless it has a name, and resolve `trainer`: Ray's workers know no ${hydra:...}."""
    trainer = config.trainer
    try:
        if trainer.experiment_name is None:
            trainer.experiment_name = "_".join(output.absolute().parts[1:][-2:])
        OmegaConf.resolve(trainer)
        folder = str(trainer.default_local_dir)
        if not checkpoints.is_remote(folder):
            trainer.default_local_dir = str(Path(folder).expanduser().absolute())
    except OmegaConfBaseException as error:
        raise ConfigError(f"trainer: {' '.join(str(error).split())}") from error
    except RuntimeError as error:  # a home of nobody
        raise ConfigError(f"trainer.default_local_dir={folder}: {error}") from error
