"""The encoders that are held beside each other, and their cosines of pairs."""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import cast

import numpy as np
import torch
from numpy.typing import NDArray
from omegaconf import OmegaConf
from omegaconf.errors import OmegaConfBaseException

from verl_dra.calibrate.pairs import CalibrationError, Pairs
from verl_dra.embedding import EmbeddingConfig, Encoded, Encoder, EncoderUnavailableError, build_encoder
from verl_dra.embedding.model_path import BUNDLED_MODEL

RANDOM = "random"
DEFAULT = (BUNDLED_MODEL, "ngram", RANDOM)
_DIMENSION = 384


class RandomEncoder:
    """The control: a random direction for each text, the same one each time. A token is a character."""

    def __str__(self) -> str:
        return f"random directions of {_DIMENSION} dimensions"

    def encode(self, texts: Sequence[str]) -> Encoded:
        seeds = [int.from_bytes(hashlib.sha256(text.encode()).digest()[:8], "big") for text in texts]
        vectors = np.stack([np.random.default_rng(seed).standard_normal(_DIMENSION) for seed in seeds])
        tokens = torch.tensor([len(text) for text in texts])
        none = torch.zeros_like(tokens)
        unit = torch.nn.functional.normalize(torch.from_numpy(vectors), dim=1).float()
        return Encoded(unit, tokens, truncated_tokens=none, unknown_tokens=none)


@dataclass(frozen=True)
class Seen:
    """What an encoder makes of pairs."""

    name: str
    about: str
    """What the encoder says of itself."""
    cosine: NDArray[np.float64]
    """[P]; 0 where one of the two has a zero vector."""
    empty: int
    """Different texts with a zero vector, as those without tokens."""
    truncated_tokens_frac: float
    """Tokens that no window holds."""
    unknown_tokens_frac: float
    """Tokens that the encoder doesn't know."""


def check(specs: Sequence[str]) -> None:
    """Raise a CalibrationError where one of `specs` can name no encoder; loads none."""
    for spec in specs:
        if spec != RANDOM:
            _config(spec)


def see(spec: str, pairs: Pairs) -> Seen:
    """Embed the texts of `pairs` by the encoder that `spec` names, and forget the encoder.

    Args:
        spec: `ngram`, `random`, a folder, a hub name or pkg://..., `package.module:Class`, or settings of
            `dra.embedding` as `key=value key=value`.

    Raises:
        CalibrationError: it can't be loaded, or can't embed a text.
    """
    config = None if spec == RANDOM else _config(spec)
    try:
        encoder: Encoder = RandomEncoder() if config is None else build_encoder(config)
        encoded = encoder.encode(pairs.texts)
    except EncoderUnavailableError as error:
        raise CalibrationError(f"--encoder {spec} is not available: {error}") from error
    except Exception as error:  # of whatever class or model it is
        raise CalibrationError(f"--encoder {spec} can't be used: {error}") from error
    units = torch.nn.functional.normalize(encoded.vectors.double(), dim=1).numpy()
    cosine = np.clip((units[pairs.first] * units[pairs.second]).sum(1), -1, 1)
    if not np.isfinite(cosine).all():
        raise CalibrationError(f"--encoder {spec} gives vectors that are not finite")
    tokens = max(int(encoded.tokens.sum()), 1)
    return Seen(
        "all-MiniLM-L6-v2 (default)" if spec == BUNDLED_MODEL else spec,
        str(encoder),
        cosine,
        int((units == 0).all(axis=1).sum()),
        int(encoded.truncated_tokens.sum()) / tokens,
        int(encoded.unknown_tokens.sum()) / tokens,
    )


def _config(spec: str) -> EmbeddingConfig:
    config = EmbeddingConfig()
    if spec == "ngram":
        config.encoder = spec
    elif "=" in spec and not Path(spec).is_dir():
        try:
            merged = OmegaConf.merge(OmegaConf.structured(EmbeddingConfig), OmegaConf.from_dotlist(spec.split()))
            config = cast(EmbeddingConfig, OmegaConf.to_object(merged))
        except OmegaConfBaseException as error:
            raise CalibrationError(
                f"--encoder {spec}: {str(error).splitlines()[0]}; settings are those of dra.embedding, as key=value"
            ) from error
    elif ":" in spec and "/" not in spec:
        config.encoder = spec
    else:
        config.model = spec
    try:
        config.check()
    except ValueError as error:
        raise CalibrationError(f"--encoder {spec}: {error}") from error
    return config
