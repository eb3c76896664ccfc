"""Texts that are decoded together are those that are decoded one by one, whatever the tokenizer; and the parts of them
whose diversity counts."""

from __future__ import annotations

import copy
from itertools import groupby
from typing import Any

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from tokenizers import AddedToken, Tokenizer, decoders
from tokenizers.models import WordPiece
from trajectories import byte_tokenizer
from transformers import PreTrainedTokenizerFast

from verl_dra.rewards.notation import written_answer
from verl_dra.training.text import columns_of, completion_text, completion_texts, diversity_texts, end_thinking


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


@pytest.mark.parametrize("which", ["response", "assistant", "after_thinking", "thinking"])
def test_one_text_alone_is_what_it_is_among_others(which: str) -> None:
    tokenizer = thinking_tokenizer("special")
    texts = ["<think>so</think>\n\nit is 4<eos>", "", "4", "</think>", "<think>never ends"]
    responses = [ids_of(tokenizer, text) for text in texts]
    masks = [torch.ones(len(response), dtype=torch.int64) for response in responses]
    given = [responses, masks][: len(columns_of(which))]
    together = diversity_texts(which, tokenizer, *given)
    alone = [diversity_texts(which, tokenizer, *([column[i]] for column in given)) for i in range(len(texts))]
    assert [[text] for text in together] == alone


# The policy's own tokens.

TURNS = st.lists(st.tuples(st.text(max_size=4), st.text(min_size=1, max_size=4)), min_size=1, max_size=4)
BYTES = byte_tokenizer()


def with_replies(turns: list[tuple[str, str]], replies: list[str]) -> tuple[torch.Tensor, torch.Tensor]:
    """Token ids and mask of a completion: what the policy wrote in each turn, and a tool's reply after each."""
    ids: list[int] = []
    mask: list[int] = []
    for own, reply in zip((own for own, _ in turns), replies, strict=True):
        for text, is_own in ((f"{own}<eos>", 1), (reply, 0)):
            tokens = BYTES(text)["input_ids"]
            ids += tokens
            mask += [is_own] * len(tokens)
    return torch.tensor(ids, dtype=torch.int64), torch.tensor(mask, dtype=torch.int64)


@given(TURNS, st.data())
def test_what_tools_reply_changes_nothing_of_the_policys_own_text(turns: list[tuple[str, str]], data: Any) -> None:
    replies = [reply for _, reply in turns]
    others = [data.draw(st.text(min_size=1, max_size=9)) for _ in turns]
    completions = [with_replies(turns, replies), with_replies(turns, others)]
    responses, masks = [list(column) for column in zip(*completions, strict=True)]
    texts = diversity_texts("assistant", BYTES, responses, masks)
    assert texts[0] == texts[1] == "\n".join(own for own, _ in turns if own)
    if replies != others:
        assert len(set(diversity_texts("response", BYTES, responses))) == 2


@given(st.lists(st.tuples(st.integers(2, 257), st.booleans()), max_size=12))
def test_the_policys_own_text_is_that_of_its_turns_whatever_the_mask(tokens: list[tuple[int, bool]]) -> None:
    """Also where a reply of a tool parts the bytes of a character."""
    turns = [[token for token, _ in run] for own, run in groupby(tokens, lambda pair: pair[1]) if own]
    expected = "\n".join(filter(None, (BYTES.decode(turn, skip_special_tokens=True) for turn in turns)))
    response = torch.tensor([token for token, _ in tokens], dtype=torch.int64)
    mask = torch.tensor([int(own) for _, own in tokens], dtype=torch.int64)
    assert diversity_texts("assistant", BYTES, [response, response[:0]], [mask, mask[:0]]) == [expected, ""]


@pytest.mark.parametrize(
    "tokenizer",
    [byte_tokenizer(), shouting_tokenizer(), CharacterTokenizer()],
    ids=lambda value: type(value).__name__,
)
def test_without_tools_the_policys_own_text_is_all(tokenizer: Any) -> None:
    responses = [torch.tensor(row) for row in ([5, 6, 7], [3])]
    masks = [torch.ones(len(response), dtype=torch.int64) for response in responses]
    assert diversity_texts("assistant", tokenizer, responses, masks) == completion_texts(tokenizer, responses)


# The thinking.

KINDS = ("plain", "added", "special")


def thinking_tokenizer(kind: str) -> PreTrainedTokenizerFast:
    """One in whose vocabulary `<think>` and `</think>` are no tokens, tokens as any, or special ones, which decoding
    leaves out."""
    tokenizer = byte_tokenizer()
    if kind != "plain":
        special = kind == "special"
        marks: Any = [AddedToken(mark, special=special, normalized=False) for mark in ("<think>", "</think>")]
        tokenizer.add_tokens(marks, special_tokens=special)
    return tokenizer


def ids_of(tokenizer: PreTrainedTokenizerFast, text: str) -> torch.Tensor:
    return torch.tensor(tokenizer(text)["input_ids"], dtype=torch.int64)


TOKENIZERS = {kind: thinking_tokenizer(kind) for kind in KINDS}


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize(
    ("text", "thought", "rest"),
    [
        ("<think>\n2 + 2\n</think>\n\nIt is 4.<eos>", "2 + 2", "It is 4."),
        ("2 + 2</think>4", "2 + 2", "4"),  # what begins the thinking is often the prompt's
        ("It is 4.", "", "It is 4."),
        ("so</think>no, </think>4", "so</think>no,", "4"),
        ("<think>\n\n</think>\n\n4", "", "4"),
        ("2 + 2</think>", "2 + 2", ""),
        ("2 + 2</think><eos>", "2 + 2", ""),
        ("</think>4", "", "4"),
        ("", "", ""),
    ],
)
def test_thinking_and_what_follows_are_the_same_however_the_mark_is_a_token(
    kind: str, text: str, thought: str, rest: str
) -> None:
    tokenizer = TOKENIZERS[kind]
    responses = [ids_of(tokenizer, text)]
    assert diversity_texts("thinking", tokenizer, responses) == [thought]
    assert diversity_texts("after_thinking", tokenizer, responses) == [rest]
    assert end_thinking(tokenizer, [*responses, ids_of(tokenizer, "4")]) == int("</think>" in text)


def test_a_special_mark_and_one_that_is_spelt_out_both_end_the_thinking() -> None:
    tokenizer = TOKENIZERS["special"]
    spelt = torch.cat([ids_of(tokenizer, "a</think>b"), ids_of(TOKENIZERS["plain"], "</think>c")])
    assert completion_text(tokenizer, spelt) == "ab</think>c"
    assert diversity_texts("thinking", tokenizer, [spelt]) == ["a</think>b"]
    assert diversity_texts("after_thinking", tokenizer, [spelt]) == ["c"]


@given(st.lists(st.sampled_from(["</think>", "<think>", "It is 4.", "\\boxed{5}", "#### 6", "\n", " 7"]), max_size=8))
def test_what_follows_the_thinking_holds_the_answer_that_is_judged(pieces: list[str]) -> None:
    text = "".join(pieces)
    for kind in ("plain", "added"):
        (rest,) = diversity_texts("after_thinking", TOKENIZERS[kind], [ids_of(TOKENIZERS[kind], text)])
        assert text.rstrip().endswith(rest)
        assert "</think>" not in rest
        assert written_answer(rest) == written_answer(text)


def test_a_tokenizer_of_ones_own_needs_to_decode_alone() -> None:
    response = torch.tensor([1, 2])
    assert diversity_texts("after_thinking", CharacterTokenizer(), [response]) == ["ab"]
    assert diversity_texts("thinking", CharacterTokenizer(), [response]) == [""]
