"""`launch/ray/submit.sh` against a real Ray head: what the job gets, how it ends, and a head that asks for a token."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

import isolated
import pytest

pytestmark = [pytest.mark.slow, pytest.mark.timeout(1200)]

ROOT = Path(__file__).resolve().parents[2]
SUBMIT = ROOT / "launch" / "ray" / "submit.sh"
HEAD = Path(__file__).with_name("ray_head.sh")
# In the place of the `ray` on PATH.
WRAPPER = """#!/bin/sh
exec {ray} "$@"
"""
# In the place of the real command: shows what it was given and where, and ends as it is told.
STAND_IN = """#!/usr/bin/env python
import json, os, sys, time
files = sorted(os.path.relpath(os.path.join(f, n)) for f, _, names in os.walk(".") for n in names)
print("GIVEN", json.dumps([sys.argv[1:], files, os.environ.get("VERL_PLATFORM")]))
told = dict(word.split("=", 1) for word in sys.argv if word.startswith(("exit=", "sleep=")))
time.sleep(int(told.get("sleep", 0)))
sys.exit(int(told.get("exit", 0)))
"""
ODD = [
    "data.train_files=['/a b/x.parquet','$HOME']",
    '+x="; exit 9 #"',
    "*",
    "`id`",
    "back\\slash",
    "~y",
    "+z={a: 'b'}",
]


def scenario(folder: Path, script: str, **environment: str) -> str:
    """Run bash in namespaces of its own, after a head has started there; what it printed."""
    log = folder / "shown.txt"
    done = isolated.run(
        ["bash", "-c", f"source {HEAD}\n{script}"],
        log=log,
        cwd=folder,
        environment={"SUBMIT": str(SUBMIT), "HEAD_AUTH_MODE": "disabled", "HF_HUB_OFFLINE": "1", **environment},
        timeout_s=1100,
    )
    shown = log.read_text(errors="replace")
    assert done.returncode == 0, shown[-6000:]
    return shown


def test_a_job_gets_its_arguments_and_code_and_ends_as_it_does(tmp_path: Path) -> None:
    stand_in = tmp_path / "bin" / "verl-dra"
    stand_in.parent.mkdir()
    stand_in.write_text(STAND_IN)
    stand_in.chmod(0o755)
    (tmp_path / "wrapped").mkdir()
    wrapper = tmp_path / "wrapped" / "ray"
    wrapper.write_text(WRAPPER.format(ray=Path(sys.executable).with_name("ray")))
    wrapper.chmod(0o755)
    project = tmp_path / "project"
    kept = ["ours.py", "recipe/run.yaml", "recipe/data/loader.py"]
    left = [".git/config", ".venv/bin/x", "outputs/1/train.log", "data/x.json", "rows.parquet", "checkpoints/1/x"]
    left += ["model/w.safetensors", "__pycache__/x.pyc", "recipe/rows.jsonl"]
    for name in kept + left:
        (project / name).parent.mkdir(parents=True, exist_ok=True)
        (project / name).write_text("x")
    (tmp_path / "token").write_text("a-token-of-the-test-0123456789abcdef")
    words = " ".join(f"'{word}'" if "'" not in word else '"' + word.replace("$", "\\$") + '"' for word in ODD)
    shown = scenario(
        tmp_path,
        f"""
