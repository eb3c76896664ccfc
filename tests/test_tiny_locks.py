"""The locked task, its loop beside the package's own functions, and the study's runs, tables and README."""

from __future__ import annotations

import copy
import json
import random
import sys
from collections import Counter
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
import torch
from transformers import AutoTokenizer

RECIPES = Path(__file__).resolve().parents[1] / "recipes"
RECIPE = RECIPES / "tiny_locks"
sys.path.append(str(RECIPES))

from tiny_locks.loop import Settings, Trainer, advantages, sample, uses_similarity  # noqa: E402
from tiny_locks.measure import measure  # noqa: E402
from tiny_locks.prepare import Settings as Prepared  # noqa: E402
from tiny_locks.prepare import fingerprint, prepare  # noqa: E402
from tiny_locks.pretrain import PretrainSettings, new_model, new_tokenizer, prompt_tokens  # noqa: E402
from tiny_locks.reward import compute_score  # noqa: E402
from tiny_locks.study import __main__ as study  # noqa: E402
from tiny_locks.study import train, wording  # noqa: E402
from tiny_locks.study.arms import ARMS, CONTROLS, Run, arm_of, wanted  # noqa: E402
from tiny_locks.study.report import END, START, found, merged, recovery, report, tables  # noqa: E402
from tiny_locks.task import (  # noqa: E402
    FILLERS,
    LOCKS,
    RARE,
    WAYS,
    Question,
    answer_of,
    key_of,
    opens,
    questions,
    render,
    sample_along,
    sample_solution,
    split_questions,
    way_of,
)
from verl.trainer.ppo.core_algos import get_adv_estimator_fn  # noqa: E402

from verl_dra.algorithm import (  # noqa: E402
    adjust_rewards,
    centered,
    cluster_smi,
    darling_weights,
    diversity_weights,
    gated,
    graph_cut_smi,
    unlikeliness_weights,
)
from verl_dra.embedding import EmbeddingConfig, build_encoder, encode_all  # noqa: E402

pytestmark = pytest.mark.usefixtures("one_thread")

SMALL = PretrainSettings(hidden_size=32, heads=1, layers=1, intermediate_size=32)
FEW = Settings(steps=6, prompts=4, group=4, warmup_steps=2)
QUESTION = Question(37, (8, 6, 9))


# Task


@pytest.mark.parametrize("way", WAYS)
def test_every_way_answers_every_question_and_is_recognised(way: str) -> None:
    rng = random.Random(0)
    for question in rng.sample(list(questions()), 500):
        text = sample_along(question, way, rng, slips=False)
        assert (answer_of(text), way_of(text)) == (question.total, way)


def test_worked_answers_read_as_written() -> None:
    assert render(QUESTION, "market", [0] * 8) == (
        "first take 37 apples, then 8 basket giving 45, and 6 fruit giving 51, finally 9 market giving 60."
    )
    assert render(QUESTION, "road", [2] * 8, (0, 10, 0)) == (
        "firstly have 37 miles, afterwards 9 road yielding 46, plus 6 walking yielding 62, "
        "ultimately 8 travel yielding 70."
    )


@pytest.mark.parametrize(
    "text",
    [
        "",
        "first take 37 apples, then 8 basket giving 45, and 6 fruit giving 51, finally 9 giving 60.",
        "first take 37 apples, then 8 road giving 45, and 6 fruit giving 51, finally 9 market giving 60.",
        "first take 37 apples, then 8 basket giving 45, and 6 fruit giving 51, finally 9 market market giving 60.",
        "first take 37 basket, then 8 apples giving 45, and 6 fruit giving 51, finally 9 market giving 60.",
    ],
)
def test_texts_without_all_words_of_one_way_have_no_way(text: str) -> None:
    assert way_of(text) is None


@pytest.mark.parametrize(
    ("text", "answer"), [("making 45.", 45), ("making 145. ", 145), ("45. making", None), ("45", None)]
)
def test_the_answer_is_the_works_last_number(text: str, answer: int | None) -> None:
    assert answer_of(text) == answer


