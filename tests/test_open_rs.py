"""recipes/open_rs: its configs compose from anywhere, hold the paper's numbers, and are what the scripts start."""

from __future__ import annotations

import os
import stat
import subprocess
from pathlib import Path
from typing import Any

import pytest
from hydra import compose, initialize_config_dir
from omegaconf import DictConfig, OmegaConf
from verl.trainer.ppo.utils import need_critic, need_reference_policy
from verl.utils.config import validate_config

from verl_dra.config import ConfigError, prepare
from verl_dra.config.compose import composed as composed_by_train
from verl_dra.embedding.model_path import BUNDLED_MODEL

RECIPE = Path(__file__).resolve().parents[1] / "recipes" / "open_rs"
RUNS = ("dra_grpo", "dra_dr_grpo", "grpo", "dr_grpo")
HARDWARE = ("four_gpus", "one_gpu", "two_nodes_7b")


def composed(tmp_path: Path, run: str, *overrides: str) -> DictConfig:
    """As `verl-dra train` composes it from a folder elsewhere."""
    own = ["data_dir=/data/open_rs", f"hydra.run.dir={tmp_path}/run"]
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(tmp_path)
        return composed_by_train(["--config-dir", str(RECIPE), "--config-name", run, *own, *overrides])[0]


def flat(node: Any, prefix: str = "") -> dict[str, Any]:
    if isinstance(node, dict):
        return {k: v for name, value in node.items() for k, v in flat(value, f"{prefix}.{name}").items()}
    return {prefix.removeprefix("."): node}


@pytest.mark.slow
@pytest.mark.parametrize(
    ("run", "hardware"), [*((run, "four_gpus") for run in RUNS), *(("dra_dr_grpo", other) for other in HARDWARE[1:])]
)
def test_every_run_passes_its_checks_and_verls(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, run: str, hardware: str
) -> None:
    monkeypatch.delenv("VERL_PLATFORM", raising=False)
    config = composed(tmp_path, run, f"hardware={hardware}")
    assert OmegaConf.to_container(config, resolve=True)
    assert config.dra.embedding.model == "nomic-ai/nomic-embed-text-v1.5"
    config.dra.embedding.model = BUNDLED_MODEL  # that one is not on this machine, and there is no hub
    dra = prepare(config)
    validate_config(config, need_reference_policy(config), need_critic(config))
    assert need_reference_policy(config)  # for the KL loss
    assert dra.enabled == run.startswith("dra_")
    assert dra.base_estimator == "grpo"
    model = config.actor_rollout_ref
    gpus = config.trainer.nnodes * config.trainer.n_gpus_per_node
    for prompts in {config.data.train_batch_size, 12 if config.data.train_batch_size == 8 else 64}:
        rows = prompts * model.rollout.n
        assert rows % gpus == 0
        # veRL refuses a batch that micro-batches don't divide, after its rollout.
        for part, key in ((model.actor, "ppo"), (model.ref, "log_prob"), (model.rollout, "log_prob")):
            assert rows // gpus % part[f"{key}_micro_batch_size_per_gpu"] == 0
    assert config.trainer.total_training_steps <= 7000 // config.data.train_batch_size * config.trainer.total_epochs


