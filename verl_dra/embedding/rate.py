"""How fast an encoder is, here and now."""

from __future__ import annotations

import random
import time

from verl_dra.embedding.encoder import Encoder

_TRIAL_S = 0.5
_GROWTH = 8
_TALK = (
    "we know that the sum of both sides is even so let us write x for the first number and y for the other one then "
    "each step gives a new equation which holds for all values because their product was positive as shown above now "
    "suppose that this were false and look at what follows when it is divided by two hence there can be no such pair"
)
_WORDS_OF_A_TEXT = (150, 900)
_MOST_TEXTS = 4096


def measured_rate(encoder: Encoder) -> float:
    """Tokens a second, over about half a second of texts as long as completions are, and all new."""
    draws = random.Random(0)
    texts = 1
    while True:
        batch = [_text(draws) for _ in range(texts)]
        started = time.perf_counter()
        tokens = int(encoder.encode(batch).tokens.sum())
        seconds = max(time.perf_counter() - started, 1e-6)
        # The first call is slower, and a GPU is only busy with many.
        if seconds >= _TRIAL_S / 2 or texts >= _MOST_TEXTS:
            return tokens / seconds
        texts = max(texts + 1, min(_GROWTH * texts, int(texts * _TRIAL_S / seconds)))


def _text(draws: random.Random) -> str:
    words = draws.choices(_TALK.split(), k=draws.randint(*_WORDS_OF_A_TEXT))
    for i in range(0, len(words), 8):
        words[i] = str(draws.randint(0, 999))
    return " ".join(words)
