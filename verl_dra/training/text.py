"""The text of a completion, the same wherever it is decoded, and the part of it whose diversity counts."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor
from transformers import PreTrainedTokenizerFast

from verl_dra.rewards import thinking

_BEGINS = "<think>"


def columns_of(which: str) -> list[str]:
    """The columns of a batch that `diversity_texts` is given, in its order."""
    return ["responses", "response_mask"] if which == "assistant" else ["responses"]


def diversity_texts(
    which: str, tokenizer: Any, responses: Sequence[Tensor], masks: Sequence[Tensor] | None = None
) -> list[str]:
    """The texts of n completions whose diversity counts.

    Args:
        which: `dra.text`.
        tokenizer: the policy's.
        responses: n times token ids [length].
        masks: n times [length], not 0 where the policy wrote the token; of `assistant` alone.
    """
    if which == "response":
        return completion_texts(tokenizer, responses)
    if which == "assistant":
        assert masks is not None
        return _own_texts(tokenizer, responses, masks)
    parts = [thinking.parted(text) for text in _texts_with_mark(tokenizer, responses)]
    if which == "after_thinking":
        return [rest.strip() for _, rest in parts]
    # The mark that opens it is no thinking.
    return [(before or "").strip().removeprefix(_BEGINS).strip() for before, _ in parts]


def end_thinking(tokenizer: Any, responses: Sequence[Tensor]) -> int:
    """How many of n completions end a thinking."""
    return sum(thinking.ENDS in text for text in _texts_with_mark(tokenizer, responses))


def completion_text(tokenizer: Any, response: Tensor) -> str:
    """Decode the token ids [length] of a completion, special tokens left out, as veRL's reward managers do."""
    text: str = tokenizer.decode(response, skip_special_tokens=True)
    return text


def completion_texts(tokenizer: Any, responses: Sequence[Tensor]) -> list[str]:
    """`completion_text` of several; those of a fast tokenizer on all cores, while other threads run."""
    kind = type(tokenizer)
    plain = isinstance(tokenizer, PreTrainedTokenizerFast) and all(
        getattr(kind, name) is getattr(PreTrainedTokenizerFast, name) for name in ("decode", "_decode")
    )
    # Only its batch call does; transformers decodes one by one, and then may clean up.
    if plain and len(responses) > 1 and not tokenizer.clean_up_tokenization_spaces:
        ids = [response.tolist() for response in responses]
        texts: list[str] = tokenizer.backend_tokenizer.decode_batch(ids, skip_special_tokens=True)
        return texts
    return [completion_text(tokenizer, response) for response in responses]


def _own_texts(tokenizer: Any, responses: Sequence[Tensor], masks: Sequence[Tensor]) -> list[str]:
    """Texts of the policy's own tokens; what it wrote before a reply of a tool and after is decoded apart."""
    turns = [_own_turns(response, mask.bool()) for response, mask in zip(responses, masks, strict=True)]
    return ["\n".join(filter(None, texts)) for texts in _decoded_apart(tokenizer, turns)]


def _own_turns(response: Tensor, own: Tensor) -> Sequence[Tensor]:
    if not bool(own.any()):
        return []
    changes = torch.nonzero(own[1:] != own[:-1]).flatten() + 1
    return torch.tensor_split(response, changes.tolist())[0 if own[0] else 1 :: 2]


def _texts_with_mark(tokenizer: Any, responses: Sequence[Tensor]) -> list[str]:
    """`completion_texts`, with `</think>` in its place also where it is a special token."""
    end = _special_end(tokenizer)
    if end is None:
        return completion_texts(tokenizer, responses)
    parts = [_between(response, end) for response in responses]
    return [thinking.ENDS.join(texts) for texts in _decoded_apart(tokenizer, parts)]


def _special_end(tokenizer: Any) -> int | None:
    """The id of `</think>` where it is one token and decoding leaves it out; not so of Qwen3, but of others."""
    end = getattr(tokenizer, "convert_tokens_to_ids", lambda _: None)(thinking.ENDS)
    if end is None or tokenizer.decode([end]) != thinking.ENDS:
        return None
    return None if tokenizer.decode([end], skip_special_tokens=True) else end


def _between(response: Tensor, mark: int) -> list[Tensor]:
    at = torch.nonzero(response == mark).flatten().tolist()
    return [response[first:end] for first, end in zip([0, *(i + 1 for i in at)], [*at, len(response)], strict=True)]


def _decoded_apart(tokenizer: Any, parts: Sequence[Sequence[Tensor]]) -> list[list[str]]:
    texts = iter(completion_texts(tokenizer, [part for of_one in parts for part in of_one]))
    return [[next(texts) for _ in of_one] for of_one in parts]
