"""Texts that are decoded together are those that are decoded one by one, whatever the tokenizer."""

from __future__ import annotations

import copy
from typing import Any

import pytest
import torch
from tokenizers import Tokenizer, decoders
from tokenizers.models import WordPiece
from trajectories import byte_tokenizer
from transformers import PreTrainedTokenizerFast

from verl_dra.training.text import completion_text, completion_texts


def cleaning_tokenizer() -> PreTrainedTokenizerFast:
    """One of words, after whose decoding transformers removes spaces before full stops."""
    words = {"[PAD]": 0, "[UNK]": 1, "so": 2, "it": 3, "is": 4, "four": 5, ".": 6}
    tokenizer = Tokenizer(WordPiece(words, unk_token="[UNK]"))
    tokenizer.decoder = decoders.WordPiece(cleanup=False)
    return PreTrainedTokenizerFast(
        tokenizer_object=tokenizer, pad_token="[PAD]", unk_token="[UNK]", clean_up_tokenization_spaces=True
    )


class ShoutingTokenizer(PreTrainedTokenizerFast):
    """A user's own: decodes in capitals."""

    def decode(self, *args: Any, **kwargs: Any) -> Any:
        return super().decode(*args, **kwargs).upper()


class CharacterTokenizer:
    """None of transformers'."""

    def decode(self, ids: torch.Tensor, skip_special_tokens: bool) -> str:
        return "".join(chr(96 + i) for i in ids.tolist() if i)


def shouting_tokenizer() -> Any:
    tokenizer: Any = copy.deepcopy(byte_tokenizer())
    tokenizer.__class__ = ShoutingTokenizer
    return tokenizer


@pytest.mark.parametrize(
    ("tokenizer", "seen"),
    [
        (byte_tokenizer(), None),
        (cleaning_tokenizer(), "four."),
        (shouting_tokenizer(), "A"),
        (CharacterTokenizer(), "a"),
    ],
    ids=lambda value: type(value).__name__,
)
def test_texts_together_are_texts_one_by_one(tokenizer: Any, seen: str | None) -> None:
    ids = [[5, 6], [1, 0, 2, 3, 4, 5, 6, 1, 0], [], [0], *([[67, 67, 42, 200, 199]] if seen is None else [])]
    responses = [torch.tensor(row, dtype=torch.int64) for row in ids]
    if seen == "A":
        responses.append(torch.tensor(tokenizer("a b")["input_ids"]))
    texts = completion_texts(tokenizer, responses)
    assert texts == [completion_text(tokenizer, response) for response in responses]
    assert seen is None or any(seen in text for text in texts)
    assert texts[2] == texts[3] == ""


def test_a_fast_tokenizers_texts_are_decoded_in_one_call(monkeypatch: pytest.MonkeyPatch) -> None:
    tokenizer = byte_tokenizer()

    def one_by_one(*args: Any, **kwargs: Any) -> Any:
        raise AssertionError("decoded alone")

    monkeypatch.setattr(tokenizer, "_decode", one_by_one)
    rows = [torch.tensor(tokenizer(text)["input_ids"]) for text in ("so it is four", "", "🧮")]
    assert completion_texts(tokenizer, rows) == ["so it is four", "", "🧮"]
