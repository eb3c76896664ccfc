"""The configuration group `dra`, as dataclasses that Hydra checks overrides against."""

from __future__ import annotations

from dataclasses import dataclass, field
from functools import partial
from typing import Any

from hydra.core.config_store import ConfigStore

from verl_dra.algorithm import CONTROLS, SMI_FUNCTIONS, SMIFunction, cluster_smi, graph_cut_smi, power_smi
from verl_dra.config.schedule import Schedule
from verl_dra.embedding import EmbeddingConfig
from verl_dra.partition.config import PartitionConfig
from verl_dra.record import RecordConfig
from verl_dra.scorer.placement import ScorerConfig

WEIGHTS = ("inverse", "darling", "unlikeliness")


@dataclass
class DRAConfig:
    """Diversity-aware reward adjustment (`dra`)."""

    enabled: bool = True
    """False for veRL's own run: the base estimator and reward manager, no scorer."""
    smi: str = "graph_cut"
    """`graph_cut` (the paper's), `log_det`, or `clusters`: the number of others in a completion's cluster. For control
    runs, Graph-Cut SMI that means nothing: `shuffled` within each group, or `random`, of random vectors with the
    group's mean cosine."""
    cluster_cosine: float = 0.9
    """For `clusters`, and for metrics: completions are of one cluster that a chain of cosines above this links."""
    cosine: str = "raw"
    """What SMI sums: cosines as they are (`raw`), of vectors less the mean of the batch (`centered`), or to the power
    of `cosine_power` with their sign kept (`power`)."""
    cosine_power: float = 4.0
    """For `power`: 4 makes 0.81 of 0.95 and 0.41 of 0.8."""
    among: str = "all"
    """Among which completions of a group similarity is measured: `all`, or those that are `correct`; the others have
    weight 1 then, and count in nobody's SMI."""
    correct_above: float = 0.0
    """For `correct`: the reward that a correct completion's is above."""
    spread_floor: float = 0.0
    """Groups whose SMI / (n - 1) spreads by less get the same weight all over: differences of noise alone."""
    strength: Any = 1.0
    """What weights are raised to the power of: a number, or points [[step, value], ...] with straight lines between. At
    0 DRA is off, and nothing is embedded."""
    weight: str = "inverse"
    """What rewards are multiplied by: `inverse` (1 / (1 + SMI), the paper's), `darling` (1 less the SMI's share of what
    it can be, at least 0.1) or `unlikeliness` (by the rank of the completion's likelihood; SMI is only shown)."""
    keep_scale: bool = False
    """Divide adjusted rewards by the batch's mean weight, so that KL and entropy terms keep their share of the loss."""
    epsilon: float | None = None
    """What the base estimator adds to the standard deviation that it divides by; None for its own (veRL's is 1e-6)."""
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
    """Groups whose scorer embeds nothing for dra.scorer.deadline_s, or can't embed them, or of which dra.partition says
    nothing in its time and budget: `raise` ends the run, `unadjusted` gives them the mean weight of the batch's scored
    ones (1 where none is) and counts them."""
    console: str = "quiet"
    """`quiet` shows progress, metrics and the summary, and logs the rest to a file; `full` shows everything."""
    embedding: EmbeddingConfig = field(default_factory=EmbeddingConfig)
    scorer: ScorerConfig = field(default_factory=ScorerConfig)
    partition: PartitionConfig = field(default_factory=PartitionConfig)
    record: RecordConfig = field(default_factory=RecordConfig)

    def schedule(self) -> Schedule:
        """`strength` over the steps.

        Raises:
            ValueError: it can't be.
        """
        try:
            return Schedule.of(self.strength)
        except ValueError as error:
            raise ValueError(f"dra.strength {error}") from error

    def smi_function(self) -> SMIFunction:
        """The SMI function that `smi` and `cosine` name, of a control the one that it is made of; it centers nothing.

        Raises:
            ValueError: there is none of that name, or `cluster_cosine` can't be.
        """
        if not -1 < self.cluster_cosine < 1:
            raise ValueError(f"dra.cluster_cosine must be between -1 and 1, not {self.cluster_cosine}")
        if self.smi not in (*SMI_FUNCTIONS, *CONTROLS):
            raise ValueError(f"dra.smi must be one of {', '.join((*SMI_FUNCTIONS, *CONTROLS))}, not {self.smi!r}")
        function = SMI_FUNCTIONS.get(self.smi, graph_cut_smi)
        if function is graph_cut_smi and self.cosine == "power":
            return partial(power_smi, power=self.cosine_power)
        return partial(cluster_smi, cosine=self.cluster_cosine) if function is cluster_smi else function


ConfigStore.instance().store(group="dra", name="schema", node=DRAConfig)
