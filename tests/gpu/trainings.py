"""Short trainings of a random model on this machine's GPUs: what a step waits for scores, what it costs, and whether
the advantages are the formula's.

Its completions end by chance, so that their lengths are uneven (geometric, cut off at --response tokens).
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
import subprocess
import sys
import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import oracles
import torch
import toy
import transformers
from sentence_transformers import SentenceTransformer
from timing import show
from transformers import AutoTokenizer

from verl_dra.embedding.model_path import BUNDLED_MODEL, model_path

SIZES = {
    "toy": {},
    "0.3b": {"hidden_size": 1024, "num_hidden_layers": 20, "num_attention_heads": 8, "intermediate_size": 4864},
    "1.4b": {"hidden_size": 1536, "num_hidden_layers": 30, "num_attention_heads": 12, "intermediate_size": 8960},
}
PLACEMENTS = ("none", "cpu", "colocated", "dedicated")
# bfloat16 moves SMIs by a few thousandths, and GRPO blows that up in groups of equal rewards.
TOLERANCE = 0.05


def main() -> None:
    parser = argparse.ArgumentParser(prog="python tests/gpu train", description=__doc__)
    parser.add_argument("--size", choices=SIZES, default="0.3b", help="parameters of the random policy")
    parser.add_argument(
        "--placements", nargs="+", choices=PLACEMENTS, help="of the scorers; none: a run without DRA (default: all)"
    )
    parser.add_argument("--steps", type=int, default=3)
    parser.add_argument("--prompts", type=int, default=16, help="of a step, 8 completions each")
    parser.add_argument("--response", type=int, default=512, help="tokens of a completion at most")
    parser.add_argument("--out", type=Path, help="where logs stay (default: a new temporary folder)")
    parser.add_argument("overrides", nargs="*", help="of Hydra, for every training")
    options = parser.parse_args()
    transformers.utils.logging.disable_progress_bar()
    out = options.out or Path(tempfile.mkdtemp(prefix="verl_dra_gpu_"))
    out.mkdir(parents=True, exist_ok=True)
    gpus = torch.cuda.device_count()
    placements = options.placements or [name for name in PLACEMENTS if name != "dedicated" or gpus > 1]
    make_model(out, options.size)
    rows = []
    for placement in placements:
        sys.stdout.write(f"training with scorers: {placement}; its log is {out / placement}.log\n")
        sys.stdout.flush()
        train(out, placement, options)
        rows.append(row_of(out, placement))
    where = torch.cuda.get_device_name() if gpus else "CPU"
    show(
        f"{options.steps} steps of {options.prompts} prompts x 8 completions of at most {options.response} tokens, "
        f"random policy of {options.size}, {gpus} x {where}, {os.cpu_count()} CPU cores; steps one by one",
        ["scorers", "s/step", "generation s", "waited for scores s", "of a step", "fetched", "max |A - float64|"],
        [cells for cells, _ in rows],
    )
    if wrong := [cells[0] for cells, right in rows if not right]:
        sys.exit(f"advantages are further than {TOLERANCE} from the formula's with: {', '.join(wrong)}")


def make_model(out: Path, size: str) -> None:
    """The policy and its data."""
    shape = SIZES[size]
    if shape:
        torch.set_default_dtype(torch.bfloat16)
        shape = {**shape, "num_key_value_heads": 2, "max_position_embeddings": 32768}
    with torch.device("cuda" if torch.cuda.is_available() else "cpu"):
        toy.make(out, **shape)
    torch.set_default_dtype(torch.float32)


def train(out: Path, placement: str, options: argparse.Namespace) -> None:
    """One training; what each update was made of goes to a folder, its metrics beside."""
    dump = out / placement
    dump.mkdir()
    scorers = ["dra.enabled=False"] if placement == "none" else [f"dra.scorer.placement={placement}"]
    command = [
        sys.executable,
        str(Path(__file__).with_name("..") / "stack" / "train_and_dump.py"),
        *(verl_on_a_gpu(placement) if torch.cuda.is_available() else ["+platform=cpu"]),
        f"data.train_files={out}/train.parquet",
        f"data.val_files={out}/val.parquet",
        f"data.train_batch_size={options.prompts}",
        "data.seed=0",
        "data.max_prompt_length=64",
        f"data.max_response_length={options.response}",
        f"actor_rollout_ref.model.path={out}/model",
        f"actor_rollout_ref.actor.ppo_mini_batch_size={options.prompts}",
        "actor_rollout_ref.actor.ppo_micro_batch_size_per_gpu=16",
        "actor_rollout_ref.rollout.log_prob_micro_batch_size_per_gpu=32",
        "actor_rollout_ref.rollout.n=8",
        f"reward.custom_reward_function.path={toy.__file__}",
        "trainer.logger=[console,file]",
        "trainer.val_before_train=False",
        "trainer.save_freq=-1",
        "trainer.test_freq=-1",
        f"trainer.total_training_steps={options.steps}",
        "trainer.resume_mode=disable",
        f"hydra.run.dir={out}/hydra/{placement}",
        f"trainer.default_local_dir={out}/checkpoints",
        *scorers,
        *options.overrides,
    ]
    environment = {"DUMP": str(dump), "VERL_FILE_LOGGER_PATH": str(out / f"{placement}.jsonl")}
    if not torch.cuda.is_available():
        environment["VERL_PLATFORM"] = "cpu"
    with (out / f"{placement}.log").open("wb") as log:
        done = subprocess.run(
            command, stdout=log, stderr=subprocess.STDOUT, cwd=out, env={**os.environ, **environment}, check=False
        )
    if done.returncode:
        sys.stderr.write((out / f"{placement}.log").read_text(errors="replace")[-5000:])
        sys.exit(f"the training with scorers {placement} failed; its log is {out / placement}.log")


def verl_on_a_gpu(placement: str) -> list[str]:
    """Settings with which veRL and vLLM need no package beyond what veRL's extra `vllm` installs."""
    gpus = torch.cuda.device_count() - (placement == "dedicated")
    return [
        f"trainer.n_gpus_per_node={gpus}",
        "actor_rollout_ref.model.use_remove_padding=False",
        "+actor_rollout_ref.model.override_config.attn_implementation=sdpa",
        "actor_rollout_ref.actor.strategy=fsdp2",
        "actor_rollout_ref.actor.use_torch_compile=False",
        "actor_rollout_ref.actor.fsdp_config.strategy=fsdp2",
        "actor_rollout_ref.actor.fsdp_config.use_torch_compile=False",
        "actor_rollout_ref.ref.fsdp_config.strategy=fsdp2",
        "actor_rollout_ref.ref.fsdp_config.use_torch_compile=False",
        "actor_rollout_ref.rollout.tensor_model_parallel_size=1",
        "actor_rollout_ref.rollout.enforce_eager=True",
        "actor_rollout_ref.rollout.load_format=auto",
        "actor_rollout_ref.rollout.gpu_memory_utilization=0.4",
        "actor_rollout_ref.rollout.agent.num_workers=2",
        "reward.num_workers=2",
        "transfer_queue.backend.SimpleStorage.num_data_storage_units=2",
        "data.dataloader_num_workers=0",
    ]


