"""Encoders whose course a test decides; `dra.embedding.encoder=fake_encoders:<class>`."""

from __future__ import annotations

import os
import threading
import time
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import torch

from verl_dra.embedding import EmbeddingConfig, Encoded
from verl_dra.embedding.ngram import NgramEncoder

POISON = "poison"
BREAK = "break"
STALL = "stall"


class GatedEncoder:
    """N-gram vectors, made only while its gate is open; `batches` holds what it was given. Refuses `POISON`."""

    def __init__(self) -> None:
        self.gate = threading.Event()
        self.started = threading.Event()
        self.batches: list[list[str]] = []

    def encode(self, texts: Sequence[str]) -> Encoded:
        self.batches.append(list(texts))
        self.started.set()
        assert self.gate.wait(60), "the test never opened the gate"
        if POISON in texts:
            raise RuntimeError(f"{POISON} can't be embedded")
        return NgramEncoder().encode(texts)


class FileGatedEncoder:
    """As `GatedEncoder`, in a process of its own: the gate is the file `config.model`.

    Beside it `.started` is made at the first text, and where there is `.broken` it can't be loaded.
    """

    def __init__(self, config: EmbeddingConfig) -> None:
        self._gate = Path(config.model)
        if self._gate.with_suffix(".broken").exists():
            raise RuntimeError("this encoder is broken")

    def encode(self, texts: Sequence[str]) -> Encoded:
        self._gate.with_suffix(".started").touch()
        while not self._gate.exists():
            time.sleep(0.01)
        if POISON in texts:
            raise RuntimeError(f"{POISON} can't be embedded")
        return NgramEncoder().encode(texts)


class SlowEncoder(NgramEncoder):
    """Takes 0.3 s for each text, and for ever for `STALL`."""

    def __init__(self, config: EmbeddingConfig) -> None:
        pass

    def encode(self, texts: Sequence[str]) -> Encoded:
        time.sleep(3600 if STALL in texts else 0.3 * len(texts))
        return super().encode(texts)


class ThreadsEncoder(NgramEncoder):
    """Writes the number of torch's threads where it embeds into `.threads` beside `config.model`."""

    def __init__(self, config: EmbeddingConfig) -> None:
        self._file = Path(config.model).with_suffix(".threads")

    def encode(self, texts: Sequence[str]) -> Encoded:
        self._file.write_text(str(torch.get_num_threads()))
        return super().encode(texts)


class SlowToLoadEncoder(NgramEncoder):
    """Is loaded once the file `config.model` is there; a process that begins to adds a line to `.loads` beside it."""

    def __init__(self, config: EmbeddingConfig) -> None:
        gate = Path(config.model)
        with gate.with_suffix(".loads").open("a") as loads:
            loads.write("begun\n")
        while not gate.exists():
            time.sleep(0.01)


class OnceBrokenEncoder(NgramEncoder):
    """Fails on everything in the processes that load it first; each adds a line to `.loads` beside `config.model`."""

    processes = 1

    def __init__(self, config: EmbeddingConfig) -> None:
        loads = Path(config.model).with_suffix(".loads")
        with loads.open("a") as file:
            file.write("begun\n")
        self._works = len(loads.read_text().splitlines()) > self.processes

    def encode(self, texts: Sequence[str]) -> Encoded:
        if not self._works:
            raise RuntimeError("an illegal memory access was encountered")
        return super().encode(texts)


class BrokenForAWhileEncoder(OnceBrokenEncoder):
    """Is broken three times."""

    processes = 3


class FatalEncoder(NgramEncoder):
    """Ends its process at `POISON`, as a segmentation fault does."""

    def __init__(self, config: EmbeddingConfig) -> None:
        pass

    def encode(self, texts: Sequence[str]) -> Encoded:
        if POISON in texts:
            os._exit(139)
        return super().encode(texts)


class FlatEncoder(NgramEncoder):
    """Gives vectors of a shape that no score can be made of."""

    def __init__(self, config: EmbeddingConfig) -> None:
        pass

    def encode(self, texts: Sequence[str]) -> Encoded:
        encoded = super().encode(texts)
        return replace(encoded, vectors=encoded.vectors[:, :, None])


class BreaksMidwayEncoder(NgramEncoder):
    """The process that loads it first breaks for good at `BREAK`; later ones work."""

    def __init__(self, config: EmbeddingConfig) -> None:
        mark = Path(config.model).with_suffix(".broken")
        self._breaks, self._broken = not mark.exists(), False
        mark.touch()

    def encode(self, texts: Sequence[str]) -> Encoded:
        self._broken |= self._breaks and BREAK in texts
        if self._broken:
            raise RuntimeError("an illegal memory access was encountered")
        return super().encode(texts)


class ShortTroubleEncoder(NgramEncoder):
    """Fails on every text but a plain word for the 2 seconds after `BREAK`."""

    def __init__(self, config: EmbeddingConfig) -> None:
        self._until = 0.0

    def encode(self, texts: Sequence[str]) -> Encoded:
        if BREAK in texts and not self._until:
            self._until = time.monotonic() + 2
        if time.monotonic() < self._until and list(texts) != ["a"]:
            raise RuntimeError("the proxy gave a page of its own")
        return super().encode(texts)


class DiesWhileLoadingEncoder(NgramEncoder):
    """Ends each process that loads it, as a system without memory does; each adds a line to `.loads` beside
    `config.model`."""

    def __init__(self, config: EmbeddingConfig) -> None:
        with Path(config.model).with_suffix(".loads").open("a") as file:
            file.write("begun\n")
        os._exit(137)


class BrokenEncoder:
    """Can't be loaded."""

    def __init__(self, config: EmbeddingConfig) -> None:
        raise RuntimeError("this encoder has no weights")


class ConfiguredEncoder(NgramEncoder):
    """A user's own class: keeps the configuration that it was made with."""

    def __init__(self, config: EmbeddingConfig) -> None:
        self.config = config


class NoisyEncoder:
    """The noise of a half-precision encoder, larger: equal texts get vectors that differ from call to call."""

    def __init__(self, seed: int = 0) -> None:
        self._calls = seed

    def encode(self, texts: Sequence[str]) -> Encoded:
        self._calls += 1
        exact = NgramEncoder().encode(texts)
        noise = torch.randn(exact.vectors.shape, generator=torch.Generator().manual_seed(self._calls))
        return replace(exact, vectors=torch.nn.functional.normalize(exact.vectors + 0.02 * noise, dim=1))


class TwiceAsLongEncoder(NgramEncoder):
    """Vectors of norm 2."""

    def __init__(self, config: EmbeddingConfig) -> None:
        super().__init__()

    def encode(self, texts: Sequence[str]) -> Encoded:
        encoded = super().encode(texts)
        return replace(encoded, vectors=2 * encoded.vectors)
