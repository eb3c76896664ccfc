"""The front page alone, from data to a report and a grid, cut down to a toy model on a CPU."""

from __future__ import annotations

import json
import re
import shlex
from pathlib import Path

import isolated
import pytest
import toy
from test_readmes import ROOT, commands, with_arguments

pytestmark = [pytest.mark.slow, pytest.mark.timeout(1200)]

PAGE = ROOT / "README.md"
SMALLER = [
    "+platform=cpu",
    "data.train_batch_size=4",
    "data.max_response_length=24",
    "actor_rollout_ref.actor.ppo_mini_batch_size=4",
    "actor_rollout_ref.rollout.max_model_len=248",
    "data.max_prompt_length=224",
    "trainer.n_gpus_per_node=1",
    "trainer.total_training_steps=1",
    "trainer.save_freq=-1",
    "trainer.val_before_train=False",
    "dra.record.every_n_steps=1",
]


def test_who_has_this_page_alone_gets_to_a_report(tmp_path: Path) -> None:
    toy.make(tmp_path)
    for split, rows in (("train", 8), ("test", 4)):
        lines = [{"question": f"What is {i} + {i}?", "answer": f"It is so.\n#### {2 * i}"} for i in range(rows)]
        (tmp_path / f"{split}.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    published = ["--input", str(tmp_path / "train.jsonl"), str(tmp_path / "test.jsonl")]
    smaller = [*SMALLER, f"actor_rollout_ref.model.path={tmp_path}/model"]

    shown = {}
    for text, *more in (
        ("verl-dra prepare-data", *published),
        ("verl-dra doctor", *smaller),
        *((f"verl-dra train .*{run}", *smaller) for run in ("/dra", "/grpo")),
        ("verl-dra report",),
        ("verl-dra sweep", *smaller),
    ):
        shown[text] = _run(text, more, tmp_path)

    assert {path.name for path in (tmp_path / "DATA").glob("*.parquet")} == {"train.parquet", "test.parquet"}
    assert "0 fail" in shown["verl-dra doctor"]
    of_runs = {name: (tmp_path / "outputs" / "gsm8k" / name / "metrics.jsonl").read_text() for name in ("dra", "grpo")}
    assert "dra/effective_paths" in of_runs["dra"]
    assert "dra/" not in of_runs["grpo"]
    assert "critic/score/mean" in of_runs["grpo"]
    report = (tmp_path / "report.html").read_text()
    assert "dra" in report
    assert "grpo" in report
    assert "1  dra.smi=shuffled" in shown["verl-dra sweep"]
    assert "not submitted: sbatch" in shown["verl-dra sweep"]


def _run(text: str, more: list[str], folder: Path) -> str:
    """What the page's command that begins with `text` says, with these arguments more."""
    (command,) = [with_arguments(c) for c in commands() if c.readme == PAGE and re.match(text, c.text)]
    log = folder / "log.txt"
    words = [*shlex.split(command.replace("$PWD", str(folder))), *more]
    done = isolated.run(words, log=log, cwd=folder, environment={"VERL_PLATFORM": "cpu"}, timeout_s=800)
    output = log.read_text(errors="replace")
    assert done.returncode == 0, f"{command}: {output[-3000:]}"
    return output
