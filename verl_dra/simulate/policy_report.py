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
            "modes": self.result.scene.labels(),
            "max_entropy": log(self.result.scene.modes),
            "survival_accuracy": self.result.survival_accuracy,
        } | {
            name: {
                "probabilities": run.probabilities.tolist(),
                "right": run.right.tolist(),
                "entropy": run.entropy.tolist(),
                "modes_in_group": run.covered.tolist(),
                "log_ratio": run.log_ratio.tolist(),
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
            [str(step)]
            + [f"{values[step]:.3f}" for run in runs for values in (run.right, run.entropy, run.covered, run.log_ratio)]
            for step in steps
        ]
        header = ["step"] + [f"{name} {what}" for name in names for what in ("right", "entropy", "modes", "p1/p2")]
        modes = f"{scene.modes} right modes and a wrong one"
        if scene.accuracies is not None:
            modes = (
                f"{scene.modes} modes, right in {', '.join(f'{a:g}' for a in scene.accuracies)} of their completions"
            )
        return (
            f"{modes}, groups of {scene.group_size}, {self.result.scoring.smi} SMI, {gradient}.\n"
            f"right: probability of a right answer. entropy: of its mode, at most {log(scene.modes):.3f}. "
            "modes: modes in a group that can be right, on average.\n"
            "p1/p2: log of the ratio of the two commonest modes; its growth is the collapse that Theorem 4.1 of the "
            "paper is about (its text was not read).\n\n"
            f"{table(header, course)}\n"
            f"{self._shares()}\n"
            f"After {scene.steps} steps a group has {runs[0].covered[-1]:.1f} of the {scene.modes} right modes "
            f"under {names[0]} and {runs[1].covered[-1]:.1f} under {names[1]}, from {runs[0].covered[0]:.1f}.\n"
            f"{self._law()}"
        )

    def _shares(self) -> str:
        scene, runs = self.result.scene, (self.result.grpo, self.result.dra)
        accuracies = [] if scene.accuracies is None else [[f"{a:g}"] for a in scene.accuracies]
        shares = [
            [label, *more, *(f"{p:.4f}" for p in (scene.start()[i], *(run.probabilities[-1, i] for run in runs)))]
            for i, (label, more) in enumerate(zip(scene.labels(), accuracies or [[]] * (scene.modes + 1), strict=True))
        ]
        return table(["mode", *(["accuracy"] if accuracies else []), "start", *self.result.scoring.names], shares)

    def _law(self) -> str:
        """Which mode survives; empty where all are equally right."""
        scene, least = self.result.scene, self.result.survival_accuracy
        if scene.accuracies is None:
            return ""
        sides = [
            f"{label} {'survives' if a > least else 'dies'}"
            for label, a in zip(scene.labels()[1:], scene.accuracies[1:], strict=True)
        ]
        return (
            f"Under {self.result.scoring.names[1]} a rare mode grows from groups of mode 1 alone if its accuracy is "
            f"above {least:.3f}, {least / scene.accuracies[0]:.2f} times that of mode 1: {', '.join(sides)}.\n"
        )

    def figure(self) -> Figure:
        """What `--plot` draws: mode probabilities under both, the entropy of the right modes and log(p1 / p2)."""
        from verl_dra.simulate.plots import policy_figure

        return policy_figure(self.result)
