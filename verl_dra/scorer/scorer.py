"""The scorer itself: embeds completions in the background, keeps their vectors, scores whole groups on request."""

from __future__ import annotations

import logging
import threading
from collections import OrderedDict
from collections.abc import Iterable, Mapping, Sequence
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor

from verl_dra.algorithm import SMI_FUNCTIONS, duplicates, effective_paths
from verl_dra.embedding import Encoder
from verl_dra.scorer.messages import Counts, Missing, Scores, Session

logger = logging.getLogger(__name__)

# Characters handed to the encoder at a time: enough to sort into full batches, little enough to answer soon.
_CHARACTERS_AT_A_TIME = 2**18


class _Row(NamedTuple):
    """An embedded completion."""

    text: int
    """Hash of its text."""
    vector: Tensor
    """[D] float32."""


class Scorer:
    """Vectors of completions by session, embedded by a thread of its own.

    All it holds can be made again from the texts: a lost or evicted vector costs time, never the answer.

    Args:
        encoder: makes the vectors.
        smi: name of the SMI function, `graph_cut` or `log_det`.
        max_rows: completions kept at most, waiting texts and vectors each; the oldest are evicted and counted.
    """

    def __init__(self, encoder: Encoder, smi: str, max_rows: int) -> None:
        self._encoder = encoder
        self._smi = SMI_FUNCTIONS[smi]
        self._max_rows = max_rows
        self._waiting: OrderedDict[Session, str] = OrderedDict()
        self._embedding: dict[Session, str] = {}
        self._rows: OrderedDict[Session, _Row] = OrderedDict()
        self._counts = Counts()
        self._changed = threading.Condition()
        self._encoding = threading.Lock()
        threading.Thread(target=self._embed_for_ever, daemon=True, name="dra-embed").start()

    def submit(self, completions: Iterable[tuple[Session, str]]) -> None:
        """Take finished completions; returns at once. A session that comes again replaces the earlier one."""
        with self._changed:
            for session, text in completions:
                self._rows.pop(session, None)
                self._waiting[session] = text
            self._evict(self._waiting)
            self._changed.notify_all()

    def collect(self, sessions: Sequence[Session], texts: Mapping[Session, str]) -> Scores | Missing:
        """Score complete groups and forget them.

        Waits for those of `sessions` that are being embedded; embeds those in `texts` that it has no vector for.

        Args:
            sessions: all sessions of the groups, in any order; sessions of one uid are a group.
            texts: texts of those that an earlier answer said are missing.

        Returns:
            Scores in the order of `sessions`; or what is missing, and then nothing is forgotten.
        """
        with self._changed:
            for session in sessions:
                if session in self._waiting:
                    self._waiting.move_to_end(session, last=False)  # before what nobody waits for, such as validation
            self._changed.wait_for(lambda: not any(s in self._waiting or s in self._embedding for s in sessions))
            rows = {s: self._rows[s] for s in sessions if s in self._rows}
        missing = [s for s in sessions if s not in rows and s not in texts]
        if missing:
            return Missing(missing)
        late = [s for s in sessions if s not in rows]
        if late:
            rows.update(zip(late, self._encode([texts[s] for s in late]), strict=True))
        # Equal texts of a group share one vector: a half-precision encoder's noise, which differs from batch to batch,
        # must not tell clones apart.
        first: dict[tuple[str, int], Tensor] = {}
        for session in sorted(sessions):
            first.setdefault((session.uid, rows[session].text), rows[session].vector)
        scores = self._score(sessions, torch.stack([first[s.uid, rows[s].text] for s in sessions]))
        with self._changed:
            for session in sessions:
                self._rows.pop(session, None)
        return scores

    def take_counts(self) -> Counts:
        """What was done since this was last called."""
        with self._changed:
            counts, self._counts = self._counts, Counts()
        return counts

    def _score(self, sessions: Sequence[Session], vectors: Tensor) -> Scores:
        group = torch.from_numpy(np.unique([s.uid for s in sessions], return_inverse=True)[1].reshape(-1))
        return Scores(
            smi=self._smi(vectors, group).numpy(),
            duplicate=duplicates(vectors, group).numpy(),
            effective_paths=effective_paths(vectors, group).numpy(),
        )

    def _embed_for_ever(self) -> None:
        while True:
            with self._changed:
                self._changed.wait_for(lambda: bool(self._waiting))
                self._embedding = self._next_texts()
            batch = self._embedding
            try:
                rows = self._encode(list(batch.values()))
            except Exception:
                # The completions become missing ones; encoding them again at collection shows the trainer the error.
                logger.exception("embedding %d completions failed", len(batch))
                rows = []
            with self._changed:
                for session, row in zip(batch, rows, strict=False):
                    if session not in self._waiting:
                        self._rows[session] = row
                self._evict(self._rows)
                self._embedding = {}
                self._changed.notify_all()

    def _next_texts(self) -> dict[Session, str]:
        texts: dict[Session, str] = {}
        characters = 0
        while self._waiting and characters < _CHARACTERS_AT_A_TIME:
            session, text = self._waiting.popitem(last=False)
            texts[session] = text
            characters += len(text)
        return texts

    def _encode(self, texts: list[str]) -> list[_Row]:
        with self._encoding:
            encoded = self._encoder.encode(texts)
        with self._changed:
            self._counts += Counts(encoded.tokens, encoded.truncated_tokens)
        # Rows of their own, so that a kept one does not keep its whole batch.
        return [_Row(hash(text), vector.clone()) for text, vector in zip(texts, encoded.vectors, strict=True)]

    def _evict(self, rows: OrderedDict[Session, str] | OrderedDict[Session, _Row]) -> None:
        excess = max(len(rows) - self._max_rows, 0)
        for _ in range(excess):
            rows.popitem(last=False)
        self._counts += Counts(evicted=excess)
