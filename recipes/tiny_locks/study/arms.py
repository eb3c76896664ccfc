"""What is compared, as changes of GRPO, and which runs are wanted, in the order in which they are made."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Any

from tiny_locks.loop import Arm, Settings

CLUSTER_COSINE = 0.716
"""What `verl-dra calibrate` names for these ways."""

GRPO = Arm()
DRA = Arm(dra={})
UNLIKELINESS = Arm(dra={"weight": "unlikeliness"})
_CLUSTERS = {"smi": "clusters", "cluster_cosine": CLUSTER_COSINE}

_ENTROPY = {"entropy_0.01": 0.01, "entropy_0.03": 0.03, "entropy_0.1": 0.1}

ARMS: dict[str, Arm] = {
    "grpo": GRPO,
    **{name: replace(GRPO, entropy_coeff=value) for name, value in _ENTROPY.items()},
    "kl_0.03": replace(GRPO, kl_loss_coef=0.03),
    "kl_0.3": replace(GRPO, kl_loss_coef=0.3),
    "clip_higher": replace(GRPO, updates=4, clip_ratio_high=0.28),
    "passk": replace(GRPO, base_estimator="grpo_passk"),
    "unlikeliness": UNLIKELINESS,
    # As its authors have it, without a division by the standard deviation.
    "darling": Arm(dra={"weight": "darling", **_CLUSTERS}, norm_adv_by_std_in_grpo=False),
    "dra": DRA,
    "dra_clusters": Arm(dra=_CLUSTERS),
    "dra_dr_grpo": Arm(dra={}, norm_adv_by_std_in_grpo=False),
    "dra_shuffled": Arm(dra={"smi": "shuffled"}),
    "dra_correct": Arm(dra={"among": "correct"}),
    "dra_centered": Arm(dra={"cosine": "centered"}),
}
"""The sixteen of lock A; `clip_higher` alone splits a step into several updates, without which nothing is clipped."""

CONTROLS: dict[str, Arm] = {"four_updates": replace(GRPO, updates=4)}
"""What `clip_higher` is held beside: as many updates, and veRL's own clipping."""

AFTERWARDS = ("dra_correct", "dra_clusters")
"""What got more seeds than planned, as three of lock A had it above GRPO in accuracy."""

BEST_ENTROPY = "entropy_0.1"
"""The bonus that goes into the parts after the first: the one with the highest locked pass@8 of lock A."""

OFF_AFTER = 2 / 3
"""Share of a run's steps after which the arms of `off` are GRPO."""

LABELS = {
    "start": "before RL",
    "grpo": "GRPO",
    **{name: f"entropy bonus {value:g}" for name, value in _ENTROPY.items()},
    "kl_0.03": "KL 0.03",
    "kl_0.3": "KL 0.3",
    "clip_higher": "clip-higher, 4 updates a step",
    "passk": "grpo_passk",
    "unlikeliness": "unlikeliness",
    "darling": "DARLING",
    "dra": "DRA-GRPO",
    "dra_clusters": "DRA of clusters",
    "dra_dr_grpo": "DRA-Dr.GRPO",
    "dra_shuffled": "DRA, shuffled",
    "dra_correct": "DRA among the correct",
    "dra_centered": "DRA, centred",
    "four_updates": "GRPO, 4 updates a step",
}


@dataclass(frozen=True)
class Run:
    lock: str
    arm: str
    seed: int

    @property
    def name(self) -> str:
        return f"{self.lock}/{self.arm}/{self.seed}"


def arm_of(name: str, settings: Settings) -> Arm:
    """The arm, of `NAME_off` the one that is `NAME` up to `OFF_AFTER` of the run's steps and GRPO from there on."""
    if not name.endswith("_off"):
        return {**ARMS, **CONTROLS, "start": GRPO}[name]
    arm = arm_of(name.removesuffix("_off"), settings)
    last = int(settings.steps * OFF_AFTER)
    if arm.entropy_coeff:
        return replace(arm, entropy_coeff=_until(last, arm.entropy_coeff))
    return replace(arm, dra={**arm.dra, "strength": _until(last, 1.0)})


def wanted() -> list[Run]:
    """All runs. By seeds first, so that a study that is cut off has all arms with fewer seeds, and not fewer arms."""
    some = ("grpo", BEST_ENTROPY, "unlikeliness", "dra")
    off = tuple(f"{name}_off" for name in some[1:])
    return [
        *(Run("even", arm, seed) for seed in range(3) for arm in ("start", *ARMS)),
        *(Run("even", arm, seed) for seed in range(3, 6) for arm in (*some, "dra_shuffled")),
        *(Run("rare", arm, seed) for seed in range(4) for arm in (*some, *off)),
        *(Run("switch", arm, seed) for seed in range(4) for arm in some),
        *(Run("even", arm, seed) for seed in range(3) for arm in CONTROLS),
        *(Run("even", arm, seed) for seed in range(3, 6) for arm in AFTERWARDS),
    ]


def label(name: str) -> str:
    """What tables and plots call an arm."""
    return f"{LABELS[name.removesuffix('_off')]}{', off from two thirds on' if name.endswith('_off') else ''}"


def _until(last: int, value: float) -> list[Any]:
    return [[0, value], [last, value], [last + 1, 0.0]]
