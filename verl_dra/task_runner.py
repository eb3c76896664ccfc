"""veRL's task runner, with the estimator and the trainer put in place in its own process."""

from __future__ import annotations

from typing import Any, cast

import ray
from omegaconf import DictConfig
from verl.trainer.main_ppo import TaskRunnerV1
from verl.trainer.ppo.v1.trainer_base import TRAINER_REGISTRY

from verl_dra import estimator
from verl_dra.console import say
from verl_dra.trainer import with_dra

# TaskRunnerV1 is a Ray actor class already (veRL 0.9.1), which can't be subclassed.
_TaskRunner: Any = cast(Any, TaskRunnerV1).__ray_metadata__.modified_class


class DRATaskRunner(_TaskRunner):  # type: ignore[misc]
    """Runs a training with DRA. The trainer mode keeps its name, which veRL compares with literals."""

    def run(self, config: DictConfig) -> None:
        """Train to the end and say what came of it."""
        estimator.register()
        mode = config.trainer.v1.trainer_mode
        if mode in TRAINER_REGISTRY:
            TRAINER_REGISTRY[mode] = with_dra(TRAINER_REGISTRY[mode])
        super().run(config)
        for line in self.trainer.summary.lines():
            say(line)


def remote_task_runner() -> Any:
    """The actor class for veRL's `run_ppo`."""
    return ray.remote(num_cpus=1)(DRATaskRunner)
