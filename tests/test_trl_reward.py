"""recipes/trl: a reward function of TRL's with DRA in it; TRL's own trainer runs it in `make test-trl`."""

from __future__ import annotations

import sys
from itertools import pairwise
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

import verl_dra
from verl_dra.embedding.ngram import NgramEncoder

sys.path.insert(0, str(Path(__file__).parents[1] / "recipes" / "trl"))
import dra_reward

ENCODER = NgramEncoder()
PROMPTS = ["p", "p", "p", "q", "q", "q"]
TEXTS = ["add both", "add both", "draw", "add both", "guess", "count"]
RAW = [1.0, 1.0, 1.0, 0.5, None, 1.0]


def raw_rewards(prompts: list[Any], completions: list[Any], gain: list[float], **_: Any) -> list[float | None]:
    """Takes a column, as TRL hands them on."""
    values = dict(zip(zip(PROMPTS, TEXTS, strict=True), RAW, strict=True))
    found = [values[prompt, dra_reward._text(text)] for prompt, text in zip(prompts, completions, strict=True)]
    return [None if value is None else value * g for value, g in zip(found, gain, strict=True)]


def expected() -> list[float | None]:
    there = [at for at, value in enumerate(RAW) if value is not None]
    rewards = [RAW[at] for at in there]
    found = verl_dra.dra_rewards([TEXTS[at] for at in there], rewards, [PROMPTS[at] for at in there], ENCODER)  # type: ignore[arg-type]
    of = dict(zip(there, found.tolist(), strict=True))
    return [of.get(at) for at in range(len(RAW))]


def test_rows_without_a_reward_are_in_no_group() -> None:
    adjusted = dra_reward.with_dra(raw_rewards, ENCODER)
    assert adjusted(prompts=PROMPTS, completions=TEXTS, gain=[1.0] * 6) == expected()
    assert expected()[4] is None
    assert adjusted.__name__ == "dra_raw_rewards"
    nothing = dra_reward.with_dra(lambda prompts, **_: [None] * len(prompts), ENCODER)
    assert nothing(prompts=PROMPTS, completions=TEXTS) == [None] * 6


def test_of_a_conversation_the_models_own_words_count() -> None:
    said = [
        [{"role": "assistant", "content": text}, {"role": "tool", "content": str(at)}] for at, text in enumerate(TEXTS)
    ]
    assert dra_reward.with_dra(raw_rewards, ENCODER)(prompts=PROMPTS, completions=said, gain=[1.0] * 6) == expected()


@pytest.mark.parametrize("rank", [0, 1, 2])
def test_a_group_on_several_processes_is_one(monkeypatch: pytest.MonkeyPatch, rank: int) -> None:
    """`torch.distributed` is a stand-in: what the other processes hold is what this function makes of their rows."""
    bounds = [0, 2, 5, 6]
    parts = [list(zip(PROMPTS, TEXTS, RAW, strict=True))[a:b] for a, b in pairwise(bounds)]

    def all_gather_object(into: list[Any], mine: list[Any]) -> None:
        into[:] = [[(f'"{prompt}"', text, reward) for prompt, text, reward in part] for part in parts]
        assert into[rank] == mine

    distributed = SimpleNamespace(
        is_available=lambda: True,
        is_initialized=lambda: True,
        get_world_size=lambda: 3,
        get_rank=lambda: rank,
        all_gather_object=all_gather_object,
    )
    monkeypatch.setattr(dra_reward, "distributed", distributed)
    prompts, texts, _ = zip(*parts[rank], strict=True)
    found = dra_reward.with_dra(raw_rewards, ENCODER)(prompts=prompts, completions=texts, gain=[1.0] * len(texts))
    assert found == expected()[bounds[rank] : bounds[rank + 1]]
