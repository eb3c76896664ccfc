"""The encoder of the diversity scores: that it is there, and that it embeds."""

from __future__ import annotations

import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace
from typing import cast

import torch
from huggingface_hub import constants
from omegaconf import DictConfig, OmegaConf

from verl_dra.doctor.check import Check, fail, ok, one_line, skip, warn
from verl_dra.doctor.model import can_be_fetched, local_folder
from verl_dra.embedding import EmbeddingConfig, build_encoder
from verl_dra.embedding.model_path import model_path
from verl_dra.embedding.rate import measured_rate

_NAME = "encoder"
_SENTENCE_FILES = ("modules.json", "config.json")
_TEXTS = [f"First I add {i} and {i + 1}, which gives {2 * i + 1}; then I check it by counting." for i in range(32)]


def embedding_config(config: DictConfig) -> EmbeddingConfig:
    """The group `dra.embedding` of a configuration, whether `prepare` has seen it or not."""
    merged = OmegaConf.merge(OmegaConf.structured(EmbeddingConfig), config.dra.embedding)
    return cast(EmbeddingConfig, OmegaConf.to_object(merged))


def encoder_files(config: EmbeddingConfig) -> Iterator[Check]:
    """That the encoder's folder can be read; loads nothing."""
    if config.encoder != "sentence_transformers":
        yield skip(_NAME, f"{config.encoder} shows when the scorers start")
        return
    try:
        place = local_folder(model_path(config.model))
    except ValueError as error:
        yield fail(_NAME, str(error), "")
        return
    if place is None:
        yield skip(_NAME, f"{config.model} comes from the hub")
    elif not any((place / name).is_file() for name in _SENTENCE_FILES):
        fix = "set dra.embedding.model to a sentence-transformers model"
        yield fail(_NAME, f"{place} has none of {', '.join(_SENTENCE_FILES)}", fix)
    else:
        yield ok(_NAME, f"{config.model} is there")


@dataclass(frozen=True)
class Measured:
    """What an encoder is here."""

    tokens_per_s: float
    """On a GPU, or on one core."""
    memory: int | None
    """Bytes of a GPU that it takes at most; None without one."""


def encoder_embeds(config: EmbeddingConfig, on_cpu: bool, measured: list[Measured] | None = None) -> Iterator[Check]:
    """Load the encoder, or ask its server, and embed some texts; nothing is fetched from the hub.

    Args:
        config: the encoder's.
        on_cpu: whether scorers have no GPU (`dra.scorer.placement=cpu`), so that it is loaded without one here too.
        measured: gets what was measured where it embeds.
    """
    if on_cpu and config.device is None and config.encoder == "sentence_transformers":
        config = replace(config, device="cpu")
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        yield from _embeds(config, [] if measured is None else measured)
    finally:
        torch.set_num_threads(threads)


def _embeds(config: EmbeddingConfig, measured: list[Measured]) -> Iterator[Check]:
    try:
        started = time.perf_counter()
        with _hub_off():
            encoder = build_encoder(config)
        loaded = time.perf_counter() - started
        vectors = encoder.encode(_TEXTS).vectors
        rate = measured_rate(encoder)
    except Exception as error:
        if _is_for_the_hub(config, error):
            found = f"{config.model} is not whole on this machine, and comes from the hub"
            yield warn(_NAME, found, f"hf download {config.model}, or every node that embeds does so when it starts")
            return
        # What this package raises names the setting and the fix; other exceptions need their type too.
        words = str(error) if str(error).startswith("dra.") else repr(error)
        fix = (
            "" if isinstance(error, ValueError) else "check dra.embedding.*, and that the server or the model is there"
        )
        yield fail(_NAME, one_line(words), fix)
        return
    norms = vectors.norm(dim=1)
    if not bool(((norms - 1).abs() < 1e-3).all()):
        low, high = norms.min().item(), norms.max().item()
        fix = "use another dra.embedding.model"
        yield fail(_NAME, f"{encoder} gives vectors of norm {low:.3g} to {high:.3g} for plain texts", fix)
        return
    measured.append(Measured(rate, getattr(encoder, "memory_bound", None)))
    yield ok(_NAME, f"{encoder}: {vectors.shape[1]} dimensions, {rate:,.0f} tokens/s, ready in {loaded:.1f} s")


@contextmanager
def _hub_off() -> Iterator[None]:
    """No request to the hub: huggingface_hub reads this constant before each."""
    before, constants.HF_HUB_OFFLINE = constants.HF_HUB_OFFLINE, True
    try:
        yield
    finally:
        constants.HF_HUB_OFFLINE = before


def _is_for_the_hub(config: EmbeddingConfig, error: Exception) -> bool:
    """Whether the encoder lacks what a run may fetch."""
    if config.encoder != "sentence_transformers" or not can_be_fetched(config.model):
        return False
    return isinstance(error, OSError) or local_folder(config.model) is None
