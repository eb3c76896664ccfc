"""recipes/trl in TRL's own GRPOTrainer: two steps of a tiny model, on one process and on two (`make test-trl`).

Not a part of CI: TRL is no dependency. Each process writes the rewards that the trainer got, and the texts that they
are of; the rewards must be those of whole groups, although a process holds half of each.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any

import numpy as np

TESTS = Path(__file__).parent
sys.path[:0] = [str(TESTS), str(TESTS / "stack"), str(TESTS.parent / "recipes" / "trl")]

GENERATIONS = 4
STEPS = 2


def train(folder: Path) -> None:
    """What each process runs."""
    from datasets import Dataset
    from dra_reward import with_dra
    from trl import GRPOConfig, GRPOTrainer

    from verl_dra.embedding.ngram import NgramEncoder

    seen = []

    def small_letters(prompts: list[str], completions: list[str], **_: Any) -> list[float]:
        return [sum(c.islower() for c in text) / max(len(text), 1) for text in completions]

    adjusted = with_dra(small_letters, NgramEncoder())

    def watched(prompts: list[str], completions: list[str], **columns: Any) -> list[float | None]:
        found = adjusted(prompts=prompts, completions=completions, **columns)
        raw = small_letters(prompts, completions)
        seen.append([list(row) for row in zip(prompts, completions, raw, found, strict=True)])
        return list(found)

    processes = int(os.environ.get("WORLD_SIZE", "1"))
    config = GRPOConfig(
        output_dir=str(folder / "out"),
        per_device_train_batch_size=GENERATIONS // processes,
        num_generations=GENERATIONS,
        max_completion_length=8,
        max_steps=STEPS,
        learning_rate=1e-5,
        report_to=[],
        use_cpu=True,
        save_strategy="no",
        logging_steps=1,
    )
    data = Dataset.from_dict({"prompt": [f"say {i}" for i in range(8)]})
    GRPOTrainer(model=str(folder / "model"), reward_funcs=watched, args=config, train_dataset=data).train()
    (folder / f"seen.{processes}.{os.environ.get('RANK', '0')}.json").write_text(json.dumps(seen))


def check(folder: Path, processes: int) -> None:
    """Hold what the trainer got against the formula."""
    import oracles

    from verl_dra.embedding import encode_all
    from verl_dra.embedding.ngram import NgramEncoder

    of_rank = [json.loads((folder / f"seen.{processes}.{rank}.json").read_text()) for rank in range(processes)]
    split = 0
    for parts in zip(*of_rank, strict=True):
        prompts, texts, raw, found = zip(*(row for part in parts for row in part), strict=True)
        groups = np.array(prompts)
        split += any(len(part) < GENERATIONS for part in parts)
        smi = oracles.graph_cut_smi(encode_all(NgramEncoder(), texts).numpy(), groups)
        expected = oracles.adjust(np.array(raw), oracles.weights(smi), groups)
        np.testing.assert_allclose(found, expected, atol=1e-5)
        assert all(np.sum(groups == prompt) == GENERATIONS for prompt in set(prompts))
    assert processes == 1 or split, "no group was on two processes"
    sys.stdout.write(f"{processes} processes: {len(of_rank[0])} batches have the rewards of whole groups\n")


def main() -> None:
    import toy

    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        toy.make(folder)
        for processes in (1, 2):
            launch = ["-m", "torch.distributed.run", f"--nproc_per_node={processes}"] if processes > 1 else []
            subprocess.run([sys.executable, *launch, __file__, name], check=True)
            check(folder, processes)


if __name__ == "__main__":
    train(Path(sys.argv[1])) if len(sys.argv) > 1 else main()
