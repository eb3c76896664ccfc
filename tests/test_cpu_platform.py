"""The CPU platform: chosen by +platform=cpu or its variable and by nothing else, and honest when it cannot load."""

from __future__ import annotations

import asyncio
import importlib
import json
import os
import subprocess
import sys
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest
import torch

pytest.importorskip("verl")

from hydra import compose, initialize_config_module

from verl_dra.cpu import platform as cpu_platform

STATE = """
import importlib.metadata, json, os, sys
import torch
import verl
from verl.plugin.platform import PlatformRegistry
state = {
    "plugin loaded": "verl_dra.plugin" in sys.modules,
    "registered": PlatformRegistry.get("cpu") is not None,
    "module imported": "verl_dra.cpu.platform" in sys.modules,
    "patched": [
        function.__name__
        for function in (torch.distributed.init_process_group, importlib.metadata.version)
        if function.__code__.co_filename.endswith("cpu/platform.py")
    ],
    "hooks": [type(finder).__module__ for finder in sys.meta_path if "verl_dra" in type(finder).__module__],
    "environment": {k: v for k, v in os.environ.items() if k.startswith(("VERL_", "VLLM_", "TORCHDYNAMO"))},
    "vllm imported": "vllm" in sys.modules,
    "trainer imported": any(name.startswith("verl.trainer") for name in sys.modules),
}
print(json.dumps(state))
"""


@pytest.mark.slow
def test_without_the_variable_nothing_is_registered_patched_or_set() -> None:
    state = _state()
    assert state["plugin loaded"]
    assert not state["registered"]
    assert not state["module imported"]
    assert state["patched"] == state["hooks"] == []
    assert state["environment"] == {}


@pytest.mark.slow
def test_with_the_variable_the_platform_is_registered_and_the_import_stays_light() -> None:
    state = _state(VERL_PLATFORM="cpu", VLLM_CPU_KVCACHE_SPACE="7")
    assert state["registered"]
    assert state["patched"] == ["init_process_group", "version"]
    # What the user has set wins.
    assert state["environment"] == cpu_platform.environment() | {"VLLM_CPU_KVCACHE_SPACE": "7"}
    assert not state["vllm imported"]
    assert not state["trainer imported"]


@pytest.mark.slow
def test_the_platform_is_the_same_where_its_module_is_imported_before_verl() -> None:
    out = _python(f"import verl_dra.cpu.platform\n{STATE}", VERL_PLATFORM="cpu")
    assert "ERROR" not in out.stderr
    state = json.loads(out.stdout.splitlines()[-1])
    assert state["registered"]
    assert state["patched"] == ["init_process_group", "version"]
    assert state["environment"] == cpu_platform.environment()


@pytest.mark.slow
def test_the_override_alone_puts_the_platform_into_the_process_that_checks_the_run(tmp_path: Path) -> None:
    out = _python(
        f"""
import sys
from verl_dra.config.compose import check, composed
words = ["+platform=cpu", "actor_rollout_ref.rollout.n=4", "hydra.run.dir={tmp_path}"]
words += [f"actor_rollout_ref.{{part}}_micro_batch_size_per_gpu=4" for part in ("actor.ppo", "rollout.log_prob")]
config, _ = composed(words)
assert check(config).enabled
assert config.trainer.device == "cpu"
from verl.plugin.platform import get_platform
assert type(get_platform()).__name__ == "CPUPlatform"
{STATE}"""
    )
    state = json.loads(out.stdout.splitlines()[-1])
    assert state["registered"]
    assert state["patched"] == ["init_process_group", "version"]
    assert state["environment"] == cpu_platform.environment()
    assert "Disabled critic" not in out.stderr + out.stdout


@pytest.mark.slow
def test_shims_act_on_the_real_modules() -> None:
    pytest.importorskip("vllm")
    _python(
        """
import importlib.metadata
import torch, verl
from verl.plugin.platform import get_platform
from verl.utils.distributed import initialize_global_process_group_ray
assert type(get_platform()).__name__ == "CPUPlatform"
assert torch.zeros(1, device=get_platform().current_device()).device.type == "cpu"

assert importlib.metadata.version("vllm").endswith("+cpu")
try:
    importlib.metadata.version("no-such-distribution")
except importlib.metadata.PackageNotFoundError:
    pass
else:
    raise AssertionError("an absent distribution was answered for")

initialize_global_process_group_ray()
total = torch.ones(1)
torch.distributed.all_reduce(total)
assert "gloo" in torch.distributed.get_backend()

from vllm.model_executor.layers import utils
layer = torch.nn.Linear(64, 64)
weight = layer.weight
utils.dispatch_cpu_unquantized_gemm(layer, remove_weight=True)
assert layer.weight is weight
x = torch.randn(2, 64)
assert torch.equal(layer.cpu_linear(x, layer.weight, layer.bias), layer(x))
""",
        VERL_PLATFORM="cpu",
        MASTER_ADDR="127.0.0.1",
        MASTER_PORT="0",
    )


@pytest.mark.slow
def test_plugin_failure_is_loud() -> None:
    # veRL swallows the exception, so `import verl` succeeds: standard error is all that the user sees.
    out = _python("import sys; sys.modules['verl_dra.cpu.platform'] = None; import verl", VERL_PLATFORM="cpu")
    assert "ERROR: the veRL plugin verl_dra.plugin failed to load" in out.stderr
    assert "Traceback" in out.stderr


