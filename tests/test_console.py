"""What of a run's output the user sees."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

from verl_dra.console import shown_line
from verl_dra.summary import Summary


@pytest.mark.parametrize(
    ("line", "shown"),
    [
        ("\x1b[36m(DRATaskRunner pid=7)\x1b[0m verl-dra: steps: 3", "verl-dra: steps: 3"),
        ("(DRATaskRunner pid=7, ip=10.0.0.2) verl-dra: steps: 3", "verl-dra: steps: 3"),
        ("verl-dra: training", "verl-dra: training"),
        (
            "\x1b[36m(R pid=7)\x1b[0m \rTraining Progress:  33%|3 | 1/3\rTraining Progress:  67%|6 | 2/3",
            "Training Progress:  67%|6 | 2/3",
        ),
        (
            "(R pid=7) step:2 - actor/lr:0.1 - critic/score/mean:0.51234 - dra/smi/mean:1.25 - dra/fallbacks:0.0 - x:1",
            "step 2: critic/score/mean 0.5123, dra/smi/mean 1.25",
        ),
        (
            "step:0 - val-core/a/acc/mean@4:np.float64(0.63281) - val-core/a/acc/best@4/mean:np.float64(0.9)",
            "step 0: val-core/a/acc/mean@4 0.6328",
        ),
        ("(pid=3) UserWarning: megatron engine is not available", None),
        ("", None),
    ],
)
def test_progress_metrics_and_our_own_lines_are_shown(line: str, shown: str | None) -> None:
    assert shown_line(line) == shown


def run_quietly(body: str, tmp_path: Path) -> subprocess.CompletedProcess[str]:
    code = f"""
import subprocess, sys
from pathlib import Path
from verl_dra.console import quiet, say
with quiet(Path({str(tmp_path)!r}) / "run" / "train.log"):
{body}
print("after")
"""
    return subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False, timeout=60)


def test_everything_goes_to_the_log_and_only_the_chosen_lines_to_the_screen(tmp_path: Path) -> None:
    done = run_quietly(
        '    print("noise"); say("news"); subprocess.run(["echo", "child noise"]); sys.stderr.write("warning\\n")',
        tmp_path,
    )
    assert done.returncode == 0
    assert done.stdout == "verl-dra: news\nafter\n"
    assert done.stderr == ""
    log = (tmp_path / "run" / "train.log").read_text()
    assert set(log.splitlines()) == {"noise", "verl-dra: news", "child noise", "warning"}


def test_a_failure_shows_the_end_of_the_log(tmp_path: Path) -> None:
    done = run_quietly('    print("the cause"); raise OSError("broken")', tmp_path)
    assert done.returncode == 1
    assert "the cause" in done.stderr
    assert "the run failed" in done.stderr
    assert "OSError: broken" in done.stderr


def test_a_log_that_can_t_be_opened_is_an_error_at_once(tmp_path: Path) -> None:
    (tmp_path / "run" / "train.log").mkdir(parents=True)
    done = run_quietly('    print("x" * 10**6)', tmp_path)
    assert done.returncode == 1
    assert "IsADirectoryError" in done.stderr


def test_the_summary_sets_the_last_value_against_the_first() -> None:
    summary = Summary()
    summary.add(0, {"val-core/task/acc/mean@4": 0.5})
    summary.add(1, {"training/global_step": 1, "critic/score/mean": 0.25, "dra/effective_paths": 3.0})
    summary.add(2, {"training/global_step": 2, "critic/score/mean": 0.75, "dra/effective_paths": 2.5})
    summary.add(2, {"val-core/task/acc/mean@4": 0.625})
    assert summary.lines() == [
        "steps: 2",
        "training reward: 0.250 (step 1) -> 0.750 (step 2)",
        "validation task/acc/mean@4: 0.500 (step 0) -> 0.625 (step 2)",
        "effective paths: 3.000 (step 1) -> 2.500 (step 2)",
    ]


def test_the_summary_says_once_what_was_measured_once() -> None:
    summary = Summary()
    summary.add(0, {"val-core/task/acc/mean@4": 0.5})
    assert summary.lines() == ["steps: 0", "validation task/acc/mean@4: 0.500 (step 0)"]


@pytest.mark.slow
def test_a_point_of_a_sweep_says_why_it_failed_before_the_next_begins(tmp_path: Path) -> None:
    code = (
        "import sys\n"
        "from verl_dra import main\n"
        "def train(config, output):\n"
        "    raise RuntimeError(f'no {config.dra.smi} today')\n"
        "main.train = train\n"
        "sys.argv = ['main', '--multirun', 'dra.smi=graph_cut,log_det', f'hydra.sweep.dir={sys.argv[1]}']\n"
        "main.main()\n"
    )
    done = subprocess.run(
        [sys.executable, "-c", code, str(tmp_path)], capture_output=True, text=True, cwd=tmp_path, check=False
    )
    assert done.returncode == 1
    first, second = done.stderr.split("verl-dra: the run failed")[:2]
    assert "RuntimeError: no graph_cut today" in first
    assert "RuntimeError: no log_det today" in second
    assert "log_det" not in first
