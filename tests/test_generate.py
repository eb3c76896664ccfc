"""`verl-dra evaluate` at the engine: always full, stopped without a loss, and each prompt as it was asked for.

The engine stands in for vLLM: it answers on the fly and computes nothing. tests/test_evaluate.py has the real one.
"""

from __future__ import annotations

import asyncio
import json
import os
import signal
import sys
from collections.abc import AsyncIterator, Mapping, Sequence
from pathlib import Path
from types import ModuleType, SimpleNamespace
from typing import Any

import pytest
import torch
import toy
from tqdm import tqdm
from transformers import AutoTokenizer

from verl_dra.evaluate.benchmarks import Problem
from verl_dra.evaluate.engine import Completion, VllmEngine, copies
from verl_dra.evaluate.estimators import EvaluationError
from verl_dra.evaluate.generate import Sampling, generate
from verl_dra.evaluate.generations import GenerationsFile

PROBLEMS = {"mine": [Problem(i, f"say {i}", str(i)) for i in range(12)]}


class StandInEngine:
    """An engine of `room` places that makes a token a step of each; sample i of all takes `lengths[i]` steps."""

    def __init__(self, lengths: Sequence[int], room: int = 4, window: int = 1000) -> None:
        self.room, self.window = room, window
        self.tokens = self.steps = self.asked = 0
        self.prompts: list[Sequence[int]] = []
        self.seeds: list[int] = []
        self.closed = False
        self.arguments: tuple[Any, ...] = ()
        self._lengths = lengths
        self._left: dict[int, int] = {}
        self._wake: dict[int, asyncio.Future[None]] = {}
        self._stepping: asyncio.Task[None] | None = None

    def start(self, *arguments: Any) -> StandInEngine:
        self.arguments = arguments
        return self

    async def complete(self, prompt: Sequence[int], seed: int) -> Completion:
        at, self.asked = self.asked, self.asked + 1
        assert len(self._left) < self.room
        self.prompts.append(prompt)
        self.seeds.append(seed)
        self._left[at] = self._lengths[at]
        self._wake[at] = asyncio.get_running_loop().create_future()
        if self._stepping is None or self._stepping.done():
            self._stepping = asyncio.create_task(self._step())
        try:
            await self._wake[at]
        finally:  # also of one that is given up
            self._left.pop(at, None)
        return Completion(f"text {seed}", at % 2 == 1)

    async def _step(self) -> None:
        while self._left:
            # All that is ready to ask does so before the next step.
            for _ in range(5):
                await asyncio.sleep(0)
            self.steps += 1
            for at in list(self._left):
                self.tokens += 1
                self._left[at] -= 1
                if not self._left[at]:
                    self._wake[at].set_result(None)
            self.after_step()

    def after_step(self) -> None: ...

    def close(self) -> None:
        self.closed = True


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> str:
    folder = tmp_path_factory.mktemp("toy")
    toy.make(folder)
    return str(folder / "model")


def sample(model: str, path: Path, engine: StandInEngine, samples: int = 1, **other: Any) -> GenerationsFile:
    file = GenerationsFile(path)
    generate(PROBLEMS, Sampling(model, samples=samples, **other), file, {}, engine.start)
    return file