def row_of(out: Path, placement: str) -> tuple[list[str], bool]:
    """A training's row, and whether its advantages are right."""
    steps = [json.loads(line)["data"] for line in (out / f"{placement}.jsonl").read_text().splitlines()]
    files = sorted((out / placement).iterdir(), key=lambda path: int(path.stem))
    error = max(furthest([torch.load(file) for file in files], out, dra=placement != "none"))
    of = {
        name: [step.get(f"timing_s/{name}", 0.0) for step in steps if "timing_s/step" in step]
        for name in ("step", "gen", "dra_wait")
    }
    share = statistics.median(wait / step for wait, step in zip(of["dra_wait"], of["step"], strict=True))
    fetched = sum(step.get("dra/missing_rows", 0.0) for step in steps)
    cells = [
        placement,
        listed(of["step"], 1),
        listed(of["gen"], 1),
        "" if placement == "none" else listed(of["dra_wait"], 4),
        "" if placement == "none" else f"{share:.3%}",
        "" if placement == "none" else f"{fetched:.0f}",
        f"{error:.4f}",
    ]
    return cells, error <= TOLERANCE


def listed(values: Sequence[float], digits: int) -> str:
    return " ".join(f"{value:.{digits}f}" for value in values)


def furthest(updates: Sequence[dict[str, Any]], out: Path, dra: bool) -> list[float]:
    """For each update, how far its advantages are from a float64 loop over its decoded texts and raw rewards."""
    tokenizer = AutoTokenizer.from_pretrained(out / "model")
    encoder = SentenceTransformer(model_path(BUNDLED_MODEL))
    found = []
    for update in updates:
        rewards = np.array([sum(scores) for scores in update["rm_scores"]], dtype=np.float64)
        group = np.array([key.rsplit("_", 2)[0] for key in update["keys"]])
        if dra:
            texts = [tokenizer.decode(ids, skip_special_tokens=True) for ids in update["responses"]]
            vectors = np.stack([by_windows(encoder, text) for text in texts])
            rewards = oracles.adjust(rewards, oracles.weights(oracles.graph_cut_smi(vectors, group)), group)
        expected = oracles.grpo(rewards, group)
        found.append(
            max(
                float(np.abs(np.array(of_row) - expected[row] * np.array(mask)).max())
                for row, (of_row, mask) in enumerate(zip(update["advantages"], update["response_mask"], strict=True))
                if not update["padding"][row]
            )
        )
    return found


def by_windows(encoder: SentenceTransformer, text: str) -> np.ndarray:
    """The mean of a text's windows, weighted by tokens, each embedded by itself in float32."""
    ids = encoder.tokenizer(text, add_special_tokens=False)["input_ids"]
    total = np.zeros(encoder.get_embedding_dimension() or 0)
    length = encoder.max_seq_length - 2
    for start in range(0, len(ids), length):
        window = ids[start : start + length]
        ends = encoder.tokenizer.cls_token_id, encoder.tokenizer.sep_token_id
        row = torch.tensor([[ends[0], *window, ends[1]]], device=encoder.device)
        with torch.inference_mode():
            of_window = encoder({"input_ids": row, "attention_mask": torch.ones_like(row)})
        total += oracles.unit(of_window["sentence_embedding"].double().cpu().numpy())[0] * len(window)
    return total


if __name__ == "__main__":
    main()
