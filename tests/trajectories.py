"""Finished trajectories as veRL's agent loop hands them to a reward worker, and a tokenizer to read them."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
from tensordict import TensorDict
from tokenizers import Tokenizer, decoders, pre_tokenizers
from tokenizers.models import BPE
from torch.nn.utils.rnn import pad_sequence
from transformers import PreTrainedTokenizerFast
from verl import DataProto


def byte_tokenizer() -> PreTrainedTokenizerFast:
    """A token a byte, and the special tokens <pad> (0) and <eos> (1)."""
    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    vocabulary = {"<pad>": 0, "<eos>": 1, **{symbol: i + 2 for i, symbol in enumerate(alphabet)}}
    tokenizer = Tokenizer(BPE(vocabulary, merges=[]))
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    return PreTrainedTokenizerFast(tokenizer_object=tokenizer, pad_token="<pad>", eos_token="<eos>")


def trajectory(
    tokenizer: PreTrainedTokenizerFast, outputs: Sequence[tuple[str, str]], uid: str = "a", session_id: int = 0
) -> DataProto:
    """One trajectory of `outputs` (prompt, response), built as `AgentLoopWorker._compute_score` does (veRL 0.9.1)."""
    ids = [[torch.tensor(tokenizer(text)["input_ids"], dtype=torch.int64) for text in output] for output in outputs]
    sequences = [torch.cat(pair) for pair in ids]
    columns = {
        "prompts": [prompt for prompt, _ in ids],
        "responses": [response for _, response in ids],
        "attention_mask": [torch.ones_like(sequence) for sequence in sequences],
        "input_ids": sequences,
        "position_ids": [torch.arange(len(sequence)) for sequence in sequences],
    }
    sample: dict[str, Any] = {
        "uid": uid,
        "session_id": session_id,
        "data_source": "test",
        "reward_model": {"ground_truth": "42", "style": "rule"},
        "extra_info": {"index": 7},
    }
    n = len(outputs)
    return DataProto(
        batch=TensorDict(
            {name: pad_sequence(rows, batch_first=True, padding_value=0) for name, rows in columns.items()},
            batch_size=n,
        ),
        non_tensor_batch={
            **{name: np.array([value] * n) for name, value in sample.items()},
            "__num_turns__": np.array([2] * n),
            "tool_extra_fields": np.array([{} for _ in outputs], dtype=object),
            "prompt_len": np.array([len(prompt) for prompt, _ in ids]),
            "response_len": np.array([len(response) for _, response in ids]),
        },
    )
