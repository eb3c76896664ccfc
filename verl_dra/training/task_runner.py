"""veRL's task runner, with the estimator and the trainer put in place in its own process."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any, cast

import ray
from omegaconf import DictConfig
from verl.trainer.main_ppo import TaskRunnerV1
from verl.trainer.ppo.v1.trainer_base import TRAINER_REGISTRY

from verl_dra.training import estimator
from verl_dra.training.trainer import with_dra

# TaskRunnerV1 is a Ray actor class already (veRL 0.9.1), which can't be subclassed.
_TaskRunner: Any = cast(Any, TaskRunnerV1).__ray_metadata__.modified_class


class DRATaskRunner(_TaskRunner):  # type: ignore[misc]
    """Runs a training with DRA. The trainer mode keeps its name, which veRL compares with literals."""

    def run(self, config: DictConfig) -> list[str]:
        """Train to the end; returns the summary's lines."""
        estimator.register()
        mode = config.trainer.v1.trainer_mode
        if mode in TRAINER_REGISTRY:
            TRAINER_REGISTRY[mode] = with_dra(TRAINER_REGISTRY[mode])
        try:
            super().run(config)
        finally:
            if trainer := getattr(self, "trainer", None):
                trainer.close_records()
        lines: list[str] = self.trainer.summary.lines()
        return lines


class ReturningTaskRunner:
    """The actor class `DRATaskRunner` for veRL's `run_ppo`, which drops what `run` returns; this keeps it."""

    def __init__(self) -> None:
        self._actor_class: Any = ray.remote(num_cpus=1)(DRATaskRunner)
        self._returned: Any = None

    def options(self, **options: Any) -> ReturningTaskRunner:
        """Ray's options for the actor."""
        self._actor_class = self._actor_class.options(**options)
        return self

    def remote(self) -> Any:
        """Start the actor; gives what `run_ppo` needs of its handle."""
        actor = self._actor_class.remote()

        def run(config: DictConfig) -> Any:
            self._returned = actor.run.remote(config)
            return self._returned

        return SimpleNamespace(run=SimpleNamespace(remote=run))

    def summary(self) -> list[str]:
        """The lines that `run` returned."""
        lines: list[str] = ray.get(self._returned)
        return lines
