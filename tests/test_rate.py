"""How fast an encoder is: tried on new texts of the length of completions, for half a second."""

from __future__ import annotations

from collections.abc import Sequence

import pytest
import torch

from verl_dra.embedding import Encoded
from verl_dra.embedding.rate import measured_rate


class TimedEncoder:
    """Counts words, and takes the time of a clock of its own for each call and each word."""

    def __init__(self, words_per_s: float, call_s: float) -> None:
        self._words_per_s, self._call_s = words_per_s, call_s
        self.now = 0.0
        self.given: list[str] = []

    def encode(self, texts: Sequence[str]) -> Encoded:
        self.given += texts
        tokens = torch.tensor([len(text.split()) for text in texts])
        self.now += self._call_s + int(tokens.sum()) / self._words_per_s
        none = torch.zeros_like(tokens)
        return Encoded(torch.zeros(len(texts), 1), tokens, truncated_tokens=none, unknown_tokens=none)


@pytest.mark.parametrize(
    ("words_per_s", "longest_s"),
    [
        (100, 10),  # one text is enough
        (10_000, 1.2),
        (3_000_000, 1.2),
        (1e9, 1.2),  # at no more texts than a slice may have
    ],
)
def test_the_rate_is_that_of_full_batches_of_new_texts(
    words_per_s: float, longest_s: float, monkeypatch: pytest.MonkeyPatch
) -> None:
    encoder = TimedEncoder(words_per_s, call_s=0.005)
    monkeypatch.setattr("time.perf_counter", lambda: encoder.now)
    assert measured_rate(encoder) == pytest.approx(words_per_s, rel=0.1 if words_per_s < 1e9 else 1)
    assert encoder.now < longest_s
    assert len(set(encoder.given)) == len(encoder.given)
    lengths = [len(text.split()) for text in encoder.given]
    assert min(lengths) >= 150
    assert max(lengths) <= 900
