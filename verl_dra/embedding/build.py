"""The encoder that a configuration names, loaded."""

from __future__ import annotations

from typing import cast

from verl_dra.embedding.encoder import EmbeddingConfig, Encoder, user_class


def build_encoder(config: EmbeddingConfig) -> Encoder:
    """Load the encoder that `config` names.

    Raises:
        ValueError: the configuration names no encoder or a model that isn't there.
        EncoderUnavailableError: a server does not answer.
    """
    config.check()
    if config.encoder == "sentence_transformers":
        from verl_dra.embedding.sentence_transformer import SentenceTransformerEncoder

        return SentenceTransformerEncoder(config)
    if config.encoder == "ngram":
        from verl_dra.embedding.ngram import NgramEncoder

        return NgramEncoder()
    if config.encoder == "openai":
        from verl_dra.embedding.openai_api import OpenAIEncoder

        return OpenAIEncoder(config)
    return cast(Encoder, user_class(config.encoder)(config))
