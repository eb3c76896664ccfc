"""Diversity-aware reward adjustment (DRA-GRPO, arXiv 2505.09655) for veRL.

The names below are the algorithm alone: pure torch, importable without veRL or Ray.
"""

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