def test_config_composes_from_a_foreign_working_directory(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from verl.utils.config import omega_conf_to_dataclass

    monkeypatch.chdir(tmp_path)
    importlib.import_module("verl_dra.config")
    with initialize_config_module("verl_dra.config", version_base=None):
        config = compose("dra_trainer", overrides=["+platform=cpu"])
    # Not a plain key, which Hydra makes of a group that it cannot find.
    assert "platform" not in config
    assert config.trainer.device == "cpu"
    assert config.ray_kwargs.ray_init.runtime_env.env_vars.VERL_PLATFORM == "cpu"
    # veRL's dataclasses refuse keys that they do not know.
    rollout = omega_conf_to_dataclass(config.actor_rollout_ref.rollout)
    assert rollout.enable_sleep_mode is False
    assert rollout.checkpoint_engine.backend == "cpu_zmq"
    actor = omega_conf_to_dataclass(config.actor_rollout_ref.actor.fsdp_config)
    assert actor.mixed_precision["param_dtype"] == "fp32"


def test_every_device_call_of_verl_is_answered() -> None:
    device = cpu_platform.CPUPlatform().device_module
    assert device.memory_allocated() == device.max_memory_reserved() == 0
    free, total = device.mem_get_info()
    assert 0 < free <= total
    state = device.get_rng_state()
    first = torch.rand(3)
    device.set_rng_state(state)
    assert torch.equal(torch.rand(3), first)
    assert not hasattr(torch.cpu, "memory_allocated"), "torch.cpu itself must stay as it is"


def test_saved_weights_are_a_copy() -> None:
    live = torch.zeros(2)
    module = ModuleType("fsdp_utils")
    module.fsdp2_sharded_save_to_cpu = lambda model: ({"w": (live.cpu(), None)}, "spec")
    cpu_platform.copy_saved_weights(module)
    state, spec = module.fsdp2_sharded_save_to_cpu(torch.nn.Linear(1, 1))
    live.fill_(1)
    assert state["w"][0].tolist() == [0, 0]
    assert spec == "spec"


def test_shim_runs_after_the_first_import_and_only_then(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "late_module.py").write_text("value = 1\n")
    monkeypatch.syspath_prepend(tmp_path)
    finders = list(sys.meta_path)
    seen: list[int] = []
    cpu_platform.after_import("late_module", lambda module: seen.append(module.value))
    assert seen == []
    module = importlib.import_module("late_module")
    assert seen == [1]
    assert sys.meta_path == finders
    module.value = 2
    cpu_platform.after_import("late_module", lambda module: seen.append(module.value))
    assert seen == [1, 2]


def test_shim_for_an_absent_module_leaves_the_import_error(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys, "meta_path", list(sys.meta_path))
    cpu_platform.after_import("no_such_module_at_all", lambda module: None)
    with pytest.raises(ModuleNotFoundError):
        importlib.import_module("no_such_module_at_all")


def test_weights_reach_every_receiver_bit_for_bit() -> None:
    from verl_dra.cpu.checkpoint_engine import ZMQCheckpointEngine

    weights = {
        "float32": torch.randn(3, 5),
        "bfloat16": torch.randn(4).bfloat16(),
        "transposed": torch.arange(6.0).view(2, 3).T,
        "scalar": torch.tensor(2.5),
    }
    actors = [ZMQCheckpointEngine(bucket_size=1, is_master=rank == 0) for rank in range(2)]
    receivers = [ZMQCheckpointEngine(bucket_size=1) for _ in range(2)]
    workers = [*actors, *receivers]

    async def receive(worker: ZMQCheckpointEngine) -> dict[str, torch.Tensor]:
        return {name: weight async for name, weight in worker.receive_weights()}

    async def update() -> list[dict[str, torch.Tensor]]:
        metadata = [worker.prepare() for worker in workers]
        topology = ZMQCheckpointEngine.build_topology(len(actors), len(receivers), metadata)
        for group, kwargs in zip((actors, receivers), topology, strict=True):
            for index, worker in enumerate(group):
                worker.init_process_group(**{key: values[index] for key, values in kwargs.items()})
        for actor in actors:
            await actor.send_weights(iter(weights.items()))
        received = [await receive(worker) for worker in receivers]
        for worker in workers:
            worker.finalize()
        return received

    for _ in range(2):
        for received in asyncio.run(update()):
            assert list(received) == list(weights)
            for name, weight in weights.items():
                assert received[name].dtype == weight.dtype
                assert torch.equal(received[name], weight)


def _state(**environment: str) -> dict[str, Any]:
    return json.loads(_python(STATE, **environment).stdout.splitlines()[-1])


def _python(code: str, **environment: str) -> subprocess.CompletedProcess[str]:
    """Run `code` in a new interpreter that inherits none of the variables under test."""
    clean = {key: value for key, value in os.environ.items() if not key.startswith(("VERL_", "VLLM_", "TORCHDYNAMO"))}
    out = subprocess.run(
        [sys.executable, "-c", code], env=clean | environment, capture_output=True, text=True, check=False
    )
    assert out.returncode == 0, out.stderr
    return out


def test_the_reference_policy_is_not_offloaded() -> None:
    module = ModuleType("verl.workers.engine.fsdp.transformer_impl")
    cpu_platform.offload_nothing(module)
    assert module.CPUOffloadPolicy(pin_memory=True) is None
