"""What samples of a policy say of it: accuracy, locked pass@k, shares of ways, and entropy over ways and over words."""

from __future__ import annotations

import math
import statistics
from collections import Counter
from collections.abc import Sequence

import torch
from transformers import PreTrainedModel, PreTrainedTokenizerFast

from tiny_locks.loop import judge, sample
from tiny_locks.pretrain import prompt_tokens
from tiny_locks.task import UNKNOWN, WAYS, Question, key_of
from verl_dra.algorithm.coverage import pass_at_k

SAMPLES = 64
K = (1, 2, 4, 8, 16, 32, 64)
_BATCH = 512


def measure(
    model: PreTrainedModel,
    tokenizer: PreTrainedTokenizerFast,
    questions: Sequence[Question],
    lock: str,
    closed: str | None,
    seed: int,
    samples: int = SAMPLES,
) -> dict[str, float]:
    """Of `samples` completions a question at temperature 1.

    - `accuracy`: right answers; `reward`: those by a way that counts under the training's lock.
    - `locked/k`: pass@k where the question's key alone counts (lock A's test).
    - `share/WAY` of all completions, `accuracy/WAY` of those by it (left out where there are none).
    - `way_entropy`: of the shares of ways, in nats, at most log 4; `way_entropy_of_a_question`: the same within a
      question, its mean.
    - `word_entropy`: nats a completion that are left for its words once its way is known: the sum of its tokens'
      entropies less `way_entropy_of_a_question`.
    """
    device = model.device
    generator = torch.Generator(device).manual_seed(seed)
    asked = [question for question in questions for _ in range(samples)]
    ways: list[str | None] = []
    right: list[bool] = []
    reward: list[float] = []
    nats = 0.0
    for start in range(0, len(asked), _BATCH):
        some = asked[start : start + _BATCH]
        drawn = sample(model, prompt_tokens(tokenizer, some).to(device), generator)
        judged = judge(some, tokenizer.batch_decode(drawn.tokens, skip_special_tokens=True), lock, closed)
        ways += judged.ways
        right += [bool(r) for r in judged.right]
        reward += judged.reward.tolist()
        nats += float(drawn.entropy.sum())
    count = Counter(ways)
    opened = [ok and way == key_of(question) for ok, way, question in zip(right, ways, asked, strict=True)]
    groups = range(0, len(asked), samples)
    within = statistics.mean(entropy([*Counter(ways[at : at + samples]).values()]) for at in groups)
    of_way = {name: [ok for ok, way in zip(right, ways, strict=True) if way == name] for name in WAYS}
    return {
        "accuracy": statistics.mean(right),
        "reward": statistics.mean(reward),
        **{
            f"locked/{k}": statistics.mean(pass_at_k(samples, sum(opened[at : at + samples]), k) for at in groups)
            for k in K
            if k <= samples
        },
        **{f"share/{way or UNKNOWN}": count[way] / len(ways) for way in (*WAYS, None)},
        **{f"accuracy/{name}": statistics.mean(hits) for name, hits in of_way.items() if hits},
        "way_entropy": entropy([count[name] for name in WAYS]),
        "way_entropy_of_a_question": within,
        "word_entropy": nats / len(asked) - within,
    }


def entropy(counts: Sequence[float]) -> float:
    """Of the shares that counts are, in nats."""
    total = sum(counts)
    return -sum(c / total * math.log(c / total) for c in counts if c) if total else 0.0
