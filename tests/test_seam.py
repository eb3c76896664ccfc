"""verl_dra/training/README.md says what of veRL is overridden and relied on: it is there, with those signatures."""

from __future__ import annotations

import importlib
import inspect
import re
from pathlib import Path
from typing import Any

import pytest
from verl.trainer.ppo.v1.trainer_base import TRAINER_REGISTRY, PPOTrainer

from verl_dra.training.trainer import DRATrainerMixin, with_dra

PAGE = (Path(__file__).parents[1] / "verl_dra" / "training" / "README.md").read_text()
RELIED_ON = dict(re.findall(r"^((?:verl|transfer_queue)\.[\w.]+)(\(.*\))$", PAGE, re.MULTILINE))
HOOKS = sorted(name for name in vars(DRATrainerMixin) if inspect.isfunction(vars(PPOTrainer).get(name)))
MODES = ("sync", "colocate_async", "separate_async")


def there(name: str) -> Any:
    """What a dotted name stands for; of one of Ray's actor classes, the class."""
    module, rest = name, []
    while True:
        try:
            found: Any = importlib.import_module(module)
            break
        except ModuleNotFoundError:
            module, _, last = module.rpartition(".")
            rest.insert(0, last)
    for part in rest:
        found = getattr(found, part)
        if hasattr(found, "__ray_metadata__"):
            found = found.__ray_metadata__.modified_class
    return found


def signature(function: Any) -> str:
    """Without types, and without what Ray adds."""
    of = inspect.signature(function)
    plain = [p.replace(annotation=p.empty) for p in of.parameters.values() if p.name != "_ray_trace_ctx"]
    return str(of.replace(parameters=plain, return_annotation=of.empty))


@pytest.mark.parametrize("name", RELIED_ON)
def test_what_is_relied_on_in_verl_is_there(name: str) -> None:
    assert signature(there(name)) == RELIED_ON[name], f"{name} has changed: see where {name.rpartition('.')[2]} is used"


@pytest.mark.parametrize("hook", HOOKS)
def test_every_hook_is_on_the_page_with_its_signature(hook: str) -> None:
    assert f"`PPOTrainer.{hook}`" in PAGE
    assert f"verl.trainer.ppo.v1.trainer_base.PPOTrainer.{hook}" in RELIED_ON


def test_the_page_names_no_hook_that_is_none() -> None:
    assert sorted(set(re.findall(r"`PPOTrainer\.(\w+)`", PAGE))) == HOOKS
    assert len(HOOKS) == 8


@pytest.mark.parametrize("mode", MODES)
def test_every_modes_trainer_takes_the_hooks(mode: str) -> None:
    """A mode's own override of a hook is called as the base's is."""
    trainer = TRAINER_REGISTRY[mode]
    for hook in HOOKS:
        assert signature(getattr(trainer, hook)) == RELIED_ON[f"verl.trainer.ppo.v1.trainer_base.PPOTrainer.{hook}"]
        assert getattr(with_dra(trainer), hook) is vars(DRATrainerMixin)[hook]


def test_what_has_moved_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delattr(PPOTrainer, "_balance_batch")
    with pytest.raises(AttributeError, match="_balance_batch"):
        there("verl.trainer.ppo.v1.trainer_base.PPOTrainer._balance_batch")
