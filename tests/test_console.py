"""What of a run's output the user sees."""

from __future__ import annotations

import io
import os
import re
import subprocess
import sys
import threading
import time
import tracemalloc
from contextlib import suppress
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from verl_dra.main import main
from verl_dra.terminal import console
from verl_dra.terminal.console import Copying, shown_line
from verl_dra.terminal.progress import Progress
from verl_dra.training.summary import Summary


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
            "(R pid=7) step:2 - actor/lr:0.1 - critic/score/mean:0.51234 - dra/effective_paths:2.25 - "
            "dra/duplicates_frac:0.484 - dra/correct_negative_adv_frac:0.0 - timing_s/step:5.93 - "
            "timing_s/dra_wait:1.131e-05 - dra/fallbacks:0.0",
            "    2    0.512        2.25        48 %          0 %   5.9 s    0 ms        -",
        ),
        (
            "step:2 - critic/score/mean:0.0 - timing_s/step:125.2",
            "    2    0.000           -           -            -   125 s       -        -",
        ),
        (
            "step:0 - val-core/a/acc/mean@4:np.float64(0.63281) - val-core/a/acc/best@4/mean:np.float64(0.9)",
            "verl-dra: validation at step 0: a/acc/mean@4 0.633",
        ),
        (
            "step:2 - dra/effective_paths:1.25 - dra/fallbacks:2.0 - dra/late_rows:1 - dra/skipped_rows:256",
            "    2        -        1.25           -            -       -       -        -  "
            "dra/fallbacks 2, dra/late_rows 1",
        ),
        ("step:2 - dra/cosine/p10:0.5 - actor/lr:0.1", None),
        ("2026-11-27 INFO worker.py:2038 -- Started a local Ray instance.", "verl-dra: Ray runs; starting the trainer"),
        (
            "(R pid=7) INFO:2026-11-27:train and validate dataloader initialized, train dataset size: 349, val dataset "
            "size: 64",
            "verl-dra: data are read, 349 prompts and 64 of validation; loading the model",
        ),
        ("(pid=3) UserWarning: megatron engine is not available", None),
        ("", None),
    ],
)
def test_the_start_a_row_a_step_and_our_own_lines_are_shown(line: str, shown: str | None) -> None:
    assert shown_line(line) == shown


@pytest.mark.parametrize(
    ("line", "shown"),
    [
        ("step:3 - done", None),
        ("step:3 - ", None),
        ("step:3 - phase two: warm - up", None),
        (
            "step:3 - val-core/AIME - 2024/acc/mean@8:0.5 - val-core/a: b:c/acc/mean@4:np.float64(0.25) - x:1",
            "verl-dra: validation at step 3: AIME - 2024/acc/mean@8 0.500, a: b:c/acc/mean@4 0.250",
        ),
        (
            "step:3 - critic/score/mean:nan - dra/effective_paths:-inf - dra/duplicates_frac:Fraction(1, 2) - "
            "timing_s/step:1e-07 - dra/z:True",
            "    3      nan        -inf  Fraction(1, 2)            -    0 ms       -        -",
        ),
        (
            "step:3 - critic/score/mean:-12345.6",
            "    3  -1.235e+04           -           -            -       -       -        -",
        ),
        ("verl-dra: of a file with carriage returns\r", "verl-dra: of a file with carriage returns"),
    ],
)
def test_names_and_values_can_be_anything(line: str, shown: str | None) -> None:
    assert shown_line(line) == shown


BAR = "Training Progress:   7%|▋         | {}/30 [00:06<02:54,  6.00s/it]"


