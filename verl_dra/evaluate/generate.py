"""Samples of a model: an engine has all the prompts that it can take until none is left, and what ends is kept."""

from __future__ import annotations

import asyncio
import signal
import sys
import time
import zlib
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from functools import partial
from typing import Any, NamedTuple

from verl_dra.embedding.model_path import model_path
from verl_dra.evaluate.benchmarks import PROMPT, Problem
from verl_dra.evaluate.engine import Engine, VllmEngine
from verl_dra.evaluate.estimators import EvaluationError
from verl_dra.evaluate.generations import GenerationsFile, Sample

_REFRESH_S = {True: 1.0, False: 30.0}
"""Between two looks of the progress, on a terminal and elsewhere."""

_STOPS = (signal.SIGINT, signal.SIGTERM)


@dataclass(frozen=True)
class Sampling:
    """How samples are made; the defaults are the paper's, but for their number."""

    model: str
    samples: int = 16
    temperature: float = 0.6
    top_p: float = 0.95
    top_k: int | None = None
    """Tokens to choose from; None for all."""
    max_tokens: int = 32768
    prompt: str | None = None
    """The user's message, with `{problem}` in it; None for the benchmark's."""
    system_prompt: str | None = None
    chat_template: Mapping[str, Any] | None = None
    """Arguments of the tokenizer's chat template."""
    seed: int = 0


StartEngine = Callable[[str, int, Mapping[str, Any], Mapping[str, Any], int], Engine]
"""`VllmEngine`, or what stands in for it in a test."""


_Prompts = Mapping[tuple[str, int], Sequence[int]]


class _Wanted(NamedTuple):
    benchmark: str
    problem: Problem
    sample: int


def generate(
    problems: Mapping[str, Sequence[Problem]],
    sampling: Sampling,
    file: GenerationsFile,
    engine: Mapping[str, Any],
    start: StartEngine = VllmEngine,
) -> None:
    """Make the samples that `file` lacks and write each there as it ends.

    Each has a seed of its own, made of its place, so that a run that was cut off ends as one that was not, as far as
    vLLM's arithmetic does not depend on what is computed together.

    Args:
        problems: by benchmark.
        engine: vLLM's engine arguments.

    Raises:
        EvaluationError: the file has samples of other settings or problems, vLLM can't load the model or ends, a prompt
            does not fit, or a signal stopped it. Samples that had ended are in the file.
    """
    _check_problems(problems, file)
    # More samples of a problem are the same ones and others.
    settings = {name: value for name, value in asdict(sampling).items() if name != "samples"}
    file.begin({**settings, "prompt": sampling.prompt or PROMPT, "engine": dict(engine)})
    there = {(sample.benchmark, sample.problem, sample.sample) for sample in file.samples}
    # One sample of each problem after another: what is there early on is of all problems.
    missing = [
        _Wanted(name, problem, sample)
        for sample in range(sampling.samples)
        for name, of in problems.items()
        for problem in of
        if (name, problem.number, sample) not in there
    ]
    if not missing:
        return
    model = model_path(sampling.model, key="--model")
    prompts = _prompts(missing, sampling, model, engine)
    of_vllm = {
        "temperature": sampling.temperature,
        "top_p": sampling.top_p,
        "top_k": sampling.top_k or 0,  # vLLM's 0 are all
        "max_tokens": sampling.max_tokens,
    }
    begin = partial(start, model, sampling.seed, engine, of_vllm, len(missing))
    asyncio.run(_Run(missing, prompts, file).go(begin, sampling.seed))


