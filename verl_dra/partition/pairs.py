"""A classifier of pairs behind vLLM's server tells how probably two completions go the same way."""

from __future__ import annotations

import hashlib
import itertools
import math
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import numpy as np

from verl_dra.embedding.openai_client import TooLargeError
from verl_dra.partition.asking import SHORTEST, Bill, PartitionServer, cut
from verl_dra.partition.config import PLACES, PartitionConfig
from verl_dra.partition.partition import Grouping, PromptGroup, UnreadableError

_PAIRS_OF_A_REQUEST = 32
_REQUESTS_AT_A_TIME = 4

Pair = tuple[str, str]


class PairsPartition:
    """The likeness of two completions is the probability, by the classifier, that they go the same way.

    So a completion's SMI is the number of its siblings that are expected to go its way. There is no threshold: labels
    would need one that is transitive, and then a completion that is like two others would join those.

    A pair is asked once, the text of the smaller SHA-256 first: a classifier answers differently the other way round,
    and the likeness must not depend on the order of the rows. To ask both ways would cost twice as much.

    A completion is in its own pairs alone. Whatever it says, two others are as alike as they were.
    """

    def __init__(self, config: PartitionConfig) -> None:
        self._limit = config.max_characters
        self._join = config.pair
        self._server = PartitionServer(config)
        # A wrong URL, model or kind of model shows here and not when the first group is there.
        try:
            self._ask([("2 + 3 = 5", "3 + 2 = 5")], Bill())
        except (TooLargeError, UnreadableError) as error:
            raise ValueError(f"{error}; {self._needs()}") from None
        except ValueError as error:
            raise ValueError(f"{error}; {self._needs()}" if " answered 404" in str(error) else str(error)) from None

    def __str__(self) -> str:
        return self._server.name

    def __call__(self, group: PromptGroup) -> Grouping:
        """See `Partition`. Calls from several threads do not mind each other."""
        bill, limit = Bill(), self._limit
        known: dict[Pair, float] = {}
        while True:
            shown = [cut(text, limit) for text in group.texts]
            pairs = sorted({_ordered(a, b) for a, b in itertools.combinations(shown, 2) if a != b} - known.keys())
            try:
                self._find(pairs, known, bill)
                break
            except TooLargeError as refusal:
                limit = self._fitting(min(limit, max(map(len, group.texts))), group.texts, bill, refusal)
        similarity = np.eye(len(shown), dtype=np.float32)
        for i, j in itertools.combinations(range(len(shown)), 2):
            same = 1 if shown[i] == shown[j] else known[_ordered(shown[i], shown[j])]
            similarity[i, j] = similarity[j, i] = same
        return Grouping(similarity, truncated=sum(len(text) > limit for text in group.texts), **bill.costs)

    def most_calls(self, completions: int) -> int:
        """Requests for the pairs of so many, where no text is too long for the server and no answer unreadable."""
        return math.ceil(completions * (completions - 1) / 2 / _PAIRS_OF_A_REQUEST)

    def _find(self, pairs: Sequence[Pair], known: dict[Pair, float], bill: Bill) -> None:
        batches = [pairs[at : at + _PAIRS_OF_A_REQUEST] for at in range(0, len(pairs), _PAIRS_OF_A_REQUEST)]
        with ThreadPoolExecutor(_REQUESTS_AT_A_TIME) as pool:
            for batch, same in zip(batches, pool.map(lambda batch: self._ask(batch, bill), batches), strict=True):
                known.update(zip(batch, same, strict=True))

    def _fitting(self, limit: int, texts: Sequence[str], bill: Bill, refusal: TooLargeError) -> int:
        """Characters below `limit` at which the server takes the two longest texts.

        It depends on the group and the server alone, so that the answer to a group is the same whenever it is asked.
        """
        longest = sorted(sorted(texts), key=len)[-2:]
        while (limit := limit // 2) >= SHORTEST:
            try:
                self._ask([_ordered(*(cut(text, limit) for text in longest))], bill)
                return limit
            except TooLargeError as error:
                refusal = error
        raise UnreadableError(f"{refusal}; and so it does when {SHORTEST} characters are sent", **bill.costs)

    def _ask(self, pairs: Sequence[Pair], bill: Bill) -> list[float]:
        if self._join is None:
            path, body = "/score", {"text_1": [a for a, _ in pairs], "text_2": [b for _, b in pairs]}
        else:
            path, body = "/classify", {"input": [_joined(self._join, *pair) for pair in pairs]}
        return self._server.ask(bill, self._server.root + path, body, lambda answer: _scores(answer, pairs))

    def _needs(self) -> str:
        if self._join is None:
            return (
                "dra.partition.by=pairs needs vLLM's /score, which a classifier with one label has; one with two needs "
                "dra.partition.pair"
            )
        return "dra.partition.pair needs vLLM's /classify, which a classifier has"


def _ordered(a: str, b: str) -> Pair:
    first, second = sorted((a, b), key=lambda text: hashlib.sha256(text.encode()).digest())
    return first, second


def _joined(pair: str, first: str, second: str) -> str:
    # At once: a text may hold the name of a place.
    texts = {"{first}": first, "{second}": second}
    return PLACES.sub(lambda place: texts[place[0]], pair)


def _scores(answer: Any, pairs: Sequence[Pair]) -> list[float]:
    rows = sorted(answer["data"], key=lambda row: row["index"])
    if [row["index"] for row in rows] != list(range(len(pairs))):
        raise ValueError(f"{len(rows)} answers, not one for each of {len(pairs)} pairs")
    scores = [row["probs"] if "probs" in row else row["score"] for row in rows]
    if wide := next((score for score in scores if isinstance(score, list) and len(score) > 2), None):
        raise ValueError(f"{len(wide)} probabilities for a pair, where a classifier of pairs has one or two labels")
    same = [float(score[-1] if isinstance(score, list) else score) for score in scores]
    if not all(0 <= value <= 1 for value in same):
        raise ValueError("what is no probability from 0 to 1, such as a logit")
    return same