def test_the_table_has_its_head_now_and_then_and_says_how_far_it_is() -> None:
    progress = Progress(8)
    lines = []
    for step in range(1, 23):
        assert progress.shown(BAR.format(step)) is None
        lines += str(progress.shown(f"step:{step} - critic/score/mean:{step % 2}.0 - timing_s/step:6")).splitlines()
    assert lines[0].startswith("verl-dra: pushed down: right answers whose advantage is below 0; wait: ")
    heads = [at for at, line in enumerate(lines) if "paths of 8" in line]
    assert heads == [1, 22]
    assert lines[1] == " step   reward  paths of 8  duplicates  pushed down    time    wait     left"
    assert lines[2] == " 1/30    1.000           -           -            -   6.0 s       -    02:54"
    rows = [line for line in lines if "/30" in line]
    assert len(rows) == 22
    assert {len(line) for line in (*rows, lines[1])} == {76}


def test_the_number_of_steps_is_known_before_the_time_that_is_left() -> None:
    progress = Progress()
    assert progress.shown("Training Progress:   0%|          | 0/20 [00:00<?, ?it/s]") is None
    assert str(progress.shown("step:1 - critic/score/mean:1.0")).splitlines()[-1].split()[::7] == ["1/20", "-"]


def test_the_validation_of_a_step_stands_below_its_row() -> None:
    shown = Progress().shown("step:2 - critic/score/mean:0.5 - val-core/a/acc/mean@4:0.75")
    assert str(shown).splitlines()[-2:] == [
        "    2    0.500           -           -            -       -       -        -",
        "verl-dra: validation at step 2: a/acc/mean@4 0.750",
    ]
    assert (
        Progress().shown("step:0 - val-core/a/acc/mean@4:0.75") == "verl-dra: validation at step 0: a/acc/mean@4 0.750"
    )


def test_a_stage_of_the_start_is_told_once_with_the_seconds_that_it_took() -> None:
    progress = Progress()
    line = "(R pid=7) INFO:2026-11-27 03:27:06,026:actor and ref model engine initialized"
    assert re.fullmatch(
        r"verl-dra: the model is loaded; starting the rollout engine \(\d+ s\)", str(progress.shown(line))
    )
    assert progress.shown(line) is None