class _Run:
    """One way from what is missing to what is in the file."""

    def __init__(self, missing: Sequence[_Wanted], prompts: _Prompts, file: GenerationsFile) -> None:
        self._missing, self._prompts, self._file = missing, prompts, file
        self._ended: asyncio.Queue[Sample | None] = asyncio.Queue()
        self._stopped_by: signal.Signals | None = None
        self._kept = 0

    async def go(self, start: Callable[[], Engine], seed: int) -> None:
        engine = start()
        try:
            self._check_prompts(engine.window)
            with _progress(len(self._missing), engine) as shown:
                sampling = asyncio.create_task(self._sample(engine, seed))
                with self._stopped_by_signals(sampling):
                    try:
                        await self._keep(shown)
                    finally:
                        sampling.cancel()
                        (failure,) = await asyncio.gather(sampling, return_exceptions=True)
        finally:
            engine.close()
        if self._kept < len(self._missing):
            why = f"stopped by {self._stopped_by.name}" if self._stopped_by else f"vLLM ended ({failure!r})"
            raise EvaluationError(
                f"{why} after {self._kept:,} of {len(self._missing):,} samples, which are in {self._file.path}; the "
                "same command goes on from there"
            )

    def _check_prompts(self, window: int) -> None:
        for name, problem, _ in self._missing:
            if (tokens := len(self._prompts[name, problem.number])) >= window:
                raise EvaluationError(
                    f"{name}: the prompt of row {problem.number + 1} has {tokens:,} tokens, and the model takes "
                    f"{window:,} with what it answers; --engine '{{\"max_model_len\": N}}' sets another limit"
                )

    async def _sample(self, engine: Engine, seed: int) -> None:
        left = iter(self._missing)

        async def lane() -> None:
            for name, problem, number in left:
                made = await engine.complete(
                    self._prompts[name, problem.number], zlib.crc32(f"{seed}:{name}:{problem.number}:{number}".encode())
                )
                self._ended.put_nowait(
                    Sample(name, problem.number, number, problem.text, problem.answer, made.text, made.truncated)
                )

        lanes = [asyncio.create_task(lane()) for _ in range(min(engine.room, len(self._missing)))]
        try:
            await asyncio.gather(*lanes)
        finally:
            for one in lanes:
                one.cancel()
            await asyncio.gather(*lanes, return_exceptions=True)
            self._ended.put_nowait(None)

    async def _keep(self, shown: Any) -> None:
        """Write what ends, all that waits at a time, until no more will."""
        more = True
        while more:
            found = [await self._ended.get()]
            while not self._ended.empty():
                found.append(self._ended.get_nowait())
            samples = [sample for sample in found if sample is not None]
            more = len(samples) == len(found)
            await asyncio.to_thread(self._file.add, samples)
            self._kept += len(samples)
            shown.update(len(samples))

    @contextmanager
    def _stopped_by_signals(self, sampling: asyncio.Task[None]) -> Iterator[None]:
        """Let the terminal's and the scheduler's wish to stop end the sampling, and not what keeps it."""

        def stop(by: signal.Signals) -> None:
            self._stopped_by = by
            sampling.cancel()

        loop = asyncio.get_running_loop()
        for by in _STOPS:
            loop.add_signal_handler(by, stop, by)
        try:
            yield
        finally:
            for by in _STOPS:
                loop.remove_signal_handler(by)


@contextmanager
def _progress(total: int, engine: Engine) -> Iterator[Any]:
    """A bar of samples with tokens a second and the time left, and a line of them all at the end."""
    from tqdm import tqdm  # type: ignore[import-untyped]

    began = time.monotonic()
    every = _REFRESH_S[sys.stderr.isatty()]
    with tqdm(total=total, unit=" samples", smoothing=0, mininterval=every, file=sys.stderr) as bar:

        def rate() -> str:
            return f"{engine.tokens / max(time.monotonic() - began, 1e-9):,.0f} tokens/s"

        async def look() -> None:
            while True:
                await asyncio.sleep(every)
                bar.set_postfix_str(rate())

        looking = asyncio.create_task(look())
        try:
            yield bar
        finally:
            looking.cancel()
            bar.set_postfix_str(rate(), refresh=False)
    sys.stderr.write(
        f"{bar.n:,} samples, {engine.tokens:,} tokens in {engine.steps:,} steps and {time.monotonic() - began:,.0f} s\n"
    )


def _prompts(missing: Sequence[_Wanted], sampling: Sampling, model: str, engine: Mapping[str, Any]) -> _Prompts:
    """The tokens of each problem's prompt by benchmark and number."""
    from transformers import AutoTokenizer

    where = engine.get("tokenizer") or model
    trusted = bool(engine.get("trust_remote_code"))
    try:
        tokenizer: Any = AutoTokenizer.from_pretrained(where, trust_remote_code=trusted)
        return {
            (name, problem.number): tokenizer.apply_chat_template(
                _chat(problem, sampling),
                add_generation_prompt=True,
                return_dict=False,
                **(sampling.chat_template or {}),
            )
            for name, problem, _ in {(w.benchmark, w.problem.number): w for w in missing}.values()
        }
    except Exception as error:  # of several libraries, which share no base class
        raise EvaluationError(f"{where} makes no prompts of problems ({type(error).__name__}: {error})") from error


def _chat(problem: Problem, sampling: Sampling) -> list[dict[str, str]]:
    user = {"role": "user", "content": (sampling.prompt or problem.prompt).replace("{problem}", problem.text)}
    return [user] if sampling.system_prompt is None else [{"role": "system", "content": sampling.system_prompt}, user]


def _check_problems(problems: Mapping[str, Sequence[Problem]], file: GenerationsFile) -> None:
    """Samples that are there must be of these problems: a data set can change between two runs."""
    for sample in file.samples:
        of = problems.get(sample.benchmark)
        if of is None:
            continue
        now = of[sample.problem] if 0 <= sample.problem < len(of) else None
        if now is None or (now.text, now.answer) != (sample.question, sample.gold):
            raise EvaluationError(
                f"{file.path}: problem {sample.problem} of {sample.benchmark} is another one now; give another "
                "--generations, or the data that it was made from"
            )
