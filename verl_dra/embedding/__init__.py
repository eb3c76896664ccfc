"""Texts to unit vectors."""

from verl_dra.embedding.encoder import EmbeddingConfig, Encoded, Encoder, EncoderUnavailable, build_encoder

__all__ = ["EmbeddingConfig", "Encoded", "Encoder", "EncoderUnavailable", "build_encoder"]