def test_pretraining_shows_ways_by_their_shares_and_slips_by_their_rates() -> None:
    rng = random.Random(1)
    shown = [sample_solution(QUESTION, rng) for _ in range(6000)]
    for name, way in WAYS.items():
        of_way = [text for text, found_way in shown if found_way == name]
        assert len(of_way) / len(shown) == pytest.approx(way.share, abs=0.02)
        wrong = sum(answer_of(text) != QUESTION.total for text in of_way) / len(of_way)
        assert wrong == pytest.approx(way.slip_rate, abs=0.12 if name == RARE else 0.05)


def test_sums_with_slips_stay_of_two_digits() -> None:
    rng = random.Random(0)
    tokenizer = new_tokenizer()
    for question in (Question(11, (2, 2, 2)), Question(69, (9, 9, 9))):
        texts = [sample_solution(question, rng)[0] for _ in range(300)]
        assert {len(ids) for ids in tokenizer(texts)["input_ids"]} == {27}


# Locks


def test_keys_are_even_over_questions_and_over_every_part_of_them() -> None:
    every = list(questions())
    for of in (every, every[:3000], every[-3000:], [q for q in every if q.others[0] == 5]):
        share = Counter(map(key_of, of))
        assert all(share[way] / len(of) == pytest.approx(0.25, abs=0.03) for way in WAYS)


def test_the_tests_keys_are_even_and_no_test_question_is_trained_on() -> None:
    learned, test = split_questions(64, seed=0)
    assert set(Counter(map(key_of, test)).values()) == {16}
    assert not set(learned) & set(test)
    assert len(learned) + len(test) == len(list(questions()))
    with pytest.raises(ValueError, match="multiple of 4"):
        split_questions(63, seed=0)


def test_locks_say_which_ways_count() -> None:
    every = list(questions())
    for way in WAYS:
        assert all(opens(question, way, "even") for question in every[:100])
        share = sum(opens(question, way, "rare") for question in every) / len(every)
        assert share == pytest.approx(1.0 if way == RARE else 0.7, abs=0.01)
        assert opens(QUESTION, way, "switch", closed="road") == (way != "road")
    assert not any(opens(QUESTION, None, lock) for lock in LOCKS)
    with pytest.raises(ValueError, match="even, rare, switch, not 'odd'"):
        opens(QUESTION, "road", "odd")


def test_the_rewards_of_verl_are_the_loops() -> None:
    question = next(q for q in questions() if not opens(q, "road", "rare"))
    info = {"question": question.text, "key": key_of(question)}
    for way, right in (("road", True), ("ocean", True), ("ocean", False)):
        text = render(question, way, [0] * 8, (0, 0, 0) if right else (0, 1, 0))
        for lock in ("even", "rare"):
            scored = compute_score("tiny_locks", text, str(question.total), info, lock=lock)
            assert scored == {
                "score": float(right and opens(question, way, lock)),
                "acc": float(right),
                "locked": float(right and way == key_of(question)),
                "way": way,
            }


# Model


def test_decoding_gives_the_text_back_and_prompts_are_of_one_length() -> None:
    rng, tokenizer = random.Random(0), new_tokenizer()
    some = rng.sample(list(questions()), 50)
    texts = [sample_solution(question, rng)[0] for question in some]
    assert tokenizer.batch_decode(tokenizer(texts)["input_ids"]) == texts
    prompts = prompt_tokens(tokenizer, some)
    assert tokenizer.decode(prompts[0]) == some[0].text
    assert tokenizer.unk_token_id not in prompts
    assert len({synonym for synonyms in FILLERS for synonym in synonyms}) == 18


def test_a_saved_model_has_the_same_tokenizer(tmp_path: Path) -> None:
    """By AutoTokenizer, as veRL and vLLM load it; of some model types that takes a tokenizer of its own."""
    policy().save_pretrained(tmp_path)
    new_tokenizer().save_pretrained(tmp_path)
    text = render(QUESTION, "road", [1] * 8)
    loaded = AutoTokenizer.from_pretrained(tmp_path)
    assert loaded(text)["input_ids"] == new_tokenizer()(text)["input_ids"]
    assert loaded.decode(loaded(text)["input_ids"]) == text


def policy(seed: int = 0) -> Any:
    torch.manual_seed(seed)
    return new_model(new_tokenizer(), SMALL).eval()


