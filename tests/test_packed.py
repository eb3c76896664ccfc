"""Packed windows against each window alone, in tiny models of every class that encoders are made of."""

from __future__ import annotations

import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import transformers
from sentence_transformers import SentenceTransformer
from sentence_transformers.sentence_transformer.modules import Pooling, Transformer
from tokenizers import Tokenizer
from tokenizers.models import WordLevel
from tokenizers.pre_tokenizers import WhitespaceSplit
from tokenizers.processors import TemplateProcessing
from transformers import AttentionInterface

from verl_dra.embedding import EmbeddingConfig, build_encoder
from verl_dra.embedding.packed import NAME, CannotPackError, PackedModel, attention
from verl_dra.embedding.padded import PaddedModel

WORDS = 60
PAD, CLS, SEP = 1, 0, 2
SIZE = 150
LENGTHS = (1, 2, 3, 100, 5, 1, 40, 2, 3, 3, 70)

pytestmark = pytest.mark.usefixtures("one_thread")

BERT = {"vocab_size": 64, "hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 4, "intermediate_size": 64}
GROUPED = {**BERT, "num_key_value_heads": 2, "head_dim": 8, "max_position_embeddings": 256}
SLIDING = {"sliding_window": 16, "layer_types": ["sliding_attention", "full_attention"]}
PACKED: dict[str, tuple[str, dict[str, Any]]] = {
    "BERT": ("Bert", BERT),
    "DistilBERT": ("DistilBert", {"vocab_size": 64, "dim": 32, "n_layers": 2, "n_heads": 4, "hidden_dim": 64}),
    "ELECTRA": ("Electra", {**BERT, "embedding_size": 16}),
    "ALBERT": ("Albert", {**BERT, "embedding_size": 16}),
    "ERNIE": ("Ernie", BERT),
    "RoBERTa": ("Roberta", {**BERT, "pad_token_id": PAD}),
    "XLM-R": ("XLMRoberta", {**BERT, "pad_token_id": PAD}),
    "CamemBERT": ("Camembert", {**BERT, "pad_token_id": PAD}),
    "ModernBERT": ("ModernBert", {**BERT, "num_hidden_layers": 3, "local_attention": 16, "reference_compile": False}),
    "NomicBERT": ("NomicBert", BERT),
    "EuroBERT": ("EuroBert", GROUPED),
    "Qwen2": ("Qwen2", GROUPED),
    "Qwen3": ("Qwen3", GROUPED),
    "Llama": ("Llama", GROUPED),
    "Mistral": ("Mistral", {**GROUPED, "sliding_window": 16}),
    "Phi3": ("Phi3", {**GROUPED, "sliding_window": 16}),
    "Gemma": ("Gemma", GROUPED),
    "Gemma3": ("Gemma3Text", {**GROUPED, **SLIDING, "query_pre_attn_scalar": 8}),
    "EmbeddingGemma": (
        "Gemma3Text",
        {**GROUPED, **SLIDING, "query_pre_attn_scalar": 8, "use_bidirectional_attention": True},
    ),
}
PADDED: dict[str, tuple[str, dict[str, Any]]] = {
    "MPNet": ("MPNet", {**BERT, "pad_token_id": PAD}),
    "T5": ("T5", {"vocab_size": 64, "d_model": 32, "d_kv": 8, "d_ff": 64, "num_layers": 2, "num_heads": 4}),
    "DeBERTa": ("DebertaV2", {**BERT, "relative_attention": True, "pos_att_type": ["c2p", "p2c"]}),
    "MobileBERT": ("MobileBert", {**BERT, "embedding_size": 32, "intra_bottleneck_size": 32}),
    "Gemma2": ("Gemma2", {**GROUPED, "query_pre_attn_scalar": 8}),
    "Lfm2": ("Lfm2", {**GROUPED, "layer_types": ["conv", "full_attention"]}),
    "FNet": ("FNet", BERT),
    "RoFormer": ("RoFormer", BERT),
    "XLNet": ("XLNet", {"vocab_size": 64, "d_model": 32, "n_layer": 2, "n_head": 4, "d_inner": 64}),
}

Build = Callable[..., SentenceTransformer]


@pytest.fixture
def build(tmp_path: Path) -> Build:
    """A model of random weights, which differ more than those that classes begin training with."""

    def make(name: str, settings: dict[str, Any], pooling: str = "mean", spread: float = 0.3) -> SentenceTransformer:
        torch.manual_seed(0)
        special = {"bos_token_id": CLS, "eos_token_id": SEP, "cls_token_id": CLS, "sep_token_id": SEP}
        config = getattr(transformers, f"{name}Config")(**{"pad_token_id": PAD, **special, **settings})
        model_class = "T5EncoderModel" if name == "T5" else f"{name}Model"
        model = getattr(transformers, model_class)(config).eval()
        with torch.no_grad():
            for of, parameter in model.named_parameters():
                scales = "norm" in of.lower() and of.endswith("weight")
                parameter.copy_(torch.randn_like(parameter) * (0.1 if parameter.ndim == 1 else spread) + scales)
        model.save_pretrained(tmp_path)
        tokenizer().save_pretrained(tmp_path)
        transformer = Transformer(str(tmp_path))
        return SentenceTransformer(
            modules=[transformer, Pooling(transformer.get_embedding_dimension(), pooling)]
        ).eval()

    return make


def tokenizer() -> transformers.PreTrainedTokenizerFast:
    vocabulary = {"<s>": CLS, "<pad>": PAD, "</s>": SEP, "<unk>": 3} | {f"w{i}": 4 + i for i in range(WORDS)}
    backend = Tokenizer(WordLevel(vocabulary, unk_token="<unk>"))
    backend.pre_tokenizer = WhitespaceSplit()
    backend.post_processor = TemplateProcessing(single="<s> $A </s>", special_tokens=[("<s>", CLS), ("</s>", SEP)])
    return transformers.PreTrainedTokenizerFast(
        tokenizer_object=backend,
        unk_token="<unk>",
        pad_token="<pad>",
        cls_token="<s>",
        sep_token="</s>",
        bos_token="<s>",
        eos_token="</s>",
        model_max_length=SIZE + 2,
    )


def windows(lengths: tuple[int, ...] = LENGTHS) -> list[np.ndarray]:
    numbers = np.random.default_rng(1)
    return [np.array([CLS, *numbers.integers(3, 4 + WORDS, n), SEP], dtype=np.int32) for n in lengths]


def together(model: PackedModel | PaddedModel, parts: list[np.ndarray]) -> torch.Tensor:
    with torch.inference_mode():
        return model(np.concatenate(parts), np.array([len(part) for part in parts])).float().cpu()


def alone(model: SentenceTransformer, parts: list[np.ndarray]) -> torch.Tensor:
    """Each window as sentence-transformers itself runs it."""
    vectors = []
    for part in parts:
        row = torch.from_numpy(part).long()[None].to(model.device)
        with torch.inference_mode():
            features = model({"input_ids": row, "attention_mask": torch.ones_like(row)})
        vectors.append(features["sentence_embedding"].float().cpu())
    return torch.cat(vectors)


def pack(model: SentenceTransformer) -> PackedModel:
    return PackedModel(model, [CLS], [SEP], SIZE)


def close(ours: torch.Tensor, expected: torch.Tensor) -> None:
    scale = torch.pdist(expected).median()
    assert scale > 1e-3
    torch.testing.assert_close(ours / scale, expected / scale, rtol=0, atol=1e-5)


@pytest.mark.parametrize("name", PACKED)
def test_packed_windows_have_the_vectors_of_each_alone(build: Build, name: str) -> None:
    model = build(*PACKED[name])
    expected = alone(model, windows())
    close(together(pack(model), windows()), expected)


@pytest.mark.parametrize("gate", [True, False])
@pytest.mark.parametrize("name", PADDED)
def test_a_model_that_would_mix_windows_is_found_out_and_left_as_it_was(
    build: Build, monkeypatch: pytest.MonkeyPatch, name: str, gate: bool
) -> None:
    if not gate:  # the check alone finds it as well
        monkeypatch.setattr("verl_dra.embedding.packed._gate", lambda model: None)
    model = build(*PADDED[name])
    expected = alone(model, windows())
    with pytest.raises(CannotPackError):
        pack(model)
    if name not in ("FNet", "MobileBERT"):  # which mix texts with their padding as well
        order = sorted(range(len(LENGTHS)), key=lambda i: -LENGTHS[i])
        close(together(PaddedModel(model), [windows()[i] for i in order]), expected[order])


def test_positions_that_begin_at_0_are_found_out_where_some_are_kept_for_padding(
    build: Build, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("verl_dra.embedding.packed._first_position", lambda model: None)
    pack(build(*PACKED["BERT"]))
    with pytest.raises(CannotPackError, match="packed texts differ from texts alone by"):
        pack(build(*PACKED["RoBERTa"]))


@pytest.mark.parametrize(
    ("name", "wrong"),
    [
        ("ModernBERT", {"sliding_window": 10}),
        ("ModernBERT", {"sliding_window": 8}),
        ("Mistral", {"sliding_window": 17}),
        ("EmbeddingGemma", {"is_causal": True}),
        ("Qwen3", {"is_causal": False}),
        ("BERT", {"scaling": 0.3}),
    ],
)
def test_attention_that_is_a_little_wrong_is_found_out(build: Build, name: str, wrong: dict[str, Any]) -> None:
    def other(*arguments: Any, **settings: Any) -> Any:
        of_window = {k: v for k, v in wrong.items() if k != "sliding_window" or settings.get(k)}
        return attention(*arguments, **{**settings, **of_window})

    model = build(*PACKED[name])
    AttentionInterface.register(NAME, other)
    try:
        with pytest.raises(CannotPackError, match="packed texts differ from texts alone by"):
            pack(model)
    finally:
        AttentionInterface.register(NAME, attention)
    pack(model)


def test_a_literal_padding_token_counts_as_in_the_model_alone(build: Build) -> None:
    parts = windows()
    parts[3][[5, 6, 50]] = PAD
    for name in ("XLM-R", "BERT", "Qwen3"):
        model = build(*PACKED[name])
        expected = alone(model, parts)
        close(together(pack(model), parts), expected)


@pytest.mark.parametrize("pooling", ["cls", "max", "mean", "mean_sqrt_len_tokens", "weightedmean", "lasttoken"])
def test_all_poolings(build: Build, pooling: str) -> None:
    model = build(*PACKED["BERT"], pooling=pooling)
    expected = alone(model, windows())
    close(together(pack(model), windows()), expected)


def test_a_pooling_that_knows_nothing_of_packed_windows_is_found_out(
    build: Build, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As that of sentence-transformers 5."""

    def first_token(self: Pooling, features: dict[str, Any]) -> dict[str, Any]:
        return {**features, "sentence_embedding": features["token_embeddings"][:, 0]}

    monkeypatch.setattr(Pooling, "forward", first_token)
    with pytest.raises(CannotPackError, match="9 packed texts have 1 vectors"):
        pack(build(*PACKED["BERT"], pooling="cls"))


@pytest.mark.parametrize(
    ("name", "says"),
    [
        ("MPNet", r"windows of 152 tokens padded \(mpnet is not made for other attention .*\), attention eager"),
        ("Gemma2", r"windows of 152 tokens padded \(attention is asked for softcap\), attention sdpa"),
        ("XLM-R", "windows of 152 tokens packed, batches"),
    ],
)
def test_the_encoder_says_which_of_the_two_and_gives_the_vectors_of_each_text_alone(
    build: Build, tmp_path: Path, name: str, says: str
) -> None:
    model = build(*{**PACKED, **PADDED}[name])
    model.save(str(tmp_path / "saved"))
    encoder = build_encoder(EmbeddingConfig(model=str(tmp_path / "saved"), dtype="float32", batch_tokens=400))
    assert re.search(says, str(encoder))
    texts = [" ".join(f"w{(7 * i + j) % WORDS}" for j in range(n)) for i, n in enumerate(LENGTHS)]
    encoded = encoder.encode([*texts, "", "w1 <pad> w2 unheard-of"])
    normal = torch.nn.functional.normalize(
        alone(model, [np.array(model.tokenizer(text)["input_ids"]) for text in texts])
    )
    torch.testing.assert_close(encoded.vectors[: len(texts)], normal, rtol=0, atol=1e-5)
    assert not encoded.vectors[len(texts)].any()
    assert encoded.tokens.tolist() == [*LENGTHS, 0, 4]
    assert encoded.unknown_tokens.tolist() == [0] * (len(LENGTHS) + 1) + [1]


def test_padded_batches_that_reach_packed_attention_are_refused(build: Build) -> None:
    model = build(*PACKED["BERT"])
    pack(model)
    with pytest.raises(CannotPackError, match="not told where windows end"):
        alone(model, windows())


def test_a_check_leaves_half_precision_as_it_was(build: Build) -> None:
    model = build(*PACKED["ModernBERT"]).bfloat16()
    state = {name: tensor.clone() for name, tensor in [*model.named_parameters(), *model.named_buffers()]}
    pack(model)
    for name, tensor in [*model.named_parameters(), *model.named_buffers()]:
        assert tensor.dtype == state[name].dtype
        assert torch.equal(tensor, state[name])


@pytest.mark.parametrize("name", ["BERT", "ModernBERT", "Qwen3", "EmbeddingGemma"])
def test_cuda_packs_in_half_precision(build: Build, name: str) -> None:
    if not torch.cuda.is_available():
        pytest.skip("no GPU")
    model = build(*PACKED[name], spread=0.1).bfloat16().cuda()
    order = sorted(range(len(LENGTHS)), key=lambda i: -LENGTHS[i])
    parts = [windows()[i] for i in order]
    padded = together(PaddedModel(model), parts)
    packed = pack(model)
    ours = together(packed, parts)
    # bfloat16, and few dimensions.
    assert torch.nn.functional.cosine_similarity(ours - ours.mean(0), padded - padded.mean(0)).min() > 0.98


def test_cuda_vectors_of_packed_windows_do_not_depend_on_their_order(build: Build) -> None:
    if not torch.cuda.is_available():
        pytest.skip("no GPU")
    model = build(*PACKED["ModernBERT"], pooling="cls").bfloat16().cuda()
    packed = pack(model)
    assert torch.equal(together(packed, windows()), together(packed, windows()[::-1]).flip(0))


def test_cuda_float32_is_padded(build: Build) -> None:
    if not torch.cuda.is_available():
        pytest.skip("no GPU")
    with pytest.raises(CannotPackError, match="on a GPU attention over packed windows has no float32"):
        pack(build(*PACKED["BERT"]).cuda())
