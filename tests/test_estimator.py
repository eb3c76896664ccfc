"""The estimator `dra`, called by veRL's own functions, against veRL's base estimators and a float64 recomputation."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import oracles
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from omegaconf import OmegaConf
from verl import DataProto
from verl.trainer.ppo.core_algos import AdaptiveKLController, FixedKLController, get_adv_estimator_fn, register_adv_est
from verl.trainer.ppo.ray_trainer import apply_kl_penalty, compute_advantage
from verl.trainer.ppo.v1.utils import compute_advantage_for_multi_trajectories

from verl_dra.algorithm import adjust_rewards, diversity_weights, fill_unscored
from verl_dra.training import estimator
from verl_dra.training.estimator import Step, estimating
from verl_dra.training.rows import Rows

LENGTH = 7
BASES = (
    "grpo",
    "grpo_vectorized",
    "grpo_passk",
    "rloo",
    "rloo_vectorized",
    "reinforce_plus_plus",
    "reinforce_plus_plus_baseline",
    "opo",
    "gpg",
)
POLICIES = ("paper", "shift", "positive_only")


@pytest.fixture(autouse=True, scope="module")
def _registered() -> None:
    estimator.register()


@dataclass
class Batch:
    """N rows as the trainer has them, and the SMI of each session that is no padding."""

    keys: list[str]
    padding: list[bool]
    rewards: torch.Tensor
    mask: torch.Tensor
    smi: dict[tuple[str, int], float]

    @property
    def rows(self) -> Rows:
        return Rows.of(self.keys, self.padding)

    @property
    def uids(self) -> np.ndarray:
        return np.array([key.rsplit("_", 2)[0] for key in self.keys], dtype=object)

    def take(self, order: np.ndarray) -> Batch:
        return replace(
            self,
            keys=[self.keys[i] for i in order],
            padding=[self.padding[i] for i in order],
            rewards=self.rewards[order],
            mask=self.mask[order],
        )

    def data(self, rewards: torch.Tensor | None = None) -> DataProto:
        rewards = self.rewards if rewards is None else rewards
        return DataProto.from_dict(
            tensors={"token_level_rewards": rewards.clone(), "response_mask": self.mask},
            non_tensors={"uid": self.uids},
        )


def make_batch(
    sizes: tuple[int, ...] = (4, 3, 5), seed: int = 0, padding: int = 0, outputs: int = 1, dense: bool = False
) -> Batch:
    """Shuffled rows: groups of `sizes`, up to `outputs` a session, responses with observation tokens inside.

    The reward is on the last token of each session's last output, or with `dense` on every response token.
    """
    rng = np.random.default_rng(seed)
    keys, rewards, mask, smi = [], [], [], {}
    for group, size in enumerate(sizes):
        uid = f"prompt_{group}"
        for session in rng.permutation(size + 2)[:size]:
            smi[uid, int(session)] = rng.uniform(-0.5, 4)
            count = rng.integers(1, outputs + 1)
            for output in range(count):
                length = rng.integers(2, LENGTH + 1)
                row_mask = np.zeros(LENGTH, dtype=np.int64)
                row_mask[:length] = rng.random(length) < 0.8
                row_mask[[0, length - 1]] = 1
                row = rng.normal(size=LENGTH) * 0.1 * row_mask if dense else np.zeros(LENGTH)
                if output == count - 1:
                    row[length - 1] += rng.choice([-1.0, -0.25, 0.0, 0.5, 1.0])
                keys.append(f"{uid}_{session}_{output}")
                rewards.append(row)
                mask.append(row_mask)
    for i in range(padding):
        keys.append(f"pad0f_{i}_0")
        rewards.append(np.zeros(LENGTH))
        mask.append(np.zeros(LENGTH, dtype=np.int64))
    batch = Batch(
        keys,
        [key.startswith("pad") for key in keys],
        torch.tensor(np.array(rewards), dtype=torch.float32),
        torch.tensor(np.array(mask)),
        smi,
    )
    return batch.take(rng.permutation(len(keys)))


def algorithm(**settings: Any) -> Any:
    return OmegaConf.create({"gamma": 1.0, "lam": 1.0, "norm_adv_by_std_in_grpo": True, **settings})


def verl_advantages(batch: Batch, name: str, rewards: torch.Tensor | None = None, **settings: Any) -> DataProto:
    """What veRL's trainer calls, with its arguments."""
    config = algorithm(**settings)
    return compute_advantage_for_multi_trajectories(
        batch.data(rewards),
        batch_keys=batch.keys,
        adv_estimator=name,
        gamma=config.gamma,
        lam=config.lam,
        num_repeat=4,
        norm_adv_by_std_in_grpo=config.norm_adv_by_std_in_grpo,
        config=config,
    )


