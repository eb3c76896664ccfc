"""The default encoder and the scorer with it against `SentenceTransformer.encode`, new texts in every round.

`python tests/benchmarks/encode.py --model FOLDER --parts` measures another model, and the parts of the encoder alone.
"""

from __future__ import annotations

import argparse
import glob
import itertools
import json
import os
import shutil
import statistics
import sys
import tempfile
import time
from collections.abc import Callable, Sequence
from itertools import chain, pairwise
from pathlib import Path
from typing import Any

import numpy as np
import torch
import transformers
from sentence_transformers import SentenceTransformer
from timing import show
from torch import Tensor

from verl_dra.embedding import EmbeddingConfig, Encoder, build_encoder
from verl_dra.embedding.model_path import model_path
from verl_dra.embedding.padded import PaddedModel
from verl_dra.embedding.sentence_transformer import SentenceTransformerEncoder
from verl_dra.scorer.messages import Session
from verl_dra.scorer.scorer import Scorer

GROUP = 8
CHARACTERS, SHORTEST, LONGEST = 2400, 80, 16000
ROUNDS = 3
WARM = 64
DEVICE = "cuda" if torch.cuda.is_available() else "cpu"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--model", action="append", help="folder of a sentence-transformers model")
    parser.add_argument("--texts", type=int, help="texts of a round")
    parser.add_argument("--parts", action="store_true", help="the parts of the encoder, one after the other")
    options = parser.parse_args(sys.argv[1:] if __name__ == "__main__" else [])
    where = torch.cuda.get_device_name() if DEVICE == "cuda" else f"CPU, {torch.get_num_threads()} threads"
    show(
        "Machine",
        ["device", "cores", "torch", "transformers"],
        [[where, str(os.cpu_count()), torch.__version__, transformers.__version__]],
    )
    with tempfile.TemporaryDirectory() as folder:
        models = options.model or [EmbeddingConfig.model]
        if DEVICE == "cuda" and not options.model:
            models.append(_modernbert(Path(folder)))
        for model in models:
            texts = options.texts or (64 if DEVICE == "cpu" else 2048 if model == EmbeddingConfig.model else 1024)
            if options.parts:
                _parts(model, texts)
            else:
                _table(model, texts)


def _table(model: str, n: int) -> None:
    """Tokens a second of each way, special ones not counted."""
    new_texts = Texts()
    direct = SentenceTransformer(model_path(model), device=DEVICE)
    encoders = {mode: _built(model, long_text=mode) for mode in ("chunk", "head")}
    chunk = encoders["chunk"]
    padded = _built(model)
    padded._model[0].auto_model.set_attn_implementation("sdpa")
    padded._batch = PaddedModel(padded._model)
    no_time = _built(model)
    no_time._batch = TakesNoTime(no_time._batch, no_time._dimension)
    scored, scored_in_no_time = _scoring(chunk), _scoring(no_time)
    few = n if DEVICE == "cpu" else n // 8

    rows: dict[str, tuple[int, Callable[[list[str]], Callable[[], object]]]] = {
        "encode, as it is (head)": (few, lambda t: lambda: direct.encode(t, show_progress_bar=False)),
        "encode of all windows": (few, lambda t: _encode_windows(direct, chunk, t)),
        "ours, head": (n, lambda t: lambda: encoders["head"].encode(t)),
        "ours": (n, lambda t: lambda: chunk.encode(t)),
        "scorer": (n, lambda t: lambda: scored(t)),
        "scorer, a fifth copies": (n, lambda t: lambda: scored(_with_copies(t))),
        "forward alone, packed": (n, lambda t: _forward(chunk, t)),
        "forward alone, padded": (n, lambda t: _forward(padded, t)),
        "scorer, a model that takes no time": (n, lambda t: lambda: scored_in_no_time(t)),
    }
    rates: dict[str, list[tuple[float, float]]] = {name: [] for name in rows}
    for timed in range(ROUNDS + 1):
        for name, (count, prepared) in rows.items():
            texts = new_texts(count if timed else min(count, WARM))
            work = prepared(texts)
            tokens = _tokens(chunk, texts, head="head" in name)
            _wait()
            start, cpu = time.perf_counter(), time.process_time()
            work()
            _wait()
            if timed:
                rates[name].append((tokens / (time.perf_counter() - start), tokens / (time.process_time() - cpu)))
    median = {name: [statistics.median(column) for column in zip(*of, strict=True)] for name, of in rates.items()}
    base = {True: median["encode, as it is (head)"], False: median["encode of all windows"]}
    show(
        f"{chunk}; rounds of {n} new texts of 684 tokens in the median; medians of {ROUNDS}",
        ["what", "tokens/s", "against encode", "tokens/CPU second", "against encode", "tokens/s of all rounds"],
        [
            [
                name,
                f"{rate:,.0f}",
                f"{rate / base['head' in name][0]:.2f}",
                f"{of_cpu:,.0f}",
                f"{of_cpu / base['head' in name][1]:.2f}",
                " ".join(f"{each:,.0f}" for each, _ in rates[name]),
            ]
            for name, (rate, of_cpu) in median.items()
        ],
    )


