"""The starting policy: a byte-level BPE tokenizer and a small Qwen2 model that has seen the mixture of paths."""

from __future__ import annotations

import json
import math
import random
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass

import torch
from tokenizers import Regex as TokenizerRegex
from tokenizers import Tokenizer, decoders, models, normalizers, pre_tokenizers, trainers
from torch import Tensor
from transformers import GenerationConfig, PreTrainedTokenizerBase, Qwen2Config, Qwen2ForCausalLM, Qwen2Tokenizer
from transformers.models.qwen2.tokenization_qwen2 import PRETOKENIZE_REGEX

from tiny_paths.task import STRATEGIES, Question, render, sample_solution

PAD, START, END = "<|endoftext|>", "<|im_start|>", "<|im_end|>"

CHAT_TEMPLATE = (
    "{% for message in messages %}"
    "<|im_start|>{{ message['role'] }}\n{{ message['content'] }}<|im_end|>\n"
    "{% endfor %}"
    "{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
)


@dataclass(frozen=True)
class PretrainSettings:
    """Sizes and schedule. Attention heads have 32 dimensions, the least that vLLM takes on a CPU."""

    vocab_size: int = 512
    hidden_size: int = 96
    intermediate_size: int = 256
    layers: int = 3
    heads: int = 3
    steps: int = 600
    practice_steps: int = 450
    batch_size: int = 32
    learning_rate: float = 4e-3
    warmup_steps: int = 20
    seed: int = 0
    threads: int = 1


def train_tokenizer(questions: Sequence[Question], settings: PretrainSettings) -> PreTrainedTokenizerBase:
    """Byte-level BPE with Qwen2's own splitting rule, so that every loader of a Qwen2 folder splits alike."""
    trained = Tokenizer(models.BPE())
    trained.normalizer = normalizers.NFC()
    trained.pre_tokenizer = pre_tokenizers.Sequence(
        [
            pre_tokenizers.Split(TokenizerRegex(PRETOKENIZE_REGEX), behavior="isolated"),
            pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False),
        ]
    )
    trained.decoder = decoders.ByteLevel()
    texts = [text for q in questions for text in (q.text, *(render(q, name) for name in STRATEGIES))]
    trained.train_from_iterator(
        [*texts, *["user\n", "assistant\n", "system\n"] * len(questions)],
        trainers.BpeTrainer(
            vocab_size=settings.vocab_size,
            initial_alphabet=sorted(pre_tokenizers.ByteLevel.alphabet()),
            special_tokens=[PAD, START, END],
            show_progress=False,
        ),
    )
    learned = json.loads(trained.to_str())["model"]
    tokenizer = Qwen2Tokenizer(
        vocab=learned["vocab"],
        merges=[tuple(merge) for merge in learned["merges"]],
        unk_token=PAD,
        pad_token=PAD,
        eos_token=END,
        extra_special_tokens=[START],
        model_max_length=256,
    )
    tokenizer.chat_template = CHAT_TEMPLATE
    return tokenizer


def new_model(tokenizer: PreTrainedTokenizerBase, settings: PretrainSettings) -> Qwen2ForCausalLM:
    """A freshly initialised float32 model for the tokenizer."""
    special = {"pad_token_id": tokenizer.pad_token_id, "eos_token_id": tokenizer.eos_token_id}
    config = Qwen2Config(
        vocab_size=settings.vocab_size,
        hidden_size=settings.hidden_size,
        intermediate_size=settings.intermediate_size,
        num_hidden_layers=settings.layers,
        num_attention_heads=settings.heads,
        num_key_value_heads=settings.heads,
        max_position_embeddings=256,
        tie_word_embeddings=True,
        dtype="float32",
        bos_token_id=None,
        **special,
    )
    model = Qwen2ForCausalLM(config)
    model.generation_config = GenerationConfig(do_sample=True, temperature=1.0, **special)
    return model


def pretrain(
    tokenizer: PreTrainedTokenizerBase, questions: Sequence[Question], settings: PretrainSettings
) -> Qwen2ForCausalLM:
    """Supervised training on freshly drawn solutions of the train questions; the prompt bears no loss.

    First practice, every path equally often and always right, so that the model can walk them all; then the mixture,
    which gives it the paths' shares and slips.
    """
    rng = random.Random(settings.seed)
    with _threads(settings.threads), torch.random.fork_rng(devices=[]):
        torch.manual_seed(settings.seed)
        model = new_model(tokenizer, settings).train()
        optimizer = torch.optim.AdamW(
            model.parameters(), lr=settings.learning_rate, betas=(0.9, 0.98), weight_decay=0.01
        )
        schedule = torch.optim.lr_scheduler.LambdaLR(optimizer, lambda step: _learning_rate_factor(step, settings))
        for step in range(settings.steps):
            chosen = rng.choices(questions, k=settings.batch_size)
            if step < settings.practice_steps:
                pairs = [(q, render(q, rng.choice(list(STRATEGIES)))) for q in chosen]
            else:
                pairs = [(q, sample_solution(q, rng)) for q in chosen]
            tokens, labels = _batch(tokenizer, pairs)
            loss = model(input_ids=tokens, labels=labels).loss
            optimizer.zero_grad(set_to_none=True)
            loss.backward()
            torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
            optimizer.step()
            schedule.step()
    return model.eval()


def prompt_tokens(tokenizer: PreTrainedTokenizerBase, question: Question) -> list[int]:
    """The prompt of a question as veRL's agent loop tokenises it."""
    text = tokenizer.apply_chat_template(
        [{"role": "user", "content": question.text}], add_generation_prompt=True, tokenize=False
    )
    return list(tokenizer(text, add_special_tokens=False)["input_ids"])


def _batch(tokenizer: PreTrainedTokenizerBase, pairs: list[tuple[Question, str]]) -> tuple[Tensor, Tensor]:
    """Tokens and labels, both [N, L], padded on the right; -100 labels prompt and padding."""
    prompts = [prompt_tokens(tokenizer, question) for question, _ in pairs]
    answers = [[*ids, tokenizer.eos_token_id] for ids in tokenizer([text for _, text in pairs])["input_ids"]]
    length = max(len(p) + len(a) for p, a in zip(prompts, answers, strict=True))
    tokens = torch.full((len(pairs), length), tokenizer.pad_token_id)
    labels = torch.full((len(pairs), length), -100)
    for row, (prompt, answer) in enumerate(zip(prompts, answers, strict=True)):
        end = len(prompt) + len(answer)
        tokens[row, :end] = torch.tensor(prompt + answer)
        labels[row, len(prompt) : end] = torch.tensor(answer)
    return tokens, labels


def _learning_rate_factor(step: int, settings: PretrainSettings) -> float:
    """Linear warm-up, then half a cosine to a tenth."""
    if step < settings.warmup_steps:
        return (step + 1) / settings.warmup_steps
    done = (step - settings.warmup_steps) / max(1, settings.steps - settings.warmup_steps)
    return 0.55 + 0.45 * math.cos(math.pi * done)


@contextmanager
def _threads(count: int) -> Iterator[None]:
    """A fixed number of threads, on which the order of sums and so the weights' last digits depend."""
    before = torch.get_num_threads()
    torch.set_num_threads(count)
    try:
        yield
    finally:
        torch.set_num_threads(before)