@pytest.mark.slow
def test_the_papers_first_encoder_is_asked_as_its_code_asks_it(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("VERL_PLATFORM", raising=False)
    with pytest.raises(ConfigError, match=r"needs dra\.embedding\.base_url"):
        prepare(composed(tmp_path, "dra_grpo", "encoder=jina_server"))
    config = composed(tmp_path, "dra_grpo", "encoder=jina_server", "dra.embedding.base_url=http://there:80/v1")
    embedding = config.dra.embedding
    assert embedding.model == embedding.tokenizer == "jinaai/jina-embeddings-v2-small-en"
    assert (embedding.max_seq_length, embedding.long_text) == (3584, "head")
    embedding.tokenizer = str(tmp_path)  # that one is not on this machine, and there is no hub
    assert prepare(config).scorer.placement == "cpu"


@pytest.mark.slow
@pytest.mark.parametrize(("run", "baseline"), [("dra_grpo", "grpo"), ("dra_dr_grpo", "dr_grpo")])
def test_a_baseline_differs_in_dra_enabled_alone(tmp_path: Path, run: str, baseline: str) -> None:
    ours, theirs = (flat(OmegaConf.to_container(composed(tmp_path, name))) for name in (run, baseline))
    different = {key for key in ours.keys() | theirs.keys() if ours.get(key) != theirs.get(key)}
    assert different == {"dra.enabled", "trainer.experiment_name"}


@pytest.mark.slow
@pytest.mark.parametrize("run", RUNS)
def test_the_papers_numbers_are_in_their_places(tmp_path: Path, run: str) -> None:
    config: Any = OmegaConf.to_container(composed(tmp_path, run), resolve=True)
    actor, rollout = config["actor_rollout_ref"]["actor"], config["actor_rollout_ref"]["rollout"]
    assert config["actor_rollout_ref"]["model"]["path"] == "deepseek-ai/DeepSeek-R1-Distill-Qwen-1.5B"
    assert (config["data"]["max_prompt_length"], config["data"]["max_response_length"]) == (512, 3584)
    assert (rollout["n"], rollout["temperature"], rollout["max_model_len"]) == (6, 0.7, 4608)
    assert config["data"]["train_batch_size"] * rollout["n"] == 4 * 3 * 4  # rows a device, devices, accumulation
    assert actor["ppo_mini_batch_size"] == config["data"]["train_batch_size"]
    assert (actor["optim"]["lr"], actor["optim"]["min_lr_ratio"], actor["optim"]["lr_warmup_steps_ratio"]) == (
        1e-6,
        0.1,
        0.1,
    )
    assert actor["optim"]["lr_scheduler_type"] == "cosine"
    assert (actor["use_kl_loss"], actor["kl_loss_coef"], actor["kl_loss_type"]) == (True, 0.04, "low_var_kl")
    optim, fsdp = actor["optim"], actor["fsdp_config"]
    assert (optim["weight_decay"], optim["clip_grad"], actor["ppo_epochs"]) == (0.0, 1.0, 1)
    assert config["actor_rollout_ref"]["model"]["enable_gradient_checkpointing"] is True
    assert (fsdp["strategy"], fsdp["reshard_after_forward"]) == ("fsdp2", False)  # ZeRO-2
    reward = config["reward"]["custom_reward_function"]
    assert reward["path"] == "pkg://verl_dra.rewards"
    assert reward["reward_kwargs"] == {"format_weight": 1.0, "cosine_weight": 2.0, "max_len": 1000, "judge": "paper"}
    assert (config["trainer"]["total_epochs"], config["trainer"]["total_training_steps"]) == (1, 500)
    seed, save, norm, mode = (
        (42, 25, False, "seq-mean-token-sum-norm")
        if run.endswith("dr_grpo")
        else (2025, 50, True, "seq-mean-token-mean")
    )
    assert {config["data"]["seed"], rollout["seed"], actor["data_loader_seed"]} == {seed}
    assert config["trainer"]["save_freq"] == save
    assert config["algorithm"]["norm_adv_by_std_in_grpo"] is norm
    assert actor["loss_agg_mode"] == mode
    if run.endswith("dr_grpo"):
        assert actor["loss_scale_factor"] == 3584
    assert (config["dra"]["smi"], config["dra"]["negative_rewards"]) == ("graph_cut", "paper")
    assert config["dra"]["epsilon"] == (None if run.endswith("dr_grpo") else 1e-4)
    assert config["dra"]["embedding"]["trust_remote_code"] is False


@pytest.fixture
def captured(tmp_path: Path) -> Path:
    """A folder with a stand-in for the command `verl-dra` that notes its arguments."""
    stand_in = tmp_path / "bin" / "verl-dra"
    stand_in.parent.mkdir()
    stand_in.write_text(f'#!/usr/bin/env bash\nprintf "%s\\n" "$@" > {tmp_path}/argv\n')
    stand_in.chmod(stand_in.stat().st_mode | stat.S_IXUSR)
    return stand_in.parent


def start(script: str, captured: Path, *arguments: str, **environment: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [str(RECIPE / script), *arguments],
        cwd=captured,
        env={"PATH": f"{captured}:{os.environ['PATH']}", **environment},
        capture_output=True,
        text=True,
        check=False,
    )


@pytest.mark.slow
@pytest.mark.parametrize("run", RUNS)
def test_what_a_script_starts_composes(tmp_path: Path, captured: Path, run: str) -> None:
    knobs = {"DATA_DIR": "/data/open rs", "HARDWARE": "one_gpu", "MODEL": "/models/mine", "SEED": "7"}
    done = start(f"{run}.sh", captured, "trainer.total_training_steps=3", **knobs)
    assert done.returncode == 0, done.stderr
    command, *arguments = (tmp_path / "argv").read_text().splitlines()
    assert command == "train"
    options = dict(zip(arguments[:4:2], arguments[1:4:2], strict=True))
    assert options == {"--config-dir": str(RECIPE), "--config-name": run}
    with initialize_config_dir(options["--config-dir"], version_base=None):
        config = compose(options["--config-name"], overrides=arguments[4:])
    assert config.data.train_files == "/data/open rs/train.parquet"
    assert (config.trainer.n_gpus_per_node, config.trainer.total_training_steps) == (1, 3)
    assert (config.actor_rollout_ref.model.path, config.data.seed) == ("/models/mine", 7)


@pytest.mark.slow
def test_each_run_keeps_its_checkpoints_in_its_own_folder(tmp_path: Path) -> None:
    for run in RUNS:
        trainer = composed(tmp_path, run).trainer
        assert (trainer.default_local_dir, trainer.resume_mode) == (f"{tmp_path}/run/checkpoints", "auto")


def test_without_math_verify_a_run_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("VERL_PLATFORM", raising=False)
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    with pytest.raises(ConfigError, match=r"needs math-verify.*pip install 'verl_dra\[math\]'"):
        prepare(composed(tmp_path, "grpo"))


def test_a_script_takes_hydras_options_and_its_defaults_from_the_config(tmp_path: Path, captured: Path) -> None:
    done = start("grpo.sh", captured, "--multirun", "seed=1,2", DATA_DIR="/data")
    assert done.returncode == 0, done.stderr
    arguments = (tmp_path / "argv").read_text().splitlines()
    assert arguments[5:] == ["--multirun", "seed=1,2", "data_dir=/data"]


def test_a_script_without_its_data_says_what_to_set(captured: Path) -> None:
    done = start("dra_grpo.sh", captured)
    assert done.returncode != 0
    assert "set DATA_DIR to the folder that verl-dra prepare-data open_rs made" in done.stderr
