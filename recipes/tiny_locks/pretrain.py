"""The starting policy: a tokenizer of words and digits and a small Llama model that has seen the mixture of ways."""

from __future__ import annotations

import math
import random
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from tokenizers import Regex, Tokenizer, decoders, models, pre_tokenizers
from torch import Tensor
from transformers import GenerationConfig, LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast

from tiny_locks.task import FILLERS, WAYS, Question, sample_along, sample_solution

PAD, END = "<|endoftext|>", "<|im_end|>"

CHAT_TEMPLATE = "{% for message in messages %}{{ message['content'] }}{% endfor %}"


@dataclass(frozen=True)
class PretrainSettings:
    """Sizes and schedule. Attention heads have 32 dimensions, the least that vLLM takes on a CPU."""

    hidden_size: int = 96
    intermediate_size: int = 256
    layers: int = 3
    heads: int = 3
    steps: int = 600
    practice_steps: int = 440
    batch_size: int = 64
    learning_rate: float = 3e-3
    warmup_steps: int = 30
    seed: int = 0


def new_tokenizer() -> PreTrainedTokenizerFast:
    """A token a word or digit, with the space before it where there is one, so that decoding gives the text back."""
    words = sorted(
        {word for synonyms in FILLERS for word in synonyms} | {w for way in WAYS.values() for w in way.theme}
    )
    digits = [f"{space}{digit}" for space in ("", " ") for digit in range(10)]
    # The first word of an answer has no space before it.
    starts = list(FILLERS[0])
    tokens = [PAD, END, "What", " is", " +", "?", ",", ".", "\n", *digits, *starts, *(f" {word}" for word in words)]
    made = Tokenizer(models.WordLevel({token: at for at, token in enumerate(tokens)}, unk_token=PAD))
    made.pre_tokenizer = pre_tokenizers.Split(Regex(r" ?[A-Za-z]+| ?\d| ?[^\sA-Za-z\d]|\s"), behavior="isolated")
    made.decoder = decoders.Fuse()
    tokenizer = PreTrainedTokenizerFast(
        tokenizer_object=made,
        unk_token=PAD,
        pad_token=PAD,
        eos_token=END,
        model_max_length=128,
        clean_up_tokenization_spaces=False,
    )
    tokenizer.chat_template = CHAT_TEMPLATE
    return tokenizer


def new_model(tokenizer: PreTrainedTokenizerFast, settings: PretrainSettings) -> LlamaForCausalLM:
    """A freshly initialised float32 model for the tokenizer; of Qwen2 transformers would load Qwen2's own tokenizer."""
    special = {"pad_token_id": tokenizer.pad_token_id, "eos_token_id": tokenizer.eos_token_id}
    config = LlamaConfig(
        vocab_size=-(-len(tokenizer) // 64) * 64,
        hidden_size=settings.hidden_size,
        intermediate_size=settings.intermediate_size,
        num_hidden_layers=settings.layers,
        num_attention_heads=settings.heads,
        num_key_value_heads=settings.heads,
        max_position_embeddings=128,
        tie_word_embeddings=True,
        dtype="float32",
        bos_token_id=None,
        **special,
    )
    model = LlamaForCausalLM(config)
    model.generation_config = GenerationConfig(do_sample=True, temperature=1.0, **special)
    return model


def pretrain(
    tokenizer: PreTrainedTokenizerFast, questions: Sequence[Question], settings: PretrainSettings
) -> LlamaForCausalLM:
    """Supervised training on freshly drawn solutions of the train questions; the prompt bears no loss.

    First practice, every way equally often and always right, so that the model can walk them all; then the mixture,
    which gives it the ways' shares and slips.
    """
    rng = random.Random(settings.seed)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(settings.seed)
        model = new_model(tokenizer, settings).train()
        optimizer = torch.optim.AdamW(
            model.parameters(), lr=settings.learning_rate, betas=(0.9, 0.98), weight_decay=0.01
        )
        schedule = torch.optim.lr_scheduler.LambdaLR(optimizer, lambda step: _learning_rate_factor(step, settings))
        for step in range(settings.steps):
            chosen = rng.choices(questions, k=settings.batch_size)
            if step < settings.practice_steps:
                texts = [sample_along(q, rng.choice(list(WAYS)), rng, slips=False) for q in chosen]
            else:
                texts = [sample_solution(q, rng)[0] for q in chosen]
            tokens, labels = _batch(tokenizer, chosen, texts)
            loss = model(input_ids=tokens, labels=labels).loss
            optimizer.zero_grad(set_to_none=True)
            loss.backward()
            torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
            optimizer.step()
            schedule.step()
    return model.eval()


def prompt_tokens(tokenizer: PreTrainedTokenizerFast, questions: Sequence[Question]) -> Tensor:
    """[N, P] int64: prompts as veRL's agent loop tokenises them, all of one length."""
    texts = [
        tokenizer.apply_chat_template(
            [{"role": "user", "content": question.text}], add_generation_prompt=True, tokenize=False
        )
        for question in questions
    ]
    return torch.tensor(tokenizer(texts, add_special_tokens=False)["input_ids"])


def _batch(
    tokenizer: PreTrainedTokenizerFast, questions: Sequence[Question], texts: Sequence[str]
) -> tuple[Tensor, Tensor]:
    """Tokens and labels, both [N, L]; -100 labels the prompt. Answers are of one length, too."""
    prompts = prompt_tokens(tokenizer, questions)
    answers = torch.tensor([[*ids, tokenizer.eos_token_id] for ids in tokenizer(list(texts))["input_ids"]])
    return torch.cat([prompts, answers], 1), torch.cat([torch.full_like(prompts, -100), answers], 1)


def _learning_rate_factor(step: int, settings: PretrainSettings) -> float:
    """Linear warm-up, then half a cosine to a tenth."""
    if step < settings.warmup_steps:
        return (step + 1) / settings.warmup_steps
    done = (step - settings.warmup_steps) / max(1, settings.steps - settings.warmup_steps)
    return 0.55 + 0.45 * math.cos(math.pi * done)
