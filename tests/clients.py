"""What tests and benchmarks need of the reward workers' side."""

from __future__ import annotations

import asyncio


async def all_sent() -> None:
    """Wait until the scorers have taken, or lost, what clients of this event loop were given."""
    while others := asyncio.all_tasks() - {asyncio.current_task()}:
        await asyncio.gather(*others)
