"""`verl-dra simulate`: the published note's numbers, the dynamics, and what the command prints, draws and refuses."""

from __future__ import annotations

import argparse
import json
import math
import sys
from itertools import product
from pathlib import Path
from typing import Any

import numpy as np
import oracles
import pytest
import torch

from verl_dra.algorithm.survival import normalised_survival_ratio, survival_ratio
from verl_dra.simulate import add_arguments, run
from verl_dra.simulate.group_scene import GroupScene, play_group
from verl_dra.simulate.policy_scene import PolicyScene, play_policy
from verl_dra.simulate.scoring import Scoring

pytest.importorskip("verl")


@pytest.fixture
def simulate(capsys: pytest.CaptureFixture[str]) -> Any:
    """Runs the command line; gives (status, stdout, stderr)."""

    def call(*options: str) -> tuple[int, str, str]:
        parser = argparse.ArgumentParser()
        add_arguments(parser)
        status = run(parser.parse_args(options))
        return status, *capsys.readouterr()

    return call


def test_published_adjusted_rewards_are_reproduced() -> None:
    adjusted = play_group(GroupScene(), Scoring()).scores.adjusted_rewards
    assert [f"{value:.4f}" for value in adjusted.tolist()] == (
        ["0.1686", "0.1683", "0.1678", "0.1682", "0.1681", "0.1671", "0.0000", "0.8401"]
    )


def test_population_std_gives_the_advantages_of_the_published_code() -> None:
    scores = play_group(GroupScene(std="population"), Scoring()).scores
    assert scores.grpo.tolist() == pytest.approx([0.378] * 6 + [-2.646, 0.378], abs=5e-4)
    assert scores.dra[:6].min().item() == pytest.approx(-0.270, abs=5e-4)
    assert scores.dra[:6].max().item() == pytest.approx(-0.264, abs=5e-4)
    assert scores.dra[6:].tolist() == pytest.approx([-0.976, 2.573], abs=5e-4)


def test_population_std_is_numpys() -> None:
    scores = play_group(GroupScene(std="population", seed=7), Scoring()).scores
    adjusted = scores.adjusted_rewards.numpy()
    np.testing.assert_allclose(scores.dra.numpy(), (adjusted - adjusted.mean()) / adjusted.std(), rtol=1e-4)


@pytest.mark.parametrize("std", ["sample", "population"])
@pytest.mark.parametrize("smi", ["graph_cut", "log_det"])
@pytest.mark.parametrize("negative", ["paper", "shift", "positive_only"])
def test_advantages_of_a_group_sum_to_zero(std: Any, smi: str, negative: Any) -> None:
    scores = play_group(GroupScene(group_size=9, wrong_reward=-0.5, std=std), Scoring(smi, negative)).scores
    assert scores.grpo.sum().item() == pytest.approx(0, abs=1e-9)
    assert scores.dra.sum().item() == pytest.approx(0, abs=1e-9)


def test_grpo_ignores_diversity_and_dra_prefers_the_unique_answer() -> None:
    scores = play_group(GroupScene(), Scoring()).scores
    assert scores.grpo[7] == scores.grpo[0] > 0
    assert scores.dra[7] > scores.dra[:6].max()


def test_dr_grpo_subtracts_the_mean_only() -> None:
    scores = play_group(GroupScene(), Scoring(estimator="dr_grpo")).scores
    torch.testing.assert_close(scores.dra, scores.adjusted_rewards - scores.adjusted_rewards.mean())


@pytest.mark.parametrize("smi", ["graph_cut", "log_det"])
@pytest.mark.parametrize("sampled", [None, 8])
def test_dra_keeps_the_right_modes_that_grpo_loses(smi: str, sampled: int | None) -> None:
    result = play_policy(PolicyScene(sampled=sampled), Scoring(smi))
    assert result.grpo.entropy[-1] < result.grpo.entropy[0] - 0.5
    assert result.dra.entropy[-1] > math.log(5) - 0.05
    assert result.dra.covered[-1] > 2 * result.grpo.covered[-1]
    assert min(result.grpo.right[-1], result.dra.right[-1]) > 0.98


