"""The policy's model and tokenizer, before veRL loads them."""

from __future__ import annotations

import json
import os
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from omegaconf import DictConfig

from verl_dra.doctor.check import Check, fail, gib, ok, one_line, skip, warn
from verl_dra.doctor.run_config import is_remote, select

_MODEL = "actor_rollout_ref.model"
_WEIGHTS = ("*.safetensors", "*.bin")
_TOKENIZERS = ("tokenizer.json", "tokenizer.model", "vocab.json", "vocab.txt", "spiece.model")
_POINTER = b"version https://git-lfs"
_FAKE_CHAT = [{"role": "user", "content": "What is 1 + 1?"}]


def model(config: DictConfig, elsewhere: bool) -> Iterator[Check]:
    """Configuration and weights of the model, as far as its files show.

    Args:
        config: the run's.
        elsewhere: whether other nodes may load it, so that its absence here proves little.
    """
    name, path = "model", str(select(config, f"{_MODEL}.path"))
    place = _place(name, f"{_MODEL}.path", path, elsewhere)
    if not isinstance(place, Path):
        yield place
        return
    shown = json.loads((place / "config.json").read_text()) if (place / "config.json").is_file() else None
    if shown is None:
        yield fail(name, f"{place} has no config.json", "give the folder of a model in Hugging Face's layout")
        return
    architectures = shown.get("architectures") or []
    if len(architectures) != 1:  # veRL 0.9.1 asserts it (workers/config/model.py)
        yield fail(name, f"{place}/config.json names the architectures {architectures}", "it must name exactly one")
        return
    weights = weight_files(place)
    missing = _missing_shards(place)
    pointers = [file.name for file in weights if _is_pointer(file)]
    if (not weights or missing) and can_be_fetched(path):
        yield skip(name, f"{path} is in the hub's cache in part; the rest comes from the hub")
    elif not weights or missing:
        absent = f"lacks {missing[0]}" if missing else "holds no weights"
        yield fail(name, f"{place} {absent}", "download the model again, whole")
    elif pointers:
        yield fail(name, f"{place}/{pointers[0]} is a pointer of git-lfs, not the file", "git lfs pull there")
    else:
        size = sum(file.stat().st_size for file in weights)
        yield ok(name, f"{architectures[0]}, {gib(size)} of weights in {place}")


def tokenizer(config: DictConfig, elsewhere: bool, load: bool = True) -> Iterator[Check]:
    """That the tokenizer can be read and has a chat template, which every agent loop of veRL renders prompts with.

    With `load` it is really loaded and renders a prompt; without, its files are looked at.
    """
    key = f"{_MODEL}.tokenizer_path" if select(config, f"{_MODEL}.tokenizer_path") else f"{_MODEL}.path"
    path = str(select(config, key))
    place = _place("tokenizer", key, path, elsewhere)
    if not isinstance(place, Path):
        if key != f"{_MODEL}.path":  # else the model's line says it
            yield Check("tokenizer", place.state, place.found, place.fix)
        return
    files = [place / name for name in _TOKENIZERS if (place / name).is_file()]
    code = bool(select(config, f"{_MODEL}.trust_remote_code"))
    fix = "copy the tokenizer's files from the model that it comes with"
    broken = next((file for file in files if _is_pointer(file) or _is_cut_json(file)), None)
    if not files and can_be_fetched(path):
        yield skip("tokenizer", f"{path} comes from the hub")
        return
    if not files and not code:
        yield fail("tokenizer", f"{place} has none of {', '.join(_TOKENIZERS)}", fix)
        return
    if broken is not None:
        yield fail("tokenizer", f"{broken} is not whole", fix)
        return
    template = select(config, f"{_MODEL}.custom_chat_template")
    if load:
        yield from _loaded(place, template, code)
    elif not template and not code and not _has_template(place) and not can_be_fetched(path):
        yield _no_template(place)
    else:
        yield ok("tokenizer", f"{files[0].name if files else 'code'} in {place}, with a chat template")


def weight_files(place: Path) -> list[Path]:
    """The files of weights in a model's folder, of the first kind that it has."""
    kinds = (sorted(place.glob(pattern)) for pattern in _WEIGHTS)
    return next((found for found in kinds if found), [])


def is_float32(place: Path) -> bool:
    """Whether the model's configuration says that its weights are stored in float32."""
    file = place / "config.json"
    settings = json.loads(file.read_text()) if file.is_file() else {}
    return "float32" in (settings.get("dtype"), settings.get("torch_dtype"))


