"""Token ids of texts to windows, by array operations: no Python loop over texts or windows."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np


@dataclass(frozen=True)
class Windows:
    """Windows of texts, the longest first, their special tokens included."""

    ids: np.ndarray
    """[T] int32: of all windows, one after the other."""
    lengths: np.ndarray
    """[windows] int64: ids of each."""
    tokens: np.ndarray
    """[windows] int64: those of them that are the text's own; at least 1."""
    text: np.ndarray
    """[windows] int64: the text that each is of."""


@dataclass(frozen=True)
class Cutter:
    """Cuts texts' ids into windows.

    A text without tokens has no window.
    """

    size: int
    """The text's own tokens in a window, at most."""
    before: Sequence[int]
    """Special tokens at the start of each window."""
    after: Sequence[int]
    """Those at its end."""
    long_text: str = "chunk"
    """`chunk` for all windows, the last one shorter; `head` or `tail` for the first or last `size` tokens."""
    max_windows: int | None = None
    """Of a text; where it has more they are spread evenly over it, the first and the last among them."""

    def cut(self, ids: np.ndarray, counts: np.ndarray) -> Windows:
        """Windows of `ids` [all tokens] int32, which are texts of `counts` [n] int64 tokens one after the other."""
        windows = -(-counts // self.size) if self.long_text == "chunk" else np.minimum(counts, 1)
        kept = windows if self.max_windows is None else np.minimum(windows, self.max_windows)
        text = np.repeat(np.arange(len(counts)), kept)
        number = _spread(_ranges(np.zeros_like(kept), kept), windows[text], kept[text])
        first = number * self.size
        if self.long_text == "tail":
            first = np.maximum(counts[text] - self.size, 0)
        tokens = np.minimum(counts[text] - first, self.size)
        order = np.argsort(-tokens, kind="stable")
        text, tokens, first = text[order], tokens[order], first[order]

        lengths = tokens + len(self.before) + len(self.after)
        # Beside the text's own tokens whatever lies there, until the special ones are written over it.
        start = (np.cumsum(counts) - counts)[text] + first - len(self.before)
        out = ids.take(_ranges(start, lengths), mode="clip") if len(ids) else ids
        ends = np.cumsum(lengths)
        for i, token in enumerate(self.before):
            out[ends - lengths + i] = token
        for i, token in enumerate(reversed(self.after)):
            out[ends - 1 - i] = token
        return Windows(out, lengths, tokens, text)


def _ranges(starts: np.ndarray, lengths: np.ndarray) -> np.ndarray:
    """starts[0], starts[0] + 1, ... up to lengths[0] of them, then those from starts[1], and so on."""
    before = np.cumsum(lengths) - lengths
    ranges: np.ndarray = np.repeat(starts - before, lengths)
    ranges += np.arange(len(ranges))
    return ranges


def _spread(index: np.ndarray, windows: np.ndarray, kept: np.ndarray) -> np.ndarray:
    """Which of a text's windows the `index`-th of those kept is."""
    gaps = np.maximum(kept - 1, 1)
    spread: np.ndarray = (2 * index * (windows - 1) + gaps) // (2 * gaps)
    return spread
