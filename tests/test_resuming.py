"""Where checkpoints go, and that a run goes on from those of its own settings alone."""

from __future__ import annotations

import copy
import shlex
from collections.abc import Callable
from fnmatch import fnmatchcase
from pathlib import Path
from typing import Any

import pytest
from full_disk import full_after
from hydra.core.override_parser.overrides_parser import OverridesParser
from hypothesis import given, settings
from hypothesis import strategies as st
from omegaconf import DictConfig, OmegaConf, open_dict

from verl_dra import main
from verl_dra.config import ConfigError, checkpoints
from verl_dra.config.compose import check, composed
from verl_dra.doctor.check import Check
from verl_dra.doctor.resuming import resuming

RUN = [
    *("data.train_files=x", "data.val_files=y", "actor_rollout_ref.model.path=m", "actor_rollout_ref.rollout.n=4"),
    *("actor_rollout_ref.actor.ppo_micro_batch_size_per_gpu=8", "trainer.save_freq=1"),
    *("actor_rollout_ref.rollout.log_prob_micro_batch_size_per_gpu=8", "+note=1"),
]
Run = Callable[..., DictConfig]


@pytest.fixture(scope="module")
def base() -> DictConfig:
    config, _ = composed([*RUN, "hydra.run.dir=/runs/first"])
    check(config)
    return config


@pytest.fixture
def run(base: DictConfig, tmp_path: Path) -> Run:
    """The configuration of a run in `tmp_path`/old, with values set as by overrides."""

    def call(*overrides: str) -> DictConfig:
        config = copy.deepcopy(base)
        config.merge_with_dotlist([f"trainer.default_local_dir={tmp_path}/old/checkpoints", *overrides])
        return config

    return call


def checkpoint(config: DictConfig, step: str = "2") -> Path:
    """What a run leaves behind that has saved a checkpoint."""
    checkpoints.keep(config)
    folder = Path(config.trainer.default_local_dir)
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "latest_checkpointed_iteration.txt").write_text(step)
    (folder / f"global_step_{step}").mkdir()
    return folder / f"global_step_{step}"


def found(config: DictConfig, elsewhere: bool = False) -> Check:
    *others, last = resuming(config, elsewhere)
    assert all(check.state == "ok" for check in others)
    return last


