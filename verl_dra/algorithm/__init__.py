"""The mathematics of DRA: pure torch functions over flat rows and group ids."""

from verl_dra.algorithm.baselines import darling_weights, unlikeliness_weights
from verl_dra.algorithm.clusters import cluster_smi
from verl_dra.algorithm.controls import CONTROLS, random_smi, shuffled_smi
from verl_dra.algorithm.cosines import Cosine, CosinePairs, centered, cosine_pairs, power_smi
from verl_dra.algorithm.diversity import effective_paths, group_diversity
from verl_dra.algorithm.groups import gated
from verl_dra.algorithm.rewards import (
    NegativeRewards,
    adjust_rewards,
    diversity_weights,
    fill_unscored,
    kept_scale,
    level_small_spreads,
    temper,
)
from verl_dra.algorithm.smi import SMIFunction, graph_cut_smi, log_det_smi

SMI_FUNCTIONS: dict[str, SMIFunction] = {"graph_cut": graph_cut_smi, "log_det": log_det_smi, "clusters": cluster_smi}
"""The SMI functions by the name that the configuration gives them."""

__all__ = [
    "CONTROLS",
    "SMI_FUNCTIONS",
    "Cosine",
    "CosinePairs",
    "NegativeRewards",
    "SMIFunction",
    "adjust_rewards",
    "centered",
    "cluster_smi",
    "cosine_pairs",
    "darling_weights",
    "diversity_weights",
    "effective_paths",
    "fill_unscored",
    "gated",
    "graph_cut_smi",
    "group_diversity",
    "kept_scale",
    "level_small_spreads",
    "log_det_smi",
    "power_smi",
    "random_smi",
    "shuffled_smi",
    "temper",
    "unlikeliness_weights",
]