@pytest.mark.parametrize("piece", ["(pid=", "a:1", "np.float64(", " - ", ":a(", "/mean@1", "\r", "1", "é"])
def test_a_line_of_a_megabyte_takes_no_time(piece: str) -> None:
    start = time.process_time()
    shown_line(("(" if "pid" in piece else "step:1 - val-core/") + piece * (2**20 // len(piece)))
    assert time.process_time() - start < 5


class Console:
    """The copying thread over a pipe of its own."""

    def __init__(self, folder: Path, log: str = "log", shown: int | None = None) -> None:
        self.log, self.shown = folder / log, folder / "shown"
        self.read_end, self.pipe = os.pipe()
        self._files = [self.log.open("ab", buffering=0), self.shown.open("ab", buffering=0)]
        self.copying = Copying(self.read_end, self._files[0], self._files[1].fileno() if shown is None else shown)

    def __enter__(self) -> Console:
        self.copying.start()
        return self

    def __exit__(self, *_: object) -> None:
        os.close(self.pipe)
        self.copying.join(60)
        assert not self.copying.is_alive()
        for file in self._files:
            file.close()
        os.close(self.read_end)

    def write(self, data: bytes) -> None:
        """As a process does: it waits where nobody reads."""
        done = threading.Thread(target=_write_all, args=(self.pipe, data), daemon=True)
        done.start()
        done.join(60)
        assert not done.is_alive(), "whoever writes to the pipe waits"


def _write_all(descriptor: int, data: bytes) -> None:
    while data:
        data = data[os.write(descriptor, data) :]


NAMES = (
    st.sampled_from(
        ["critic/score/mean", "dra/effective_paths", "timing_s/step", "val-core/AIME - 2024/acc/mean@8", "a: b"]
    )
    | st.text()
)
PIECES = st.one_of(
    st.binary(max_size=300),
    st.text(max_size=100).map(lambda text: f"{text}\n".encode(errors="replace")),
    st.builds(
        lambda step, pairs: f"step:{step} - {' - '.join(f'{name}:{value}' for name, value in pairs)}\n".encode(
            errors="replace"
        ),
        st.integers(),
        st.lists(st.tuples(NAMES, st.floats() | st.integers() | st.text() | st.none()), max_size=4),
    ),
    st.sampled_from(
        [
            b"step:3 - done\n",
            b"\r",
            b"\r\n",
            b"\n",
            b"\xff\xfe",
            b"(R pid=1) ",
            b"Training Progress: 1%\r",
            b"Training Progress: 1%| | 1/30 [00:01<00:29, 1.0s/it]\n",
            b"-- Started a local Ray instance.\n",
            b"\0" * 70_000,
        ]
    ),
)


@settings(max_examples=150, deadline=None)
@given(pieces=st.lists(PIECES, max_size=12))
def test_whatever_passes_through_is_logged_to_the_byte_and_ends_nothing(
    pieces: list[bytes], tmp_path_factory: pytest.TempPathFactory
) -> None:
    with Console(tmp_path_factory.mktemp("console")) as own:
        for piece in (*pieces, b"\nverl-dra: still there\n"):
            own.write(piece)
    assert own.log.read_bytes() == b"".join(pieces) + b"\nverl-dra: still there\n"
    assert own.shown.read_bytes().endswith(b"verl-dra: still there\n")
    assert own.copying.lost() == []


def test_a_line_that_cant_be_shown_is_logged_counted_and_told_once(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def breaks(line: str) -> str:
        if line.startswith("odd"):
            raise IndexError(line)
        return line

    monkeypatch.setattr("verl_dra.terminal.progress.shown_line", breaks)
    with Console(tmp_path) as own:
        own.write(b"first\nodd 1\nodd 2\nlast\n")
    assert own.log.read_bytes() == b"first\nodd 1\nodd 2\nlast\n"
    told = "lines could not be shown, and are in the log: IndexError('odd 1')"
    assert own.shown.read_text().splitlines() == ["first", f"verl-dra: from here on {told}", "last"]
    assert own.copying.lost() == [f"2 {told}"]


def test_a_full_disk_stops_nothing_and_what_is_missing_is_counted(tmp_path: Path) -> None:
    (tmp_path / "full").symlink_to("/dev/full")
    with Console(tmp_path, "full") as own:
        own.write(b"verl-dra: one\n" * 100_000)
    assert own.shown.read_bytes().count(b"verl-dra: one\n") == 100_000
    (lost,) = own.copying.lost()
    assert lost.startswith("1400000 bytes are missing in the log: OSError(28")
    assert "from here on bytes are missing in the log" in own.shown.read_text()


def test_lines_without_an_end_take_no_memory(tmp_path: Path) -> None:
    with Console(tmp_path) as own:
        tracemalloc.start()
        for end in (b"\nTraining Progress: 1%", b"\rverl-dra: after it\n"):
            for piece in (b"x" * 2**20, b"\rTraining Progress: 2%" * 50_000):
                for _ in range(32):
                    own.write(piece)
            own.write(end)
        _, peak = tracemalloc.get_traced_memory()
        tracemalloc.stop()
    assert peak < 8 * 2**20
    assert own.shown.read_bytes() == b"verl-dra: after it\n"
    assert max(map(len, own.copying.tail)) < 3000
    assert own.log.stat().st_size > 2**26


def test_a_line_of_a_mebibyte_is_shown_and_a_longer_one_not(tmp_path: Path) -> None:
    longest = b"verl-dra: " + b"x" * (2**20 - 10) + b"\n"
    with Console(tmp_path) as own:
        own.write(longest + b"verl-dra: " + longest + b"verl-dra: after it\n")
    assert own.shown.read_bytes() == longest + b"verl-dra: after it\n"


def test_a_terminal_that_does_not_read_stops_nothing(tmp_path: Path) -> None:
    nobody, terminal = os.pipe()
    with Console(tmp_path, shown=terminal) as own:
        own.write(b"verl-dra: one\n" * 50_000)
        os.close(nobody)
        own.write(b"verl-dra: two\n" * 50_000)
    os.close(terminal)
    assert own.log.stat().st_size == 2 * 50_000 * 14
    (lost,) = own.copying.lost()
    assert re.match(r"9\d{4} lines were not shown, and are in the log: TimeoutError", lost)


# The module alone: importing verl_dra would import torch.
ALONE = f"""
import importlib.util, sys
from pathlib import Path
spec = importlib.util.spec_from_file_location("console", {console.__file__!r})
console = importlib.util.module_from_spec(spec)
spec.loader.exec_module(console)
quiet, say = console.quiet, console.say
"""


def run_quietly(body: str, tmp_path: Path) -> subprocess.CompletedProcess[str]:
    code = f"""{ALONE}
import subprocess
with quiet(Path({str(tmp_path)!r}) / "run" / "train.log"):
{body}
print("after")
"""
    return subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False, timeout=60)


def test_what_is_said_is_there_at_once(monkeypatch: pytest.MonkeyPatch) -> None:
    raw = io.BytesIO()
    monkeypatch.setattr("sys.stdout", io.TextIOWrapper(raw, "utf-8"))
    console.say("news")
    assert raw.getvalue() == b"verl-dra: news\n"


def test_what_nobody_reads_is_given_up_for_good(monkeypatch: pytest.MonkeyPatch) -> None:
    read_end, write_end = os.pipe()
    os.close(read_end)
    with os.fdopen(write_end, "w") as stream:
        monkeypatch.setattr("sys.stdout", stream)
        console.say("news")
        stream.flush()  # as Python does at its own end
        monkeypatch.undo()


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


def test_of_a_log_the_last_lines_are_kept_and_of_long_ones_the_beginning(tmp_path: Path) -> None:
    with Console(tmp_path) as own:
        own.write("".join(f"{i:04d}{'x' * (1996 + i % 2)}\n" for i in range(100)).encode())
    assert list(own.copying.tail) == [f"{i:04d}{'x' * 1996}{'...' if i % 2 else ''}" for i in range(60, 100)]


def test_a_failure_shows_the_end_of_the_log(tmp_path: Path) -> None:
    done = run_quietly('    print("the cause"); raise OSError("broken")', tmp_path)
    assert done.returncode == 1
    assert "the cause" in done.stderr
    assert "the run failed" in done.stderr
    assert "OSError: broken" in done.stderr


def test_a_worker_that_prints_like_verl_does_not_hang_the_run(tmp_path: Path) -> None:
    done = run_quietly('    print("step:3 - done"); print("x" * 200_000); say("alive")', tmp_path)
    assert done.returncode == 0
    assert done.stdout == "verl-dra: alive\nafter\n"


@pytest.mark.parametrize("close", [">&-", "2>&-", "<&- >&- 2>&-", "| true"])
def test_output_that_nobody_has_ends_no_run(close: str, tmp_path: Path) -> None:
    code = ALONE + (
        "import os\n"
        f"with quiet(Path({str(tmp_path)!r}) / 'train.log'):\n"
        "    print('noise', flush=True)\n"
        "    for stream in (1, 2): os.write(stream, b'of a library\\n' * 10_000)\n"  # more than a pipe holds
        "    for _ in range(1000): say('news')\n"
        "say('the end')\n"
        f"Path({str(tmp_path)!r}, 'done').touch()\n"
    )
    script = f'set -o pipefail; "$0" -c "$1" {close}'
    done = subprocess.run(["bash", "-c", script, sys.executable, code], capture_output=True, check=False, timeout=60)
    assert done.returncode == 0, done.stderr
    assert (tmp_path / "done").exists()
    log = (tmp_path / "train.log").read_bytes()
    assert log.count(b"of a library") == 20_000
    assert log.count(b"verl-dra: news") == (0 if close.startswith((">", "<")) else 1000)


def test_what_the_log_did_not_take_is_told_at_the_end(tmp_path: Path) -> None:
    (tmp_path / "run").mkdir()
    (tmp_path / "run" / "train.log").symlink_to("/dev/full")
    done = run_quietly('    print("noise")', tmp_path)
    assert done.returncode == 0
    assert "verl-dra: 6 bytes are missing in the log: OSError(28" in done.stderr


def test_who_goes_on_writing_after_the_end_is_not_waited_for(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("verl_dra.terminal.console._LAST_S", 0.5)
    stop = threading.Event()
    with Console(tmp_path) as own:
        os.set_blocking(own.pipe, False)

        def chat() -> None:
            while not stop.is_set():
                with suppress(BlockingIOError):
                    os.write(own.pipe, b".")

        chatty = threading.Thread(target=chat)
        chatty.start()
        own.copying.finish()
        assert not own.copying.is_alive()
        stop.set()
        chatty.join(60)


def test_a_log_that_can_t_be_opened_is_an_error_at_once(tmp_path: Path) -> None:
    (tmp_path / "run" / "train.log").mkdir(parents=True)
    done = run_quietly('    print("x" * 10**6)', tmp_path)
    assert done.returncode == 1
    assert "IsADirectoryError" in done.stderr


def test_the_summary_sets_the_mean_of_the_last_steps_against_that_of_the_first() -> None:
    summary = Summary()
    summary.add(0, {"val-core/task/acc/mean@4": 0.5})
    for step in range(1, 13):
        paths = {"dra/effective_paths": 3.0 if step < 6 else 2.5} if step != 7 else {}
        missing = {"dra/missing_rows": 2.0 * (step == 4)}
        summary.add(step, {"training/global_step": step, "critic/score/mean": step / 10, **paths, **missing})
    summary.add(12, {"val-core/task/acc/mean@4": 0.625})
    assert summary.lines() == [
        "steps: 12",
        "training reward: 0.300 (mean of steps 1 to 5) -> 1.000 (mean of steps 8 to 12)",
        "effective paths: 3.000 (mean of steps 1 to 5) -> 2.500 (mean of steps 8 to 12)",
        "validation task/acc/mean@4: 0.500 (step 0) -> 0.625 (step 12)",
        "completions that had to be fetched: 2",
    ]


def test_a_short_run_is_summed_up_by_its_halves() -> None:
    summary = Summary()
    for step, reward in enumerate((0.2, 0.4, 0.9, 0.5, 0.7), start=1):
        summary.add(step, {"critic/score/mean": reward})
    assert summary.lines()[1:] == ["training reward: 0.300 (mean of steps 1 to 2) -> 0.600 (mean of steps 4 to 5)"]


def test_the_summary_says_once_what_was_measured_once() -> None:
    summary = Summary()
    summary.add(0, {"val-core/task/acc/mean@4": 0.5})
    assert summary.lines() == ["steps: 0", "validation task/acc/mean@4: 0.500 (step 0)"]


def test_the_summary_leaves_out_what_is_no_number() -> None:
    summary = Summary()
    summary.add(1, {"critic/score/mean": "high", "val-core/task/acc/mean@4": None, "dra/effective_paths": 2.0})
    assert summary.lines() == ["steps: 0", "effective paths: 2.000 (step 1)"]


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


def test_the_command_that_a_run_names_at_its_end_can_be_pasted(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr("verl_dra.main.train", lambda *_: None)
    out = tmp_path / "my runs"
    monkeypatch.setattr(
        sys, "argv", ["train", "actor_rollout_ref.rollout.n=4", "dra.console=full", f"hydra.run.dir='{out}'"]
    )
    main()
    assert f"to see them: verl-dra report '{out}'\n" in capsys.readouterr().out