def test_dra_is_grpo_where_all_completions_are_equally_similar() -> None:
    result = play_policy(PolicyScene(mode_cosine=0.95), Scoring())
    np.testing.assert_allclose(result.dra.probabilities, result.grpo.probabilities, atol=1e-4)


def test_probabilities_sum_to_one_and_both_start_alike() -> None:
    result = play_policy(PolicyScene(steps=20), Scoring())
    for trajectory in (result.grpo, result.dra):
        np.testing.assert_allclose(trajectory.probabilities.sum(1), 1)
        np.testing.assert_allclose(trajectory.probabilities[0], result.scene.start())


def test_completions_have_exactly_the_cosines_asked_for() -> None:
    scene = PolicyScene(clone_cosine=0.9, mode_cosine=0.3)
    vectors = scene.embeddings(np.array([0, 0, 1, 5]), np.arange(4))
    expected = [[1, 0.9, 0.3, 0.3], [0.9, 1, 0.3, 0.3], [0.3, 0.3, 1, 0.3], [0.3, 0.3, 0.3, 1]]
    torch.testing.assert_close(vectors @ vectors.T, torch.tensor(expected, dtype=torch.float64))


@pytest.mark.parametrize("method", ["grpo", "dra"])
def test_exact_step_is_the_expected_policy_gradient(method: str) -> None:
    """Against the definition: the mean over every sequence of modes of A_i (e_{mode i} - p)."""
    scene = PolicyScene(group_size=4, modes=2, steps=1, lr=0.5)
    start, rewards, gradient = scene.start(), np.array([1.0, 1.0, 0.0]), np.zeros(3)
    for sequence in product(range(3), repeat=4):
        modes = np.array(sequence)
        cosines = np.where(modes[:, None] == modes, scene.clone_cosine, scene.mode_cosine)
        np.fill_diagonal(cosines, 1)
        reward = rewards[modes] / (cosines.sum(1) if method == "dra" else 1)
        advantage = (reward - reward.mean()) / (reward.std(ddof=1) + 1e-6)
        score = np.eye(3)[modes] - start
        gradient += start[modes].prod() * (advantage[:, None] * score).mean(0)
    logits = np.log(start) + scene.lr * gradient
    trajectory = getattr(play_policy(scene, Scoring()), method)
    np.testing.assert_allclose(trajectory.probabilities[1], np.exp(logits) / np.exp(logits).sum(), atol=1e-6)


def test_a_mode_survives_on_one_side_of_the_law_and_dies_on_the_other(simulate: Any) -> None:
    options = ["--mode-cosine", "0.8", "--start-ratio", "0.2", "--estimator", "dr_grpo", "--lr", "10"]
    status, out, _ = simulate(
        "--scene", "policy", "--accuracies", "0.6,0.58,0.4", *options, "--steps", "1000", "--json"
    )
    content = json.loads(out)
    assert status == 0
    assert content["survival_accuracy"] == pytest.approx(0.6 * (1 + 7 * 0.8) / (1 + 6 * 0.95 + 0.8))
    start, end = (np.array(content["dra"]["probabilities"][step]) for step in (0, -1))
    assert 0.4 < content["survival_accuracy"] < 0.58
    assert end[1] > 2 * start[1]
    assert end[2] < start[2] / 5
    # Without DRA both die.
    assert (np.array(content["grpo"]["probabilities"][-1][1:]) < 0.002).all()
    _, text, _ = simulate("--scene", "policy", "--accuracies", "0.6,0.58,0.4", *options, "--steps", "2")
    assert "above 0.528, 0.88 times that of mode 1: mode 2 survives, mode 3 dies." in text