def _parts(model: str, n: int) -> None:
    """Seconds that each part of the encoder takes alone, of new texts."""
    encoder = _built(model)
    new_texts = Texts()
    rows = []
    for number in range(ROUNDS + 1):
        texts = new_texts(n)
        start = [time.perf_counter()]
        encodings = encoder._tokenizer.encode_batch_fast(texts, add_special_tokens=False)
        start.append(time.perf_counter())
        counts = np.fromiter(map(len, encodings), dtype=np.int64, count=n)
        ids = np.fromiter(chain.from_iterable(e.ids for e in encodings), dtype=np.int32, count=int(counts.sum()))
        start.append(time.perf_counter())
        windows = encoder._cutter.cut(ids, counts)
        start.append(time.perf_counter())
        with torch.inference_mode():
            vectors = encoder._embed(windows)[0]
        start.append(time.perf_counter())
        vectors.cpu()
        start.append(time.perf_counter())
        encoder.encode(new_texts(n))
        start.append(time.perf_counter())
        rows.append([str(number), f"{len(ids):,}", *(f"{b - a:.4f}" for a, b in pairwise(start))])
    header = ["round", "tokens", "tokenise", "ids to arrays", "to windows", "forward sent", "forward done", "encode"]
    show(f"Seconds of the parts: {encoder}", header, rows)


class Texts:
    """Pieces of the code of installed packages: the same in every run, never the same twice in one."""

    def __init__(self) -> None:
        folders = [Path(module.__file__ or "").parent for module in (torch, transformers)]
        files = sorted(chain.from_iterable(glob.glob(f"{folder}/**/*.py", recursive=True) for folder in folders))
        self._corpus = "\n".join(Path(file).read_text(errors="replace") for file in files[::3])
        self._numbers = np.random.default_rng(0)

    def __call__(self, n: int) -> list[str]:
        lengths = np.clip(CHARACTERS * self._numbers.lognormal(0, 0.8, n), SHORTEST, LONGEST).astype(int)
        starts = self._numbers.integers(len(self._corpus) - LONGEST, size=n)
        return [
            self._corpus[start : start + length]
            for start, length in zip(starts.tolist(), lengths.tolist(), strict=True)
        ]


class TakesNoTime:
    """In the place of a model: batches as its, vectors of ones."""

    def __init__(self, batch: Any, dimension: int) -> None:
        self.fitting, self.cost, self._dimension = batch.fitting, batch.cost, dimension

    def __call__(self, ids: np.ndarray, lengths: np.ndarray) -> Tensor:
        return torch.ones(len(lengths), self._dimension)


def _built(model: str, **settings: Any) -> SentenceTransformerEncoder:
    encoder = build_encoder(EmbeddingConfig(model=model, device=DEVICE, **settings))
    assert isinstance(encoder, SentenceTransformerEncoder)
    return encoder


def _tokens(encoder: SentenceTransformerEncoder, texts: Sequence[str], head: bool) -> int:
    """Those that are embedded."""
    counts = encoder._windows(texts, 0).tokens
    return int(np.minimum(counts, encoder._cutter.size).sum() if head else counts.sum())


def _encode_windows(
    direct: SentenceTransformer, encoder: SentenceTransformerEncoder, texts: Sequence[str]
) -> Callable[[], object]:
    """What there is to do for someone who wants all windows of `encode`: cut texts by their characters first."""
    counts = encoder._windows(texts, 0).tokens
    parts = np.maximum(-(-counts // encoder._cutter.size), 1).tolist()
    cut = [
        text[i * len(text) // n : (i + 1) * len(text) // n]
        for text, n in zip(texts, parts, strict=True)
        for i in range(n)
    ]
    return lambda: direct.encode(cut, show_progress_bar=False)


def _forward(encoder: SentenceTransformerEncoder, texts: Sequence[str]) -> Callable[[], object]:
    windows = encoder._windows(texts, 0).windows

    @torch.inference_mode()
    def forward() -> None:
        encoder._embed(windows)[0].cpu()

    return forward


def _with_copies(texts: Sequence[str]) -> list[str]:
    """A fifth are equal to an earlier one of their group."""
    return [texts[i - i % GROUP] if i % 5 == 4 and i % GROUP else text for i, text in enumerate(texts)]


def _scoring(encoder: Encoder) -> Callable[[Sequence[str]], None]:
    """Texts through one scorer, which knows from earlier ones how much its encoder takes at a time."""
    scorer = Scorer(encoder, max_rows=2**20)
    rounds = itertools.count()

    def score(texts: Sequence[str]) -> None:
        number = next(rounds)
        named = {Session(f"{number} {i // GROUP}", i % GROUP): text for i, text in enumerate(texts)}
        scorer.submit(named.items())
        assert (scorer.collect(list(named), {}, 600).index >= 0).all()

    return score


def _wait() -> None:
    if DEVICE == "cuda":
        torch.cuda.synchronize()


def _modernbert(folder: Path) -> str:
    """A model of ModernBERT-base's shape, windows of 2,048, random weights and MiniLM's tokenizer."""
    shutil.copytree(
        model_path(EmbeddingConfig.model), folder, dirs_exist_ok=True, ignore=shutil.ignore_patterns("*.safetensors")
    )
    torch.manual_seed(0)
    config = transformers.ModernBertConfig(
        vocab_size=30522,
        max_position_embeddings=2048,
        **{"pad_token_id": 0, "bos_token_id": 101, "eos_token_id": 102, "cls_token_id": 101, "sep_token_id": 102},
    )
    with torch.device(DEVICE):
        transformers.AutoModel.from_config(config).save_pretrained(folder)
    for name, values in {
        "sentence_bert_config.json": {"max_seq_length": 2048},
        "tokenizer_config.json": {"model_max_length": 2048},
        "1_Pooling/config.json": {"word_embedding_dimension": 768, "embedding_dimension": 768},
    }.items():
        found = json.loads((folder / name).read_text())
        known = {
            key: value for key, value in values.items() if name.startswith(("sentence", "tokenizer")) or key in found
        }
        (folder / name).write_text(json.dumps({**found, **known}))
    return str(folder)


if __name__ == "__main__":
    main()
