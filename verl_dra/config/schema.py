"""The configuration group `dra`, as dataclasses that Hydra checks overrides against."""

from __future__ import annotations

from dataclasses import dataclass, field
from functools import partial
from operator import attrgetter
from typing import Any, get_args

from hydra.core.config_store import ConfigStore

from verl_dra.algorithm import (
    CONTROLS,
    SMI_FUNCTIONS,
    Cosine,
    NegativeRewards,
    SMIFunction,
    cluster_smi,
    graph_cut_smi,
    power_smi,
)
from verl_dra.config.schedule import Schedule
from verl_dra.config.spelling import did_you_mean, one_of
from verl_dra.embedding import EmbeddingConfig
from verl_dra.embedding.encoder import DTYPES, ENCODERS, LONG_TEXT
from verl_dra.partition.config import PartitionConfig
from verl_dra.record import RecordConfig
from verl_dra.scorer.placement import PLACEMENTS, ScorerConfig

TEXTS = {
    "response": "all of a completion",
    "assistant": "what the policy wrote, without what tools replied",
    "after_thinking": "what follows the thinking",
    "thinking": "the thinking alone",
}
"""What `dra.text` may be, in words."""
WEIGHTS = ("inverse", "darling", "unlikeliness")
_WORDS = {
    "text": tuple(TEXTS),
    "smi": (*SMI_FUNCTIONS, *CONTROLS),
    "cosine": get_args(Cosine),
    "among": ("all", "correct"),
    "weight": WEIGHTS,
    "negative_rewards": get_args(NegativeRewards),
    "on_failure": ("raise", "unadjusted"),
    "console": ("quiet", "full"),
    "embedding.long_text": LONG_TEXT,
    "embedding.dtype": DTYPES,
    "scorer.placement": PLACEMENTS,
}
"""Settings that take one of a few words."""


@dataclass
class DRAConfig:
    """Diversity-aware reward adjustment (`dra`)."""

    enabled: bool = True
    """`false` is veRL's own run, for baselines: its estimator and reward manager, no scorer."""
    text: str = "response"
    """The part of a completion whose diversity counts; of a session with several outputs, of the final one. `response`
    is all of it, what tools reply included. `assistant` is what the policy itself wrote, its calls of tools among it,
    each turn from a new line; it is embedded after the generation and not during it. `after_thinking` follows the last
    `</think>`, and is all where there is none; `thinking` is before that, and is empty where there is none: such a
    completion counts as unique (`dra/empty_rows`)."""
    smi: str = "graph_cut"
    """How much a completion has in common with its group: `graph_cut` (the paper's), `log_det`, or `clusters`, the
    number of others in its cluster. For control runs, Graph-Cut SMI that means nothing: `shuffled` within each group,
    or `random`, of random vectors with the group's mean cosine."""
    cluster_cosine: float = 0.9
    """For `clusters`, and for metrics with any `dra.smi`: completions are of one cluster if a chain of cosines above
    this links them. What fits depends on the encoder; `verl-dra calibrate` measures it."""
    cosine: str = "raw"
    """What SMI sums: cosines as they are (`raw`), of vectors less the mean of the batch (`centered`), or to the power
    of `dra.cosine_power` with their sign kept (`power`)."""
    cosine_power: float = 4.0
    """For `power`: 4 makes 0.81 of 0.95 and 0.41 of 0.8."""
    among: str = "all"
    """Among which completions of a group similarity is measured: `all`, or `correct`, those of a reward above
    `dra.correct_above`. The others have weight 1 then, and count in nobody's SMI."""
    correct_above: float = 0.0
    """For `correct`: the reward that a right completion's is above, before any KL penalty."""
    spread_floor: float = 0.0
    """Groups whose SMI / (n - 1) spreads by less get the same weight all over, as such differences are noise. For sums
    of cosines."""
    strength: Any = 1.0
    """The power that weights are raised to: a number from 0 to 8, or points such as `[[0,1],[100,0]]`, step and value,
    with straight lines between them. At 0 DRA is off, and nothing is embedded."""
    weight: str = "inverse"
    """What rewards are multiplied by: `inverse`, the paper's 1 / (1 + SMI); `darling`, 1 - SMI / (size of the group -
    1), at least 0.1; or `unlikeliness`, 1 - 0.25 rank / size by mean log-probability. With the last one SMI is only
    shown: no step waits for it, and none ends without it."""
    keep_scale: bool = False
    """Divide adjusted rewards by the batch's mean weight, so that KL and entropy terms keep their share of the loss."""
    epsilon: float | None = None
    """What grpo, grpo_vectorized and grpo_passk add to the standard deviation that they divide by; None for veRL's
    1e-6. The paper's code has 1e-4."""
    negative_rewards: str = "paper"
    """Rewards below 0: `paper` weights them like the others, `shift` subtracts the group's minimum first where it is
    below 0, `positive_only` leaves them as they are."""
    base_estimator: str | None = None
    """The estimator that gets the adjusted rewards: grpo, rloo, reinforce_plus_plus_baseline, opo, grpo_passk or any
    registered one that needs rewards alone; None for `algorithm.adv_estimator`, or grpo where that is not set. Dr.GRPO
    is grpo with `algorithm.norm_adv_by_std_in_grpo=False`."""
    base_reward_manager: str | None = None
    """The reward manager that computes the rewards: naive, dapo, gdpo, rate_limited, remote, another registered name,
    `pkg://package.module:Class` or `file.py:Class`; None for `reward.reward_manager`, or naive where that is not
    set."""
    on_failure: str = "raise"
    """Groups whose scorer embeds nothing for `dra.scorer.deadline_s`, or can't embed one of their texts, or of which
    `dra.partition` says nothing in its time and budget: `raise` ends the run, `unadjusted` gives them the mean weight
    of the batch's scored ones (1 where none is) and counts them."""
    console: str = "quiet"
    """`quiet` shows progress, metrics and the summary, and logs the rest to a file; `full` shows everything."""
    embedding: EmbeddingConfig = field(default_factory=EmbeddingConfig)
    scorer: ScorerConfig = field(default_factory=ScorerConfig)
    partition: PartitionConfig = field(default_factory=PartitionConfig)
    record: RecordConfig = field(default_factory=RecordConfig)

    def check_words(self) -> None:
        """Raise a ValueError for a setting that takes one of a few words and has another."""
        for name, words in _WORDS.items():
            one_of(f"dra.{name}", attrgetter(name)(self), words)
        encoder = self.embedding.encoder
        if ":" not in encoder and encoder not in ENCODERS:
            raise ValueError(
                f"dra.embedding.encoder: {encoder!r} is none of sentence_transformers, openai and ngram, nor a class "
                f"as package.module:Class{did_you_mean(encoder, ENCODERS)}"
            )

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
        one_of("dra.smi", self.smi, _WORDS["smi"])
        function = SMI_FUNCTIONS.get(self.smi, graph_cut_smi)
        if function is graph_cut_smi and self.cosine == "power":
            return partial(power_smi, power=self.cosine_power)
        return partial(cluster_smi, cosine=self.cluster_cosine) if function is cluster_smi else function


ConfigStore.instance().store(group="dra", name="schema", node=DRAConfig)