@pytest.mark.parametrize("estimator", ["grpo", "dr_grpo"])
@pytest.mark.parametrize("smi", ["graph_cut", "log_det"])
@pytest.mark.parametrize("common", [0.3, 0.9])
def test_the_law_is_where_a_vanishing_mode_turns(estimator: Any, smi: str, common: float) -> None:
    """Against the exact gradient, of which the law knows nothing."""
    options: dict[str, Any] = {
        "modes": 2,
        "wrong_start": 0,
        "group_size": 5,
        "mode_cosine": 0.6,
        "start_ratio": 1e-7,
        "steps": 1,
    }
    scoring = Scoring(smi, estimator=estimator)
    law = play_policy(PolicyScene(**options, accuracies=(common, 0.5)), scoring).survival_accuracy
    for accuracy, grows in ((law * 0.999, False), (law * 1.001, True)):
        # At such a share a step must be large to be seen.
        scene = PolicyScene(**options, accuracies=(common, accuracy), lr=1e6)
        start, end = play_policy(scene, scoring).dra.log_ratio
        assert (end < start) == grows, (accuracy, law)
    if smi == "graph_cut":
        cosines = scene.clone_cosine, scene.mode_cosine, scene.group_size
        formula = survival_ratio(*cosines) if estimator == "dr_grpo" else normalised_survival_ratio(*cosines, common)
        assert law == pytest.approx(common * formula, rel=1e-5)


def test_modes_of_accuracies_are_trained_by_the_definition() -> None:
    """Against the mean over every sequence of modes and outcomes of A_i (e_{mode i} - p)."""
    accuracies = (0.7, 0.2)
    scene = PolicyScene(group_size=3, modes=2, accuracies=accuracies, wrong_start=0, steps=1, wrong_reward=-0.5)
    start, gradient = scene.start(), np.zeros(2)
    for outcome in product(product(range(2), (True, False)), repeat=3):
        modes, right = (np.array(column) for column in zip(*outcome, strict=True))
        accuracy = np.array(accuracies)[modes]
        cosines = np.where(modes[:, None] == modes, scene.clone_cosine, scene.mode_cosine)
        np.fill_diagonal(cosines, 1)
        reward = np.where(right, 1.0, -0.5) / cosines.sum(1)
        advantage = (reward - reward.mean()) / (reward.std(ddof=1) + 1e-6)
        chance = (start[modes] * np.where(right, accuracy, 1 - accuracy)).prod()
        gradient += chance * (advantage[:, None] * (np.eye(2)[modes] - start)).mean(0)
    logits = np.log(start) + scene.lr * gradient
    result = play_policy(scene, Scoring())
    np.testing.assert_allclose(result.dra.probabilities[1], np.exp(logits) / np.exp(logits).sum(), atol=1e-6)
    assert result.dra.right[0] == pytest.approx(start @ np.array(accuracies))
    assert result.dra.log_ratio[0] == pytest.approx(math.log(2))


def test_sampled_gradient_is_repeatable_and_near_the_exact_one() -> None:
    def end(sampled: int | None, seed: int) -> Any:
        return play_policy(PolicyScene(sampled=sampled, seed=seed, steps=5), Scoring()).dra.probabilities[-1]

    np.testing.assert_array_equal(end(8, 1), end(8, 1))
    assert not np.array_equal(end(8, 1), end(8, 2))
    np.testing.assert_allclose(end(100_000, 1), end(None, 1), atol=2e-3)


@pytest.mark.parametrize(
    ("scoring", "modes"),
    [
        (Scoring(), (3.5, 4.2)),
        (Scoring(epsilon=1e-4), (2.0, 2.4)),
        (Scoring(spread_floor=0.001), (1.6, 1.8)),
        (Scoring(strength=0.0), (1.6, 1.8)),
    ],
)
def test_a_difference_of_noise_acts_at_full_size_unless_an_epsilon_or_a_floor_calms_it(
    scoring: Scoring, modes: tuple[float, float]
) -> None:
    """Cosines of 0.95 in a mode and 0.9499 across: nothing that an encoder could tell."""
    result = play_policy(PolicyScene(mode_cosine=0.9499), scoring)
    assert modes[0] < result.dra.covered[-1] < modes[1]
    if modes[1] < 2:
        np.testing.assert_allclose(result.dra.probabilities, result.grpo.probabilities, atol=1e-4)


