"""Runs veRL 0.9.1 and vLLM 0.24 or 0.28 without a GPU, for tests and demos: `+platform=cpu`.

The driver activates it, and in Ray's workers importing it does, by `VERL_PLATFORM=cpu`: where that comes before veRL,
veRL's plugins load while this module is half there.

Each shim below answers one behaviour of veRL, vLLM or torch, which its docstring names with the version that
was read. Delete a shim when that behaviour is gone. None of them runs on a GPU.
"""

from __future__ import annotations

import functools
import importlib.abc
import importlib.metadata
import importlib.util
import os
import sys
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from importlib.machinery import ModuleSpec
from types import ModuleType
from typing import Any

import torch
import torch.distributed
from verl.plugin.platform import PlatformBase, PlatformRegistry, platform_manager, set_platform

NAME = "cpu"


def environment() -> dict[str, str]:
    """Environment of every process of a CPU run; `activate` sets what the user has not set."""
    return {
        "VERL_PLATFORM": NAME,
        # veRL 0.9.1 registers its FSDP engine for cuda and npu only (workers/engine/fsdp), and offers this
        # variable to choose one by another device's name.
        "VERL_ENGINE_DEVICE": "cuda",
        # GiB of KV cache. vLLM's own choice is a large share of the memory, for each replica.
        "VLLM_CPU_KVCACHE_SPACE": "1",
        # vLLM pins its threads to cores of its own, so that two replicas on a small machine fight for them.
        "VLLM_CPU_OMP_THREADS_BIND": "nobind",
        # The platform yaml asks for vLLM's in-process executor, which saves a process and its 10 s of imports;
        # vLLM 0.28 takes it on a CPU only with this (platforms/cpu.py).
        "VLLM_ENABLE_V1_MULTIPROCESSING": "0",
        # vLLM 0.28 compiles its log-prob helpers with inductor at the first request even with enforce_eager
        # (v1/sample/ops/logprobs.py): 25 s of C++ compilation.
        "TORCHDYNAMO_DISABLE": "1",
    }


def activate() -> None:
    """Register and select the platform, set the environment, install the shims. Calling it again is safe."""
    for key, value in environment().items():
        os.environ.setdefault(key, value)
    if PlatformRegistry.get(NAME) is CPUPlatform:
        return
    PlatformRegistry.register(platform=NAME)(CPUPlatform)
    if platform_manager._current_platform is not None:
        set_platform(CPUPlatform())
    accept_repeated_gloo_backend()
    answer_for_vllm_distribution()
    after_import("vllm.model_executor.layers.utils", keep_vllm_linear_weights)
    after_import("verl.utils.fsdp_utils", copy_saved_weights)
    after_import("verl.workers.engine.fsdp.transformer_impl", offload_nothing)


class CPUPlatform(PlatformBase):
    """veRL's device interface over plain CPU tensors; Ray's "GPU" is a made-up resource that counts ranks."""

    device_name = NAME
    vendor_name = NAME

    @property
    def device_module(self) -> ModuleType:
        return _device_module()

    def is_available(self) -> bool:
        return True

    def is_platform_available(self, use_smi_check: bool = False) -> bool:
        # Never auto-detected: a machine whose GPU is hidden must not fall back to the CPU unasked.
        return False

    def current_device(self) -> torch.device:  # type: ignore[override]
        # Not 0: `tensor.to(0)` means cuda:0.
        return torch.device(NAME)

    def device_count(self) -> int:
        return 1

    def set_device(self, device_index: int) -> None:
        pass

    def synchronize(self, device_index: int | None = None) -> None:
        pass

    def manual_seed(self, seed: int) -> None:
        torch.manual_seed(seed)

    def manual_seed_all(self, seed: int) -> None:
        torch.manual_seed(seed)

    def set_allocator_settings(self, settings: str) -> None:
        pass

    def empty_cache(self) -> None:
        pass

    def get_device_capability(self, device_index: int = 0) -> tuple[int | None, int | None]:
        return None, None

    def communication_backend_name(self) -> str:
        return "gloo"

    def visible_devices_envvar(self) -> str:
        return "CUDA_VISIBLE_DEVICES"

    def ray_resource_name(self) -> str:
        # veRL 0.9.1 counts a cluster's GPU and NPU resources only, so Ray is started with made-up GPUs.
        return "GPU"

    def ray_noset_envvars(self) -> list[str]:
        return ["RAY_EXPERIMENTAL_NOSET_CUDA_VISIBLE_DEVICES"]

    def is_ipc_supported(self) -> bool:
        # There is no CUDA IPC: veRL then moves weights to vLLM through shared memory.
        return False

    @contextmanager
    def nvtx_range(self, msg: str) -> Iterator[None]:
        yield

    def profiler_start(self) -> None:
        pass

    def profiler_stop(self) -> None:
        pass

    def cudart(self) -> None:
        return None


def accept_repeated_gloo_backend() -> None:
    """Let `init_process_group` accept veRL's backend string.

    veRL 0.9.1 builds `cpu:gloo,{device}:{backend}` (utils/distributed.py). For the device cpu this names cpu
    twice, which torch 2.13 refuses.
    """
    init_process_group = torch.distributed.init_process_group

    @functools.wraps(init_process_group)
    def init(backend: str | None = None, *args: Any, **kwargs: Any) -> None:
        if backend == "cpu:gloo,cpu:gloo":
            backend = "cpu:gloo"
        init_process_group(backend, *args, **kwargs)

    torch.distributed.init_process_group = init


