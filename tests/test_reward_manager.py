"""DRARewardManager: the base manager's rewards to the letter, and each completion handed on without waiting."""

from __future__ import annotations

import asyncio
import copy
import math
import threading
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
from omegaconf import OmegaConf
from trajectories import byte_tokenizer, trajectory
from verl import DataProto
from verl.trainer.ppo.reward import load_reward_manager

from verl_dra.config import DRAConfig
from verl_dra.scorer.messages import Session
from verl_dra.scorer.placement import ScorerConfig
from verl_dra.training.reward_manager import DRARewardManager, base_reward_manager
from verl_dra.training.text import diversity_texts
from verl_dra.training.validation import Marking

TOKENIZER = byte_tokenizer()
OWN_MANAGER = '''
from verl.experimental.reward_loop.reward_manager.base import RewardManagerBase

class OwnManager(RewardManagerBase):
    """A user's own: takes what veRL gives it, and looks at every output."""

    def __init__(self, config, tokenizer, compute_score, reward_router_address=None, **kwargs):
        super().__init__(config, tokenizer, compute_score)
        self.address = reward_router_address

    async def run_single(self, data):
        return {"reward_score": float(len(data)), "reward_extra_info": {"address": self.address, "outputs": len(data)}}
'''


def scored(data_source: str, solution_str: str, ground_truth: str, extra_info: dict[str, Any], **_: Any) -> Any:
    return {"score": len(solution_str) - 0.5, "acc": ground_truth in solution_str, "read": solution_str}


async def scored_later(**arguments: Any) -> float:
    return float(len(arguments["solution_str"]))


class Recorder:
    """In place of the client: keeps what is submitted, in the order it came."""

    submitted: list[tuple[Session, str]]
    skipped: list[Session]

    def __init__(self, name: str) -> None:
        self.name = name
        Recorder.submitted = []
        Recorder.skipped = []

    def submit(self, session: Session, text: str) -> None:
        Recorder.submitted.append((session, text))

    def skip(self, session: Session) -> None:
        Recorder.skipped.append(session)


@pytest.fixture
def recorded(monkeypatch: pytest.MonkeyPatch) -> type[Recorder]:
    monkeypatch.setattr("verl_dra.training.reward_manager.ScorerClient", Recorder)
    return Recorder


def config(base: str, text: str = "response") -> Any:
    strength = [[2, 1.0], [4, 0.0]]
    dra = DRAConfig(base_reward_manager=base, scorer=ScorerConfig(name="scorers"), strength=strength, text=text)
    overlong = {"enable": True, "len": 4, "penalty_factor": 1.0, "log": True}
    return OmegaConf.create(
        {
            "dra": OmegaConf.structured(dra),
            "trainer": {"experiment_name": "test"},
            "reward": {
                "num_workers": 1,
                "reward_kwargs": {"overlong_buffer_cfg": overlong, "max_resp_len": 10},
                "custom_reward_function": None,
                "reward_manager": {
                    "source": "importlib",
                    "name": "DRARewardManager",
                    "module": {"path": "pkg://verl_dra.training.reward_manager"},
                },
            },
        }
    )


def rewarded(
    base: str, data: DataProto, compute_score: Any = scored, wrapped: bool = True, text: str = "response"
) -> dict[str, Any]:
    """The result for one trajectory, by the base manager alone or wrapped, in a loop of its own as in a worker."""

    async def run() -> dict[str, Any]:
        manager = DRARewardManager if wrapped else base_reward_manager(base)
        return await manager(config(base, text), TOKENIZER, compute_score, reward_router_address=None).run_single(
            copy.deepcopy(data)
        )

    return asyncio.run(asyncio.wait_for(run(), 60))


@pytest.fixture
def own_manager(tmp_path: Path) -> str:
    path = tmp_path / "own_manager.py"
    path.write_text(OWN_MANAGER)
    return f"{path}:OwnManager"


@pytest.mark.parametrize("compute_score", [scored, scored_later])
@pytest.mark.parametrize("base", ["naive", "dapo", "gdpo", "rate_limited", "own"])
def test_rewards_and_extra_info_are_the_base_managers(
    recorded: type[Recorder], own_manager: str, base: str, compute_score: Any
) -> None:
    base = own_manager if base == "own" else base
    data = trajectory(TOKENIZER, [("What is 6 x 7?", "It is 42.")])
    alone = rewarded(base, data, compute_score, wrapped=False)
    assert rewarded(base, data, compute_score) == alone
    assert len(alone["reward_extra_info"]) >= 1
    assert math.isfinite(alone["reward_score"])


@pytest.mark.parametrize("base", ["naive", "dapo", "own"])
def test_rewards_of_several_outputs_are_the_base_managers(
    recorded: type[Recorder], own_manager: str, base: str
) -> None:
    base = own_manager if base == "own" else base
    data = trajectory(TOKENIZER, [("one", "a long first output"), ("one, then two", "42"), ("three", "the last: 42")])
    assert rewarded(base, data) == rewarded(base, data, wrapped=False)


