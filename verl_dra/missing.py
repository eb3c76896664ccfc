"""What to install for an import that failed; only where a module is missing is that known."""

from __future__ import annotations

_OF_TRAIN = (
    *("datasets", "huggingface_hub", "hydra", "omegaconf", "pandas", "pyarrow", "ray", "sentence_transformers"),
    *("transfer_queue", "transformers", "verl"),
)
_BROUGHT_BY = {
    "vllm": "vllm",
    "math_verify": "'verl_dra[math]'",
    "openai": "'verl_dra[openai]'",
    **dict.fromkeys(_OF_TRAIN, "'verl_dra[train]'"),
}


def advice(error: ImportError) -> str:
    """`pip install ...` where a module that this package imports is not there; else empty.

    An import also fails for what only its message knows: versions that don't fit, a proxy without its library.
    """
    module = (error.name or "").partition(".")[0]
    package = _BROUGHT_BY.get(module) if isinstance(error, ModuleNotFoundError) else None
    return f"pip install {package}" if package else ""


def in_words(error: ImportError) -> str:
    """The error, and the advice where there is one."""
    return "; ".join(filter(None, [str(error) or repr(error), advice(error)]))