@pytest.mark.parametrize("terminal", [True, False])
def test_the_time_left_is_by_the_mean_of_all_that_is_done(
    terminal: bool, model: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    bars: list[tqdm[Any]] = []

    class Noted(tqdm):  # type: ignore[type-arg]
        def __init__(self, *of: Any, **how: Any) -> None:
            super().__init__(*of, **how)
            bars.append(self)

    monkeypatch.setattr("tqdm.tqdm", Noted)
    monkeypatch.setattr(sys.stderr, "isatty", lambda: terminal)
    sample(model, tmp_path / "g.jsonl", StandInEngine([1] * 12))
    assert [(bar.smoothing, bar.total, bar.n, bar.mininterval) for bar in bars] == [(0, 12, 12, 1 if terminal else 30)]


def test_a_place_that_is_free_is_taken_at_once(model: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    # Slices of four would wait for 50, 50 and 50 steps. One lane has a 50, and others go on beside it.
    lengths = [50, 1, 1, 1] * 3
    engine = StandInEngine(lengths)
    file = sample(model, tmp_path / "g.jsonl", engine)
    assert len(file.samples) == 12
    assert engine.steps < 60
    assert engine.tokens == sum(lengths)
    assert engine.closed
    shown = capsys.readouterr().err
    assert f"12 samples, {sum(lengths)} tokens in {engine.steps} steps" in shown
    assert "12/12" in shown
    assert "tokens/s" in shown
    assert "12 samples" in shown
    assert {s.truncated for s in file.samples} == {True, False}


@pytest.mark.parametrize("by", [signal.SIGINT, signal.SIGTERM])
def test_a_stopped_run_has_kept_every_sample_that_ended_and_goes_on(
    model: str, tmp_path: Path, by: signal.Signals
) -> None:
    class Stopped(StandInEngine):
        def after_step(self) -> None:
            if self.steps == 7:
                os.kill(os.getpid(), by)

    before = signal.getsignal(by)
    path = tmp_path / "g.jsonl"
    whole = sample(model, tmp_path / "whole.jsonl", StandInEngine([3] * 24), samples=2)
    engine = Stopped([3] * 24)
    with pytest.raises(EvaluationError, match=rf"stopped by {by.name} after 8 of 24 samples, .*goes on from there"):
        sample(model, path, engine, samples=2)
    assert engine.closed
    assert signal.getsignal(by) is before
    assert len(GenerationsFile(path).samples) == 8
    rest = StandInEngine([3] * 24)
    again = sample(model, path, rest, samples=2)
    assert rest.asked == 16
    assert {(s.problem, s.sample, s.text) for s in again.samples} == {
        (s.problem, s.sample, s.text) for s in whole.samples
    }


def test_an_engine_that_dies_costs_what_it_had_not_ended(model: str, tmp_path: Path) -> None:
    class Dying(StandInEngine):
        async def complete(self, prompt: Sequence[int], seed: int) -> Completion:
            if self.asked == 8:
                raise RuntimeError("out of memory")
            return await super().complete(prompt, seed)

    engine = Dying([2] * 24)
    with pytest.raises(EvaluationError, match=r"vLLM ended \(RuntimeError\('out of memory'\)\) after 8 of 12 samples"):
        sample(model, tmp_path / "g.jsonl", engine)
    assert engine.closed
    assert len(GenerationsFile(tmp_path / "g.jsonl").samples) == 8


def test_a_full_disk_ends_the_sampling(model: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def full(self: GenerationsFile, samples: Sequence[Any]) -> None:
        raise OSError("no space left")

    monkeypatch.setattr(GenerationsFile, "add", full)
    engine = StandInEngine([2] * 12)
    with pytest.raises(OSError, match="no space left"):
        sample(model, tmp_path / "g.jsonl", engine)
    assert engine.closed


def test_a_prompt_that_does_not_fit_is_named_before_any_sample(model: str, tmp_path: Path) -> None:
    engine = StandInEngine([2] * 12, window=9)
    with pytest.raises(EvaluationError, match=r"mine: the prompt of row 1 has \d+ tokens, and the model takes 9"):
        sample(model, tmp_path / "g.jsonl", engine)
    assert engine.asked == 0
    assert engine.closed


def test_a_tokenizer_that_makes_no_prompts_is_named(tmp_path: Path) -> None:
    engine = StandInEngine([1] * 12)
    with pytest.raises(EvaluationError, match=rf"{tmp_path} makes no prompts of problems \([A-Za-z]+Error: "):
        sample(str(tmp_path), tmp_path / "g.jsonl", engine)
    assert engine.asked == 0


THINKING = (
    "{% for m in messages %}{{ m['role'] }}:{{ m['content'] }}\n{% endfor %}"
    "{% if not enable_thinking %}<nothink>{% endif %}"
)


def test_what_the_model_is_told_is_as_asked_for(model: str, tmp_path: Path) -> None:
    tokenizer = AutoTokenizer.from_pretrained(model)
    tokenizer.chat_template = THINKING
    tokenizer.save_pretrained(tmp_path / "model")

    def told(**options: Any) -> str:
        engine = StandInEngine([1] * 12)
        sample(str(tmp_path / "model"), tmp_path / f"{len(options)}.jsonl", engine, **options)
        return str(tokenizer.decode(engine.prompts[3]))

    assert told(prompt="Please {problem}!", system_prompt="Be brief.", chat_template={"enable_thinking": True}) == (
        "system:Be brief.\nuser:Please say 3!\n"
    )
    assert told().endswith("before answering.\n\nsay 3\n<nothink>")
    settings = json.loads((tmp_path / "3.jsonl").read_text().splitlines()[0])["settings"]
    assert settings["chat_template"] == {"enable_thinking": True}
    with pytest.raises(EvaluationError, match="was made with another system_prompt and chat_template"):
        told(prompt="Please {problem}!", system_prompt=None, chat_template={})


def test_the_engine_gets_the_sampling_as_vllm_calls_it(model: str, tmp_path: Path) -> None:
    engine = StandInEngine([1] * 12)
    sample(model, tmp_path / "g.jsonl", engine, top_k=20, max_tokens=9, seed=4)
    assert engine.arguments == (model, 4, {}, {"temperature": 0.6, "top_p": 0.95, "top_k": 20, "max_tokens": 9}, 12)
    assert len(set(engine.seeds)) == 12


@pytest.mark.parametrize(
    ("gpus", "arguments", "most", "there"),
    [
        (0, {}, 100, 1),
        (8, {}, 100, 8),
        (8, {}, 3, 3),
        (8, {"tensor_parallel_size": 2, "pipeline_parallel_size": 2}, 100, 2),
        (2, {"tensor_parallel_size": 4}, 100, 1),
    ],
)
def test_the_gpus_that_are_there_get_copies_of_the_model(
    monkeypatch: pytest.MonkeyPatch, gpus: int, arguments: Mapping[str, Any], most: int, there: int
) -> None:
    monkeypatch.setattr(torch.cuda, "device_count", lambda: gpus)
    assert copies(arguments, most) == there


class StandInVllm:
    """In place of the package: keeps what it was asked for, and makes two tokens a step."""

    def __init__(self, patch: pytest.MonkeyPatch) -> None:
        self.engine: dict[str, Any] = {}
        self.asked: list[tuple[Any, Any, str]] = []
        self.loggers: list[Any] = []
        self.ended = False
        names = {
            "vllm": {"SamplingParams": lambda **of: of},
            "vllm.sampling_params": {"RequestOutputKind": SimpleNamespace(FINAL_ONLY="the last alone")},
            "vllm.engine": {},
            "vllm.engine.arg_utils": {"AsyncEngineArgs": lambda **of: of},
            "vllm.v1": {},
            "vllm.v1.engine": {},
            "vllm.v1.engine.async_llm": {"AsyncLLM": SimpleNamespace(from_engine_args=self._start)},
        }
        for name, members in names.items():
            module = ModuleType(name)
            vars(module).update(members)
            patch.setitem(sys.modules, name, module)
        self.vllm_config = SimpleNamespace(
            model_config=SimpleNamespace(max_model_len=77), scheduler_config=SimpleNamespace(max_num_seqs=5)
        )

    def _start(self, engine: dict[str, Any], stat_loggers: Sequence[Any]) -> StandInVllm:
        if engine["model"] == "none":
            raise KeyError("no such model")
        self.engine = engine
        self.loggers = [make("its settings", 0) for make in stat_loggers]
        return self

    async def generate(self, prompt: Any, sampling: Any, name: str) -> AsyncIterator[Any]:
        self.asked.append((prompt, sampling, name))
        for logger in self.loggers:
            logger.log_engine_initialized()
            for made in (0, 2, 2):
                logger.record(None, SimpleNamespace(num_generation_tokens=made), "something new", engine_idx=0)
            logger.record(None, None)
            logger.log()
            logger.record_sleep_state(1, level=2)
        for text, reason in (("four", None), ("four tokens", "length" if prompt["prompt_token_ids"] else "stop")):
            yield SimpleNamespace(outputs=[SimpleNamespace(text=text, finish_reason=reason)])

    def shutdown(self) -> None:
        self.ended = True


def test_vllm_is_asked_for_one_prompt_at_a_time_and_what_it_makes_is_counted(monkeypatch: pytest.MonkeyPatch) -> None:
    vllm = StandInVllm(monkeypatch)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 3)
    monkeypatch.delenv("VERL_PLATFORM", raising=False)
    engine = VllmEngine("m", 4, {"max_model_len": 99}, {"top_p": 0.5}, 100)
    assert vllm.engine == {"model": "m", "seed": 4, "data_parallel_size": 3, "max_model_len": 99}
    assert (engine.window, engine.room) == (77, 30)
    assert asyncio.run(engine.complete([1, 2], 7)) == Completion("four tokens", True)
    assert asyncio.run(engine.complete((), 8)) == Completion("four tokens", False)
    sampling = {"top_p": 0.5, "output_kind": "the last alone"}
    assert vllm.asked == [
        ({"prompt_token_ids": [1, 2]}, {**sampling, "seed": 7}, "0"),
        ({"prompt_token_ids": []}, {**sampling, "seed": 8}, "1"),
    ]
    assert (engine.tokens, engine.steps) == (8, 4)
    engine.close()
    assert vllm.ended
    assert VllmEngine("m", 4, {"data_parallel_size": 2}, {}, 100).room == 20
    with pytest.raises(EvaluationError, match=r"vLLM can't load none \(KeyError: 'no such model'\)"):
        VllmEngine("none", 4, {}, {}, 100)


def test_on_a_cpu_vllm_computes_prompts_whole_unless_it_is_told_otherwise(monkeypatch: pytest.MonkeyPatch) -> None:
    vllm = StandInVllm(monkeypatch)
    activated: list[bool] = []
    monkeypatch.setattr("verl_dra.cpu.platform.activate", lambda: activated.append(True))
    monkeypatch.setenv("VERL_PLATFORM", "CPU")
    for arguments in ({}, {"enable_chunked_prefill": True}):
        VllmEngine("m", 4, arguments, {}, 1)
        assert vllm.engine["enable_chunked_prefill"] == bool(arguments)
    assert activated == [True, True]
