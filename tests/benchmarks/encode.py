"""The scorer with its default encoder against `SentenceTransformer.encode` on texts as long as reasoning traces."""

from __future__ import annotations

import random
import statistics
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
import torch
from sentence_transformers import SentenceTransformer
from timing import medians, show

from verl_dra.embedding import EmbeddingConfig, Encoder, build_encoder
from verl_dra.embedding.encoder import model_path
from verl_dra.scorer.messages import Session
from verl_dra.scorer.scorer import Scorer

GROUP = 8
MEDIAN, LONGEST, DUPLICATES = 600, 4000, 0.2
TRACE = """
first we subtract three from both sides of the equation and then divide by two so that x equals seven which is not a
prime number wait let me check this again the sum of the angles in a triangle is one hundred eighty degrees hence the
area must be half of base times height therefore the answer is
"""


def main() -> None:
    device = "cuda" if torch.cuda.is_available() else "cpu"
    direct = SentenceTransformer(model_path(EmbeddingConfig.model), device=device)
    texts = _traces(128 if device == "cpu" else 8192, direct)
    lengths = [len(direct.tokenizer(text, add_special_tokens=False)["input_ids"]) for text in texts]
    window = direct.max_seq_length - 2
    seen = {"head": sum(min(length, window) for length in lengths), "chunk": sum(lengths)}
    windows = [part for text, n in zip(texts, lengths, strict=True) for part in _cut(text, -(-n // window))]
    configs = {
        (mode, dtype): build_encoder(EmbeddingConfig(device=device, long_text=mode, dtype=dtype))
        for mode in seen
        for dtype in ("float32", "auto")
    }
    work: dict[str, Callable[[], object]] = {
        "encode, as it is (head)": lambda: direct.encode(texts, show_progress_bar=False),
        "encode of all windows (chunk)": lambda: direct.encode(windows, show_progress_bar=False),
    }
    for (mode, dtype), encoder in configs.items():
        work[f"scorer, {mode}, {dtype}"] = lambda encoder=encoder: _score(encoder, texts)  # type: ignore[misc]
    time = medians(work, seconds=0, most=5)
    baseline = {"head": time["encode, as it is (head)"], "chunk": time["encode of all windows (chunk)"]}
    where = torch.cuda.get_device_name() if device == "cuda" else f"CPU, {torch.get_num_threads()} threads"
    show(
        f"{len(texts)} texts of {statistics.median(lengths):.0f} tokens in the median, {max(lengths)} at most, "
        f"{1 - len(set(texts)) / len(texts):.0%} duplicates, all-MiniLM-L6-v2 on {where}; medians of 5",
        ["what", "texts/s", "tokens/s", "against encode"],
        [
            [
                name,
                f"{len(texts) / seconds:.1f}",
                f"{seen[mode] / seconds:,.0f}",
                f"{baseline[mode] / seconds:.2f}",
            ]
            for name, seconds in time.items()
            for mode in seen
            if mode in name
        ],
    )
    show("Encoders", ["setting", "which"], [[", ".join(name), str(encoder)] for name, encoder in configs.items()])
    if device == "cuda":
        _arithmetic(direct, seen["chunk"] * len(set(texts)) / len(texts) / time["scorer, chunk, auto"])


def _traces(n: int, model: SentenceTransformer) -> list[str]:
    """Texts whose lengths are log-normal, about a fifth of them equal to an earlier one of their group."""
    rng = random.Random(0)
    numbers = np.random.default_rng(0)
    texts: list[str] = []
    for i in range(n):
        if rng.random() < DUPLICATES and i % GROUP:
            texts.append(rng.choice(texts[i - i % GROUP :]))
            continue
        words = int(np.clip(MEDIAN * numbers.lognormal(0, 0.8), 20, LONGEST))
        texts.append(" ".join(rng.choices(TRACE.split(), k=words)))
    return texts


def _cut(text: str, parts: int) -> list[str]:
    words = text.split()
    return [" ".join(words[i * len(words) // parts : (i + 1) * len(words) // parts]) for i in range(parts)]


def _score(encoder: Encoder, texts: Sequence[str]) -> None:
    scorer = Scorer(encoder, max_rows=2**20)
    named = {Session(str(i // GROUP), i % GROUP): text for i, text in enumerate(texts)}
    scorer.submit(named.items())
    assert (scorer.collect(list(named), {}, 600).index >= 0).all()


def _arithmetic(model: SentenceTransformer, tokens_per_s: float) -> None:
    """The share of what a large bfloat16 product reaches on the device."""
    transformer: Any = model[0]
    config = transformer.auto_model.config
    layers = sum(p.numel() for n, p in transformer.auto_model.named_parameters() if "embeddings" not in n)
    flops = 2 * layers + 4 * config.num_hidden_layers * model.max_seq_length * config.hidden_size
    a = torch.randn(8192, 8192, device="cuda", dtype=torch.bfloat16)

    def product() -> None:
        a @ a
        torch.cuda.synchronize()

    peak = 2 * 8192**3 / medians({"product": product})["product"]
    show(
        "Arithmetic",
        ["FLOPs a token", "reached TFLOP/s", "product TFLOP/s", "share"],
        [
            [
                f"{flops / 1e6:.1f} M",
                f"{flops * tokens_per_s / 1e12:.1f}",
                f"{peak / 1e12:.0f}",
                f"{flops * tokens_per_s / peak:.0%}",
            ]
        ],
    )


if __name__ == "__main__":
    main()