def test_sampled_log_probs_are_the_models(monkeypatch: pytest.MonkeyPatch) -> None:
    model, tokenizer = policy(), new_tokenizer()
    drawn = sample(model, prompt_tokens(tokenizer, [QUESTION] * 6), torch.Generator().manual_seed(0))
    whole = torch.cat([drawn.prompts, drawn.tokens], 1)
    logits = model(input_ids=whole).logits[:, drawn.prompts.shape[1] - 1 : -1].log_softmax(-1)
    expected = logits.gather(2, drawn.tokens[..., None])[..., 0] * drawn.mask
    assert torch.allclose(drawn.log_probs, expected, atol=1e-4)
    entropy = (-(logits.exp() * logits).sum(-1) * drawn.mask).sum(1)
    assert torch.allclose(drawn.entropy, entropy, atol=1e-3)


def test_measures_of_a_policy_that_always_slips_are_zero_and_of_words_alone_have_no_ways() -> None:
    tokenizer = new_tokenizer()
    _, test = split_questions(8, seed=0)
    measured = measure(policy(), tokenizer, test, "even", None, seed=0, samples=4)
    assert measured["accuracy"] == measured["locked/4"] == measured["way_entropy"] == 0
    assert measured["share/none"] == 1
    assert measured["word_entropy"] > 50, "an untrained policy says any word anywhere"


# Arms: the loop's advantages are those of the package's functions, put together by hand


@pytest.fixture(scope="module")
def encoder() -> Any:
    return build_encoder(EmbeddingConfig(encoder="ngram"))


def batch() -> tuple[list[str], list[str], torch.Tensor, torch.Tensor, torch.Tensor]:
    """Uids, texts, rewards, log-probabilities and mask of three groups of six."""
    rng = random.Random(2)
    some = rng.sample(list(questions()), 3)
    uids = [f"0-{at}" for at in range(3) for _ in range(6)]
    texts = [sample_solution(question, rng)[0] for question in some for _ in range(6)]
    reward = torch.tensor([1, 0, 1, 1, 0, 1, 0, 0, 1, 0, 0, 0, 1, 1, 1, 1, 1, 1.0])
    log_probs = -torch.rand(18, generator=torch.Generator().manual_seed(0))
    mask = torch.ones(18, 9)
    mask[::2, 7:] = 0
    return uids, texts, reward, log_probs, mask


@pytest.mark.parametrize("name", [*ARMS, *CONTROLS])
def test_every_arms_advantages_are_the_packages(name: str, encoder: Any) -> None:
    uids, texts, reward, log_probs, mask = batch()
    arm = arm_of(name, FEW)
    group = torch.arange(18) // 6
    vectors = encode_all(encoder, texts)
    weights = torch.ones(18)
    if name == "unlikeliness":
        weights = unlikeliness_weights(log_probs, group)
    elif name == "darling":
        weights = darling_weights(cluster_smi(vectors, group, 0.716), group)
    elif name == "dra_clusters":
        weights = diversity_weights(cluster_smi(vectors, group, 0.716))
    elif name == "dra_centered":
        weights = diversity_weights(graph_cut_smi(centered(vectors, group), group))
    elif name == "dra_correct":
        inside = reward > 0
        weights = torch.where(inside, diversity_weights(graph_cut_smi(vectors, gated(group, inside))), 1.0)
    elif name in ("dra", "dra_dr_grpo", "dra_shuffled"):
        weights = diversity_weights(graph_cut_smi(vectors, group))
    given = advantages(arm, 1, uids, texts, reward, log_probs, mask, encoder)
    if name == "dra_shuffled":
        # Each group keeps its weights; whose they are is chance.
        assert not torch.allclose(
            given, advantages(arm_of("dra", FEW), 1, uids, texts, reward, log_probs, mask, encoder)
        )
        return
    tokens = torch.zeros_like(mask)
    tokens[:, 0] = adjust_rewards(reward, weights, group)
    estimator = get_adv_estimator_fn("grpo_passk" if name == "passk" else "grpo")
    by_std = name not in ("darling", "dra_dr_grpo")
    expected, _ = estimator(tokens, mask, np.array(uids), norm_adv_by_std_in_grpo=by_std, config={})
    assert torch.allclose(given, expected, atol=1e-5)
    assert float(given.abs().max()) > 0.1


