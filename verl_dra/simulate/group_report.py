"""Scene `group` as text, as JSON and as a picture."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from verl_dra.simulate.group_scene import GroupResult
from verl_dra.terminal.tables import signed, table

if TYPE_CHECKING:
    from matplotlib.figure import Figure


@dataclass(frozen=True)
class GroupReport:
    """Ways to show the result of the scene."""

    result: GroupResult

    def content(self) -> dict[str, Any]:
        """What `--json` prints, but for the options."""
        scene, scores = self.result.scene, self.result.scores
        columns = {
            "completion": scene.labels,
            "kind": scene.kinds,
            "reward": scene.rewards().tolist(),
            "smi": scores.smi.tolist(),
            "adjusted_reward": scores.adjusted_rewards.tolist(),
            "grpo_advantage": scores.grpo.tolist(),
            "dra_advantage": scores.dra.tolist(),
        }
        return {
            "completions": [dict(zip(columns, row, strict=True)) for row in zip(*columns.values(), strict=True)],
            "sum": {"grpo_advantage": scores.grpo.sum().item(), "dra_advantage": scores.dra.sum().item()},
            "similarity": self.result.similarity.tolist(),
        }

    def text(self) -> str:
        """What the command prints."""
        content, scene, scoring = self.content(), self.result.scene, self.result.scoring
        rows = [
            [
                f"{row['completion']} {row['kind']}",
                f"{row['reward']:.2f}",
                f"{row['smi']:.4f}",
                f"{row['adjusted_reward']:.4f}",
                signed(row["grpo_advantage"]),
                signed(row["dra_advantage"]),
            ]
            for row in content["completions"]
        ]
        rows.append(["sum", "", "", "", *(signed(total) for total in content["sum"].values())])
        header = ["completion", "reward", "SMI", "adjusted", *scoring.names]
        deviation = f", {scene.std} standard deviation" if scoring.estimator == "grpo" else ""
        return (
            f"A group of {scene.group_size}, {scoring.smi} SMI, advantages by veRL{deviation}.\n\n"
            f"{table(header, rows)}\n{self.summary()}\n"
        )

    def summary(self) -> str:
        """What the numbers say, a line for each method."""
        scores, kinds = self.result.scores, self.result.scene.kinds
        lines = []
        for name, advantages in zip(
            self.result.scoring.names, (scores.grpo.tolist(), scores.dra.tolist()), strict=True
        ):
            of_kind = {kind: [a for a, k in zip(advantages, kinds, strict=True) if k == kind] for kind in kinds}
            means = ", ".join(f"{kind} {signed(sum(values) / len(values))}" for kind, values in of_kind.items())
            down = sum(value < 0 for kind, values in of_kind.items() if kind != "wrong" for value in values)
            lines.append(f"Mean under {name}: {means}; right answers pushed down: {down}.")
        return "\n".join(lines)

    def figure(self) -> Figure:
        """What `--plot` draws: bars of both advantages, and the cosines."""
        from verl_dra.simulate.plots import group_figure

        return group_figure(self.result)
