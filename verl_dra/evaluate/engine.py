"""vLLM, as what completes one prompt at a time, many at once."""

from __future__ import annotations

import itertools
import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Protocol

from verl_dra.evaluate.estimators import EvaluationError


@dataclass(frozen=True)
class Completion:
    """What a model made of a prompt."""

    text: str
    truncated: bool
    """Whether it ended at the limit of tokens."""


class Engine(Protocol):
    """What completes prompts."""

    room: int
    """Prompts that it should have at a time, so that one waits wherever one ends."""
    window: int
    """Tokens of a prompt and of what is made of it, together at most."""
    tokens: int
    """Generated so far."""
    steps: int
    """Of decoding so far: each makes a token, or more, of every prompt that is computed."""

    async def complete(self, prompt: Sequence[int], seed: int) -> Completion:
        """Go on from the tokens of a prompt."""
        ...

    def close(self) -> None: ...


class VllmEngine:
    """vLLM with a copy of the model on each GPU, or each `tensor_parallel_size * pipeline_parallel_size` of them.

    vLLM gives a prompt to the copy that has the fewest; one copy alone is a process, too.

    Args:
        model: folder or hub name.
        arguments: vLLM's engine arguments; with `data_parallel_size` there are as many copies.
        sampling: of vLLM's SamplingParams, all but the seed.
        most: prompts that there are.

    Raises:
        EvaluationError: vLLM can't load the model.
    """

    def __init__(
        self, model: str, seed: int, arguments: Mapping[str, Any], sampling: Mapping[str, Any], most: int
    ) -> None:
        if os.environ.get("VERL_PLATFORM", "").lower() == "cpu":
            from verl_dra.cpu import platform as cpu_platform

            cpu_platform.activate()
            # vLLM 0.28 rewinds the generator of a prompt that it computes in parts, which torch's on a CPU can't do.
            arguments = {"enable_chunked_prefill": False, **arguments}
        from vllm.engine.arg_utils import AsyncEngineArgs
        from vllm.v1.engine.async_llm import AsyncLLM

        self.tokens = self.steps = 0
        self._sampling = sampling
        self._names = itertools.count()
        there = {"data_parallel_size": copies(arguments, most), **arguments}
        try:
            engine = AsyncEngineArgs(model=model, seed=seed, **there)
            counter: Any = lambda *_: _Counter(self)  # noqa: E731
            self._llm = AsyncLLM.from_engine_args(engine, stat_loggers=[counter])
        except Exception as error:  # of several libraries, which share no base class
            raise EvaluationError(f"vLLM can't load {model} ({type(error).__name__}: {error})") from error
        self.window = self._llm.vllm_config.model_config.max_model_len
        self.room = 2 * self._llm.vllm_config.scheduler_config.max_num_seqs * there["data_parallel_size"]

    async def complete(self, prompt: Sequence[int], seed: int) -> Completion:
        from vllm import SamplingParams
        from vllm.sampling_params import RequestOutputKind

        parameters = SamplingParams(**self._sampling, seed=seed, output_kind=RequestOutputKind.FINAL_ONLY)
        tokens: Any = {"prompt_token_ids": list(prompt)}
        last = None
        async for output in self._llm.generate(tokens, parameters, str(next(self._names))):
            last = output.outputs[0]
        assert last is not None
        return Completion(last.text, last.finish_reason == "length")

    def close(self) -> None:
        self._llm.shutdown()


def copies(arguments: Mapping[str, Any], most: int) -> int:
    """How many copies of the model the GPUs that are there have room for, at least 1 and at most `most`."""
    import torch

    each: int = arguments.get("tensor_parallel_size", 1) * arguments.get("pipeline_parallel_size", 1)
    return max(min(torch.cuda.device_count() // each, most), 1)


class _Counter:
    """Counts what vLLM says of each of its steps; as a logger of its statistics it is called by it."""

    def __init__(self, engine: VllmEngine) -> None:
        self._engine = engine

    def record(self, scheduler_stats: Any, iteration_stats: Any, *_: Any, **__: Any) -> None:
        # vLLM does not promise these names to the next version; nothing but what is shown hangs on them.
        if made := getattr(iteration_stats, "num_generation_tokens", 0):
            self._engine.tokens += made
            self._engine.steps += 1

    def log_engine_initialized(self) -> None: ...

    def log(self) -> None: ...

    def record_sleep_state(self, *_: Any, **__: Any) -> None: ...
