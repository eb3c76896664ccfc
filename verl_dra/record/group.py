"""One group as it is recorded."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    import numpy as np

_DIGITS = 4


def recorded_group(
    prompt: str,
    texts: Sequence[str],
    numbers: Mapping[str, Sequence[float]],
    similarity: np.ndarray | None,
    max_characters: int,
    **about: Any,
) -> dict[str, Any]:
    """A group of n completions, ready for JSON; what is not finite becomes None.

    Args:
        prompt: its text.
        texts: n completions.
        numbers: n values by name, such as reward, smi and advantage.
        similarity: [n, n] cosines; None where the group was not scored.
        max_characters: of the prompt and of each completion.
        about: what else is to be said of the group.
    """
    return {
        **about,
        "prompt": shortened(prompt, max_characters),
        "completions": [
            {
                "text": shortened(text, max_characters),
                "characters": len(text),
                **{name: _plain(values[i]) for name, values in numbers.items()},
            }
            for i, text in enumerate(texts)
        ],
        "similarity": None if similarity is None else similarity.astype("float64").round(_DIGITS).tolist(),
    }


def shortened(text: str, characters: int) -> str:
    """`text` with its middle left out where it is longer than `characters`, and a line that says so."""
    if len(text) <= characters:
        return text
    half = characters // 2
    return f"{text[:half]}\n[... {len(text) - 2 * half} characters left out ...]\n{text[-half:]}"


def _plain(value: Any) -> Any:
    if isinstance(value, float):
        return value if math.isfinite(value) else None
    return value