def test_a_run_has_checkpoints_and_a_name_of_its_own(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    for folder, name in (("sweep/3", "sweep_3"), ("outputs/2026-11-26/16-44-24", "2026-11-26_16-44-24")):
        config, output = composed([*RUN, f"hydra.run.dir={folder}"])
        assert output == Path(folder)
        assert config.trainer.default_local_dir == f"{tmp_path}/{folder}/checkpoints"
        assert config.trainer.experiment_name == name
        assert config.actor_rollout_ref.rollout.trace.experiment_name == name


def test_a_name_and_a_folder_that_are_given_stay(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    given = ["trainer.experiment_name=mine", "trainer.default_local_dir='~/${trainer.experiment_name}'"]
    config, _ = composed([*RUN, *given])
    assert config.trainer.experiment_name == "mine"
    assert config.trainer.default_local_dir == str(Path.home() / "mine")
    assert composed([*RUN, "trainer.default_local_dir=a/b"])[0].trainer.default_local_dir == f"{tmp_path}/a/b"


@pytest.mark.parametrize(
    ("override", "said"),
    [
        ("trainer.default_local_dir='~nobody-of-this-name/x'", "trainer.default_local_dir=~nobody-of-this-name/x: "),
        (
            "trainer.default_local_dir='${nowhere}/x'",
            "trainer: Interpolation key 'nowhere' not found",
        ),
    ],
)
def test_a_folder_that_cant_be_told_is_refused(override: str, said: str) -> None:
    with pytest.raises(ConfigError) as refused:
        composed([*RUN, override])
    assert said in str(refused.value)


def test_the_same_command_in_another_folder_has_the_same_settings(run: Run) -> None:
    there = checkpoint(run())
    again, _ = composed([*RUN, "hydra.run.dir=/runs/second", f"trainer.default_local_dir={there.parent}"])
    check(again)
    assert found(again).found == f"{there} has this run's settings"


def test_a_disk_that_is_full_in_mid_write_leaves_the_settings_that_are_there(run: Run) -> None:
    there = checkpoint(run())
    before = (there.parent / checkpoints.FILE).read_bytes()
    with full_after(100), pytest.raises(OSError, match="File too large"):
        checkpoints.keep(run("data.seed=3"))
    assert (there.parent / checkpoints.FILE).read_bytes() == before


def test_without_a_checkpoint_a_run_starts_anew(run: Run, tmp_path: Path) -> None:
    assert found(run()).found == f"no checkpoint in {tmp_path}/old/checkpoints: starts at step 0"


@pytest.mark.parametrize(
    "override",
    [
        "trainer.total_training_steps=9",
        "trainer.test_freq=7",
        "trainer.save_freq=5",
        "trainer.logger=[console]",
        "trainer.nnodes=4",
        "trainer.experiment_name=other",
        "actor_rollout_ref.actor.ppo_micro_batch_size_per_gpu=2",
        "actor_rollout_ref.actor.fsdp_config.param_offload=true",
        "actor_rollout_ref.rollout.gpu_memory_utilization=0.3",
        "ray_kwargs.ray_init.num_cpus=3",
        "dra.console=full",
        "dra.record.every_n_steps=3",
        "dra.scorer.placement=colocated",
        "dra.scorer.name=other",
        "data.val_files=z",
    ],
)
def test_what_does_not_change_what_is_learned_may_differ(run: Run, override: str) -> None:
    there = checkpoint(run())
    last = found(run(override))
    assert (last.state, last.found) == ("ok", f"{there} has this run's settings")


@pytest.mark.parametrize(
    ("override", "told"),
    [
        ("dra.smi=log_det", "dra.smi was graph_cut and is log_det"),
        ("dra.text=thinking", "dra.text was response and is thinking"),
        ("dra.enabled=false", "dra.enabled was true and is false"),
        ("data.train_files=[a,b]", 'data.train_files was x and is ["a", "b"]'),
        ("actor_rollout_ref.actor.optim.lr=0.5", "actor_rollout_ref.actor.optim.lr was 1e-06 and is 0.5"),
        ("trainer.v1.trainer_mode=colocate_async", "trainer.v1.trainer_mode was sync and is colocate_async"),
        ("algorithm.norm_adv_by_std_in_grpo=null", "algorithm.norm_adv_by_std_in_grpo was true and is null"),
        ("added.key=1", "added.key was not set and is 1"),
    ],
)
def test_a_checkpoint_of_other_settings_is_refused_with_them(run: Run, override: str, told: str) -> None:
    there = checkpoint(run())
    config = run()
    with open_dict(config):
        config.merge_with_dotlist([override])
    last = found(config)
    assert last.state == "fail"
    assert last.found == f"{there} is of other settings: {told}"
    assert f"trainer.resume_mode=resume_path trainer.resume_from_path={there}" in last.fix


def test_a_setting_that_is_gone_is_told_too(run: Run) -> None:
    checkpoint(run())
    config = run()
    with open_dict(config):
        del config.note
    assert found(config).found.endswith("of other settings: note was 1 and is not set")


def test_of_many_settings_some_are_told_and_the_rest_counted(run: Run) -> None:
    old, new = run(), run()
    for config, value in ((old, 1), (new, 2)):
        OmegaConf.update(config, "many", {f"k{i}": value for i in range(11)}, force_add=True)
    checkpoint(old)
    last = found(new)
    assert last.found.count(" was 1 and is 2") == 8
    assert last.found.endswith(", and 3 more")


def test_a_checkpoint_that_is_named_is_taken_with_a_warning(run: Run, tmp_path: Path) -> None:
    there = checkpoint(run())
    named = ["trainer.resume_mode=resume_path", f"trainer.resume_from_path={there}"]
    last = found(run(*named, "dra.smi=log_det", f"trainer.default_local_dir={tmp_path}/new"))
    assert last.state == "warn"
    assert last.problem == f"resuming: {there} is of other settings: dra.smi was graph_cut and is log_det"
    assert found(run(*named)).state == "ok"


@pytest.mark.parametrize(
    ("path", "elsewhere", "state", "said"),
    [
        ("null", False, "fail", "is no checkpoint of veRL's"),
        ("/nowhere/global_step_3", False, "fail", "/nowhere/global_step_3 is not there"),
        ("/nowhere/global_step_3", True, "skip", "may be on other nodes"),
        ("hdfs://a/global_step_3", False, "warn", "is not compared"),
    ],
)
def test_a_checkpoint_that_is_named_must_be_one(run: Run, path: str, elsewhere: bool, state: str, said: str) -> None:
    last = found(run("trainer.resume_mode=resume_path", f"trainer.resume_from_path={path}"), elsewhere)
    assert last.state == state
    assert said in last.found


def test_a_mode_that_verl_has_not_is_refused(run: Run) -> None:
    assert found(run("trainer.resume_mode=atuo")).state == "fail"


@pytest.mark.parametrize("text", [None, "", "just words", "a: [", "\0", b"\xff\xfe\xff"])
def test_a_checkpoint_without_readable_settings_is_taken_and_that_is_said(run: Run, text: str | bytes | None) -> None:
    there = checkpoint(run())
    file = there.parent / checkpoints.FILE
    if text is None:
        file.unlink()
    else:
        file.write_bytes(text if isinstance(text, bytes) else text.encode())
    last = found(run())
    assert last.state == "warn"
    assert f"{there} can't be compared with this run's settings" in last.found


def test_a_remote_folder_is_not_compared_and_that_is_said(run: Run) -> None:
    config = run("trainer.default_local_dir=hdfs://there")
    checkpoints.keep(config)
    assert not Path("hdfs:").exists()
    last = found(config)
    assert last.state == "warn"
    assert "hdfs://there are not compared" in last.found


def test_a_latest_checkpoint_that_cant_be_told_or_is_gone(run: Run) -> None:
    there = checkpoint(run())
    there.rmdir()
    assert "is gone: starts at step 0" in found(run()).found
    (there.parent / "latest_checkpointed_iteration.txt").write_text("")
    assert found(run()).state == "fail"


def test_starting_anew_over_checkpoints_is_said_and_refused_over_those_of_other_settings(run: Run) -> None:
    there = checkpoint(run())
    last = found(run("trainer.resume_mode=disable"))
    assert (last.state, last.found) == (
        "warn",
        f"trainer.resume_mode=disable: starts at step 0 and writes over {there}",
    )
    assert found(run("trainer.resume_mode=disable", "dra.smi=log_det")).state == "fail"
    assert found(run("trainer.resume_mode=disable", "dra.smi=log_det", "trainer.save_freq=-1")).state == "ok"


def test_a_path_in_the_fix_can_be_pasted(run: Run, tmp_path: Path) -> None:
    there = checkpoint(run(f"trainer.default_local_dir='{tmp_path}/my runs, [1]'"))
    last = found(run(f"trainer.default_local_dir='{there.parent}'", "dra.smi=log_det"))
    (word,) = [word for word in shlex.split(last.fix) if word.startswith("trainer.resume_from_path=")]
    assert OverridesParser.create().parse_override(word).value() == str(there)


def test_no_settings_are_left_where_no_checkpoint_will_be(run: Run, tmp_path: Path) -> None:
    checkpoints.keep(run("trainer.save_freq=-1"))
    assert not (tmp_path / "old").exists()


def test_what_may_differ_is_not_left_behind(run: Run, tmp_path: Path) -> None:
    config = run()
    OmegaConf.update(config, "ray_kwargs.ray_init.runtime_env.env_vars.KEY", "secret", force_add=True)
    checkpoints.keep(config)
    text = (tmp_path / "old" / "checkpoints" / checkpoints.FILE).read_text()
    assert "dra.smi: graph_cut" in text
    assert "secret" not in text


def test_every_pattern_of_what_may_differ_is_of_a_setting(base: DictConfig) -> None:
    def keys(node: Any, key: str = "") -> list[str]:
        if not isinstance(node, dict):
            return [key]
        return [line for name, value in node.items() for line in keys(value, f"{key}.{name}" if key else str(name))]

    there = keys(OmegaConf.to_container(base, resolve=True))
    assert [p for p in checkpoints.MAY_DIFFER if not any(fnmatchcase(key, p) for key in there)] == []


def test_metrics_that_were_set_aside_stay_where_some_of_them_were_deleted(tmp_path: Path) -> None:
    metrics = tmp_path / "metrics.jsonl"
    for part in ("first", "second", "third"):
        metrics.write_text(part)
        main._set_aside(metrics)
    (tmp_path / "metrics.1.jsonl").unlink()
    (tmp_path / "metrics.2.jsonl").unlink()
    (tmp_path / "metrics.mine.jsonl").write_text("mine")
    metrics.write_text("fourth")
    main._set_aside(metrics)
    assert {path.name: path.read_text() for path in tmp_path.iterdir()} == {
        "metrics.3.jsonl": "third",
        "metrics.4.jsonl": "fourth",
        "metrics.mine.jsonl": "mine",
    }


VALUES = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(st.characters(exclude_categories=["Cs"])),
    lambda inner: st.lists(inner, max_size=3),
    max_leaves=5,
)


@settings(max_examples=60, deadline=None)
@given(value=VALUES)
def test_a_setting_is_equal_to_itself_whatever_it_is(value: Any, tmp_path_factory: pytest.TempPathFactory) -> None:
    folder = tmp_path_factory.mktemp("own")
    config = OmegaConf.create({"trainer": {"save_freq": 1, "default_local_dir": str(folder)}})
    config.own = escaped(value)
    checkpoints.keep(config)
    assert checkpoints.differing(folder, config) == {}
    config.own = "something else" if value != "something else" else None
    assert list(checkpoints.differing(folder, config)) == ["own"]


def escaped(value: Any) -> Any:
    """As OmegaConf takes it: a text with ${ would be an interpolation."""
    if isinstance(value, list):
        return [escaped(item) for item in value]
    return value.replace("${", "$") if isinstance(value, str) and value != "???" else value
