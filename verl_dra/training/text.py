"""The text of a completion, the same wherever it is decoded."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from torch import Tensor
from transformers import PreTrainedTokenizerFast


def completion_text(tokenizer: Any, response: Tensor) -> str:
    """Decode the token ids [length] of a completion, special tokens left out, as veRL's reward managers do."""
    text: str = tokenizer.decode(response, skip_special_tokens=True)
    return text


def completion_texts(tokenizer: Any, responses: Sequence[Tensor]) -> list[str]:
    """`completion_text` of several; those of a fast tokenizer on all cores, while other threads run."""
    kind = type(tokenizer)
    plain = isinstance(tokenizer, PreTrainedTokenizerFast) and all(
        getattr(kind, name) is getattr(PreTrainedTokenizerFast, name) for name in ("decode", "_decode")
    )
    # Only its batch call does; transformers decodes one by one, and then may clean up.
    if plain and not tokenizer.clean_up_tokenization_spaces:
        ids = [response.tolist() for response in responses]
        texts: list[str] = tokenizer.backend_tokenizer.decode_batch(ids, skip_special_tokens=True)
        return texts
    return [completion_text(tokenizer, response) for response in responses]
