"""recipes/examples: each config composes and passes the checks that a run makes; the sandbox gets the programs."""

from __future__ import annotations

import json
import re
import subprocess
import sys
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from omegaconf import DictConfig
from serving import serving
from verl.trainer.ppo.reward import load_reward_manager

from verl_dra.config import ConfigError
from verl_dra.config.compose import check, composed

EXAMPLES = Path(__file__).resolve().parents[1] / "recipes" / "examples"
NEEDED = {
    "code": "sandbox_url=http://127.0.0.1:9/run_code",
    "reward_model": "reward_model_path=MODEL",
}


def example(tmp_path: Path, name: str, *overrides: str) -> DictConfig:
    """As the command of the README composes it, from a folder elsewhere."""
    page = (EXAMPLES / "README.md").read_text()
    command = re.search(r"verl-dra train (.*?)\n\n", page, re.DOTALL)
    assert command is not None
    arguments = command[1].replace("\\\n", "").split()
    assert arguments[:4] == ["--config-dir", "recipes/examples", "--config-name", "lora"]
    given = [*arguments[4:], f"hydra.run.dir={tmp_path}", *overrides]
    return composed(["--config-dir", str(EXAMPLES), "--config-name", name, *given])[0]


pytestmark = pytest.mark.usefixtures("vllm_of_a_gpu")


def test_the_table_of_readme_has_each_config() -> None:
    named = re.findall(r"^\| \[(\w+)\]\((\w+)\.yaml\)", (EXAMPLES / "README.md").read_text(), re.MULTILINE)
    assert all(title == file for title, file in named)
    assert sorted(title for title, _ in named) == sorted(path.stem for path in EXAMPLES.glob("*.yaml"))


@pytest.mark.slow
@pytest.mark.parametrize("name", sorted(path.stem for path in EXAMPLES.glob("*.yaml")))
def test_an_example_passes_all_checks(tmp_path: Path, name: str) -> None:
    config = example(tmp_path, name, *([NEEDED[name]] if name in NEEDED else []))
    assert check(config).enabled
    rollout = config.actor_rollout_ref.rollout
    assert rollout.name == ("sglang" if name == "sglang" else "vllm")
    assert config.model_engine == ("megatron" if name == "megatron" else "dp")
    assert (config.actor_rollout_ref.model.lora_rank > 0) == (name == "lora")


@pytest.mark.parametrize("name", sorted(NEEDED))
def test_what_an_example_needs_is_asked_for(tmp_path: Path, name: str) -> None:
    with pytest.raises(ConfigError, match=re.escape(NEEDED[name].partition("=")[0])):
        example(tmp_path, name)


class StandIn(BaseHTTPRequestHandler):
    """Answers as SandboxFusion does to Python, which it runs as it comes: for this test's own programs alone."""

    def do_POST(self) -> None:
        asked = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
        done = subprocess.run(
            [sys.executable, "-c", asked["code"]], input=asked["stdin"], capture_output=True, text=True, check=False
        )
        run = {
            "status": "Finished",
            "return_code": done.returncode,
            "stdout": done.stdout,
            "stderr": done.stderr,
            "execution_time": 0.0,
        }
        body = json.dumps({"status": "Success" if done.returncode == 0 else "Failed", "run_result": run}).encode()
        self.send_response(200)
        self.end_headers()
        self.wfile.write(body)

    def log_message(self, format: str, *args: Any) -> None:
        """Not to the console."""


@pytest.fixture
def sandbox() -> Iterator[str]:
    with serving(StandIn) as address:
        yield f"{address}/run_code"


PROGRAMS = {
    "```python\na, b = map(int, input().split())\nprint(a + b)\n```": 1.0,
    "```python\nprint(3)\n```": 0.5,
    "The sum is 3.": 0.0,
}


def test_programs_are_graded_by_what_the_sandbox_says(tmp_path: Path, sandbox: str) -> None:
    config = example(tmp_path, "code", f"sandbox_url={sandbox}")
    check(config)
    manager = load_reward_manager(config, SimpleNamespace())
    cases = json.dumps({"inputs": ["1 2\n", "2 2\n"], "outputs": ["3\n", "4\n"]})
    scores = {completion: manager.compute_score("apps", completion, cases) for completion in PROGRAMS}
    assert scores == pytest.approx(PROGRAMS)
