"""A random model of a few tensors, a toy data set and a reward that random text can earn."""

from __future__ import annotations

import random
from pathlib import Path
from typing import Any

import pandas
import torch
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers
from transformers import PreTrainedTokenizerFast, Qwen2Config, Qwen2ForCausalLM, Qwen2ForSequenceClassification

SPECIAL = ["<|endoftext|>", "<|im_start|>", "<|im_end|>"]
TEMPLATE = (
    "{% for m in messages %}<|im_start|>{{ m['role'] }}\n{{ m['content'] }}<|im_end|>\n{% endfor %}"
    "{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
)
WORDS = ["add", "carry", "count", "double", "halve", "number", "round", "start", "take", "the", "then", "times"]

# vLLM's CPU attention needs head dimensions of at least 32.
TINY = {
    "hidden_size": 64,
    "intermediate_size": 128,
    "num_hidden_layers": 2,
    "num_attention_heads": 2,
    "num_key_value_heads": 2,
    "max_position_embeddings": 256,
}


def make(folder: Path, **shape: Any) -> None:
    """Write `model/`, `train.parquet` and `val.parquet` into `folder`; `shape` is of `Qwen2Config`."""
    rng = random.Random(0)
    torch.manual_seed(0)
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    corpus = [" ".join(rng.choices(WORDS, k=8)) for _ in range(500)]
    tokenizer.train_from_iterator(
        corpus, trainers.BpeTrainer(vocab_size=340, initial_alphabet=alphabet, special_tokens=SPECIAL)
    )
    fast = PreTrainedTokenizerFast(tokenizer_object=tokenizer, eos_token=SPECIAL[2], pad_token=SPECIAL[0])
    fast.chat_template = TEMPLATE
    fast.save_pretrained(folder / "model")
    Qwen2ForCausalLM(_config(fast, tie_word_embeddings=True, **shape)).save_pretrained(folder / "model")
    rows = [
        {
            "data_source": "toy",
            "prompt": [{"role": "user", "content": f"say {rng.randint(0, 9)} {rng.randint(0, 9)}"}],
            "ability": "toy",
            "reward_model": {"style": "rule", "ground_truth": ""},
            "extra_info": {"index": i},
        }
        for i in range(64)
    ]
    pandas.DataFrame(rows).to_parquet(folder / "train.parquet")
    pandas.DataFrame(rows[:4]).to_parquet(folder / "val.parquet")


def make_reward_model(folder: Path) -> None:
    """Write `reward_model/`, which finds a random number in a chat, beside the `model/` that is there."""
    tokenizer = PreTrainedTokenizerFast.from_pretrained(folder / "model")
    tokenizer.save_pretrained(folder / "reward_model")
    config = _config(tokenizer, num_labels=1, initializer_range=0.3)
    Qwen2ForSequenceClassification(config).save_pretrained(folder / "reward_model")


def compute_score(data_source: str, solution_str: str, ground_truth: str, **_: Any) -> float:
    """The share of small letters, less a half: of both signs, and different for most random texts."""
    return sum(c.islower() for c in solution_str) / max(len(solution_str), 1) - 0.5


def _config(tokenizer: PreTrainedTokenizerFast, **more: Any) -> Qwen2Config:
    return Qwen2Config(
        vocab_size=len(tokenizer),  # vLLM masks logits beyond the tokenizer, FSDP does not
        eos_token_id=tokenizer.eos_token_id,
        pad_token_id=tokenizer.pad_token_id,
        bos_token_id=None,
        **{**TINY, **more},
    )