def dra_advantages(
    batch: Batch,
    base: str = "grpo",
    negative: Any = "paper",
    rewards: torch.Tensor | None = None,
    unscored: tuple[str, ...] = (),
    **settings: Any,
) -> tuple[DataProto, Step]:
    rows = batch.rows
    smi = torch.tensor([batch.smi[name] for name in rows.names])
    scored = torch.tensor([name.uid not in unscored for name in rows.names])
    smi = torch.where(scored, smi, 0)
    step = Step(rows, smi, fill_unscored(diversity_weights(smi), scored), scored, base, negative)
    with estimating(step):
        return verl_advantages(batch, "dra", rewards, **settings), step


@pytest.mark.parametrize("base", ["grpo", "rloo", "opo"])
def test_what_the_base_estimator_gives_without_dra_is_kept_where_it_is_wanted(base: str) -> None:
    batch = make_batch(padding=2)
    rows = batch.rows
    smi = torch.tensor([batch.smi[name] for name in rows.names])
    step = Step(rows, smi, diversity_weights(smi), torch.ones(len(smi), dtype=torch.bool), base, "paper", compare=True)
    with estimating(step):
        compared = verl_advantages(batch, "dra")
    ours, plain = dra_advantages(batch, base)
    assert_close(compared, ours)
    assert plain.advantage_without is None
    finals = [rows.final[at] for at in rows.real]
    own = verl_advantages_padding_apart(batch, base, batch.rewards).batch["advantages"][finals]
    assert step.advantage_without is not None
    torch.testing.assert_close(step.advantage_without, own[torch.arange(len(finals)), batch.mask[finals].argmax(dim=1)])


