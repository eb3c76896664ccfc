"""Train: `python -m verl_dra.main [Hydra overrides]`, with veRL's configuration and the group `dra`."""

from __future__ import annotations

import os
import sys
from contextlib import nullcontext
from pathlib import Path

import hydra
from hydra.core.hydra_config import HydraConfig
from omegaconf import DictConfig, OmegaConf, open_dict

from verl_dra.config import ConfigError, prepare
from verl_dra.console import quiet, say


@hydra.main(config_path="config", config_name="dra_trainer", version_base=None)
def main(config: DictConfig) -> None:
    """Check the configuration, then train through veRL's own entry."""
    output = Path(HydraConfig.get().runtime.output_dir)
    log = output / "train.log"
    full = OmegaConf.select(config, "dra.console") == "full"
    with nullcontext() if full else quiet(log):
        try:
            train(config, output)
        except ConfigError as error:
            sys.exit(f"verl-dra: {error}")
    say(f"train.log, metrics.jsonl and tensorboard/ are in {output}")


def train(config: DictConfig, output: Path) -> None:
    """Train as `config` says; logs and metrics go to the folder `output`.

    Raises:
        ConfigError: before any worker starts.
    """
    # Imported here: veRL takes seconds, and prints.
    import ray
    from verl.trainer.main_ppo import TaskRunnerV1, run_ppo
    from verl.trainer.ppo.utils import need_critic, need_reference_policy
    from verl.utils.config import validate_config
    from verl.utils.device import auto_set_device

    from verl_dra.doctor.fast import examine

    dra = prepare(config)
    for warning in examine(config, output):
        say(warning)
    auto_set_device(config)
    validate_config(config=config, use_reference_policy=need_reference_policy(config), use_critic=need_critic(config))
    _log_to(config, output)
    say(f"training with {'DRA over ' if dra.enabled else ''}{dra.base_estimator}; starting Ray, vLLM and the trainer")
    try:
        if dra.enabled:
            from verl_dra.task_runner import ReturningTaskRunner

            runner = ReturningTaskRunner()
            run_ppo(config, task_runner_class=runner)
            for line in runner.summary():
                say(line)
        else:
            run_ppo(config, task_runner_class=TaskRunnerV1)
    finally:
        # A sweep's next point starts afresh.
        ray.shutdown()


def _log_to(config: DictConfig, output: Path) -> None:
    """Where veRL's loggers write, by the environment variables that they read."""
    with open_dict(config):
        environment = {
            "TENSORBOARD_DIR": str(output / "tensorboard"),
            "VERL_FILE_LOGGER_PATH": str(output / "metrics.jsonl"),
        }
        environment = {name: os.environ.get(name, value) for name, value in environment.items()}
        chosen = OmegaConf.select(config, "ray_kwargs.ray_init.runtime_env.env_vars") or {}
        OmegaConf.update(config, "ray_kwargs.ray_init.runtime_env.env_vars", {**environment, **chosen}, force_add=True)


if __name__ == "__main__":
    main()
