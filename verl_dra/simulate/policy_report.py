"""Scene `policy` as text, as JSON and as a picture."""

from __future__ import annotations

from dataclasses import dataclass
from math import log
from typing import TYPE_CHECKING, Any

from verl_dra.simulate.policy_scene import PolicyResult
from verl_dra.terminal.tables import table

if TYPE_CHECKING:
    from matplotlib.figure import Figure

_LINES = 8


@dataclass(frozen=True)
class PolicyReport:
    """Ways to show the result of the scene."""

    result: PolicyResult

    def content(self) -> dict[str, Any]:
        """What `--json` prints, but for the options."""
        return {
            "modes": [f"right {i + 1}" for i in range(self.result.scene.modes)] + ["wrong"],
            "max_entropy": log(self.result.scene.modes),
        } | {
            name: {
                "probabilities": run.probabilities.tolist(),
                "right": run.right.tolist(),
                "entropy": run.entropy.tolist(),
                "modes_in_group": run.covered.tolist(),
            }
            for name, run in (("grpo", self.result.grpo), ("dra", self.result.dra))
        }

    def text(self) -> str:
        """What the command prints."""
        scene, runs = self.result.scene, (self.result.grpo, self.result.dra)
        names = self.result.scoring.names
        gradient = (
            "exact gradient" if scene.sampled is None else f"groups sampled a step: {scene.sampled}, seed {scene.seed}"
        )
        steps = [*range(0, scene.steps, -(-scene.steps // _LINES)), scene.steps]
        course = [
            [str(step)] + [f"{values[step]:.3f}" for run in runs for values in (run.right, run.entropy, run.covered)]
            for step in steps
        ]
        shares = [
            [label, *(f"{p:.4f}" for p in (runs[0].probabilities[0, i], *(run.probabilities[-1, i] for run in runs)))]
            for i, label in enumerate(self.content()["modes"])
        ]
        header = ["step"] + [f"{name} {what}" for name in names for what in ("right", "entropy", "modes")]
        return (
            f"{scene.modes} right modes and a wrong one, groups of {scene.group_size}, "
            f"{self.result.scoring.smi} SMI, {gradient}.\n"
            f"right: probability of a right answer. entropy: of its mode, at most {log(scene.modes):.3f}. "
            "modes: right modes in a group, on average.\n\n"
            f"{table(header, course)}\n"
            f"{table(['mode', 'start', *names], shares)}\n"
            f"After {scene.steps} steps a group has {runs[0].covered[-1]:.1f} of the {scene.modes} right modes under "
            f"{names[0]} and {runs[1].covered[-1]:.1f} under {names[1]}, from {runs[0].covered[0]:.1f}.\n"
        )

    def figure(self) -> Figure:
        """What `--plot` draws: mode probabilities under both, and the entropy of the right modes."""
        from verl_dra.simulate.plots import policy_figure

        return policy_figure(self.result)