def answer_for_vllm_distribution() -> None:
    """Answer for the distribution `vllm` with the version of `vllm-cpu`, marked `+cpu`.

    veRL 0.9.1 asks for the distribution `vllm` (third_party/vllm, workers/rollout/vllm_rollout) and takes its
    absence for a missing vLLM. vLLM 0.28 recognises its CPU build by the letters `cpu` in that version.
    """
    version = importlib.metadata.version

    @functools.wraps(version)
    def version_or_cpu_build(distribution_name: str) -> str:
        try:
            return version(distribution_name)
        except importlib.metadata.PackageNotFoundError:
            if distribution_name != "vllm":
                raise
            return f"{version('vllm-cpu')}+cpu"

    importlib.metadata.version = version_or_cpu_build


def keep_vllm_linear_weights(layers_utils: ModuleType) -> None:
    """Keep the plain weight of vLLM's linear layers, so that it can be updated.

    vLLM 0.28 repacks a linear weight for oneDNN when it has loaded it and puts an empty parameter in its place
    (model_executor/layers/utils.py); veRL's first update then fails with `'Parameter' object has no
    attribute 'weight_loader'`.
    """

    def dispatch_plain_linear(layer: torch.nn.Module, remove_weight: bool) -> None:
        layer.cpu_linear = torch.nn.functional.linear  # type: ignore[assignment]

    layers_utils.dispatch_cpu_unquantized_gemm = dispatch_plain_linear  # type: ignore[attr-defined]


def copy_saved_weights(fsdp_utils: ModuleType) -> None:
    """Make the weights that FSDP2 saves to the CPU a copy.

    veRL 0.9.1 saves them by `.cpu()` (utils/fsdp_utils.py), which returns the live tensor when it is there
    already. The policy that `separate_async` restores for its old log-probs would then be the current one.
    """
    save = fsdp_utils.fsdp2_sharded_save_to_cpu

    @functools.wraps(save)
    def save_copy(model: torch.nn.Module) -> tuple[dict[str, tuple[torch.Tensor, Any]], Any]:
        state, global_spec = save(model)
        return {name: (tensor.clone(), spec) for name, (tensor, spec) in state.items()}, global_spec

    fsdp_utils.fsdp2_sharded_save_to_cpu = save_copy  # type: ignore[attr-defined]


def offload_nothing(transformer_impl: ModuleType) -> None:
    """Leave the reference policy where it is.

    veRL 0.9.1 keeps FSDP2's reference policy in pinned memory of the CPU (workers/engine/fsdp/transformer_impl.py),
    and torch pins memory for an accelerator alone.
    """

    def no_policy(pin_memory: bool = True) -> None:
        return None

    transformer_impl.CPUOffloadPolicy = no_policy  # type: ignore[attr-defined]


def after_import(module_name: str, shim: Callable[[ModuleType], None]) -> None:
    """Call `shim(module)` when the module is there: at once, or just after this process first imports it.

    veRL loads plugins in every process and vLLM takes seconds to import, so only vLLM's own processes may pay.
    """
    module = sys.modules.get(module_name)
    if module is not None:
        shim(module)
    else:
        sys.meta_path.insert(0, _AfterImport(module_name, shim))


class _AfterImport(importlib.abc.MetaPathFinder):
    """Finds one module, once, by the other finders, and runs a shim after its code."""

    def __init__(self, module_name: str, shim: Callable[[ModuleType], None]) -> None:
        self.module_name = module_name
        self.shim = shim

    def find_spec(
        self, fullname: str, path: Sequence[str] | None, target: ModuleType | None = None
    ) -> ModuleSpec | None:
        if fullname != self.module_name:
            return None
        sys.meta_path.remove(self)
        spec = importlib.util.find_spec(fullname)
        if spec is None or spec.loader is None:
            return None
        exec_module = spec.loader.exec_module

        def exec_then_shim(module: ModuleType) -> None:
            exec_module(module)
            self.shim(module)

        spec.loader.exec_module = exec_then_shim  # type: ignore[method-assign]
        return spec


@functools.cache
def _device_module() -> ModuleType:
    """`torch.cpu` plus what veRL calls on `torch.cuda`, memory counters that always read 0 included."""
    module = ModuleType("verl_dra.cpu.platform.device", "torch.cpu with the functions of torch.cuda")
    module.__dict__.update({key: value for key, value in vars(torch.cpu).items() if not key.startswith("__")})
    for name in ("memory_allocated", "memory_reserved", "max_memory_allocated", "max_memory_reserved"):
        setattr(module, name, _return(0))
    for name in (
        "empty_cache",
        "ipc_collect",
        "reset_accumulated_memory_stats",
        "reset_max_memory_allocated",
        "reset_peak_memory_stats",
        "set_per_process_memory_fraction",
    ):
        setattr(module, name, _return(None))
    module.__dict__.update(
        current_device=_return(torch.device(NAME)),
        get_device_name=_return(NAME),
        get_rng_state=lambda *_: torch.get_rng_state(),
        manual_seed=torch.manual_seed,
        manual_seed_all=torch.manual_seed,
        mem_get_info=_memory_info,
        set_device=_return(None),
        set_rng_state=lambda state, *_: torch.set_rng_state(state),
    )
    return module


def _return(value: object) -> Callable[..., object]:
    return lambda *args, **kwargs: value


def _memory_info(*_: object) -> tuple[int, int]:
    """Free and total bytes of the machine, like `torch.cuda.mem_get_info`."""
    page = os.sysconf("SC_PAGE_SIZE")
    return os.sysconf("SC_AVPHYS_PAGES") * page, os.sysconf("SC_PHYS_PAGES") * page


if os.environ.get("VERL_PLATFORM", "").strip().lower() == NAME:
    activate()
