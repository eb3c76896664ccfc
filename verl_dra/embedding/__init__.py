"""Texts to unit vectors."""

from verl_dra.embedding.build import build_encoder
from verl_dra.embedding.encoder import EmbeddingConfig, Encoded, Encoder, EncoderUnavailableError, encode_all

__all__ = ["EmbeddingConfig", "Encoded", "Encoder", "EncoderUnavailableError", "build_encoder", "encode_all"]
