"""Train: `python -m verl_dra.main [Hydra overrides]`, with veRL's configuration and the group `dra`."""

from __future__ import annotations

import sys

import hydra
from omegaconf import DictConfig
from verl.trainer.main_ppo import TaskRunnerV1, run_ppo
from verl.trainer.ppo.utils import need_critic, need_reference_policy
from verl.utils.config import validate_config
from verl.utils.device import auto_set_device

from verl_dra.config import ConfigError, prepare


@hydra.main(config_path="config", config_name="dra_trainer", version_base=None)
def main(config: DictConfig) -> None:
    """Check the configuration, then train through veRL's own entry."""
    try:
        dra = prepare(config)
    except ConfigError as error:
        sys.exit(f"verl-dra: {error}")
    auto_set_device(config)
    validate_config(config=config, use_reference_policy=need_reference_policy(config), use_critic=need_critic(config))
    if not dra.enabled:
        run_ppo(config, task_runner_class=TaskRunnerV1)
        return
    from verl_dra.task_runner import remote_task_runner

    run_ppo(config, task_runner_class=remote_task_runner())


if __name__ == "__main__":
    main()