def test_arms_are_off_from_two_thirds_on(encoder: Any) -> None:
    uids, texts, reward, log_probs, mask = batch()
    settings = Settings(steps=9)
    by_step = [
        advantages(arm_of(name, settings), step, uids, texts, reward, log_probs, mask, encoder)
        for name in ("grpo", "dra", "dra_off", "unlikeliness", "unlikeliness_off")
        for step in (6, 7)
    ]
    grpo, _, dra, dra_later, dra_6, dra_7, unlikely, _, unlikely_6, unlikely_7 = by_step
    assert torch.equal(dra_6, dra)
    assert torch.equal(unlikely_6, unlikely)
    assert torch.equal(dra_7, grpo)
    assert torch.equal(unlikely_7, grpo)
    assert torch.equal(dra, dra_later)
    assert not torch.equal(dra, grpo)
    assert arm_of("entropy_0.1_off", settings).entropy_coeff == [[0, 0.1], [6, 0.1], [7, 0.0]]


def test_the_list_is_the_studys() -> None:
    runs = wanted()
    assert len(runs) == len(set(runs)) == 3 + 48 + 15 + 28 + 16 + 3 + 6
    assert [run.arm for run in runs[1:17]] == list(ARMS)
    assert {run.seed for run in runs[:17]} == {0}
    assert len(ARMS) == 16
    assert [name for name, arm in ARMS.items() if not uses_similarity(arm)] == [
        "grpo",
        "entropy_0.01",
        "entropy_0.03",
        "entropy_0.1",
        "kl_0.03",
        "kl_0.3",
        "clip_higher",
        "passk",
        "unlikeliness",
    ]


# Training


def trainer(arm: str, encoder: Any, lock: str = "switch", seed: int = 0) -> Trainer:
    learned, _ = split_questions(8, seed=0)
    model = policy()
    return Trainer(
        model, copy.deepcopy(model), new_tokenizer(), learned, arm_of(arm, FEW), lock, seed, FEW, encoder, switch_at=4
    )