def test_a_power_draws_modes_apart_whose_cosines_are_close() -> None:
    scene = PolicyScene(mode_cosine=0.85, lr=1.0)
    plain, powered = (play_policy(scene, Scoring(estimator="dr_grpo", cosine_power=power)).dra for power in (1.0, 4.0))
    assert powered.entropy[-1] > plain.entropy[-1] + 0.1


def test_among_the_correct_a_wrong_answer_is_as_bad_as_it_was() -> None:
    scene = GroupScene(wrong_reward=-1.0)
    scores = play_group(scene, Scoring(among="correct", strength=0.5)).scores
    right = np.array(scene.kinds) != "wrong"
    vectors, group = scene.embeddings().numpy(), np.zeros(8)
    smi = oracles.among(oracles.graph_cut_smi, vectors, group, right)
    weights = np.where(right, oracles.weights(smi) ** 0.5, 1)
    np.testing.assert_allclose(scores.smi, smi, atol=1e-12)
    np.testing.assert_allclose(scores.adjusted_rewards, scene.rewards().numpy() * weights, rtol=1e-12)


def test_rewards_keep_their_scale_where_it_is_asked_for() -> None:
    plain, kept = (
        play_group(GroupScene(wrong_reward=-1.0), Scoring(estimator="dr_grpo", keep_scale=keep)).scores
        for keep in (False, True)
    )
    mean = oracles.weights(plain.smi.numpy()).mean()
    np.testing.assert_allclose(kept.adjusted_rewards, plain.adjusted_rewards / mean, rtol=1e-12)
    np.testing.assert_allclose(kept.dra, plain.dra / mean, rtol=1e-9, atol=1e-12)


def test_group_text_shows_every_column(simulate: Any) -> None:
    status, out, _ = simulate()
    assert status == 0
    assert [line.split() for line in out.splitlines() if line.startswith(("A1", "C1", "sum"))] == [
        ["A1", "clone", "1.00", "4.9323", "0.1686", "+0.354", "-0.247"],
        ["C1", "unique", "1.00", "0.1904", "0.8401", "+0.354", "+2.407"],
        ["sum", "0.000", "0.000"],
    ]


def test_group_json(simulate: Any) -> None:
    status, out, _ = simulate("--json", "--group-size", "10", "--clones", "5")
    content = json.loads(out)
    assert status == 0
    assert content["scene"] == "group"
    assert content["options"]["clones"] == 5
    assert [row["kind"] for row in content["completions"]] == ["clone"] * 5 + ["wrong"] + ["unique"] * 4
    assert set(content["completions"][0]) == (
        {"completion", "kind", "reward", "smi", "adjusted_reward", "grpo_advantage", "dra_advantage"}
    )
    assert np.shape(content["similarity"]) == (10, 10)
    assert content["sum"] == pytest.approx({"grpo_advantage": 0, "dra_advantage": 0}, abs=1e-9)


def test_policy_json(simulate: Any) -> None:
    status, out, _ = simulate("--scene", "policy", "--json", "--steps", "12", "--modes", "3", "--group-size", "4")
    content = json.loads(out)
    assert status == 0
    assert content["modes"] == ["right 1", "right 2", "right 3", "wrong"]
    for method in ("grpo", "dra"):
        assert np.shape(content[method]["probabilities"]) == (13, 4)
        assert all(len(content[method][name]) == 13 for name in ("right", "entropy", "modes_in_group", "log_ratio"))


def test_policy_text_ends_on_the_last_step(simulate: Any) -> None:
    status, out, _ = simulate("--scene", "policy", "--steps", "13")
    steps = [int(line.split()[0]) for line in out.splitlines() if line[:1].isdigit() and "." in line.split()[1]]
    assert status == 0
    assert steps == [0, 2, 4, 6, 8, 10, 12, 13]


