"""The mathematics of DRA: pure torch functions over flat rows and group ids."""

from verl_dra.algorithm.baselines import darling_weights, unlikeliness_weights
from verl_dra.algorithm.clusters import cluster_smi
from verl_dra.algorithm.diversity import effective_paths, group_diversity
from verl_dra.algorithm.rewards import NegativeRewards, adjust_rewards, diversity_weights, fill_unscored
from verl_dra.algorithm.smi import SMIFunction, graph_cut_smi, log_det_smi

SMI_FUNCTIONS: dict[str, SMIFunction] = {"graph_cut": graph_cut_smi, "log_det": log_det_smi, "clusters": cluster_smi}
"""The SMI functions by the name that the configuration gives them."""

__all__ = [
    "SMI_FUNCTIONS",
    "NegativeRewards",
    "SMIFunction",
    "adjust_rewards",
    "cluster_smi",
    "darling_weights",
    "diversity_weights",
    "effective_paths",
    "fill_unscored",
    "graph_cut_smi",
    "group_diversity",
    "log_det_smi",
    "unlikeliness_weights",
]