def local_folder(path: str) -> Path | None:
    """The folder on this machine that `path`, a folder or a hub name, stands for, where there is one."""
    folder = Path(os.path.expanduser(path))
    if folder.is_dir():
        return folder
    if is_remote(path) or _is_written_as_path(path):
        return None
    from huggingface_hub import try_to_load_from_cache

    cached = try_to_load_from_cache(path, "config.json")
    return Path(cached).parent if isinstance(cached, str) else None


def _place(name: str, key: str, path: str, elsewhere: bool) -> Path | Check:
    """The folder of the model, or what to say where there is none."""
    if is_remote(path):
        return skip(name, f"{path} is remote")
    if path.endswith("/"):  # veRL 0.9.1 asserts that it does not (utils/fs.py)
        return fail(name, f"{key}={path} ends in a slash, which veRL refuses", f"set {key}={path.rstrip('/')}")
    place = local_folder(path)
    if place is not None:
        return place
    if _is_written_as_path(path):
        if elsewhere:
            return warn(name, f"{key}={path} is not on this node", "it must be on the nodes that train")
        return fail(name, f"{key}={path} is not there", f"set {key} to a folder or a hub name")
    from huggingface_hub import constants

    if constants.is_offline_mode():
        fix = "download it first, unset HF_HUB_OFFLINE or give a folder"
        bad = warn if elsewhere else fail
        return bad(name, f"{key}={path} is no folder, not in the hub's cache, and HF_HUB_OFFLINE is set", fix)
    return skip(name, f"{path} comes from the hub")


def can_be_fetched(path: str) -> bool:
    """Whether `path` is a hub name, whose cached files may be some of all, and the hub may be asked for the others."""
    from huggingface_hub import constants

    return not Path(os.path.expanduser(path)).is_dir() and not constants.is_offline_mode()


def _loaded(place: Path, template: str | None, code: bool) -> Iterator[Check]:
    from transformers import AutoTokenizer

    try:
        loaded: Any = AutoTokenizer.from_pretrained(str(place), trust_remote_code=code)
    except Exception as error:
        yield fail("tokenizer", f"{place} does not load: {one_line(repr(error))}", "repair its files")
        return
    loaded.chat_template = template or loaded.chat_template
    if not loaded.chat_template:
        yield _no_template(place)
        return
    try:
        tokens = loaded.apply_chat_template(_FAKE_CHAT, add_generation_prompt=True, tokenize=True, return_dict=True)
    except Exception as error:
        yield fail("tokenizer", f"its chat template fails: {one_line(repr(error))}", "repair the template")
        return
    yield ok("tokenizer", f"{type(loaded).__name__} in {place}; a short question is {len(tokens['input_ids'])} tokens")


def _no_template(place: Path) -> Check:
    fix = f"take an instruct model, or set {_MODEL}.custom_chat_template"
    return fail("tokenizer", f"{place} has no chat template, which veRL renders prompts with", fix)


def _has_template(place: Path) -> bool:
    """Whether transformers 5 would find a chat template among the files."""
    if any(place.glob("chat_template.*")) or any(place.glob("additional_chat_templates/*.jinja")):
        return True
    settings = place / "tokenizer_config.json"
    return settings.is_file() and bool(json.loads(settings.read_text()).get("chat_template"))


def _is_written_as_path(path: str) -> bool:
    """Whether it can be no name on the hub."""
    from huggingface_hub.errors import HFValidationError
    from huggingface_hub.utils import validate_repo_id  # type: ignore[attr-defined]

    try:
        validate_repo_id(path)
    except HFValidationError:
        return True
    return path.startswith(("/", ".", "~")) or path.count("/") > 1


def _missing_shards(place: Path) -> list[str]:
    index = place / "model.safetensors.index.json"
    if not index.is_file():
        return []
    shards = set(json.loads(index.read_text())["weight_map"].values())
    return sorted(shard for shard in shards if not (place / shard).is_file())


def _is_pointer(file: Path) -> bool:
    with file.open("rb") as opened:
        return opened.read(len(_POINTER)) == _POINTER


def _is_cut_json(file: Path) -> bool:
    """Whether a JSON object ends early. A tokenizer's can have tens of MB: it is not parsed."""
    if file.suffix != ".json":
        return False
    with file.open("rb") as opened:
        start = opened.read(64).lstrip()
        opened.seek(max(file.stat().st_size - 64, 0))
        return not (start.startswith(b"{") and opened.read().rstrip().endswith(b"}"))
