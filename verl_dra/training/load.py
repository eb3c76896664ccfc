"""Whether the scorers keep up with what the rollout makes."""

from __future__ import annotations

from dataclasses import dataclass

# What a step may wait for scores without its scorers being too slow: seconds, and a share of the step.
_SHORT_S = 1.0
_SMALL_SHARE = 0.05
_FASTER = {
    "cpu": "set dra.scorer.num_replicas or dra.scorer.num_cpus higher, or dra.scorer.placement to a GPU's",
    "colocated": "set dra.scorer.placement=dedicated, on other GPUs, or embed less (dra.embedding.max_windows)",
    "dedicated": "set dra.scorer.num_replicas higher, or embed less (dra.embedding.max_windows)",
}


@dataclass(frozen=True)
class Load:
    """The scorers' work over one step."""

    tokens: int
    """Those that went through their encoders."""
    tokens_per_s: float
    """What all of them embed together while they work."""
    busy_s: float
    """Seconds that their encoders worked, all together."""
    scorers: int
    step_s: float
    """Seconds since the step before."""
    wait_s: float
    """Seconds of those that the step waited for scores."""

    @property
    def behind(self) -> bool:
        """Whether they are too slow for the rollout."""
        return self.wait_s > max(_SHORT_S, _SMALL_SHARE * self.step_s)

    def metrics(self) -> dict[str, float]:
        """By name."""
        return {
            "dra/scorers/tokens_per_s": self.tokens_per_s,
            "dra/scorers/busy_frac": self.busy_s / max(self.scorers * self.step_s, 1e-9),
        }

    def line(self, placement: str) -> str:
        """What a user reads, with what to set where they are too slow, by where they are (`dra.scorer.placement`)."""
        made = self.tokens / max(self.step_s, 1e-9)
        seen = (
            f"scorers embed {self.tokens_per_s:,.0f} tokens/s, the rollout made {made:,.0f} tokens/s for them, and the "
            f"step waited {self.wait_s:.1f} of its {self.step_s:.1f} s for scores"
        )
        if not self.behind:
            return seen
        return f"{seen}: {_FASTER[placement]}"