def test_verl_loads_it_with_what_it_gives_its_own_managers(recorded: type[Recorder]) -> None:
    async def run() -> dict[str, Any]:
        manager = load_reward_manager(
            config("naive"), TOKENIZER, reward_router_address=None, reward_model_tokenizer=None
        )
        assert isinstance(manager, DRARewardManager)
        data = trajectory(TOKENIZER, [("What is 6 x 7?", "#### 42")])
        data.non_tensor_batch["data_source"] = np.array(["openai/gsm8k"])
        return await manager.run_single(data)

    assert asyncio.run(run())["reward_score"] == 1


@pytest.mark.parametrize(
    "response", ["It is 42.", "", "   ", "x = 6 \u00d7 7\n\u21d2 42 \U0001f680", "half a character: \ud83d"]
)
def test_the_submitted_text_is_the_decoded_response(recorded: type[Recorder], response: str) -> None:
    response = response.encode("utf-8", "replace").decode()
    rewarded("naive", trajectory(TOKENIZER, [("What is 6 x 7?", response)], uid="u_1", session_id=3))
    assert recorded.submitted == [(Session("u_1", 3), response)]


def test_texts_are_decoded_beside_the_event_loop(recorded: type[Recorder], monkeypatch: pytest.MonkeyPatch) -> None:
    threads: list[threading.Thread] = []

    def decoded(*arguments: Any) -> list[str]:
        threads.append(threading.current_thread())
        return diversity_texts(*arguments)

    monkeypatch.setattr("verl_dra.training.reward_manager.diversity_texts", decoded)
    rewarded("naive", trajectory(TOKENIZER, [("q", "an answer")]))  # its loop is in this thread
    assert recorded.submitted == [(Session("a", 0), "an answer")]
    assert threading.current_thread() not in threads
    assert len(threads) == 1


@pytest.mark.parametrize(("text", "part"), [("after_thinking", "It is 42."), ("thinking", "6 x 7 is 42")])
def test_of_a_text_the_part_whose_diversity_counts_is_submitted(recorded: type[Recorder], text: str, part: str) -> None:
    data = trajectory(TOKENIZER, [("What is 6 x 7?", "<think>6 x 7 is 42</think>It is 42.<eos>")])
    alone = rewarded("naive", data, wrapped=False)
    assert rewarded("naive", data, text=text) == alone
    assert recorded.submitted == [(Session("a", 0), part)]


def test_where_only_the_policys_own_tokens_count_nothing_is_submitted(recorded: type[Recorder]) -> None:
    """As veRL gives no response mask."""
    data = trajectory(TOKENIZER, [("What is 6 x 7?", "42")])
    assert rewarded("naive", data, text="assistant") == rewarded("naive", data, wrapped=False)
    assert (recorded.submitted, recorded.skipped) == ([], [Session("a", 0)])


def test_special_tokens_are_left_out_of_the_text(recorded: type[Recorder]) -> None:
    rewarded("naive", trajectory(TOKENIZER, [("What is 6 x 7?", "42<eos>")]))
    assert recorded.submitted == [(Session("a", 0), "42")]


@pytest.mark.parametrize(
    "outputs",
    [
        [("short", "a much longer first output"), ("a longer prompt this time", "last")],
        [("a longer prompt this time", "first"), ("short", "the last output is the longest one")],
        [("a", "b"), ("c", "")],
    ],
)
def test_of_several_outputs_the_last_is_submitted_without_its_padding(
    recorded: type[Recorder], outputs: list[tuple[str, str]]
) -> None:
    data = trajectory(TOKENIZER, outputs)
    data.batch["responses"][data.batch["responses"] == 0] = TOKENIZER.convert_tokens_to_ids("!")  # padding would show
    rewarded("naive", data)
    assert recorded.submitted == [(Session("a", 0), outputs[-1][1])]


def test_without_stated_lengths_the_attention_mask_bounds_the_text(recorded: type[Recorder]) -> None:
    data = trajectory(TOKENIZER, [("What is 6 x 7?", "42")])
    del data.non_tensor_batch["response_len"]
    for name, value in (("responses", 2), ("attention_mask", 0)):
        column = data.batch.pop(name)
        data.batch[name] = column.new_full((1, column.shape[1] + 5), value).index_copy_(
            1, data.batch["prompts"].new_tensor(range(column.shape[1])), column
        )
    rewarded("naive", data)
    assert recorded.submitted == [(Session("a", 0), "42")]


def test_a_row_without_its_name_is_rewarded_and_not_submitted(recorded: type[Recorder]) -> None:
    """As veRL's colocated reward models pass them."""
    data = trajectory(TOKENIZER, [("What is 6 x 7?", "42")])
    expected = rewarded("naive", data, wrapped=False)
    del data.non_tensor_batch["uid"], data.non_tensor_batch["session_id"]
    assert rewarded("naive", data) == expected
    assert recorded.submitted == []


