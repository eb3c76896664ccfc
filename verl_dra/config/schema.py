"""The configuration group `dra`, as dataclasses that Hydra checks overrides against."""

from __future__ import annotations

from dataclasses import dataclass, field
from functools import partial

from hydra.core.config_store import ConfigStore

from verl_dra.algorithm import SMI_FUNCTIONS, SMIFunction, cluster_smi
from verl_dra.embedding import EmbeddingConfig
from verl_dra.record import RecordConfig
from verl_dra.scorer.placement import ScorerConfig

WEIGHTS = ("inverse", "darling", "unlikeliness")


@dataclass
class DRAConfig:
    """Diversity-aware reward adjustment (`dra`)."""

    enabled: bool = True
    """False for veRL's own run: the base estimator and reward manager, no scorer."""
    smi: str = "graph_cut"
    """`graph_cut` (the paper's), `log_det`, or `clusters`: the number of others in a completion's cluster."""
    cluster_cosine: float = 0.9
    """For `clusters`: completions are of one cluster that a chain of cosines above this links."""
    weight: str = "inverse"
    """What rewards are multiplied by: `inverse` (1 / (1 + SMI), the paper's), `darling` (1 less the SMI's share of what
    it can be, at least 0.1) or `unlikeliness` (by the rank of the completion's likelihood; SMI is only shown)."""
    negative_rewards: str = "paper"
    """Rewards below 0: `paper`, `shift` or `positive_only`; see `verl_dra.adjust_rewards`."""
    base_estimator: str | None = None
    """The estimator that gets the adjusted rewards: grpo, rloo, reinforce_plus_plus_baseline, opo, grpo_passk or any
    registered one that needs rewards alone; None for algorithm.adv_estimator, or grpo where that is not set. Dr.GRPO is
    grpo with algorithm.norm_adv_by_std_in_grpo=False."""
    base_reward_manager: str | None = None
    """The reward manager that computes the rewards: a registered name, pkg://package.module:Class or file.py:Class;
    None for reward.reward_manager, which is naive where it is not set."""
    on_failure: str = "raise"
    """Groups whose scorer embeds nothing for dra.scorer.deadline_s, or can't embed them: `raise` ends the run,
    `unadjusted` gives them the mean weight of the batch's scored ones (1 where none is) and counts them."""
    console: str = "quiet"
    """`quiet` shows progress, metrics and the summary, and logs the rest to a file; `full` shows everything."""
    embedding: EmbeddingConfig = field(default_factory=EmbeddingConfig)
    scorer: ScorerConfig = field(default_factory=ScorerConfig)
    record: RecordConfig = field(default_factory=RecordConfig)

    def smi_function(self) -> SMIFunction:
        """The SMI function that `smi` names.

        Raises:
            ValueError: there is none of that name, or `cluster_cosine` can't be.
        """
        if not -1 < self.cluster_cosine < 1:
            raise ValueError(f"dra.cluster_cosine must be between -1 and 1, not {self.cluster_cosine}")
        if self.smi not in SMI_FUNCTIONS:
            raise ValueError(f"dra.smi must be one of {', '.join(SMI_FUNCTIONS)}, not {self.smi!r}")
        function = SMI_FUNCTIONS[self.smi]
        return partial(cluster_smi, cosine=self.cluster_cosine) if function is cluster_smi else function


ConfigStore.instance().store(group="dra", name="schema", node=DRAConfig)
