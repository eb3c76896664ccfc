"""How encoders see the ways, as `verl-dra calibrate` measures it: into results.json, before any training."""

from __future__ import annotations

import json
import random
import tempfile
from pathlib import Path
from typing import Any

from tiny_locks.task import WAYS, questions, sample_along
from verl_dra.calibrate.encoders import DEFAULT, see
from verl_dra.calibrate.pairs import read_labelled
from verl_dra.calibrate.report import labelled_content

GROUP_SIZE = 8


def wording() -> dict[str, Any]:
    """What `verl-dra calibrate --json` says of worked answers, without its quantiles."""
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "groups.jsonl"
        path.write_text("".join(json.dumps(row) + "\n" for row in groups()))
        labelled = read_labelled(path, skip_bad=False)
    content = labelled_content(labelled, [see(spec, labelled.pairs) for spec in DEFAULT], GROUP_SIZE)
    for encoder in content["encoders"]:
        encoder["mean_cosine"] = {of["pairs_of"]: of["mean"] for of in encoder.pop("pairs_of")}
    return content


def groups(count: int = 24, seed: int = 0) -> list[dict[str, list[str]]]:
    """Rows as `verl-dra calibrate` reads them: of a question each, two answers a way, with slips."""
    rng = random.Random(seed)
    ways = [way for way in WAYS for _ in range(2)]
    return [
        {"texts": [sample_along(question, way, rng) for way in ways], "ways": ways}
        for question in rng.sample(list(questions()), count)
    ]


def table(content: dict[str, Any]) -> str:
    """Markdown of `wording`."""
    lines = [
        "| encoder | AUC | cosine within ways | across | law, DRA-GRPO | law, DRA-Dr.GRPO | cluster_cosine |",
        "|---" * 7 + "|",
    ]
    for of in content["encoders"]:
        within, across = of["mean_cosine"].values()
        law, cut = of["survival_ratio"], of["cluster_cosine"]
        lines.append(
            f"| {of['encoder']} | {of['auc']:.3f} | {within:.2f} | {across:.2f} | {law['grpo']:.2f} "
            f"| {law['dr_grpo']:.2f} | {'none' if cut is None else f'{cut:.3f}'} |"
        )
    return "\n".join(lines)
