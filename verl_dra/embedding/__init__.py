"""Texts to unit vectors."""

from verl_dra.embedding.encoder import EmbeddingConfig, Encoded, Encoder, EncoderUnavailableError, build_encoder

__all__ = ["EmbeddingConfig", "Encoded", "Encoder", "EncoderUnavailableError", "build_encoder"]
