"""Train: `python -m verl_dra.main [Hydra overrides]`, with veRL's configuration and the group `dra`."""

from __future__ import annotations

import os
import shlex
import shutil
import sys
import traceback
from contextlib import nullcontext
from pathlib import Path

import hydra
from hydra.core.hydra_config import HydraConfig
from hydra.types import RunMode
from omegaconf import DictConfig, OmegaConf, open_dict

from verl_dra.config import ConfigError, checkpoints
from verl_dra.config.command_line import check_words
from verl_dra.config.compose import PRIMARY, check, settle
from verl_dra.terminal.console import quiet, say
from verl_dra.terminal.train_help import TEXT, is_asked_for


def main() -> None:
    """Train as the Hydra arguments of `sys.argv` say."""
    arguments = sys.argv[1:]
    if is_asked_for(arguments):
        sys.stdout.write(TEXT)
        return
    try:
        check_words(arguments)
    except ConfigError as error:
        sys.exit(f"verl-dra: {error}")
    _main()


@hydra.main(**PRIMARY)
def _main(config: DictConfig) -> None:
    """Check the configuration, then train through veRL's own entry."""
    output = Path(HydraConfig.get().runtime.output_dir)
    log = output / "train.log"
    full = OmegaConf.select(config, "dra.console") == "full"
    n = OmegaConf.select(config, "actor_rollout_ref.rollout.n")
    went_before = log.exists()
    refused: ConfigError | None = None
    with nullcontext() if full else quiet(log, n if isinstance(n, int) else None):
        try:
            train(config, output)
        except ConfigError as error:
            refused = error
        except Exception:
            # Hydra shows what ends a sweep's point when all its points are done.
            if HydraConfig.get().mode == RunMode.MULTIRUN:
                traceback.print_exc()
            raise
    if refused:
        if not went_before:
            _remove(output)
        sys.exit(f"verl-dra: {refused}")
    there = shlex.quote(str(output))
    say(f"train.log, metrics.jsonl and tensorboard/ are in {output}; to see them: verl-dra report {there}")


def train(config: DictConfig, output: Path) -> None:
    """Train as `config` says; logs and metrics go to the folder `output`.

    Raises:
        ConfigError: before any worker starts.
    """
    # Imported here: veRL takes seconds, and prints.
    import ray
    from verl.trainer.main_ppo import TaskRunnerV1, run_ppo

    from verl_dra.doctor.fast import examine
    from verl_dra.doctor.machine import full

    dra = check(config)
    settle(config, output)
    for warning in examine(config, output):
        say(warning)
    if dra.record.every_n_steps and not dra.enabled:
        say("dra.record has no effect with dra.enabled=False; trainer.validation_data_dir keeps what `report` shows")
    _keep_settings(config)
    _log_to(config, output)
    say(f"training with {'DRA over ' if dra.enabled else ''}{dra.base_estimator}; starting Ray")
    try:
        if dra.enabled:
            from verl_dra.training.task_runner import ReturningTaskRunner

            runner = ReturningTaskRunner()
            run_ppo(config, task_runner_class=runner)
            for line in runner.summary():
                say(line)
        else:
            run_ppo(config, task_runner_class=TaskRunnerV1)
    except Exception:
        for place in full({str(output), str(config.trainer.default_local_dir)}):
            say(f"the disk of {place} is full; free some space, and this run can go on from its last whole checkpoint")
        raise
    finally:
        # A sweep's next point starts afresh.
        ray.shutdown()


def _remove(output: Path) -> None:
    """Remove the folder of a run that was refused, with Hydra's own files, unless it holds more than those."""
    made = {".hydra", "train.log", f"{HydraConfig.get().job.name}.log"}
    if {path.name for path in output.iterdir()} <= made:
        shutil.rmtree(output)
        # outputs/DATE, too, where nothing else is in it.
        for parent in output.parents:
            if Path.cwd() not in parent.parents or any(parent.iterdir()):
                break
            parent.rmdir()


def _keep_settings(config: DictConfig) -> None:
    """Leave the settings beside the checkpoints, and tell the job around this run where those are, if it asks."""
    folder = str(config.trainer.default_local_dir)
    try:
        checkpoints.keep(config)
    except OSError as error:
        say(f"{folder} gets no {checkpoints.FILE}, so that a resumed run can't compare its settings: {error}")
    asked = os.environ.get("DRA_CHECKPOINTS_FILE")
    if not asked:
        return
    with Path(asked).open("a+", encoding="utf-8") as file:
        file.seek(0)
        if folder not in file.read().splitlines():
            file.write(f"{folder}\n")


def _log_to(config: DictConfig, output: Path) -> None:
    """Where veRL's loggers write, by the environment variables that they read."""
    with open_dict(config):
        metrics = output / "metrics.jsonl"
        _set_aside(metrics)
        environment = {"TENSORBOARD_DIR": str(output / "tensorboard"), "VERL_FILE_LOGGER_PATH": str(metrics)}
        environment = {name: os.environ.get(name, value) for name, value in environment.items()}
        chosen = OmegaConf.select(config, "ray_kwargs.ray_init.runtime_env.env_vars") or {}
        config.dra.record.folder = str(Path(config.dra.record.folder or output / "groups").absolute())
        OmegaConf.update(config, "ray_kwargs.ray_init.runtime_env.env_vars", {**environment, **chosen}, force_add=True)


def _set_aside(metrics: Path) -> None:
    """Keep a resumed run's metrics as metrics.1.jsonl, metrics.2.jsonl and so on: veRL 0.9.1 writes over them."""
    if metrics.exists():
        earlier = [path.name.split(".")[1] for path in metrics.parent.glob("metrics.*.jsonl")]
        number = 1 + max((int(part) for part in earlier if part.isdecimal()), default=0)
        metrics.rename(metrics.with_name(f"metrics.{number}.jsonl"))


if __name__ == "__main__":
    main()
