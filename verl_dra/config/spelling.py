"""What a word was probably meant to be."""

from __future__ import annotations

import difflib
from collections.abc import Iterable


def did_you_mean(word: str, known: Iterable[str]) -> str:
    """`; did you mean WORD?` with the nearest of `known`; empty where none is near."""
    by_lower = {name.lower(): name for name in known}
    near = difflib.get_close_matches(word.lower(), by_lower, n=1)
    return f"; did you mean {by_lower[near[0]]}?" if near else ""


def one_of(key: str, value: str, known: Iterable[str]) -> None:
    """Raise a ValueError that names `known`, unless `value` is one of them."""
    if value not in (words := tuple(known)):
        these = " or ".join(words) if len(words) == 2 else f"one of {', '.join(words)}"
        raise ValueError(f"{key} must be {these}, not {value!r}{did_you_mean(value, words)}")
