"""Texts to unit vectors."""

from verl_dra.embedding.encoder import (
    EmbeddingConfig,
    Encoded,
    Encoder,
    EncoderUnavailableError,
    build_encoder,
    encode_all,
)

__all__ = ["EmbeddingConfig", "Encoded", "Encoder", "EncoderUnavailableError", "build_encoder", "encode_all"]