def test_validation_is_rewarded_and_not_submitted_in_any_trainer_mode(recorded: type[Recorder]) -> None:
    rows = Marking(lambda rows: {"prompt": np.array([row["prompt"] for row in rows])})([{"prompt": "What is 6 x 7?"}])
    data = trajectory(TOKENIZER, [("What is 6 x 7?", "42")])
    expected = rewarded("naive", data, wrapped=False)
    # As veRL's agent loop passes on each column of a prompt's row.
    data.non_tensor_batch |= {name: np.array([column[0]]) for name, column in rows.items()}
    assert rewarded("naive", data) == expected
    assert (recorded.submitted, recorded.skipped) == ([], [Session("a", 0)])


def test_what_is_generated_for_a_step_without_dra_is_rewarded_and_not_submitted(recorded: type[Recorder]) -> None:
    data = trajectory(TOKENIZER, [("What is 6 x 7?", "42")])
    expected = rewarded("naive", data, wrapped=False)
    for step, submitted in ((2, 1), (3, 1), (4, 0), (9, 0)):
        # As veRL's agent loop passes on what the step's batch has.
        data.non_tensor_batch["global_steps"] = np.array([step])
        assert rewarded("naive", data) == expected
        assert (len(recorded.submitted), len(recorded.skipped)) == (submitted, 1 - submitted)


def test_the_scorer_gets_the_completion_before_a_slow_reward_is_there(recorded: type[Recorder]) -> None:
    async def run() -> None:
        seen = asyncio.Event()
        may_end = asyncio.Event()

        async def slow(**_: Any) -> float:
            seen.set()
            await may_end.wait()
            return 1.0

        manager = DRARewardManager(config("naive"), TOKENIZER, slow)
        reward = asyncio.create_task(manager.run_single(trajectory(TOKENIZER, [("q", "an answer")])))
        await asyncio.wait_for(seen.wait(), 60)
        assert recorded.submitted == [(Session("a", 0), "an answer")]
        assert not reward.done()
        may_end.set()
        await reward

    asyncio.run(run())


def test_a_reward_waits_neither_for_a_busy_scorer_nor_for_an_absent_one(monkeypatch: pytest.MonkeyPatch) -> None:
    asked: list[str] = []
    sent: list[Any] = []

    def never(completions: Any, refused: int, unsent: int, skipped: int) -> Any:
        sent.append(completions)
        return asyncio.get_running_loop().create_future()

    def absent(name: str) -> Any:
        asked.append(name)
        raise ValueError(f"Failed to look up actor {name}")

    data = trajectory(TOKENIZER, [("q", "an answer")])

    async def run(seen: list[Any]) -> dict[str, Any]:
        reward = await DRARewardManager(config("naive"), TOKENIZER, scored).run_single(copy.deepcopy(data))
        while not seen:
            await asyncio.sleep(0.001)
        return reward

    alone = rewarded("naive", data, wrapped=False)
    monkeypatch.setattr("verl_dra.scorer.client.look_up", lambda name: 1)
    monkeypatch.setattr("ray.get_actor", lambda name: SimpleNamespace(submit=SimpleNamespace(remote=never)))
    assert asyncio.run(asyncio.wait_for(run(sent), 60)) == alone
    assert sent == [[(Session("a", 0), "an answer")]]
    monkeypatch.setattr("ray.get_actor", absent)
    assert asyncio.run(asyncio.wait_for(run(asked), 60)) == alone
    assert asked == ["scorers_0"]


def test_many_trajectories_at_once_are_all_submitted(recorded: type[Recorder]) -> None:
    async def run() -> list[dict[str, Any]]:
        manager = DRARewardManager(config("naive"), TOKENIZER, scored)
        return await asyncio.gather(
            *(manager.run_single(trajectory(TOKENIZER, [("q", f"answer {i}")], f"u{i}", i)) for i in range(200))
        )

    rewards = asyncio.run(run())
    assert [reward["reward_extra_info"]["read"] for reward in rewards] == [f"answer {i}" for i in range(200)]
    assert sorted(recorded.submitted) == sorted((Session(f"u{i}", i), f"answer {i}") for i in range(200))


def test_an_error_of_the_base_manager_is_the_callers(recorded: type[Recorder]) -> None:
    def failing(**_: Any) -> float:
        raise ZeroDivisionError("the reward function divides by zero")

    with pytest.raises(ZeroDivisionError, match="divides by zero"):
        rewarded("naive", trajectory(TOKENIZER, [("q", "a")]), failing)


def test_a_base_manager_that_is_not_there_is_named() -> None:
    with pytest.raises(
        ValueError, match=r"'naiive' is neither .*manager of veRL \(dapo, gdpo, naive, rate_limited, remote\)"
    ):
        base_reward_manager("naiive")
