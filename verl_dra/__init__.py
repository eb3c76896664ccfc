"""Diversity-aware reward adjustment (DRA-GRPO, arXiv 2505.09655) for veRL.

The names below are the algorithm alone: pure torch, importable without veRL or Ray.
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

__version__ = "0.1.0.dev0"

__all__ = [
    "__version__",
    "adjust_rewards",
    "diversity_weights",
    "effective_paths",
    "graph_cut_smi",
    "log_det_smi",
]


def __getattr__(name: str) -> object:
    # When they are asked for: torch takes seconds to import, and a job's processes and most commands do without it.
    if name in __all__:
        return getattr(importlib.import_module("verl_dra.algorithm"), name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
