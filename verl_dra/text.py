"""The text of a completion, the same wherever it is decoded."""

from __future__ import annotations

from typing import Any

from torch import Tensor


def completion_text(tokenizer: Any, response: Tensor) -> str:
    """Decode the token ids [length] of a completion, special tokens left out, as veRL's reward managers do."""
    text: str = tokenizer.decode(response, skip_special_tokens=True)
    return text
