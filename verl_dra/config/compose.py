"""A run's configuration, composed as `verl-dra train` composes it, without running anything."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from hydra._internal.hydra import Hydra
from hydra._internal.utils import create_config_search_path
from hydra.core.config_search_path import SearchPathQuery
from hydra.core.global_hydra import GlobalHydra
from hydra.errors import HydraException
from hydra.types import RunMode
from omegaconf import DictConfig, flag_override
from omegaconf.errors import OmegaConfBaseException

from verl_dra.config.prepare import ConfigError

PRIMARY_CONFIG = "dra_trainer"


def compose(overrides: Sequence[str], config_dir: Path | None = None, config_name: str | None = None) -> DictConfig:
    """The configuration of `verl-dra train --config-dir DIR --config-name NAME OVERRIDES`.

    Raises:
        ConfigError: Hydra can't compose it; with Hydra's reason.
    """
    search_path = create_config_search_path("pkg://verl_dra.config")
    if config_dir is not None:
        if not config_dir.is_dir():
            raise ConfigError(f"--config-dir {config_dir} is not a folder")
        # As hydra.main does.
        search_path.prepend("command-line", f"file://{config_dir.resolve()}", SearchPathQuery(provider="schema"))
    GlobalHydra.instance().clear()
    # hydra.compose() takes no second folder, which `--config-dir` is (hydra 1.3).
    hydra = Hydra.create_main_hydra2("verl_dra", search_path)
    try:
        config = hydra.compose_config(
            config_name=config_name or PRIMARY_CONFIG,
            overrides=list(overrides),
            run_mode=RunMode.RUN,
            from_shell=False,
            with_log_configuration=False,
        )
    except (HydraException, OmegaConfBaseException) as error:
        raise ConfigError(str(error)) from error
    finally:
        GlobalHydra.instance().clear()
    with flag_override(config, ["struct", "readonly"], False):
        del config["hydra"]
    return config
