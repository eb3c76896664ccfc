"""Trains as `verl-dra train` does, and shows a test what stood in TransferQueue when the actor was updated.

Environment: DUMP, the folder for one file a step; NODES, nodes of an emulated Ray cluster, one fake GPU each; KILL,
comma-separated `step:when:how` of scorer 0's deaths, when = sampled (before its scores are asked for) or pending
(after; it stands still from before, or else it might have answered), how = kill (ray.kill, no restart) or signal
(SIGKILL), or server (that of SERVE, which is started again); SERVE, a folder with a classifier of pairs that vLLM
serves at `kept_server.URL`; DECODE_S, seconds that the trainer's tokenizer takes to decode a text; SCRIPT, what trains
in the place of `verl-dra train`, started as it would be by itself.
"""

from __future__ import annotations

import os
import runpy
import signal
import threading
import time
from pathlib import Path
from typing import Any, cast

import hydra
import kept_server
import ray
import torch
import transfer_queue as tq
from omegaconf import DictConfig, open_dict
from ray.cluster_utils import Cluster
from verl.trainer import main_ppo
from verl.trainer.main_ppo import TaskRunnerV1, run_ppo

from verl_dra.config import prepare
from verl_dra.job.cpus import needs
from verl_dra.training.task_runner import DRATaskRunner

PlainTaskRunner: Any = cast(Any, TaskRunnerV1).__ray_metadata__.modified_class


def slow_to_decode(kind: Any, seconds: float, decoded_at: list[float]) -> Any:
    class SlowToDecode(kind):
        """Takes its time for each text, and notes when one for the scorers was done."""

        def decode(self, *args: Any, **kwargs: Any) -> Any:
            time.sleep(seconds)
            text = super().decode(*args, **kwargs)
            if threading.current_thread().name == "dra-asking":
                decoded_at.append(time.monotonic())
            return text

    return SlowToDecode


def watched(base: Any) -> Any:
    class WatchedTrainer(base):
        updates = 0
        process = 0
        log_prob_at: float
        decoded_at: list[float]

        def _init_tokenizer(self) -> None:
            super()._init_tokenizer()
            self.decoded_at = []
            if seconds := float(os.environ.get("DECODE_S", "0")):
                self.tokenizer.__class__ = slow_to_decode(type(self.tokenizer), seconds, self.decoded_at)

        def on_sample_end(self) -> None:
            super().on_sample_end()
            if self._ordered("sampled") == "server":
                kept_server.kill(Path(os.environ["DUMP"]).parent)
            elif self._ordered("sampled") or self._ordered("pending"):
                self.process = ray.get(self._scorers.handles[0].ready.remote())
            if self._ordered("pending"):
                os.kill(self.process, signal.SIGSTOP)
            self._kill_if_told("sampled")

        def _compute_old_log_prob(self, batch: Any, metrics: dict[str, Any]) -> Any:
            self._kill_if_told("pending")
            compute = self.actor_rollout_wg.compute_log_prob

            def timed(rows: Any) -> Any:
                self.log_prob_at = time.monotonic()
                return compute(rows)

            self.actor_rollout_wg.compute_log_prob = timed
            try:
                return super()._compute_old_log_prob(batch, metrics)
            finally:
                self.actor_rollout_wg.compute_log_prob = compute

        def _update_actor(self, batch: Any, metrics: dict[str, Any]) -> Any:
            data = tq.kv_batch_get(
                keys=batch.keys,
                partition_id=batch.partition_id,
                select_fields=["responses", "response_mask", "rm_scores", "advantages", "old_log_probs"],
            )
            self.updates += 1
            counted = needs(self.config)
            total, free = ray.cluster_resources(), ray.available_resources()
            torch.save(
                {
                    "keys": list(batch.keys),
                    "padding": [tag.get("is_padding", False) for tag in batch.tags],
                    "metrics": {k: v for k, v in metrics.items() if k.startswith("dra/")},
                    "counted": {
                        "GPU": sum(need.groups * need.gpus for need in counted),
                        "CPU": sum(need.groups * need.cpus for need in counted),
                    },
                    "booked": {name: total[name] - free.get(name, 0) for name in ("GPU", "CPU")},
                    "log_prob_at": self.log_prob_at,
                    "decoded_at": self.decoded_at[:],
                    "actors": [actor["name"] for actor in ray.util.list_named_actors(all_namespaces=True)],
                    **{name: [row.tolist() for row in data[name].unbind()] for name in data.keys()},  # noqa: SIM118
                },
                os.path.join(os.environ["DUMP"], f"{self.updates}.pt"),
            )
            self.decoded_at.clear()
            return super()._update_actor(batch, metrics)

        def _kill_if_told(self, when: str) -> None:
            how = self._ordered(when)
            if how == "kill":
                ray.kill(self._scorers.handles[0])
            if how in ("kill", "signal"):
                os.kill(self.process, signal.SIGKILL)

        def _ordered(self, when: str) -> str | None:
            orders = [order.split(":") for order in os.environ.get("KILL", "").split(",") if order]
            return next((how for step, then, how in orders if (int(step), then) == (self.global_steps, when)), None)

    return WatchedTrainer


def watching(base: Any) -> Any:
    class WatchingTaskRunner(base):
        def run(self, config: DictConfig) -> Any:
            from verl.trainer.ppo import v1

            of_mode = v1.get_trainer_cls
            v1.get_trainer_cls = lambda mode: watched(of_mode(mode))
            return super().run(config)

    # As verl_dra.main starts them.
    return ray.remote(WatchingTaskRunner) if base is PlainTaskRunner else ray.remote(num_cpus=1)(WatchingTaskRunner)


@hydra.main(config_path="pkg://verl_dra.config", config_name="dra_trainer", version_base=None)
def main(config: DictConfig) -> None:
    dra = prepare(config)
    nodes = int(os.environ.get("NODES", "0"))
    if nodes:
        cluster = Cluster(initialize_head=True, head_node_args={"num_cpus": 32, "num_gpus": 1})
        for _ in range(nodes - 1):
            cluster.add_node(num_cpus=32, num_gpus=1)
        with open_dict(config):
            config.ray_kwargs.ray_init.update(address=cluster.address, num_cpus=None, num_gpus=None)
            del config.ray_kwargs.ray_init["include_dashboard"]
    run_ppo(config, task_runner_class=watching(DRATaskRunner if dra.enabled else PlainTaskRunner))


def run_script(path: str) -> None:
    """A script of a user's, whose task runner is watched."""

    def run_watched(config: DictConfig, task_runner_class: Any) -> None:
        run_ppo(config, watching(task_runner_class.__ray_metadata__.modified_class))

    main_ppo.run_ppo = run_watched
    runpy.run_path(path, run_name="__main__")


if __name__ == "__main__":
    if "SERVE" in os.environ:
        kept_server.keep_serving(os.environ["SERVE"])
    if script := os.environ.get("SCRIPT"):
        run_script(script)
    else:
        main()
