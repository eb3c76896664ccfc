"""Samples of a model, through vLLM."""

from __future__ import annotations

import os
import zlib
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any

from verl_dra.embedding.encoder import model_path
from verl_dra.evaluate.benchmarks import PROMPT, Problem
from verl_dra.evaluate.estimators import EvaluationError
from verl_dra.evaluate.generations import GenerationsFile, Sample

_PROMPTS_AT_A_TIME = 256


@dataclass(frozen=True)
class Sampling:
    """How samples are made; the defaults are the paper's, but for their number."""

    model: str
    samples: int = 16
    temperature: float = 0.6
    top_p: float = 0.95
    max_tokens: int = 32768
    prompt: str = PROMPT
    seed: int = 0


def generate(
    problems: Mapping[str, Sequence[Problem]], sampling: Sampling, file: GenerationsFile, engine: Mapping[str, Any]
) -> None:
    """Make the samples that `file` lacks and write them there, some hundred at a time.

    Each has a seed of its own, made of its place, so that a run that was cut off ends as one that was not, as far as
    vLLM's arithmetic does not depend on what is computed together.

    Args:
        problems: by benchmark.
        engine: vLLM's engine arguments.

    Raises:
        EvaluationError: the file has samples of other settings or problems, or vLLM can't load the model.
    """
    _check_problems(problems, file)
    # More samples of a problem are the same ones and others.
    settings = {name: value for name, value in asdict(sampling).items() if name != "samples"}
    file.begin({**settings, "engine": dict(engine)})
    there = {(sample.benchmark, sample.problem, sample.sample) for sample in file.samples}
    missing = [
        (name, problem, sample)
        for name, of in problems.items()
        for problem in of
        for sample in range(sampling.samples)
        if (name, problem.number, sample) not in there
    ]
    if not missing:
        return
    if os.environ.get("VERL_PLATFORM", "").lower() == "cpu":
        from verl_dra import cpu_platform

        cpu_platform.activate()
    from vllm import LLM, SamplingParams

    try:
        llm = LLM(model_path(sampling.model, key="--model"), seed=sampling.seed, **engine)
    except Exception as error:  # of several libraries, which share no base class
        raise EvaluationError(f"vLLM can't load {sampling.model} ({type(error).__name__}: {error})") from error
    for start in range(0, len(missing), _PROMPTS_AT_A_TIME):
        part = missing[start : start + _PROMPTS_AT_A_TIME]
        chats: Any = [[{"role": "user", "content": sampling.prompt.replace("{problem}", p.text)}] for _, p, _ in part]
        outputs = llm.chat(
            chats,
            [
                SamplingParams(
                    temperature=sampling.temperature,
                    top_p=sampling.top_p,
                    max_tokens=sampling.max_tokens,
                    seed=zlib.crc32(f"{sampling.seed}:{name}:{p.number}:{sample}".encode()),
                )
                for name, p, sample in part
            ],
        )
        file.add(
            Sample(
                name,
                p.number,
                sample,
                p.text,
                p.answer,
                made.outputs[0].text,
                made.outputs[0].finish_reason == "length",
            )
            for (name, p, sample), made in zip(part, outputs, strict=True)
        )


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