@pytest.mark.parametrize("scene", ["group", "policy", "policy --accuracies 0.5,0.4"])
def test_plot_is_written(simulate: Any, tmp_path: Path, scene: str) -> None:
    pytest.importorskip("matplotlib")
    path = tmp_path / "picture.png"
    status, out, _ = simulate("--scene", *scene.split(), "--plot", str(path))
    assert status == 0
    assert str(path) in out
    assert path.read_bytes().startswith(b"\x89PNG")


@pytest.mark.parametrize(
    ("options", "words"),
    [
        (["--clones", "7"], ["--group-size 8", "7 clones", "--group-size 9"]),
        (["--clones", "0"], ["--clones", "at least 1"]),
        (["--group-size", "1"], ["--group-size", "at least 2"]),
        (["--noise", "nan"], ["--noise", "nan"]),
        (["--seed", "-1"], ["--seed", "-1"]),
        (["--wrong-reward", "1"], ["--wrong-reward", "below 1"]),
        (["--std", "population", "--estimator", "dr_grpo"], ["--std population", "--estimator grpo"]),
        (["--steps", "5"], ["--steps", "--scene policy"]),
        (["--scene", "policy", "--clones", "3"], ["--clones", "--scene group"]),
        (["--scene", "policy", "--modes", "1"], ["--modes", "at least 2"]),
        (["--scene", "policy", "--sampled", "0"], ["--sampled", "at least 1"]),
        (["--scene", "policy", "--lr", "0"], ["--lr", "above 0"]),
        (["--scene", "policy", "--wrong-start", "1"], ["--wrong-start", "between 0 and 1"]),
        (["--scene", "policy", "--accuracies", "0.5,0"], ["--accuracies", "above 0"]),
        (["--scene", "policy", "--accuracies", "0.5"], ["--modes", "at least 2"]),
        (["--scene", "policy", "--accuracies", "0.5,0.4", "--modes", "3"], ["--modes 3", "2 --accuracies"]),
        (["--scene", "policy", "--accuracies", "0.5,0.4", "--wrong-start", "0.5"], ["--wrong-start", "always wrong"]),
        (["--scene", "policy", "--accuracies", "0.5,0.4,0.3,0.2,0.1"], ["--group-size 8", "5 --accuracies"]),
        (["--accuracies", "0.5,0.4"], ["--accuracies", "--scene policy"]),
        (["--scene", "policy", "--start-ratio", "2"], ["--start-ratio", "at most 1"]),
        (["--scene", "policy", "--mode-cosine", "0.99"], ["--mode-cosine 0.99", "--clone-cosine 0.95"]),
        (["--scene", "policy", "--modes", "12", "--group-size", "16"], ["100,000", "lower one"]),
        (["--strength", "9"], ["--strength", "from 0 to 8", "9.0"]),
        (["--cosine-power", "0.5"], ["--cosine-power", "from 1 to 64"]),
        (["--spread-floor", "1"], ["--spread-floor", "below 1"]),
        (["--epsilon", "0"], ["--epsilon", "above 0"]),
        (["--epsilon", "1e-4", "--estimator", "dr_grpo"], ["--epsilon", "--estimator grpo"]),
        (["--cosine-power", "2", "--smi", "log_det"], ["--cosine-power", "--smi graph_cut"]),
        (["--spread-floor", "0.1", "--smi", "clusters"], ["--spread-floor", "--smi graph_cut"]),
        (
            ["--among", "correct", "--negative-rewards", "shift"],
            ["--among correct", "a wrong answer above a right one"],
        ),
        (["--scene", "policy", "--keep-scale"], ["--keep-scale", "--scene group"]),
        (["--plot", "picture.txt"], ["picture.txt", ".png"]),
        (["--plot", "no/such/folder/picture.png"], ["no/such/folder"]),
    ],
)
def test_impossible_options_are_refused(simulate: Any, options: list[str], words: list[str]) -> None:
    status, out, err = simulate(*options)
    assert (status, out) == (2, "")
    assert all(word in err for word in words), err


def test_missing_verl_is_named_with_the_fix(simulate: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "verl.trainer.ppo.core_algos", None)
    status, out, err = simulate()
    assert (status, out) == (1, "")
    assert "pip install 'verl_dra[train]'" in err