unset RAY_AUTH_TOKEN_PATH RAY_AUTH_MODE
set +e
submit() {{ "$SUBMIT" --address http://127.0.0.1:8265 --working-dir project "$@"; }}
submit --no-wait -- a=1; echo "WITHOUT A TOKEN $?"
curl --silent --output /dev/null --write-out 'ANSWER %{{http_code}}\n' http://127.0.0.1:8265/api/jobs/
export RAY_AUTH_TOKEN_PATH=$PWD/token
submit --submission-id mine -- {words} exit=7; echo "FAILED $?"
submit --submission-id mine -- a=1; echo "AGAIN $?"
export VERL_PLATFORM=cpu
submit --config-name=x a=1; echo "DONE $?"
export RAY_AUTH_MODE=token
"$SUBMIT" --address http://127.0.0.1:8265 --working-dir project --submission-id stays sleep=600 &
until ray job status --address http://127.0.0.1:8265 stays | grep -q RUNNING; do sleep 1; done
kill -TERM $!; wait $!; echo "LEFT $?"
ray job submit --address http://127.0.0.1:8265 -- ray status; echo "LOOKED $?"
pgrep -f 'ray::|VLLM::' | xargs -n1 py-spy dump --pid; echo "STACKS SHOWN"
ray job stop --address http://127.0.0.1:8265 stays; echo "STOP $?"
ray job status --address http://127.0.0.1:8265 stays; echo "STATUS $?"
unset RAY_AUTH_MODE
RAY_API_SERVER_ADDRESS=http://127.0.0.1:8265 "$SUBMIT" --working-dir project --no-wait a=1; echo "NO WAIT $?"
PATH=$PWD/wrapped:$PATH submit exit=5; echo "WRAPPED $?"
unset RAY_AUTH_TOKEN_PATH
RAY_AUTH_TOKEN=of-another-cluster-0123456789abcdef submit --token-path token --no-wait a=1; echo "OTHER TOKEN $?"
""",
        HEAD_AUTH_MODE="token",
        RAY_AUTH_TOKEN_PATH=str(tmp_path / "token"),
        HEAD_PATH=f"{stand_in.parent}:{Path(sys.executable).parent}:{os.environ['PATH']}",
    )
    without, rest = shown.split("WITHOUT A TOKEN ")
    assert "http://127.0.0.1:8265 asks for a token, and got none" in without
    assert rest[0] == "2"
    assert "Traceback" not in shown
    assert "ANSWER 401\n" in rest
    lines = [line for line in rest.splitlines() if line.startswith("GIVEN ")]
    given = [json.loads(line.partition("GIVEN ")[2]) for line in lines]
    # The doctor's exit status is the job's, and nothing is trained after it.
    assert given[0] == [["doctor", *ODD, "exit=7"], sorted(kept), None]
    assert "FAILED 7\n" in rest
    assert "has a job mine already; give another --submission-id\nAGAIN 2\n" in rest
    assert "submit.sh: stays goes on; stop it by: ray job stop --address http://127.0.0.1:8265 stays" in rest
    assert "LEFT 130\n" in rest
    assert [one[0] for one in given[1:3]] == [["doctor", "--config-name=x", "a=1"], ["train", "--config-name=x", "a=1"]]
    assert given[1][2] == "cpu"
    assert "DONE 0\n" in rest
    assert "/32.0 CPU" in rest.partition("LEFT 130\n")[2].partition("LOOKED 0\n")[0]
    assert "Thread" in rest.partition("LOOKED 0\n")[2].partition("STACKS SHOWN\n")[0]
    status = rest.partition("STOP 0\n")[2].partition("STATUS 0\n")[0]
    assert "stopped" in status.lower(), rest
    assert "NO WAIT 0\n" in rest
    ids = [line.split()[2] for line in rest.splitlines() if line.startswith("submit.sh: submitted ")]
    assert ids[0] == "mine"
    assert "FAILED, exit status 5\nWRAPPED 5\n" in rest
    assert "OTHER TOKEN 0\n" in rest
    assert len(set(ids)) == len(ids) == 6


def test_a_submitted_job_trains(tmp_path: Path) -> None:
    recipe = ROOT / "recipes" / "tiny_paths"
    made = subprocess.run(
        [sys.executable, str(recipe / "prepare.py")], capture_output=True, text=True, check=True
    ).stdout.splitlines()[-1]
    code = tmp_path / "code"
    for part in ("verl_dra", "recipes"):
        shutil.copytree(ROOT / part, code / part, ignore=shutil.ignore_patterns("__pycache__"))
    own = "ray_kwargs.ray_init"
    shown = scenario(
        tmp_path,
        f"""
export VERL_PLATFORM=cpu
"$SUBMIT" --address http://127.0.0.1:8265 --working-dir code -- \\
  --config-dir recipes/tiny_paths --config-name tiny_paths +platform=cpu \\
  data_dir={made} recipe_dir=recipes/tiny_paths \\
  {own}.address=null {own}.num_cpus=null {own}.num_gpus=null \\
  trainer.total_training_steps=2 trainer.test_freq=-1 trainer.val_before_train=False hydra.run.dir={tmp_path}/out
""",
    )
    assert " 0 fail, " in shown
    assert "verl-dra: steps: 2" in shown
    assert shown.rstrip().endswith("SUCCEEDED, exit status 0")
    steps = [json.loads(line) for line in (tmp_path / "out" / "metrics.jsonl").read_text().splitlines()]
    assert [step["step"] for step in steps] == [1, 2]
    assert steps[-1]["data"]["dra/effective_paths"] > 1


@pytest.mark.parametrize(
    ("words", "says"),
    [
        ([], "give --address URL or set RAY_API_SERVER_ADDRESS; there is no default"),
        (["--address", "127.0.0.1:6379"], "must start with http:// or https://"),
        (["--address", "http://x:8265", "--working-dir", "/nowhere"], "there is no folder /nowhere"),
        (["--address", "http://x:8265", "--token-path", "/nowhere"], "can't read the token file /nowhere"),
        (["--address"], "--address needs a value"),
    ],
)
def test_what_is_missing_is_said_before_anything_is_sent(words: list[str], says: str) -> None:
    environment = {key: value for key, value in os.environ.items() if key != "RAY_API_SERVER_ADDRESS"}
    environment["PATH"] = f"{Path(sys.executable).parent}:{environment['PATH']}"
    done = subprocess.run([str(SUBMIT), *words], env=environment, capture_output=True, text=True, check=False)
    assert done.returncode == 2
    assert says in done.stderr


def test_a_ray_without_a_python_is_told(tmp_path: Path) -> None:
    wrapper = tmp_path / "ray"
    wrapper.write_text("#!/bin/sh\nexit 1\n")
    wrapper.chmod(0o755)
    done = subprocess.run(
        [str(SUBMIT), "--address", "http://127.0.0.1:9", "--no-wait"],
        env={"PATH": f"{tmp_path}:/usr/bin:/bin"},
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 2
    assert f"no Python that has ray: neither beside {wrapper}" in done.stderr
