"""Random models for the servers of partitions: a classifier of pairs, and a chat model that can judge by a schema."""

from __future__ import annotations

from pathlib import Path

import torch
import toy
from tokenizers import Tokenizer, models, pre_tokenizers, processors, trainers
from transformers import (
    AutoTokenizer,
    BertConfig,
    BertForSequenceClassification,
    PreTrainedTokenizerFast,
    Qwen2ForCausalLM,
)

SPECIAL = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]"]
PAIR_TOKENS = 128


def make_pair_classifier(folder: Path) -> None:
    """A cross-encoder with one label, as vLLM's `/score` wants it, of at most `PAIR_TOKENS` tokens a pair.

    It has no type of a token, so that `/classify`, which gives it none, must find the same of the two texts in one.
    """
    torch.manual_seed(0)
    tokenizer = Tokenizer(models.WordPiece(unk_token="[UNK]"))
    tokenizer.pre_tokenizer = pre_tokenizers.BertPreTokenizer()
    tokenizer.train_from_iterator(
        [" ".join(toy.WORDS), "0 1 2 3 4 5 6 7 8 9 + - * = , ."],
        trainers.WordPieceTrainer(vocab_size=200, special_tokens=SPECIAL),
    )
    tokenizer.post_processor = processors.TemplateProcessing(
        single="[CLS] $A [SEP]",
        pair="[CLS] $A [SEP] $B:1 [SEP]:1",
        special_tokens=[(token, tokenizer.token_to_id(token)) for token in ("[CLS]", "[SEP]")],
    )
    names = {f"{token[1:-1].lower()}_token": token for token in SPECIAL}
    fast = PreTrainedTokenizerFast(tokenizer_object=tokenizer, model_max_length=PAIR_TOKENS, **names)
    fast.save_pretrained(folder)
    shape = {name: toy.TINY[name] for name in toy.TINY if name != "num_key_value_heads"}
    config = BertConfig(
        vocab_size=len(fast),
        num_labels=1,
        initializer_range=0.5,
        **{**shape, "max_position_embeddings": PAIR_TOKENS},
    )
    model = BertForSequenceClassification(config)
    model.bert.embeddings.token_type_embeddings.weight.data.zero_()
    model.save_pretrained(folder)


def make_judge(folder: Path) -> Path:
    """The folder of a chat model that ends a string where a schema lets it, and says anything else."""
    toy.make(folder, max_position_embeddings=4096)
    model = Qwen2ForCausalLM.from_pretrained(folder / "model")
    quote = AutoTokenizer.from_pretrained(folder / "model").convert_tokens_to_ids('"')
    embeddings = model.model.embed_tokens.weight.data
    head = torch.randn_like(embeddings)
    # A direction that all that it reads has, and that speaks for the quotation mark.
    embeddings[:, 0], head[:, 0], head[quote, 0] = 3.0, 0.0, 3.0
    model.config.tie_word_embeddings = False
    model.lm_head.weight = torch.nn.Parameter(head)
    model.save_pretrained(folder / "model")
    return folder / "model"
