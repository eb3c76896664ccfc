"""Weights from the trainer to stand-alone vLLM replicas without a GPU, for veRL's `separate_async` mode.

veRL 0.9.1 refuses its `naive` engine there, and its other checkpoint engines need cupy, nixl, mooncake or an NPU.
The platform yaml names this module in `rollout.checkpoint_engine.custom_backend_module`; nothing else loads it.
"""

from __future__ import annotations

import asyncio
import json
from collections.abc import AsyncIterator, Iterator
from typing import Any

import ray
import torch
import zmq
from verl.checkpoint_engine import CheckpointEngine, CheckpointEngineRegistry

BACKEND = "cpu_zmq"


@CheckpointEngineRegistry.register(BACKEND)
class ZMQCheckpointEngine(CheckpointEngine):
    """Every receiver listens on a TCP port of its own; actor rank 0 sends each of them every weight."""

    def __init__(self, bucket_size: int, is_master: bool = False) -> None:
        # Weights go one by one; the bucket size is for the engines that keep a buffer.
        self.is_master = is_master
        self.context: zmq.Context[zmq.Socket[bytes]] = zmq.Context.instance()
        self.sockets: list[zmq.Socket[bytes]] = []

    def prepare(self) -> dict[str, Any]:
        """Listen, in case that this worker receives, and say where."""
        address = f"tcp://{ray.util.get_node_ip_address().strip('[]')}"  # type: ignore[no-untyped-call]
        socket = self.context.socket(zmq.PULL)
        port = socket.bind_to_random_port(address)
        self.sockets = [socket]
        return {"address": f"{address}:{port}"}

    @classmethod
    def build_topology(
        cls, actor_wg_world_size: int, rollout_world_size: int, metadata: list[dict[str, Any]]
    ) -> tuple[dict[str, list[Any]], dict[str, list[Any]]]:
        """`metadata` holds the addresses of the actors, then those of the rollout workers."""
        receivers = [worker["address"] for worker in metadata[actor_wg_world_size:]]
        return (
            {"receivers": [receivers] * actor_wg_world_size},
            {"receivers": [None] * rollout_world_size},
        )

    def init_process_group(self, receivers: list[str] | None) -> None:  # type: ignore[override]
        """Connect to `receivers`; None means that this worker receives."""
        if receivers is None:
            return
        self.finalize()
        if self.is_master:
            self.sockets = [self.context.socket(zmq.PUSH) for _ in receivers]
            for socket, address in zip(self.sockets, receivers, strict=True):
                socket.connect(address)

    def finalize(self) -> None:
        """Close the connections; the next update makes new ones."""
        for socket in self.sockets:
            socket.close()
        self.sockets = []

    @torch.no_grad()
    async def send_weights(self, weights: Iterator[tuple[str, torch.Tensor]], global_steps: int | None = None) -> None:
        """Send all weights from actor rank 0; the other ranks only take part in gathering them."""
        for name, weight in weights:
            data = weight.detach().contiguous().view(-1).view(torch.uint8).numpy()
            self._send(json.dumps([name, str(weight.dtype), *weight.shape]).encode(), data.tobytes())
        self._send(b"", b"")

    async def receive_weights(  # type: ignore[override]
        self, global_steps: int | None = None
    ) -> AsyncIterator[tuple[str, torch.Tensor]]:
        """Yield names and weights until the sender says that there are no more."""
        (socket,) = self.sockets
        while True:
            header, data = await asyncio.to_thread(socket.recv_multipart)
            if not header:
                return
            name, dtype, *shape = json.loads(header)
            yield name, torch.frombuffer(bytearray(data), dtype=getattr(torch, dtype.split(".")[1])).view(shape)

    def _send(self, header: bytes, data: bytes) -> None:
        for socket in self.sockets:
            socket.send_multipart((header, data))
