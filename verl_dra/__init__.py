"""Diversity-aware reward adjustment (DRA-GRPO, arXiv 2505.09655) for veRL.

The names below need neither veRL nor Ray: the algorithm, which is pure torch, and `dra_rewards` of texts.
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from verl_dra.algorithm import (
        adjust_rewards,
        diversity_weights,
        effective_paths,
        graph_cut_smi,
        log_det_smi,
    )
    from verl_dra.from_texts import dra_rewards

__version__ = "0.1.0"

__all__ = [
    "__version__",
    "adjust_rewards",
    "diversity_weights",
    "dra_rewards",
    "effective_paths",
    "graph_cut_smi",
    "log_det_smi",
]


def __getattr__(name: str) -> object:
    # When they are asked for: torch takes seconds to import, and a job's processes and most commands do without it.
    if name in __all__:
        module = "verl_dra.from_texts" if name == "dra_rewards" else "verl_dra.algorithm"
        return getattr(importlib.import_module(module), name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
