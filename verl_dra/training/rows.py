"""Which row of a training batch is which session's output, read from veRL's keys."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from verl_dra.scorer.messages import Session


@dataclass(frozen=True)
class Rows:
    """N rows of a batch, in its order, as m sessions (those that pad the batch included)."""

    final: list[int]
    """[m] row of each session's final output, the one with the highest index."""
    session: list[int]
    """[N] for each row, the position of its session in `final`."""
    real: list[int]
    """[n] positions in `final` of the sessions that are no padding."""
    names: list[Session]
    """[n] names of those."""

    @property
    def real_final(self) -> list[int]:
        """[n] row of each of those sessions' final output."""
        return [self.final[at] for at in self.real]

    @property
    def group(self) -> Tensor:
        """[n] int64: a number for each of those sessions' uid."""
        return torch.from_numpy(np.unique([name.uid for name in self.names], return_inverse=True)[1].reshape(-1))

    @classmethod
    def of(cls, keys: Sequence[str], padding: Sequence[bool]) -> Rows:
        """Read keys `{uid}_{session_id}_{output_index}`; `padding` says which rows veRL added to fill the batch."""
        position: dict[Session, int] = {}
        final: list[int] = []
        highest: list[int] = []
        session: list[int] = []
        for row, key in enumerate(keys):
            uid, session_id, output = key.rsplit("_", 2)
            at = position.setdefault(Session(uid, int(session_id)), len(final))
            if at == len(final):
                final.append(row)
                highest.append(int(output))
            elif int(output) > highest[at]:
                final[at], highest[at] = row, int(output)
            session.append(at)
        real = [at for at, row in enumerate(final) if not padding[row]]
        names = list(position)
        return cls(final, session, real, [names[at] for at in real])