def test_a_base_estimator_that_fails_on_raw_rewards_alone_ends_nothing(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    calls = []

    def first_time_only(*arguments: Any) -> Any:
        calls.append(arguments)
        if len(calls) == 2:
            raise ZeroDivisionError("raw")
        return original(*arguments)

    original = estimator._base
    monkeypatch.setattr(estimator, "_base", first_time_only)
    batch = make_batch()
    smi = torch.tensor([batch.smi[name] for name in batch.rows.names])
    step = Step(batch.rows, smi, diversity_weights(smi), torch.ones(len(smi)).bool(), "grpo", "paper", compare=True)
    with estimating(step):
        verl_advantages(batch, "dra")
    assert step.advantage is not None
    assert step.advantage_without is None
    assert step.compare_s > 0
    assert "grpo has no advantages of the raw rewards: ZeroDivisionError('raw')" in caplog.text


def test_an_estimator_of_the_user_s_own_is_called_once_a_step_and_not_for_the_record() -> None:
    """One with a state, such as a running mean, would train differently with records than without."""
    seen: list[torch.Tensor] = []

    @register_adv_est("counting")
    def counting(token_level_rewards: torch.Tensor, response_mask: torch.Tensor, **_: Any) -> Any:
        seen.append(token_level_rewards)
        return (len(seen) * token_level_rewards,) * 2

    batch = make_batch()
    smi = torch.tensor([batch.smi[name] for name in batch.rows.names])
    step = Step(batch.rows, smi, diversity_weights(smi), torch.ones(len(smi)).bool(), "counting", "paper", compare=True)
    with estimating(step):
        verl_advantages(batch, "dra")
    assert len(seen) == 1
    assert step.advantage_without is None


def verl_advantages_padding_apart(batch: Batch, name: str, rewards: torch.Tensor, **settings: Any) -> DataProto:
    """veRL's own advantages of the real rows, and zero for padding."""
    real = np.flatnonzero(~np.array(batch.padding))
    own = verl_advantages(batch.take(real), name, rewards[real], **settings)
    data = batch.data(rewards)
    for field in ("advantages", "returns"):
        data.batch[field] = torch.zeros_like(rewards)
        data.batch[field][real] = own.batch[field]
    return data


def hand_adjusted(batch: Batch, negative: str = "paper", unscored: tuple[str, ...] = ()) -> torch.Tensor:
    """Token-level rewards [N, length] adjusted in float64, by loops.

    Tokens are scaled; what a policy for negative rewards changes beside is put on the last response token.
    """
    rows = batch.rows
    finals = [rows.final[at] for at in rows.real]
    tokens = batch.rewards.double().numpy().copy()
    weight = oracles.weights(np.array([batch.smi[name] for name in rows.names]))
    weight = oracles.fill_unscored(weight, np.array([name.uid not in unscored for name in rows.names]))
    target = oracles.adjust(tokens[finals].sum(1), weight, np.array([name.uid for name in rows.names]), negative)
    for row, row_weight, row_target in zip(finals, weight, target, strict=True):
        tokens[row] *= row_weight
        last = max(np.flatnonzero(batch.mask[row].numpy()))
        tokens[row, last] += row_target - tokens[row].sum()
    return torch.from_numpy(tokens).float()


def assert_close(ours: DataProto, expected: DataProto) -> None:
    for name in ("advantages", "returns"):
        torch.testing.assert_close(ours.batch[name], expected.batch[name], rtol=1e-4, atol=1e-5)


@settings(max_examples=60)
@given(
    sizes=st.lists(st.integers(1, 6), min_size=1, max_size=5).map(tuple),
    seed=st.integers(0, 2**32 - 1),
    padding=st.integers(0, 3),
    outputs=st.integers(1, 3),
    negative=st.sampled_from(POLICIES),
    norm=st.booleans(),
)
def test_advantages_are_the_float64_value_of_the_adjusted_rewards(
    sizes, seed, padding, outputs, negative, norm
) -> None:
    batch = make_batch(sizes, seed, padding, outputs)
    rows = batch.rows
    group = np.array([name.uid for name in rows.names])
    finals = [rows.final[at] for at in rows.real]
    raw = batch.rewards[finals].sum(1).double().numpy()
    weight = oracles.weights(np.array([batch.smi[name] for name in rows.names]))
    adjusted = oracles.adjust(raw, weight, group, negative)
    expected = oracles.grpo(adjusted, group, norm)

    data, step = dra_advantages(batch, negative=negative, norm_adv_by_std_in_grpo=norm)

    np.testing.assert_allclose(step.raw, raw, atol=1e-6)
    np.testing.assert_allclose(step.weights, weight, rtol=1e-6)
    np.testing.assert_allclose(step.adjusted, adjusted, rtol=1e-6, atol=1e-6)
    # A group whose rewards are nearly equal divides float32's rounding by its tiny standard deviation.
    spread = np.array([adjusted[group == uid].std(ddof=1) if (group == uid).sum() > 1 else 1.0 for uid in group])
    error = np.abs(step.advantage.numpy() - expected)
    np.testing.assert_array_less(error, 1e-5 + 5e-7 / (spread + 1e-6) if norm else 1e-5)
    per_session = np.zeros(len(rows.final))
    per_session[rows.real] = step.advantage
    torch.testing.assert_close(
        data.batch["advantages"], torch.tensor(per_session[rows.session], dtype=torch.float32)[:, None] * batch.mask
    )
    assert torch.equal(data.batch["returns"], data.batch["advantages"])


@pytest.mark.parametrize("negative", POLICIES)
@pytest.mark.parametrize("base", BASES)
def test_base_estimator_gets_the_adjusted_rewards(base: str, negative: str) -> None:
    batch = make_batch(padding=3)
    ours, _ = dra_advantages(batch, base, negative)
    assert_close(ours, verl_advantages_padding_apart(batch, base, hand_adjusted(batch, negative)))
    unadjusted = verl_advantages_padding_apart(batch, base, batch.rewards)
    assert not torch.allclose(ours.batch["advantages"], unadjusted.batch["advantages"], atol=1e-3)


@pytest.mark.parametrize("base", BASES)
def test_without_similarity_the_run_is_verls_own(base: str) -> None:
    batch = make_batch()
    batch.smi = dict.fromkeys(batch.smi, 0.0)
    ours, _ = dra_advantages(batch, base)
    own = verl_advantages(batch, base)
    for name in ("advantages", "returns"):
        assert torch.equal(ours.batch[name], own.batch[name])


def test_without_similarity_a_padded_batch_is_verls_own() -> None:
    batch = make_batch(padding=2, outputs=3)
    batch.smi = dict.fromkeys(batch.smi, 0.0)
    assert torch.equal(dra_advantages(batch)[0].batch["advantages"], verl_advantages(batch, "grpo").batch["advantages"])


@pytest.mark.parametrize("negative", POLICIES)
@pytest.mark.parametrize("base", BASES)
def test_a_group_without_scores_gets_the_mean_weight_of_the_others(base: str, negative: str) -> None:
    batch = make_batch()
    ours, step = dra_advantages(batch, base, negative, unscored=("prompt_1",))
    assert_close(ours, verl_advantages(batch, base, hand_adjusted(batch, negative, ("prompt_1",))))
    (weight,) = set(step.weights[~step.scored].tolist())
    assert weight == pytest.approx(step.weights[step.scored].mean().item())


def test_groups_without_scores_get_as_large_a_gradient_as_the_others() -> None:
    """Dr.GRPO, a third of the groups not scored, half of every group's answers right."""
    batch = make_batch((8,) * 9)
    rng = np.random.default_rng(0)
    rows = batch.rows
    batch.rewards.zero_()
    right = [rank % 2 for rank in _rank_in_group(rows)]
    for at, one in zip(rows.real, right, strict=True):
        batch.rewards[rows.final[at], 0] = one
    batch.smi = {name: rng.uniform(5, 7) for name in rows.names}
    unscored = ("prompt_1", "prompt_4", "prompt_7")
    _, step = dra_advantages(batch, unscored=unscored, norm_adv_by_std_in_grpo=False)

    group = np.array([name.uid for name in rows.names])
    scored = ~np.isin(group, unscored)
    weight = oracles.fill_unscored(oracles.weights(np.array([batch.smi[name] for name in rows.names])), scored)
    expected = oracles.grpo(oracles.adjust(np.array(right, dtype=np.float64), weight, group), group, norm_by_std=False)
    np.testing.assert_allclose(step.advantage, expected, rtol=1e-5, atol=1e-7)
    size = step.advantage.abs().numpy()
    assert size[~scored].mean() == pytest.approx(size[scored].mean(), rel=0.1)


def test_a_batch_without_scores_keeps_its_raw_rewards() -> None:
    batch = make_batch()
    ours, step = dra_advantages(batch, unscored=tuple(set(batch.uids)))
    assert torch.equal(step.adjusted, step.raw)
    assert_close(ours, verl_advantages(batch, "grpo"))


def _rank_in_group(rows: Rows) -> list[int]:
    seen: dict[str, int] = {}
    ranks = []
    for name in rows.names:
        ranks.append(seen.get(name.uid, 0))
        seen[name.uid] = ranks[-1] + 1
    return ranks


def weighed(batch: Batch, base: str = "grpo", negative: Any = "paper", **knobs: Any) -> Step:
    smi = torch.tensor([batch.smi[name] for name in batch.rows.names])
    weights, scored = diversity_weights(smi), torch.ones(len(smi), dtype=torch.bool)
    if (inside := knobs.get("inside")) is not None:
        weights = torch.where(inside, weights, 1)
    return Step(batch.rows, smi, weights, scored, base, negative, **knobs)


def adjusted_before(step: Step, tokens: torch.Tensor, mask: torch.Tensor) -> torch.Tensor:
    """What the estimator made of rewards before there were knobs."""
    raw = tokens.sum(dim=1)
    weights = step.weights.to(tokens.dtype)
    adjusted = adjust_rewards(raw, weights, step.rows.group, negative=step.negative_rewards)
    tokens = tokens * weights[:, None]
    last = mask.shape[1] - 1 - mask.flip(1).argmax(dim=1)
    tokens[torch.arange(len(tokens)), last] += adjusted - tokens.sum(dim=1)
    return tokens


@settings(max_examples=40)
@given(
    sizes=st.lists(st.integers(2, 6), min_size=1, max_size=5).map(tuple),
    seed=st.integers(0, 2**32 - 1),
    padding=st.integers(0, 3),
    dense=st.booleans(),
    base=st.sampled_from(BASES),
    negative=st.sampled_from(POLICIES),
)
def test_without_knobs_advantages_are_those_of_before_to_the_bit(sizes, seed, padding, dense, base, negative) -> None:
    batch = make_batch(sizes, seed, padding, dense=dense)
    step = weighed(batch, base, negative)
    with estimating(step):
        ours = verl_advantages(batch, "dra")
    real = [batch.rows.final[at] for at in batch.rows.real]
    before = batch.rewards.clone()
    before[real] = adjusted_before(weighed(batch, base, negative), batch.rewards[real], batch.mask[real])
    own = verl_advantages_padding_apart(batch, base, before)
    assert torch.equal(ours.batch["advantages"][real], own.batch["advantages"][real])


@pytest.mark.parametrize("epsilon", [1e-6, 1e-4, 0.3])
@pytest.mark.parametrize("base", ["grpo", "grpo_vectorized"])
def test_an_epsilon_is_added_to_the_standard_deviation(base: str, epsilon: float) -> None:
    batch = make_batch((4, 3, 5, 1), padding=2, outputs=2)
    step = weighed(batch, base, epsilon=epsilon, compare=True)
    with estimating(step):
        verl_advantages(batch, "dra")
    group = np.array([name.uid for name in batch.rows.names])
    for rewards, found in ((step.adjusted, step.advantage), (step.raw, step.advantage_without)):
        np.testing.assert_allclose(
            found, oracles.grpo(rewards.double().numpy(), group, epsilon=epsilon), rtol=1e-4, atol=1e-6
        )


@pytest.mark.parametrize("settings", [{}, {"norm_adv_by_std_in_grpo": False}])
@pytest.mark.parametrize("base", ["grpo", "grpo_vectorized", "grpo_passk"])
def test_verls_own_epsilon_gives_its_own_advantages_to_the_bit(base: str, settings: dict[str, Any]) -> None:
    batch = make_batch(padding=2)
    steps = weighed(batch, base), weighed(batch, base, epsilon=1e-6)
    for step in steps:
        with estimating(step):
            verl_advantages(batch, "dra", **settings)
    assert torch.equal(steps[0].advantage, steps[1].advantage)


def test_the_papers_epsilon_calms_a_group_of_near_copies() -> None:
    """All right, at cosines of 0.999, more and less by 0.0002."""
    batch = make_batch((8,))
    batch.rewards.zero_()
    batch.rewards[:, 0] = 1
    rng = np.random.default_rng(0)
    batch.smi = {name: 7 * 0.999 + rng.normal(0, 0.0002 * 7**0.5) for name in batch.rows.names}
    sizes = []
    for epsilon in (None, 1e-4):
        step = weighed(batch, epsilon=epsilon)
        with estimating(step):
            verl_advantages(batch, "dra")
        sizes.append(step.advantage.abs().mean().item())
    assert sizes[0] > 0.5
    assert sizes[1] < 0.15


@settings(max_examples=40)
@given(
    sizes=st.lists(st.integers(1, 6), min_size=1, max_size=5).map(tuple),
    seed=st.integers(0, 2**32 - 1),
    dense=st.booleans(),
    negative=st.sampled_from(POLICIES),
    gate=st.booleans(),
)
def test_the_scale_of_rewards_is_kept_where_weights_act(sizes, seed, dense, negative, gate) -> None:
    batch = make_batch(sizes, seed, padding=1, outputs=2, dense=dense)
    rows = batch.rows
    finals = [rows.final[at] for at in rows.real]
    raw = batch.rewards[finals].double().sum(1).numpy()
    inside = torch.from_numpy(np.random.default_rng(seed).random(len(raw)) < 0.6) if gate else None
    step = weighed(batch, "rloo", negative, keep_scale=True, inside=inside)
    with estimating(step):
        verl_advantages(batch, "dra")
    acted = np.ones(len(raw), dtype=bool) if inside is None else inside.numpy()
    if negative == "positive_only":
        acted = acted & (raw > 0)
    group = np.array([name.uid for name in rows.names])
    weights = step.weights.double().numpy()
    expected = oracles.adjust(raw, weights, group, negative) * oracles.kept_scale(weights, acted)
    np.testing.assert_allclose(step.adjusted, expected, rtol=1e-5, atol=1e-6)
    others = [np.delete(np.arange(len(raw)), i)[np.delete(group, i) == group[i]] for i in range(len(raw))]
    rloo = [expected[i] - expected[rest].mean() if len(rest) else 0.0 for i, rest in enumerate(others)]
    several = np.array([(group == uid).sum() > 1 for uid in group])
    np.testing.assert_allclose(step.advantage.numpy()[several], np.array(rloo)[several], rtol=1e-4, atol=1e-5)


def test_a_scale_that_is_kept_scales_token_by_token() -> None:
    seen: list[torch.Tensor] = []

    @register_adv_est("looking")
    def looking(token_level_rewards: torch.Tensor, response_mask: torch.Tensor, **_: Any) -> Any:
        seen.append(token_level_rewards)
        return (token_level_rewards,) * 2

    batch = make_batch(dense=True)
    step = weighed(batch, "looking", keep_scale=True)
    with estimating(step):
        verl_advantages(batch, "dra")
    finals = [batch.rows.final[at] for at in batch.rows.real]
    expected = batch.rewards[finals] * (step.weights / step.weights.mean())[:, None]
    torch.testing.assert_close(seen[0], expected, rtol=1e-4, atol=1e-6)


def test_dr_grpo_is_grpo_without_the_division_by_the_standard_deviation() -> None:
    batch = make_batch()
    ours, _ = dra_advantages(batch, norm_adv_by_std_in_grpo=False)
    assert_close(ours, verl_advantages(batch, "grpo", hand_adjusted(batch), norm_adv_by_std_in_grpo=False))
    assert not torch.allclose(ours.batch["advantages"], dra_advantages(batch)[0].batch["advantages"], atol=1e-3)


def test_verls_algorithm_settings_reach_the_base_estimator() -> None:
    batch = make_batch()
    for base, changed in (("reinforce_plus_plus", {"gamma": 0.5}), ("grpo_passk", {"norm_adv_by_std_in_grpo": False})):
        ours, _ = dra_advantages(batch, base, **changed)
        assert_close(ours, verl_advantages(batch, base, hand_adjusted(batch), **changed))
        assert not torch.allclose(ours.batch["advantages"], dra_advantages(batch, base)[0].batch["advantages"])


def test_a_redundant_right_answer_gets_less_than_a_unique_one() -> None:
    batch = make_batch((3,))
    batch.rewards.zero_()
    batch.rewards[:, 0] = torch.tensor([1.0, 1.0, 0.0])
    batch.smi = dict(zip(batch.rows.names, [1.5, 0.0, 0.0], strict=True))
    _, step = dra_advantages(batch)
    redundant, unique, wrong = step.advantage.tolist()
    assert unique > redundant > wrong
    assert step.adjusted.tolist() == pytest.approx([0.4, 1, 0])


def test_a_failed_session_leaves_the_others_of_its_group_as_they_are() -> None:
    batch = make_batch((4, 4))
    lost = int(np.flatnonzero(batch.uids == "prompt_0")[0])
    uneven = batch.take(np.delete(np.arange(8), lost))
    ours, step = dra_advantages(uneven)
    assert_close(ours, verl_advantages(uneven, "grpo", hand_adjusted(uneven)))
    whole, _ = dra_advantages(batch)
    other_group = uneven.uids == "prompt_1"
    kept = np.delete(np.arange(8), lost)[other_group]
    assert torch.equal(ours.batch["advantages"][other_group], whole.batch["advantages"][kept])
    assert len(step.advantage) == 7


def test_a_singleton_keeps_its_weighted_reward_as_verl_has_it() -> None:
    batch = make_batch((1, 1, 1))
    ours, step = dra_advantages(batch)
    assert_close(ours, verl_advantages(batch, "grpo", hand_adjusted(batch)))
    torch.testing.assert_close(step.advantage, step.adjusted, rtol=1e-5, atol=0)


@pytest.mark.parametrize("padding", [1, 3])
@pytest.mark.parametrize("base", BASES)
def test_padding_rows_change_nothing_and_get_no_advantage(base: str, padding: int) -> None:
    padded = make_batch(padding=padding)
    real = np.flatnonzero(~np.array(padded.padding))
    with_padding, step = dra_advantages(padded, base)
    without, _ = dra_advantages(padded.take(real), base)
    torch.testing.assert_close(with_padding.batch["advantages"][real], without.batch["advantages"])
    assert not with_padding.batch["advantages"][np.array(padded.padding)].any()
    assert len(step.raw) == len(step.adjusted) == len(step.advantage) == len(real)


@pytest.mark.parametrize("norm", [True, False])
@pytest.mark.parametrize("negative", POLICIES)
def test_several_outputs_share_their_sessions_advantage_as_verl_does_for_grpo(negative: str, norm: bool) -> None:
    batch = make_batch((4, 3, 1), padding=2, outputs=4)
    assert len(batch.keys) > len(batch.rows.final)
    ours, _ = dra_advantages(batch, "grpo", negative, norm_adv_by_std_in_grpo=norm)
    adjusted = hand_adjusted(batch, negative)
    assert_close(ours, verl_advantages(batch, "grpo", adjusted, norm_adv_by_std_in_grpo=norm))


@pytest.mark.parametrize("base", ["rloo", "opo", "reinforce_plus_plus_baseline", "grpo_passk"])
def test_other_estimators_see_final_outputs_alone(base: str) -> None:
    batch = make_batch((4, 3, 2), outputs=3)
    rows = batch.rows
    finals = batch.take(np.array(rows.final))
    expected = verl_advantages(finals, base, hand_adjusted(finals)).batch["advantages"]
    per_session = expected[torch.arange(len(finals.keys)), finals.mask.argmax(1)]
    ours, _ = dra_advantages(batch, base)
    torch.testing.assert_close(
        ours.batch["advantages"], per_session[rows.session][:, None] * batch.mask, rtol=1e-4, atol=1e-5
    )


@pytest.mark.parametrize("base", BASES)
def test_row_order_does_not_matter(base: str) -> None:
    batch = make_batch(padding=2, seed=3)
    order = np.random.default_rng(1).permutation(len(batch.keys))
    straight, _ = dra_advantages(batch, base)
    shuffled, _ = dra_advantages(batch.take(order), base)
    torch.testing.assert_close(shuffled.batch["advantages"], straight.batch["advantages"][order], rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize(
    ("negative", "adjusted"),
    [("paper", [0.5, -0.25, -1.0]), ("shift", [1.0, 0.125, 0.0]), ("positive_only", [0.5, -0.75, -1.0])],
)
def test_negative_rewards_follow_the_policy(negative: str, adjusted: list[float]) -> None:
    batch = make_batch((3,))
    batch.rewards.zero_()
    batch.rewards[:, 0] = torch.tensor([1.0, -0.75, -1.0])
    batch.smi = dict(zip(batch.rows.names, [1.0, 2.0 if negative != "shift" else 1.0, 0.0], strict=True))
    _, step = dra_advantages(batch, negative=negative)
    assert step.adjusted.tolist() == pytest.approx(adjusted)
    np.testing.assert_allclose(step.advantage, oracles.grpo(np.array(adjusted), np.zeros(3)), rtol=1e-4)


@pytest.mark.parametrize("negative", POLICIES)
@pytest.mark.parametrize("base", ["grpo", "rloo", "reinforce_plus_plus"])
def test_rewards_on_every_token_are_scaled_token_by_token(base: str, negative: str) -> None:
    batch = make_batch(padding=2, dense=True)
    ours, _ = dra_advantages(batch, base, negative)
    assert_close(ours, verl_advantages(batch, base, hand_adjusted(batch, negative)))


@pytest.mark.parametrize("controller", [FixedKLController(0.3), AdaptiveKLController(0.3, target_kl=0.1, horizon=1000)])
def test_kl_penalty_in_the_reward_is_adjusted_with_it(controller: Any) -> None:
    batch = make_batch(padding=2)
    log_probs = torch.randn(2, *batch.mask.shape, generator=torch.Generator().manual_seed(0))
    data = DataProto.from_dict(
        tensors={
            "token_level_scores": batch.rewards,
            "response_mask": batch.mask,
            "old_log_probs": log_probs[0],
            "ref_log_prob": log_probs[1],
        }
    )
    penalised = apply_kl_penalty(data, controller)[0].batch["token_level_rewards"]
    assert (penalised != batch.rewards).sum() > len(batch.keys)
    batch.rewards = penalised
    ours, step = dra_advantages(batch)
    assert_close(ours, verl_advantages(batch, "grpo", hand_adjusted(batch)))
    rows = batch.rows
    torch.testing.assert_close(step.raw, penalised[[rows.final[at] for at in rows.real]].sum(1))


def test_the_batchs_own_rewards_stay_raw() -> None:
    batch = make_batch(padding=1)
    data, _ = dra_advantages(batch)
    assert torch.equal(data.batch["token_level_rewards"], batch.rewards)


def test_a_response_without_tokens_has_a_reward_and_no_advantage() -> None:
    batch = make_batch((3,))
    batch.mask[1] = 0
    batch.rewards[1] = 0
    ours, step = dra_advantages(batch)
    assert not ours.batch["advantages"][1].any()
    assert step.advantage[1] == 0
    assert ours.batch["advantages"][[0, 2]].isfinite().all()


def test_a_reward_that_is_not_finite_is_named() -> None:
    batch = make_batch((3,))
    batch.rewards[1, 0] = float("nan")
    with pytest.raises(ValueError, match=r"rewards\[1\] \(group 0\) is nan"):
        dra_advantages(batch)


def test_outside_verl_dras_trainer_the_estimator_says_how_to_start() -> None:
    batch = make_batch()
    with pytest.raises(RuntimeError, match=r"needs verl_dra's trainer: start the run by `verl-dra train`"):
        verl_advantages(batch, "dra")
    dra_advantages(batch)
    with pytest.raises(RuntimeError, match="needs verl_dra's trainer"):
        compute_advantage(batch.data(), adv_estimator="dra", config=algorithm())


def test_a_failed_step_is_not_the_next_ones() -> None:
    batch = make_batch((2,))
    with pytest.raises(ValueError, match="Unknown advantage estimator"):
        dra_advantages(batch, base="no_such_estimator")
    with pytest.raises(RuntimeError, match="needs verl_dra's trainer"):
        verl_advantages(batch, "dra")


def test_registering_again_is_safe() -> None:
    estimator.register()
    estimator.register()
    assert get_adv_estimator_fn(estimator.NAME) is estimator.compute_dra_advantage
