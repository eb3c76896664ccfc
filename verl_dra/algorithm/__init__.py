"""The mathematics of DRA: pure torch functions over flat rows and group ids."""

from verl_dra.algorithm.diversity import effective_paths, group_diversity
from verl_dra.algorithm.rewards import NegativeRewards, adjust_rewards, diversity_weights
from verl_dra.algorithm.smi import SMI_FUNCTIONS, graph_cut_smi, log_det_smi

__all__ = [
    "SMI_FUNCTIONS",
    "NegativeRewards",
    "adjust_rewards",
    "diversity_weights",
    "effective_paths",
    "graph_cut_smi",
    "group_diversity",
    "log_det_smi",
]