@pytest.mark.slow
@pytest.mark.parametrize("arm", ["dra_shuffled", "kl_0.3", "clip_higher", "entropy_0.1_off"])
def test_a_training_that_was_cut_off_goes_on_to_the_last_digit(
    arm: str, encoder: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    # An untrained policy has no right answers.
    monkeypatch.setattr("tiny_locks.loop.answer_of", lambda text: sum(map(ord, text)) % 3)
    monkeypatch.setattr("tiny_locks.loop.opens", lambda question, *_: True)
    monkeypatch.setattr(Question, "total", 0)
    whole = trainer(arm, encoder)
    seen = [whole.step() for _ in range(6)]
    first = trainer(arm, encoder)
    cut = [first.step() for _ in range(3)]
    second = trainer(arm, encoder)
    second.load(copy.deepcopy(first.state()))
    assert seen == cut + [second.step() for _ in range(3)]
    assert all(torch.equal(a, b) for a, b in zip(whole.model.parameters(), second.model.parameters(), strict=True))
    assert any(row["gradient"] > 0 for row in seen)


def test_the_way_that_is_commonest_at_the_switch_stops_counting(encoder: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("tiny_locks.loop.way_of", lambda text: "road" if len(text) % 4 else "ocean")
    monkeypatch.setattr("tiny_locks.loop.answer_of", lambda text: 0)
    monkeypatch.setattr(Question, "total", 0)
    trained = trainer("grpo", encoder)
    rewards = [trained.step() for _ in range(4)]
    assert [row["reward"] for row in rewards[:3]] == [1, 1, 1]
    assert trained.closed == "road"
    assert rewards[3]["reward"] == rewards[3]["ways"].get("ocean", 0) / 16


# Runs


@pytest.fixture
def prepared(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    folder = tmp_path / "prepared"
    policy().save_pretrained(folder / "model")
    new_tokenizer().save_pretrained(folder / "model")
    monkeypatch.setattr(train, "prepare", lambda: folder)
    monkeypatch.setattr(train, "measure", lambda *args: measure(*args[:2], args[2][:4], *args[3:], samples=8))
    return folder


class CutOffError(Exception):
    """What ends a training at some step."""


@pytest.mark.slow
def test_a_run_that_was_cut_off_gives_the_same_numbers(
    prepared: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(train, "_SAVE_EVERY", 2)
    run = Run("even", "entropy_0.1", 1)
    settings = Settings(steps=10, prompts=2, group=2)
    whole = train.make(tmp_path / "whole", prepared, settings, "cpu", run)
    step = Trainer.step

    def cut_off(self: Trainer) -> dict[str, Any]:
        if self.done == 7:
            raise CutOffError
        return step(self)

    monkeypatch.setattr(Trainer, "step", cut_off)
    with pytest.raises(CutOffError):
        train.make(tmp_path / "cut", prepared, settings, "cpu", run)
    monkeypatch.setattr(Trainer, "step", step)
    again = train.make(tmp_path / "cut", prepared, settings, "cpu", run)
    assert {**again, "cpu_seconds": 0} == {**whole, "cpu_seconds": 0}
    assert [point["step"] for point in again["checkpoints"]] == [8, 9, 10]
    assert [block["step"] for block in again["training"]] == [5, 10]
    monkeypatch.setattr(Trainer, "step", None)
    assert train.make(tmp_path / "cut", prepared, settings, "cpu", run) == again, "what is done is not done twice"
    with pytest.raises(SystemExit, match=r"even/entropy_0\.1/1 holds a finished run of settings=.*another --out"):
        train.make(tmp_path / "cut", prepared, Settings(steps=4), "cpu", run)


@pytest.mark.slow
def test_the_studys_commands_work(
    prepared: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def command(*words: str) -> int:
        monkeypatch.setattr(sys, "argv", ["study", "--out", str(tmp_path / "out"), *words])
        return study.main()

    monkeypatch.setattr(study, "HERE", tmp_path)
    monkeypatch.setattr(wording, "DEFAULT", ("ngram", "random"))
    assert (
        command(
            "run", *["--processes", "1", "--steps", "2", "--locks", "even", "--arms", "grpo", "start", "--seeds", "7"]
        )
        == 0
    )
    assert command("wording") == 0
    assert command("plot", "--results", str(tmp_path)) == 0
    shown = capsys.readouterr().out
    assert "even/grpo/7: accuracy 0.000" in shown
    assert "| ngram | 0.9" in shown
    assert "| GRPO | 0.000 |" in shown
    for words, said in (("--arms no_such --locks even --seeds 1", "no arm no_such"), ("--seeds 9", "no such runs")):
        with pytest.raises(SystemExit):
            command("run", *words.split())
        assert said in capsys.readouterr().err


@pytest.mark.slow
def test_the_folder_is_made_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("VERL_DRA_CACHE", str(tmp_path))
    settings = Prepared(pretrain=replace(SMALL, steps=3, practice_steps=1, batch_size=4))
    folder = prepare(settings)
    assert folder.parent == tmp_path / "tiny_locks"
    assert [path.name for path in folder.parent.iterdir()] == [fingerprint(settings)]
    test = pd.read_parquet(folder / "test.parquet")
    assert Counter(info["key"] for info in test["extra_info"]) == dict.fromkeys(WAYS, 16)
    weights = (folder / "model" / "model.safetensors").stat().st_mtime_ns
    assert prepare(settings) == folder
    assert (folder / "model" / "model.safetensors").stat().st_mtime_ns == weights
    assert fingerprint(settings) != fingerprint(Prepared())


def test_one_run_that_fails_leaves_the_others(
    prepared: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    runs = [Run("even", "no_such_arm", 0), Run("even", "start", 0)]
    assert train.train(tmp_path, runs, Settings(steps=2, prompts=2, group=2), "cpu", 1) == 1
    shown = capsys.readouterr().out
    assert "even/no_such_arm/0: failed" in shown
    assert "even/start/0: accuracy 0.000, entropy over ways 0.000, locked pass@8 0.000; " in shown
    assert json.loads((tmp_path / "even/start/0/done.json").read_text())["checkpoints"][0]["step"] == 0


# Results


def made(lock: str, arm: str, seed: int, start: str = "0123", **measured: float) -> dict[str, Any]:
    """A finished run, measured alike at its three checkpoints."""
    settings = Settings(steps=0 if arm == "start" else 20)
    point = {"accuracy": 0.9, "reward": 0.9, "way_entropy": 1.0, "word_entropy": 8.0, **measured}
    point |= {f"locked/{k}": 0.5 for k in (1, 2, 4, 8, 16, 32, 64)}
    rewards = (0.8, 0.9, 0.3, 0.85)
    blocks = [{"step": 5 * (at + 1), "reward": reward, "accuracy": 0.9} for at, reward in enumerate(rewards)]
    shares = {f"share/{way}": 0.25 for way in WAYS}
    return {
        "lock": lock,
        "arm": arm,
        "seed": seed,
        "settings": json.loads(json.dumps(settings.__dict__)),
        "how": {"arm": arm},
        "start": start,
        "closed": None,
        "checkpoints": [{"step": step, **shares, **point} for step in (16, 18, 20)],
        "training": [{**block, **shares} for block in blocks],
        "cpu_seconds": 100.0,
    }


def finished(out: Path, run: dict[str, Any]) -> None:
    path = out / run["lock"] / run["arm"] / str(run["seed"]) / "done.json"
    path.parent.mkdir(parents=True)
    path.write_text(json.dumps(run))


def test_tables_say_means_differences_and_what_is_missing() -> None:
    runs = [made("even", "grpo", seed, way_entropy=0.3 + 0.01 * seed, accuracy=0.95 - 0.1 * seed) for seed in range(3)]
    runs += [made("even", "dra", seed, way_entropy=1.3) for seed in range(2)]
    shown = tables({"runs": merged([], runs)})
    assert "5 of 119 runs are made." in shown
    assert "| GRPO | 0.850 (0.7" in shown
    assert "| KL 0.3 |  |  |  |  |  |  | 0 | 0, 1, 2 |" in shown
    assert "| 2 | 2, 3, 4, 5 |" in shown, "the seeds of DRA that are missing"
    # Entropy is higher by 1.00 and 0.99, accuracy by -0.05 and 0.05.
    assert "| GRPO | +0.000 (-0.635 to +0.635) | **+0.995 (+0.931 to +1.059)** |" in shown


def test_found_and_recovered_are_what_they_say() -> None:
    good = {f"share/{RARE}": 0.5, f"accuracy/{RARE}": 0.9}
    assert found(made("rare", "dra", 0, **good))
    assert not found(made("rare", "dra", 0, **{**good, f"share/{RARE}": 0.1}))
    assert not found(made("rare", "dra", 0, **{**good, f"accuracy/{RARE}": 0.4}))
    run = made("switch", "dra", 0)
    assert recovery(run) == 10
    run["training"][-1]["reward"] = 0.8
    assert recovery(run) is None


@pytest.mark.slow
def test_runs_of_another_machine_stay_in_the_results(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    finished(tmp_path / "here", made("even", "grpo", 0))
    report(tmp_path / "here", tmp_path)
    finished(tmp_path / "there", made("rare", "dra", 0))
    report(tmp_path / "there", tmp_path)
    shown = capsys.readouterr().out
    kept = json.loads((tmp_path / "results.json").read_text())
    assert [(run["lock"], run["arm"]) for run in kept["runs"]] == [("even", "grpo"), ("rare", "dra")]
    report(tmp_path / "nowhere", tmp_path)
    assert shown.endswith(capsys.readouterr().out)
    for picture in ("curves.png", "front.png"):
        assert (tmp_path / picture).stat().st_size > 1000


def test_runs_that_cant_be_compared_are_refused() -> None:
    with pytest.raises(SystemExit, match="different models"):
        merged([made("even", "grpo", 0)], [made("even", "dra", 0, start="4567")])
    other = made("even", "grpo", 1)
    other["how"] = {"arm": "changed"}
    with pytest.raises(SystemExit, match="differ in arms grpo"):
        merged([made("even", "grpo", 0)], [other])
    longer = made("even", "dra", 0)
    longer["settings"]["steps"] = 40
    with pytest.raises(SystemExit, match=r"differ in steps \[20, 40\]"):
        merged([made("even", "grpo", 0)], [longer])


def test_nothing_to_plot_is_an_error(tmp_path: Path) -> None:
    with pytest.raises(SystemExit, match="no finished run"):
        report(tmp_path, tmp_path)


def test_the_readmes_tables_are_those_of_the_results() -> None:
    text = (RECIPE / "README.md").read_text()
    of_readme = text.partition(START)[2].partition(END)[0].strip()
    assert of_readme == tables(json.loads((RECIPE / "study" / "results.json").read_text())).strip()
