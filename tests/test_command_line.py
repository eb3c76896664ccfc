"""What a command line sets of `dra.*` is checked in a moment, before veRL is imported."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest

from verl_dra.config import ConfigError
from verl_dra.config.command_line import check_words
from verl_dra.main import main
from verl_dra.terminal.train_help import TEXT

GROUP = "dra is a group of settings and has no value; give one, such as dra.smi=log_det, and .* dra.enabled=False"


@pytest.mark.parametrize(
    ("word", "says"),
    [
        ("dra.smmi=log_det", r"^dra has no key smmi; did you mean smi\?$"),
        ("+dra.smmi=log_det", r"^dra has no key smmi; did you mean smi\?$"),
        ("dra.embeding.model=x", r"^dra has no key embeding; did you mean embedding\?$"),
        ("dra.scorer.replicas=2", r"^dra.scorer has no key replicas; did you mean num_replicas\?$"),
        ("dra.scorer.zzz=2", r"^dra.scorer has no key zzz; there are placement, num_replicas, "),
        ("dra.embedding={encodr: ngram}", r"^dra.embedding has no key encodr; did you mean encoder\?$"),
        ("dra.smi.name=log_det", "^dra.smi.name: dra.smi is a value and has no keys of its own$"),
        ("dra.smi=graphcut", r"^dra.smi must be one of graph_cut, .*, not 'graphcut'; did you mean graph_cut\?$"),
        ("dra.smi=graph_cut,logdet", r"not 'logdet'; did you mean log_det\?$"),
        ("dra.weight=choice(inverse,darlin)", r"not 'darlin'; did you mean darling\?$"),
        ("dra.embedding.dtype=bf16", "^dra.embedding.dtype must be one of auto, "),
        ("dra.cluster_cosine=high", "^dra.cluster_cosine: Value 'high' .* Float$"),
        ("dra.enabled=maybe", "^dra.enabled: Value 'maybe' is not a valid bool"),
        ("dra=false", GROUP),
        ("dra=null", GROUP),
        ("++dra=1", GROUP),
        ("dra={smi: log_det}", GROUP),
    ],
)
def test_a_word_that_is_none_is_refused_with_the_one_that_was_meant(word: str, says: str) -> None:
    with pytest.raises(ConfigError, match=says):
        check_words(["--config-dir", "x", "trainer.nnodes=2", word])


def test_what_may_be_right_is_left_to_the_checks_of_the_whole_configuration() -> None:
    check_words(
        [
            *("dra=mine", "dra.smi=${oc.env:SMI}", "dra.smi=???", "dra.strength=[[0,1],[20,0]]", "~dra.smi"),
            *("dra.cosine_power=range(1,4)", "dra.smi=graph_cut,log_det", "dra.embedding.encoder=mine:Encoder"),
            *("dra.smi=[", "drat.smi=1", "dra.embedding={encoder: ngram}", "dra.embedding.model='/a b'"),
            *("dra.base_estimator=mine", "dra.scorer.num_replicas=null", "+dra.smi=log_det", "-m", "dra"),
        ]
    )


ALL = """
import json, sys
from verl_dra.cli import main
said = []
for command in ("train", "doctor", "sweep"):
    try:
        said.append(main([command, "dra.smmi=1,2" if command == "sweep" else "dra.smmi=1"]))
    except SystemExit as end:
        said.append(str(end.code))
print(json.dumps({"said": said, "verl": "verl" in sys.modules}))
"""


@pytest.mark.slow
def test_every_command_says_so_without_importing_verl(tmp_path: Path) -> None:
    done = subprocess.run(
        [sys.executable, "-c", ALL], cwd=tmp_path, capture_output=True, text=True, check=True, timeout=60
    )
    found = json.loads(done.stdout.splitlines()[-1])
    assert not found["verl"]
    near = "dra has no key smmi; did you mean smi?"
    assert found["said"] == [f"verl-dra: {near}", 1, 1]
    assert near in done.stdout
    assert f"verl-dra sweep: point 0 (dra.smmi=1): {near}" in done.stderr
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("words", [["--help"], ["dra.smi=log_det", "-h"]])
def test_help_is_a_page_and_not_the_configuration(
    words: list[str], monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(sys, "argv", ["verl-dra train", *words])
    main()
    assert capsys.readouterr().out == TEXT
    assert TEXT.startswith("usage: verl-dra train")
    assert len(TEXT.splitlines()) < 30


@pytest.mark.slow
def test_a_refused_run_leaves_no_folder_but_one_that_holds_more(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    refused = ["train", "actor_rollout_ref.rollout.n=1", "dra.console=full"]
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine" / "metrics.jsonl").write_text("{}")
    for words in ([], ["hydra.run.dir=mine"], ["hydra.run.dir=other", "dra.console=quiet"]):
        monkeypatch.setattr(sys, "argv", [*refused, *words])
        with pytest.raises(SystemExit, match=r"verl-dra: actor_rollout_ref\.rollout\.n=1 gives groups of one"):
            main()
    assert sorted(path.name for path in tmp_path.iterdir()) == ["mine"]
    assert (tmp_path / "mine" / "metrics.jsonl").read_text() == "{}"
