"""Which settings a folder of checkpoints belongs to, so that no run goes on with another's."""

from __future__ import annotations

import json
import re
from fnmatch import translate
from pathlib import Path
from typing import Any

import yaml
from omegaconf import DictConfig, OmegaConf

FILE = "settings.yaml"
_LATEST = "latest_checkpointed_iteration.txt"  # veRL 0.9.1 (utils/checkpoint/checkpoint_manager.py)
_HEAD = "# Settings of the run whose checkpoints are here; verl-dra train goes on from them with these alone.\n"
_ABSENT = object()

MAY_DIFFER = (
    # How long, how often, and where to.
    *("trainer.total_*", "trainer.*_freq", "trainer.esi_redundant_time", "trainer.resume_*", "trainer.*_dir"),
    *("trainer.max_*_ckpt_to_keep", "trainer.del_local_ckpt_after_load", "trainer.checkpoint_callback_class"),
    *("*.checkpoint.save_contents", "*.checkpoint.load_contents", "*.checkpoint.async_save"),
    # What is validated, shown and recorded.
    *("trainer.val_*", "data.val_*", "*.val_kwargs.*", "trainer.log_val_generations", "trainer.logger"),
    *("trainer.project_name", "trainer.experiment_name", "*profiler.*", "*.trace.*", "*.prometheus.*"),
    *("*.disable_log_stats", "dra.console", "dra.record.*"),
    # On which machines.
    *("*.nnodes", "*.n_gpus_per_node", "ray_kwargs.*", "transfer_queue.*", "*_workers", "*.use_shm", "*.nccl_timeout"),
    *("trainer.ray_wait_register_center_timeout", "*.rollout.checkpoint_engine.*", "dra.on_failure", "dra.scorer.*"),
    *("dra.embedding.device", "dra.embedding.base_url", "dra.embedding.api_key_env", "dra.embedding.timeout_s"),
    "dra.embedding.max_retries",
    # In how much memory and how fast.
    *("*micro_batch_size*", "*max_token_len_per_gpu", "*use_dynamic_bsz", "*_offload", "*.reshard_after_forward"),
    *("*.forward_prefetch", "*.fsdp_size", "*_parallel_size", "*.gpu_memory_utilization", "*.rollout.max_num_*"),
    *("*.enforce_eager", "*.free_cache_engine", "*_checkpointing", "*.use_torch_compile", "*.entropy_from_logits_*"),
    "dra.embedding.batch_tokens",
)
"""Patterns of the settings that may differ between the starts of one run, as they don't change what is learned."""
_MAY_DIFFER = re.compile("|".join(map(translate, MAY_DIFFER)))


def is_remote(path: str) -> bool:
    """Whether `path` names a scheme, as hdfs:// and s3:// do."""
    return "://" in path


def latest(folder: Path) -> Path | None:
    """The checkpoint that veRL would go on from by itself (`trainer.resume_mode=auto`).

    Returns:
        Its folder, which may be gone; None where none was saved.

    Raises:
        ValueError, OSError: the file that names it can't be read.
    """
    try:
        step = int((folder / _LATEST).read_bytes())
    except FileNotFoundError:
        return None
    return folder / f"global_step_{step}"


def keep(config: DictConfig) -> None:
    """Write the settings of a run that will save checkpoints beside them.

    Args:
        config: as it trains, `trainer.default_local_dir` resolved.

    Raises:
        OSError: the folder can't be written to.
    """
    folder = str(config.trainer.default_local_dir)
    if config.trainer.save_freq <= 0 or is_remote(folder):
        return
    Path(folder).mkdir(parents=True, exist_ok=True)
    unfinished = Path(folder) / f".{FILE}"
    text = yaml.safe_dump(_compared(config), sort_keys=False)
    unfinished.write_text(_HEAD + text, encoding="utf-8")
    unfinished.replace(Path(folder) / FILE)


def differing(folder: Path, config: DictConfig) -> dict[str, tuple[str, str]]:
    """What `config` sets otherwise than the run did whose checkpoints are in `folder`.

    Returns:
        The keys, each with that run's value and this one's in words; of settings that `MAY_DIFFER` none.

    Raises:
        FileNotFoundError: the run left no settings there.
        OSError, ValueError, yaml.YAMLError: they can't be read.
    """
    before = yaml.safe_load((folder / FILE).read_text(encoding="utf-8"))
    if not isinstance(before, dict):
        raise ValueError("it holds no settings")
    now = _compared(config)
    keys = dict.fromkeys([*before, *now])
    pairs = {key: (before.get(key, _ABSENT), now.get(key, _ABSENT)) for key in keys if not _MAY_DIFFER.match(str(key))}
    return {str(key): (_words(old), _words(new)) for key, (old, new) in pairs.items() if _plain(old) != _plain(new)}


def _compared(config: DictConfig) -> dict[str, Any]:
    """The settings that must stay, resolved, by their dotted keys."""
    flat: dict[str, Any] = {}
    _flatten(OmegaConf.to_container(config, resolve=True, enum_to_str=True), "", flat)
    # By way of JSON, as YAML writes no value of another kind, such as a path.
    return {
        key: json.loads(json.dumps(value, default=str)) for key, value in flat.items() if not _MAY_DIFFER.match(key)
    }


def _flatten(node: Any, key: str, into: dict[str, Any]) -> None:
    if isinstance(node, dict):
        for name, value in node.items():
            _flatten(value, f"{key}.{name}" if key else str(name), into)
    else:
        into[key] = node


def _plain(value: Any) -> Any:
    """`value` so that equal ones compare equal: a NaN, a 1 and a 1.0."""
    if value is _ABSENT:
        return value
    return json.dumps(float(value) if type(value) is int else value)


def _words(value: Any) -> str:
    if value is _ABSENT:
        return "not set"
    text = value if isinstance(value, str) else json.dumps(value, ensure_ascii=False)
    return text if len(text) <= 80 else f"{text[:77]}..."
