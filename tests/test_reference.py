"""The reference is the code's: its tables, and the list of what users rely on, are what `make reference` makes."""

from __future__ import annotations

import public
import reference
from reference import keys_of

from verl_dra.config import DRAConfig

AGAIN = "run `make reference`"


def test_the_tables_are_those_of_the_code() -> None:
    page = reference.PAGE.read_text()
    assert page == reference.renewed(page), AGAIN


def test_what_users_rely_on_changes_by_decision() -> None:
    assert public.FILE.read_text() == public.listing(), f"if it is meant, {AGAIN}, and say it in CHANGELOG.md"


def test_every_key_says_what_it_means() -> None:
    assert not [key.name for key in keys_of(DRAConfig(), "dra") if len(key.meaning) < 10]


def test_a_key_has_its_group_its_default_and_its_docstring() -> None:
    keys = {key.name: key for key in keys_of(DRAConfig(), "dra")}
    assert keys["dra.scorer.gpu_fraction"].default == "0.1"
    assert keys["dra.embedding.trust_remote_code"].default == "false"
    assert keys["dra.record.folder"].meaning == "Where records go; `null` for `groups` in the run's folder."
